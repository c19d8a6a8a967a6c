//! `address`: where a backend is.

use std::fmt;
use std::path::PathBuf;

use crate::table::Value;

/// Where a backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `"host:port"`, as in `"db.internal:5432"` or `"[::1]:5432"`.
    Tcp {
        /// A DNS name, or an IP address without brackets.
        host: String,
        /// Not 0.
        port: u16,
    },
    /// `"unix:/path"`: the socket itself, an absolute path of at most 107 bytes.
    Unix(PathBuf),
}

impl Address {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let text = value.string()?;
        match Self::parse(text) {
            Some(address) => Some(address),
            // The text is not shown: who writes a URL here may have written the password into it.
            None => value.fail("must be \"host:port\", \"[ipv6]:port\" or \"unix:/path\""),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            // `sun_path` holds 108 bytes with the NUL (unix(7)).
            return (path.starts_with('/') && path.len() <= 107).then(|| Self::Unix(path.into()));
        }
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        if let Some(v6) = host.strip_prefix('[') {
            let v6: std::net::Ipv6Addr = v6.strip_suffix(']')?.parse().ok()?;
            return Some(Self::Tcp { host: v6.to_string(), port });
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let is_host = (1..=253).contains(&host.len()) && host.bytes().all(plain);
        is_host.then(|| Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
