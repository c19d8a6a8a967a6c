//! What only the host can tell: files, their modes, and interfaces.
//!
//! These problems do not make the configuration unusable: the agent logs them and serves the functions that
//! have none.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::image::ImageStore;
use crate::keys::Keys;
use crate::private::{check_place, read_private};
use crate::subuid::reserved_by_others;
use crate::{Agent, Backend, Config, Function, Interfaces, Mount, Problem, Syn};

/// The largest file with a password or a private key, in bytes.
pub const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// As the kernel's limit of symbolic links in a path (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

impl Config {
    /// Compares the configuration with the host. Each problem says what to do.
    pub fn check_host(&self) -> Vec<Problem> {
        let agent = self.agent.check_host();
        let syn = self.syn.check_host();
        let backends = self.backends.iter().flat_map(Backend::check_host);
        let functions = self.functions.iter().flat_map(Function::check_host);
        agent.into_iter().chain(syn).chain(backends).chain(functions).collect()
    }
}

impl Agent {
    /// Interfaces that do not exist, a state directory that others can change, and users that others have.
    pub fn check_host(&self) -> Vec<Problem> {
        let open = self.state_dir.exists().then(|| check_place(&self.state_dir).err()).flatten();
        let open = open.map(|message| self.origin.problem("state_dir", message));
        let shared = self.uids.as_ref().and_then(reserved_by_others);
        let shared = shared.map(|message| self.origin.problem("uids", message));
        open.into_iter().chain(self.check_interfaces()).chain(shared).collect()
    }

    fn check_interfaces(&self) -> Vec<Problem> {
        let Interfaces::Named(names) = &self.interfaces else { return Vec::new() };
        let missing = names.iter().filter(|name| !Path::new("/sys/class/net").join(name).exists());
        let problem = |name: &String| {
            let message = format!("this host has no interface {name:?}: `ip link` lists those it has");
            self.origin.problem("interfaces", message)
        };
        missing.map(problem).collect()
    }
}

impl Syn {
    /// A key file that cannot be used, or that others can read.
    pub fn check_host(&self) -> Vec<Problem> {
        let Some(path) = &self.key_file else { return Vec::new() };
        let message = match Keys::load(path) {
            Ok(keys) if keys.is_empty() => {
                format!("{} holds no key: write a line `NUMBER HEX` into it", path.display())
            }
            Ok(_) => return Vec::new(),
            Err(error) => error.to_string(),
        };
        vec![self.origin.problem("key_file", message)]
    }
}

impl Backend {
    /// Files with secrets that cannot be used, or that others can read, and certificates that are missing.
    pub fn check_host(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |key, outcome: Result<(), String>| {
            problems.extend(outcome.err().map(|message| self.origin.problem(key, message)));
        };
        if let Some(path) = self.protocol.password_file() {
            check("password_file", check_secret_file(path, "the password"));
        }
        if let Some(tls) = &self.tls {
            if let Some((chain, key)) = &tls.client {
                check("tls", check_certificates(chain));
                check("tls", check_secret_file(key, "the private key"));
            }
            if let Some(path) = &tls.ca_file {
                check("tls", check_certificates(path));
            }
        }
        problems
    }
}

impl Function {
    /// A root file system, a program, a mount or a secret that is missing, or cannot be used.
    pub fn check_host(&self) -> Vec<Problem> {
        let namespaced = self.namespace_root.is_some();
        let runtime = self.runtime.check_host(&self.command, !self.secrets.is_empty(), namespaced).err();
        let mounts = self.mounts.iter().filter_map(|mount| self.check_mount(mount).err());
        let secrets =
            self.secrets.iter().filter_map(|secret| check_secret_file(&secret.file, "the secret").err());
        let mounts = mounts.map(|message| ("mounts", message));
        let secrets = secrets.map(|message| ("secrets", message));
        let all = runtime.into_iter().chain(mounts).chain(secrets);
        all.map(|(key, message)| self.origin.problem(key, message)).collect()
    }

    /// Takes over what its image says, and notes which files instances begin with.
    pub(crate) fn look(&mut self, images: &ImageStore) {
        self.take_from_image(images);
        let mut found = self.runtime.look(&self.command);
        found.extend(self.mounts.iter().map(|mount| identity(mount.source.canonicalize(), false)));
        found.extend(self.secrets.iter().map(|secret| identity(secret.file.canonicalize(), true)));
        self.found = found.join(" ");
    }

    fn check_mount(&self, mount: &Mount) -> Result<(), String> {
        let source = fs::metadata(&mount.source).map_err(|error| {
            format!("{}: {error}: create it, or correct `source`", mount.source.display())
        })?;
        self.runtime.check_target(&mount.target, source.is_dir())
    }
}

fn check_certificates(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("{}: {error}: put the certificates there", path.display()))?;
    if text.contains("-----BEGIN CERTIFICATE-----") {
        return Ok(());
    }
    Err(format!("{} holds no certificate in PEM", path.display()))
}

/// What tells a file from another one at the same path, and from an earlier content where `content` counts.
pub(crate) fn identity(path: io::Result<PathBuf>, content: bool) -> String {
    let Ok(metadata) = path.and_then(fs::metadata) else { return "-".to_owned() };
    let file = format!("{}:{}", metadata.dev(), metadata.ino());
    if !content {
        return file;
    }
    // Not the time of the last change of its mode or links, which changes nothing for an instance.
    format!("{file}:{}:{}.{}", metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

/// `what` it holds.
fn check_secret_file(path: &Path, what: &'static str) -> Result<(), String> {
    let text = read_private(path, what, MAX_SECRET_BYTES).map_err(|error| error.to_string())?;
    if text.is_empty() || text == b"\n" {
        return Err(format!("{} is empty: write {what} into it", path.display()));
    }
    Ok(())
}

/// `file` is where `program` was found; `place` completes "there is no program ..".
pub(crate) fn check_program(file: io::Result<PathBuf>, program: &Path, place: &str) -> Result<(), String> {
    let shown = program.display();
    let metadata = file.and_then(fs::metadata).map_err(|error| {
        format!("there is no program {shown}{place} ({error}): build it, or correct the path")
    })?;
    if !metadata.is_file() {
        return Err(format!("{shown}{place} is not a file: name the program itself"));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(format!("{shown}{place} is not executable: `chmod +x` it"));
    }
    Ok(())
}

/// Where `path` leads once `root` is the root directory: absolute links start again at `root`, and `..` does
/// not leave it. Good enough to give advice; the container runtime resolves the path again by itself.
pub(crate) fn resolve_in(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut inside = PathBuf::new();
    let mut links = 0;
    let mut pending = components(path);
    while let Some(part) = pending.pop() {
        match part.to_str() {
            Some("..") => {
                inside.pop();
                continue;
            }
            _ => inside.push(&part),
        }
        let here = root.join(&inside);
        if !fs::symlink_metadata(&here)?.is_symlink() {
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(io::Error::other("too many symbolic links"));
        }
        let target = fs::read_link(&here)?;
        inside.pop();
        if target.is_absolute() {
            inside.clear();
        }
        pending.extend(components(&target));
    }
    Ok(root.join(inside))
}

/// The parts of `path` below the root, last first.
fn components(path: &Path) -> Vec<std::ffi::OsString> {
    let mut parts: Vec<_> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect();
    parts.reverse();
    parts
}
