//! Instance names: `<function>-<suffix>`, where the suffix holds no `-`.

use std::collections::BTreeSet;
use std::path::Path;

use super::StartError;

/// Longest instance name in bytes: that of a function, at most 63, and its suffix.
const MAX_BYTES: usize = 96;

/// Longest host name in bytes (`HOST_NAME_MAX`, gethostname(2)).
const HOST_BYTES: usize = 64;

/// The end of an instance's name, where its suffix is, as a host name.
pub(super) fn host(instance: &str) -> &str {
    let from = instance.len().saturating_sub(HOST_BYTES);
    instance.get(from..).unwrap_or(instance).trim_start_matches('-')
}

/// Whether `instance` is one of `function`: the last `-` separates, so that the
/// instances of `a-b` are not taken for those of `a`.
pub(super) fn belongs(instance: &str, function: &str) -> bool {
    instance.rsplit_once('-').is_some_and(|(owner, suffix)| owner == function && !suffix.is_empty())
}

/// Refuses names that are not safe as a file name, or belong to another function.
pub(super) fn check(instance: &str, function: &str) -> Result<(), StartError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let safe =
        instance.len() <= MAX_BYTES && instance.bytes().all(plain) && !instance.starts_with(['.', '-']);
    if safe && belongs(instance, function) {
        return Ok(());
    }
    Err(StartError::InstanceName { instance: instance.to_owned(), function: function.to_owned() })
}

/// The function of an instance.
pub(super) fn function_of(instance: &str) -> &str {
    instance.rsplit_once('-').map_or(instance, |(function, _)| function)
}

/// The instances that have an entry in `directory`. None when it does not exist.
pub(super) fn instances_in(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| check(name, function_of(name)).is_ok()).collect()
}
