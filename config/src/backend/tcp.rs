//! `kind = "tcp"` and `kind = "tls"`: connections on which nothing was said yet.

use super::Protocol;
use super::kind::{Kind, ProtocolKeys, TlsRule, words};
use crate::fingerprint::Fingerprint;

pub(super) const TCP: Kind = Kind {
    word: "tcp",
    keys: &[],
    tls: TlsRule::Never("is for other kinds: with TLS this one is \"tls\""),
    tls_keys: &[],
    recycles: false,
    read: |_| Some(Protocol::Tcp),
};

pub(super) const TLS: Kind = Kind {
    word: "tls",
    keys: &[],
    tls: TlsRule::Always("cannot be false with kind = \"tls\": without TLS the kind is \"tcp\""),
    tls_keys: &["alpn"],
    recycles: false,
    read: |_| Some(Protocol::Tcp),
};

/// Neither kind has keys of its own.
pub(super) struct NoKeys;

impl ProtocolKeys for NoKeys {
    fn why_not_recycled(&self) -> Option<String> {
        Some(format!("can be \"recycle\" only with kind = {}", words(|kind| kind.recycles)))
    }

    fn fingerprint(&self, hash: &mut Fingerprint) {
        // With `tls`, the keys of that table tell the kinds apart.
        hash.add("kind", "tcp");
    }
}
