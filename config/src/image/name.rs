//! The name of an image.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where names without a registry are looked up, as other tools do.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Where its names without a directory are.
const DEFAULT_DIRECTORY: &str = "library";

/// Prefixes of names that are no registry's.
const LAYOUT: &str = "oci:";
const ARCHIVE: &str = "docker-archive:";

/// The longest name (255 of the registry's path, a host, a tag, a digest).
const NAME_MAX: usize = 1024;

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageName {
    /// `registry/name:tag`, or `registry/name@sha256:...`.
    Registry {
        /// Host, with a port where it is not the usual one.
        host: String,
        /// The name there.
        repository: String,
        /// The tag. With a digest it says nothing.
        tag: Option<String>,
        /// The digest of the manifest, as in `sha256:...`.
        digest: Option<String>,
    },
    /// `oci:DIR` or `oci:DIR:TAG`: a directory with the layout of the OCI image specification.
    Layout {
        /// An absolute path.
        directory: PathBuf,
        /// Which image, if there are several.
        tag: Option<String>,
    },
    /// `docker-archive:FILE`: what `docker save` writes.
    Archive(PathBuf),
}

impl ImageName {
    /// As [`Self::parse`], with paths that may begin in `directory`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_in(text: &str, directory: &Path) -> Result<Self, String> {
        for prefix in [LAYOUT, ARCHIVE] {
            if let Some(path) = text.strip_prefix(prefix) {
                return Self::parse(&format!("{prefix}{}", directory.join(path).display()));
            }
        }
        Self::parse(text)
    }

    /// Reads a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > NAME_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("must be at most {NAME_MAX} printable characters without blanks"));
        }
        if let Some(rest) = text.strip_prefix(ARCHIVE) {
            return absolute(rest, "docker-archive:/srv/app.tar").map(Self::Archive);
        }
        if let Some(rest) = text.strip_prefix(LAYOUT) {
            let (path, tag) = match rest.rsplit_once(':') {
                Some((path, tag)) if is_tag(tag) => (path, Some(tag.to_owned())),
                _ => (rest, None),
            };
            return absolute(path, "oci:/srv/app").map(|directory| Self::Layout { directory, tag });
        }
        registry(text)
    }

    /// The digest that the manifest must have.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        match self {
            Self::Registry { digest, .. } => digest.as_deref(),
            Self::Layout { .. } | Self::Archive(_) => None,
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { host, repository, tag, digest } => {
                write!(f, "{host}/{repository}")?;
                tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
                digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
            }
            Self::Layout { directory, tag } => {
                write!(f, "oci:{}", directory.display())?;
                tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
            }
            Self::Archive(file) => write!(f, "docker-archive:{}", file.display()),
        }
    }
}

fn absolute(path: &str, example: &str) -> Result<PathBuf, String> {
    let path = Path::new(path);
    if path.is_absolute() {
        // One name for one place.
        return Ok(path.components().collect());
    }
    Err(format!("must name an absolute path, as in {example:?}"))
}

fn registry(text: &str) -> Result<ImageName, String> {
    const RULE: &str = "must be the name of an image, as in \"registry.example/app:1\", \"nginx@sha256:...\", \
                        \"oci:/srv/app\" or \"docker-archive:/srv/app.tar\"";
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
        Some(_) => return Err(format!("{RULE}; a digest is sha256: and 64 digits of 0-9 and a-f")),
        None => (text, None),
    };
    let (rest, tag) = match rest.rsplit_once(':') {
        // What follows the last colon may be a port.
        Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag.to_owned())),
        _ => (rest, None),
    };
    let (host, repository) = match rest.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest.to_owned()),
        Some(_) => (DEFAULT_REGISTRY, rest.to_owned()),
        None => (DEFAULT_REGISTRY, format!("{DEFAULT_DIRECTORY}/{rest}")),
    };
    let good = is_host(host)
        && (1..=255).contains(&repository.len())
        && repository.split('/').all(is_part)
        && tag.as_deref().is_none_or(is_tag);
    if !good {
        return Err(RULE.to_owned());
    }
    let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
    Ok(ImageName::Registry { host: host.to_owned(), repository, tag, digest })
}

fn is_host(text: &str) -> bool {
    let (name, port) = text.rsplit_once(':').unwrap_or((text, "443"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(plain)
        && port.parse::<u16>().is_ok()
}

/// A part of a repository's name (distribution specification).
fn is_part(text: &str) -> bool {
    let end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    end(text.bytes().next()) && end(text.bytes().last()) && text.bytes().all(plain)
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || b".-".contains(&byte))
}

fn is_digest(text: &str) -> bool {
    let hex =
        |digits: &str| digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    text.strip_prefix("sha256:").is_some_and(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_completed_as_other_tools_do() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("me/app:1", "docker.io/me/app:1"),
            ("localhost/app", "localhost/app:latest"),
            ("127.0.0.1:5000/a/b:1.2-x", "127.0.0.1:5000/a/b:1.2-x"),
            ("ghcr.io/me/app:1", "ghcr.io/me/app:1"),
            ("oci:/srv/app", "oci:/srv/app"),
            ("oci:/srv/app:v1", "oci:/srv/app:v1"),
            ("docker-archive:/srv/app.tar", "docker-archive:/srv/app.tar"),
            (&format!("nginx@{digest}"), &format!("docker.io/library/nginx@{digest}")),
            (&format!("r.example/n:1@{digest}"), &format!("r.example/n:1@{digest}")),
        ] {
            let name = ImageName::parse(text).unwrap();
            assert_eq!(name.to_string(), full);
            assert_eq!(ImageName::parse(full), Ok(name), "a full name names the same");
        }
    }

    #[test]
    fn paths_may_begin_where_a_command_runs() {
        let here = |text: &str| ImageName::parse_in(text, Path::new("/srv")).unwrap().to_string();
        assert_eq!(here("oci:app:v1"), "oci:/srv/app:v1");
        assert_eq!(here("oci:./app/"), "oci:/srv/app");
        assert_eq!(here("docker-archive:/a.tar"), "docker-archive:/a.tar");
        assert_eq!(here("localhost/app:1"), "localhost/app:1");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "Nginx",
            "nginx:",
            "nginx:a b",
            "a//b",
            "-a",
            "a:b:c",
            "nginx@sha256:12",
            "../a",
            "a/../b",
            "oci:srv/app",
            "docker-archive:app.tar",
            "r.example:x/a",
            "r.example:99999/a",
            "http://r.example/a",
            "/srv/app",
        ] {
            assert!(ImageName::parse(text).is_err(), "{text:?}");
        }
        assert!(ImageName::parse(&"a".repeat(2000)).is_err());
    }
}
