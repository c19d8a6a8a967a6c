//! What the reader of `[[backend]]` asks of each kind.

use std::path::PathBuf;

use super::{KINDS, Protocol};
use crate::fingerprint::Fingerprint;
use crate::table::Table;

/// One value of `kind`.
pub(super) struct Kind {
    /// The value itself.
    pub(super) word: &'static str,
    /// Of the keys of `[[backend]]` that only some kinds have, those of this kind.
    pub(super) keys: &'static [&'static str],
    /// Whether connections of this kind have TLS.
    pub(super) tls: TlsRule,
    /// Of the keys of `tls` that only some kinds have, those of this kind.
    pub(super) tls_keys: &'static [&'static str],
    /// Whether sessions of this kind can be cleaned after use.
    pub(super) recycles: bool,
    /// Reads `keys`. `None` when something is wrong, which has been reported.
    pub(super) read: fn(&mut Table<'_>) -> Option<Protocol>,
}

/// Whether the connections of a kind have TLS.
pub(super) enum TlsRule {
    /// As `tls` says.
    Optional,
    /// Always; the message says why `tls = false` is wrong.
    Always(&'static str),
    /// Never; the message says why `tls = true` is wrong.
    Never(&'static str),
}

/// The keys of a section, with the rules of its kind.
pub(super) trait ProtocolKeys {
    /// The file with the password, if there is one.
    fn password_file(&self) -> Option<&PathBuf> {
        None
    }

    /// Why a session cannot be brought back to its state after the login, if it cannot.
    fn why_not_recycled(&self) -> Option<String> {
        None
    }

    /// Environment variables that lead the usual drivers to the socket in `directory`. Default none.
    fn variables(&self, _directory: &str) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Adds what instances depend on. The order of the keys is part of the hash.
    fn fingerprint(&self, hash: &mut Fingerprint);
}

/// Reads `kind`, and reports the keys that belong to other kinds.
pub(super) fn read(table: &mut Table<'_>) -> Option<&'static Kind> {
    let kind = table.require("kind", &format!(": {}", choices()), |v| v.choice(&KINDS.map(|k| (k.word, k))));
    for key in all_keys(|kind| kind.keys) {
        match kind {
            Some(kind) if kind.keys.contains(&key) => {}
            Some(kind) => {
                let (theirs, word) = (words(|kind| kind.keys.contains(&key)), kind.word);
                table.refuse(key, &format!("belongs to kind = {theirs}, and this backend is {word:?}"));
            }
            // Which keys belong here is not known: none of them is wrong.
            None => drop(table.get(key)),
        }
    }
    kind
}

/// Every key of a set of keys that at least one kind has, once.
pub(super) fn all_keys(of: fn(&Kind) -> &'static [&'static str]) -> Vec<&'static str> {
    let mut keys = Vec::new();
    for key in KINDS.iter().flat_map(|kind| of(kind)) {
        if !keys.contains(key) {
            keys.push(*key);
        }
    }
    keys
}

/// The kinds for which `holds`, as messages list them: `"a" or "b"`.
pub(super) fn words(holds: impl Fn(&Kind) -> bool) -> String {
    let words = KINDS.iter().filter(|kind| holds(kind)).map(|kind| format!("{:?}", kind.word));
    words.collect::<Vec<_>>().join(" or ")
}

/// All kinds: `"a", "b" or "c"`.
fn choices() -> String {
    let all = words(|_| true);
    match all.rsplit_once(" or ") {
        Some((first, last)) => format!("{} or {last}", first.replace(" or ", ", ")),
        None => all,
    }
}
