//! `[[front]]`: one address for many functions.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::RequireAuth;
use crate::config::{Claimant, Declarations};
use crate::function::Function;
use crate::problem::Origin;
use crate::table::{Report, Table, Value, closest};

mod host;

pub use host::host_matches;
pub(crate) use host::{claim, hosts, paths};

/// An address at which the agent accepts by itself, for every function with `hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// Unique; 1 to 63 of a-z, 0-9 and "-". Metrics use it.
    pub name: String,
    /// The address the agent binds; nothing else overlaps with it.
    pub listen: SocketAddr,
    /// Files in PEM with a certificate, its chain and its key, or directories of them; absolute paths, at most 64. Default
    /// none: clients speak plain HTTP.
    pub certificates: Vec<PathBuf>,
    /// What goes to the functions. Default [`Carry::Requests`].
    pub carry: Carry,
    /// The bytes of a client come after a header of the PROXY protocol, version 2, which has its address. Only with
    /// [`Carry::Bytes`]. Default `false`.
    pub proxy_protocol: bool,
    /// Application protocols that every function of the front speaks (RFC 7301), best first; at most 8. Only with
    /// [`Carry::Bytes`]. Default `["http/1.1"]`.
    pub alpn: Vec<String>,
    /// The function of clients that name no host, or one that no function has. Default none: they are refused.
    pub default: Option<String>,
    /// The most connections at a time, 1 to 65535; more wait in the backlog. Default 4096.
    pub connections: u32,
    /// The most connections of one source (an IPv4 address or an IPv6 /64) at a time, 1 to 65535. Default 256.
    pub source_connections: u32,
    /// How long a TLS handshake, and the head of a request, may take, 100 ms to 5 m. Default 10 s.
    pub handshake_timeout: Duration,
    /// After this time without a byte to or from its client a connection ends, 1 s to 24 h. Default 5 m.
    pub idle_timeout: Duration,
    /// Connections that wait for the agent to accept them, 1 to 65535. Default 1024.
    pub backlog: u16,
    /// Where this section is in the file.
    pub origin: Origin,
}

/// What a front gives to functions of what its clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// `"requests"`: each request of HTTP/1.1 or HTTP/2 goes to the function that its host and path name.
    Requests,
    /// `"bytes"`: what a client sends goes, decrypted, to the function that the name in its ClientHello names. Functions
    /// with `paths` cannot be told apart so, and are not reached.
    Bytes,
}

impl Carry {
    /// The word in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Bytes => "bytes",
        }
    }
}

/// The most files and directories with certificates of one front.
const CERTIFICATES_MAX: usize = 64;

/// The most application protocols.
const ALPN_MAX: usize = 8;

impl Front {
    /// `functions` are those of the file.
    pub(crate) fn read(
        mut table: Table<'_>,
        declared: &mut Declarations,
        functions: &[Function],
    ) -> Option<Self> {
        let (ms, secs, mins, hours) =
            (Duration::from_millis, Duration::from_secs, Duration::from_mins, Duration::from_hours);
        let line = table.line();
        let name = table.require("name", "", |v| {
            let name = v.name()?;
            match declared.fronts.get(&name) {
                Some(line) => v.fail(format!("{name:?} is already the front on line {line}")),
                None => Some(name),
            }
        });
        if let Some(name) = &name {
            declared.fronts.insert(name.clone(), line);
            table.rename(format!("front.{name}"));
        }
        let listen = table.require("listen", "", |v| listen(&v, name.as_deref(), declared));
        let certificates = table.or("certificates", Vec::new(), |v| certificates(&v));
        let is_plain = certificates.is_empty();
        let carry = table.or("carry", Carry::Requests, |v| {
            let carry = v.choice(&[Carry::Requests, Carry::Bytes].map(|carry| (carry.as_str(), carry)))?;
            if carry == Carry::Bytes && is_plain {
                return v.fail("needs certificates: without TLS only requests say which function is meant");
            }
            Some(carry)
        });
        if carry == Carry::Requests {
            for key in ["proxy_protocol", "alpn"] {
                table.refuse(
                    key,
                    "needs carry = \"bytes\": requests bring the client's address in their header, and are HTTP",
                );
            }
        }
        let default = table.or("default", None, |v| default(&v, declared, functions).map(Some));
        let connections = table.or("connections", 4096, |v| v.integer(1..=65_535));
        Some(Self {
            certificates,
            carry,
            proxy_protocol: table.or("proxy_protocol", false, |v| v.boolean()),
            alpn: table.or("alpn", vec!["http/1.1".to_owned()], |v| alpn(&v)),
            default,
            connections,
            source_connections: table.or("source_connections", 256, |v| v.integer(1..=65_535)),
            handshake_timeout: table.or("handshake_timeout", secs(10), |v| v.duration(ms(100)..=mins(5))),
            idle_timeout: table.or("idle_timeout", mins(5), |v| v.duration(secs(1)..=hours(24))),
            backlog: table.or("backlog", 1024, |v| v.integer(1..=65_535)),
            origin: table.finish(),
            name: name?,
            listen: listen?,
        })
    }
}

/// Functions with hosts that no front leads to.
pub(crate) fn check_reachable(report: &Report, functions: &[Function], fronts: usize) {
    if fronts > 0 {
        return;
    }
    for function in functions.iter().filter(|function| !function.hosts.is_empty()) {
        let message = "leads nowhere without a [[front]]: add one, or remove hosts";
        let problem = function.origin.problem("hosts", message);
        report.add(problem.line, &problem.key, problem.message);
    }
}

fn listen(value: &Value<'_>, name: Option<&str>, declared: &mut Declarations) -> Option<SocketAddr> {
    let address = value.socket_address()?;
    if address.port() == 0 {
        return value.fail("must have a port other than 0: clients need to know it");
    }
    let owner = match name {
        Some(name) => format!("front \"{name}\" on line {}", value.line()),
        None => format!("the front on line {}", value.line()),
    };
    match declared.listen(address, Claimant::Front(owner)) {
        Ok(()) => Some(address),
        Err(message) => value.fail(message),
    }
}

fn certificates(value: &Value<'_>) -> Option<Vec<PathBuf>> {
    let items = value.list()?;
    if items.len() > CERTIFICATES_MAX {
        return value.fail(format!("must be at most {CERTIFICATES_MAX} paths: name a directory"));
    }
    items.iter().map(Value::absolute_path).collect()
}

fn alpn(value: &Value<'_>) -> Option<Vec<String>> {
    let items = value.list()?;
    if items.is_empty() || items.len() > ALPN_MAX {
        return value.fail(format!("must be 1 to {ALPN_MAX} protocols, as in [\"h2\", \"http/1.1\"]"));
    }
    items.iter().map(|item| item.matching("1 to 255 bytes", |text| (1..=255).contains(&text.len()))).collect()
}

fn default(value: &Value<'_>, declared: &Declarations, functions: &[Function]) -> Option<String> {
    let name = value.string()?;
    if !declared.functions.contains_key(name) {
        let meant = closest(name, declared.functions.keys().map(String::as_str));
        let hint = meant.map_or(String::new(), |meant| format!(", did you mean \"{meant}\"?"));
        return value.fail(format!("there is no function {name:?}{hint}"));
    }
    let closed =
        |function: &&Function| function.name == name && function.require_auth == RequireAuth::Connect;
    if functions.iter().any(|function| closed(&function)) {
        return value
            .fail(format!("cannot be {name:?}: it has require_auth = \"connect\", and a front has no key"));
    }
    Some(name.to_owned())
}
