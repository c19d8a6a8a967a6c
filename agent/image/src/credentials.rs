//! Logins of registries, as `docker login` keeps them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::error::{ImageError, at};

/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// What Docker's own registry is called in this file.
const DEFAULT: [&str; 2] = ["docker.io", "index.docker.io"];

/// How a registry is asked.
pub(crate) enum Login {
    /// Without a login.
    None,
    /// As this user, with this password.
    Basic(String, String),
    /// Without: another program has the login.
    Elsewhere(String),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Logins {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    identitytoken: String,
}

/// The file of this user.
fn file() -> Option<PathBuf> {
    let of = |variable: &str, rest: &str| {
        let place = std::env::var_os(variable).filter(|place| !place.is_empty())?;
        Some(Path::new(&place).join(rest))
    };
    of("DOCKER_CONFIG", "config.json").or_else(|| of("HOME", ".docker/config.json"))
}

/// The login of a registry.
pub(crate) fn login(registry: &str) -> Result<Login, ImageError> {
    file().map_or(Ok(Login::None), |file| login_in(&file, registry))
}

fn login_in(path: &Path, registry: &str) -> Result<Login, ImageError> {
    let mut text = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(FILE_MAX).read_to_end(&mut text).map_err(at(path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Login::None),
        Err(error) => return Err(at(path)(error)),
    };
    let wrong = |detail: &str| ImageError::Credentials { path: path.to_owned(), detail: detail.to_owned() };
    // What it says is secret: where it is wrong must do.
    let logins: Logins = serde_json::from_slice(&text)
        .map_err(|error| wrong(&format!("line {}: it is not what `docker login` writes", error.line())))?;
    let helper = logins.cred_helpers.get(registry).or(logins.creds_store.as_ref());
    let entry = logins.auths.iter().find(|(key, _)| names(key, registry)).map(|(_, entry)| entry);
    match entry {
        Some(entry) if !entry.identitytoken.is_empty() => {
            Err(wrong("an identity token is not supported: log in with an access token as the password"))
        }
        Some(entry) if !entry.auth.is_empty() => {
            let plain = STANDARD.decode(&entry.auth).ok().and_then(|plain| String::from_utf8(plain).ok());
            match plain.as_deref().and_then(|plain| plain.split_once(':')) {
                Some((user, password)) => Ok(Login::Basic(user.to_owned(), password.to_owned())),
                None => Err(wrong("its `auth` is no user and password: log in again")),
            }
        }
        _ => Ok(helper.map_or(Login::None, |helper| Login::Elsewhere(helper.clone()))),
    }
}

/// Whether an entry, as `https://index.docker.io/v1/`, is of this registry.
fn names(key: &str, registry: &str) -> bool {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let host = key.split('/').next().unwrap_or_default();
    host == registry || (DEFAULT.contains(&host) && DEFAULT.contains(&registry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_found_by_every_name_of_their_registry() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // user:pass:word
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dXNlcjpwYXNzOndvcmQ="}, "r.example:5000": {"auth": "bm8="},
            "token.example": {"identitytoken": "x"}, "kept.example": {}},
            "credHelpers": {"helped.example": "ecr-login"}, "HttpHeaders": {}}"#;
        std::fs::write(file.path(), text).unwrap();
        let of = |registry: &str| login_in(file.path(), registry);
        let Ok(Login::Basic(user, password)) = of("docker.io") else { panic!("no login") };
        assert_eq!((&*user, &*password), ("user", "pass:word"));
        assert!(matches!(of("other.example"), Ok(Login::None)));
        assert!(matches!(of("kept.example"), Ok(Login::None)));
        assert!(matches!(of("helped.example"), Ok(Login::Elsewhere(helper)) if helper == "ecr-login"));
        for (registry, said) in [("r.example:5000", "log in again"), ("token.example", "access token")] {
            let error = of(registry).err().unwrap().to_string();
            assert!(error.contains(said) && !error.contains("bm8"), "{error}");
        }
        std::fs::write(file.path(), "{\"auths\": secret").unwrap();
        let error = of("docker.io").err().unwrap().to_string();
        assert!(error.contains("line 1") && !error.contains("secret"), "{error}");
        assert!(matches!(login_in(Path::new("/nowhere/config.json"), "docker.io"), Ok(Login::None)));
    }
}
