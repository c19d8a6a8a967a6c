//! Commands for machines whose programs call functions. `headstart tag` adds the function's ID to the SYNs of unmodified
//! programs; `headstart knock` asks for a function before its client connects. Neither needs an agent on the machine.

mod cgroup;
mod error;
mod knock;
mod signals;
mod tag;
mod tagger;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

use headstart_config::keys::Keys;
use headstart_ebpf::auth::Key;

use crate::audience::key_for;

pub use error::ClientError;
pub use knock::{KnockArgs, knock};
pub use tag::{TagArgs, tag};

/// Prints an error, if there is one, and gives the exit code to end with.
#[must_use]
pub fn finish(outcome: Result<ExitCode, ClientError>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("headstart: {error}");
        error.exit_code()
    })
}

/// `HOST:PORT`, the host a name or an address, IPv6 in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    host: String,
    port: u16,
}

impl Destination {
    /// All addresses, each once.
    fn resolve(&self) -> Result<Vec<SocketAddr>, ClientError> {
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let found = found.map_err(|error| ClientError::Resolve { host: self.host.clone(), error })?;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }
}

impl FromStr for Destination {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or("must be HOST:PORT: there is no port")?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or("the port must be 1 to 65535")?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match bare {
            None if host.is_empty() => Err("must be HOST:PORT: there is no host"),
            None if host.contains([':', '[', ']']) => Err("write an IPv6 address in brackets, as [::1]:8081"),
            _ => Ok(Self { host: bare.unwrap_or(host).to_owned(), port }),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// A key of `file` with its number: the requested one, or the newest.
fn key(file: &Path, number: Option<u8>, audience: Option<&str>) -> Result<(u8, Key), ClientError> {
    let keys = Keys::load(file)?;
    let chosen = match number {
        Some(number) => keys.get(number).map(|key| (number, key)),
        None => keys.newest(),
    };
    let chosen = chosen.map(|(number, key)| (number, key_for(key, audience)));
    chosen.ok_or_else(|| {
        let present: Vec<_> = keys.iter().map(|(number, _)| number.to_string()).collect();
        ClientError::NoKey { file: file.to_owned(), number, present: present.join(", ") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, &'static str> {
        text.parse::<Destination>().map(|destination| destination.to_string())
    }

    #[test]
    fn destinations_are_a_host_and_a_port() {
        for text in ["127.0.0.1:80", "[::1]:80", "db.example:65535", "localhost:1"] {
            assert_eq!(parse(text), Ok(text.to_owned()));
        }
        for text in
            ["", "80", "host", ":80", "host:", "host:0", "host:65536", "host:-1", "::1:80", "[::1", "[::1]"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_is_its_own_resolution_and_no_address_comes_twice() {
        let resolve = |text: &str| text.parse::<Destination>().unwrap().resolve().unwrap();
        assert_eq!(resolve("192.0.2.1:80"), ["192.0.2.1:80".parse().unwrap()]);
        assert_eq!(resolve("[2001:db8::1]:80"), ["[2001:db8::1]:80".parse().unwrap()]);
        let mut local = resolve("localhost:80");
        let found = local.len();
        local.sort();
        local.dedup();
        assert!(found > 0 && local.len() == found);
    }
}
