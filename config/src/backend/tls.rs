//! `tls`: how a backend is reached through TLS.

use std::path::PathBuf;

use super::Address;
use super::kind::{Kind, TlsRule, all_keys, words};
use crate::table::{Table, Value};

/// The keys of `tls`. `true` is a table without keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates that are trusted, in PEM; an absolute path. Default: those that this system trusts.
    pub ca_file: Option<PathBuf>,
    /// The DNS name, or IP address, that the server's certificate must be for. Default: the host in `address`.
    pub server_name: Option<String>,
    /// `cert_file` and `key_file`: our certificate with its chain and its private key, in PEM, for servers that ask for
    /// one. Both or none; absolute paths. Default none.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Application protocols to offer (RFC 7301), best first; only with `kind = "tls"`. At most 8, each of 1 to 255
    /// bytes. Default none.
    pub alpn: Vec<String>,
    /// TLS begins at once, without asking the server for it: PostgreSQL from 17 on, and proxies that speak TLS for it.
    /// Only with `kind = "postgres"`. Default `false`.
    pub direct: bool,
}

impl Tls {
    /// `None` when something about it is wrong, which has been reported.
    pub(super) fn read(
        table: &mut Table<'_>,
        kind: Option<&'static Kind>,
        address: Option<&Address>,
    ) -> Option<Option<Self>> {
        let rule = kind.map_or(&TlsRule::Optional, |kind| &kind.tls);
        let tls = match table.get("tls") {
            None => matches!(rule, TlsRule::Always(_)).then(Self::default),
            Some(value) => {
                let (on, keys) = value.boolean_or_table("tls = { ca_file = \"/etc/headstart/ca.pem\" }")?;
                match (on, rule) {
                    (false, TlsRule::Always(why)) | (true, TlsRule::Never(why)) => value.fail(*why)?,
                    _ => {}
                }
                let tls = keys.map_or_else(Self::default, |keys| Self::of(keys, kind));
                on.then_some(tls)
            }
        };
        if tls.is_some() && matches!(address, Some(Address::Unix(_))) {
            table.refuse("address", "is a unix socket, which no network carries: remove `tls`");
        }
        Some(tls)
    }

    fn of(mut table: Table<'_>, kind: Option<&'static Kind>) -> Self {
        let ca_file = table.get("ca_file").and_then(|v| v.absolute_path());
        let server_name = table.get("server_name").and_then(|v| v.text().map(str::to_owned));
        let cert_file = table.get("cert_file").map(|v| v.absolute_path());
        let key_file = table.get("key_file").map(|v| v.absolute_path());
        let client = match (cert_file, key_file) {
            (Some(cert), Some(key)) => cert.zip(key),
            (None, None) => None,
            (Some(_), None) => table.require("key_file", ": the private key of cert_file", |_| None),
            (None, Some(_)) => table.require("cert_file", ": the certificate of key_file", |_| None),
        };
        for key in all_keys(|kind| kind.tls_keys) {
            if kind.is_some_and(|kind| !kind.tls_keys.contains(&key)) {
                let theirs = words(|kind| kind.tls_keys.contains(&key));
                table.refuse(key, &format!("belongs to kind = {theirs}"));
            }
        }
        let direct = table.or("direct", false, |v| v.boolean());
        let alpn = table.get("alpn").and_then(|v| alpn(&v));
        table.finish();
        Self { ca_file, server_name, client, alpn: alpn.unwrap_or_default(), direct }
    }
}

fn alpn(value: &Value<'_>) -> Option<Vec<String>> {
    let names = value.list()?;
    if names.len() > 8 {
        return value.fail("must be at most 8 names");
    }
    let name = |v: Value<'_>| v.matching("1 to 255 bytes", |text| (1..=255).contains(&text.len()));
    names.into_iter().map(name).collect()
}
