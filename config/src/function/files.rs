//! `mounts` and `secrets` of a `[[function]]`: what instances see of the host.

use std::path::{Component, Path, PathBuf};

use crate::table::Value;

/// Where an instance finds its secrets.
pub const SECRETS_PATH: &str = "/run/secrets";

/// The most mounts, and the most secrets, of one function.
const MAX_FILES: usize = 16;

/// Places in which an instance has something of its own, and their subdirectories.
const OWN: [&str; 3] = ["/proc", "/dev", "/sys"];
/// Places which the agent fills: nothing can be below or above them.
const AGENTS: [&str; 2] = ["/run/headstart", SECRETS_PATH];

/// A file or a directory of the host that instances see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// On the host; an absolute path without `..`.
    pub source: PathBuf,
    /// In the instance; an absolute path without `..`, which is in no place of the instance's own, and is not above or
    /// below another one.
    pub target: PathBuf,
    /// Default `true`.
    pub read_only: bool,
}

/// A file of which instances get the content in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// On the host; an absolute path.
    pub file: PathBuf,
    /// Its name in [`SECRETS_PATH`]; unique.
    pub name: String,
}

pub(super) fn mounts(value: &Value<'_>) -> Option<Vec<Mount>> {
    let mut mounts: Vec<Mount> = Vec::new();
    for item in items(value)? {
        let form = "{ source = \"/srv/data\", target = \"/data\" }";
        let Some(mut table) = item.table(form) else { continue };
        let source = table.require("source", "", |v| path(&v));
        let target = table.require("target", "", |v| target(&v, &mounts));
        let read_only = table.or("read_only", true, |v| v.boolean());
        table.finish();
        if let (Some(source), Some(target)) = (source, target) {
            mounts.push(Mount { source, target, read_only });
        }
    }
    Some(mounts)
}

pub(super) fn secrets(value: &Value<'_>) -> Option<Vec<Secret>> {
    let mut secrets: Vec<Secret> = Vec::new();
    for item in items(value)? {
        let form = "{ file = \"/etc/headstart/api-key\", name = \"api-key\" }";
        let Some(mut table) = item.table(form) else { continue };
        let file = table.require("file", "", |v| path(&v));
        let name = table.require("name", "", |v| secret_name(&v, &secrets));
        table.finish();
        if let (Some(file), Some(name)) = (file, name) {
            secrets.push(Secret { file, name });
        }
    }
    Some(secrets)
}

fn items<'a>(value: &Value<'a>) -> Option<Vec<Value<'a>>> {
    let items = value.list()?;
    if items.len() > MAX_FILES {
        return value.fail(format!("must be at most {MAX_FILES}, not {}", items.len()));
    }
    Some(items)
}

fn path(value: &Value<'_>) -> Option<PathBuf> {
    let path = value.absolute_path()?;
    if path.components().any(|part| part == Component::ParentDir) {
        return value.fail("must not contain \"..\"");
    }
    // Without "//" and "/.", so that two paths can be compared.
    Some(path.components().collect())
}

fn target(value: &Value<'_>, mounts: &[Mount]) -> Option<PathBuf> {
    let path = path(value)?;
    let meets = |other: &Path| path.starts_with(other) || other.starts_with(&path);
    if path == Path::new("/") || path == Path::new("/tmp") {
        return value.fail("an instance has one of its own: choose a directory below it");
    }
    if let Some(own) = OWN.iter().find(|own| path.starts_with(own)) {
        return value.fail(format!("{own} is the instance's own: choose another place"));
    }
    if let Some(own) = AGENTS.iter().find(|own| meets(Path::new(own))) {
        return value.fail(format!("the agent puts something at {own}: choose another place"));
    }
    if let Some(other) = mounts.iter().find(|other| meets(&other.target)) {
        return value.fail(format!("is the target {}, or one is below the other", other.target.display()));
    }
    Some(path)
}

fn secret_name(value: &Value<'_>, secrets: &[Secret]) -> Option<String> {
    let rule = "1 to 64 letters, digits, \"-\", \"_\" and \".\", and not begin with \".\"";
    let name = value.matching(rule, |text| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        (1..=64).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.')
    })?;
    if secrets.iter().any(|other| other.name == name) {
        return value.fail(format!("{name:?} is the name of two secrets"));
    }
    Some(name)
}
