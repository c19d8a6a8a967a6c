//! `[[backend]]`: what functions get connections to.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::Known;
use crate::problem::Origin;
use crate::table::{Table, Value};

/// A server to which the agent keeps connections for functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Unique; 1 to 63 of a-z, 0-9 and "-". Functions and metrics use it.
    pub name: String,
    /// `kind`: how a connection is made ready before a function gets it.
    pub protocol: Protocol,
    /// Where the server is.
    pub address: Address,
    /// TLS to it, in which the server proves who it is. Default `None`: `false`; with `kind = "tls"`, `true`.
    pub tls: Option<Tls>,
    /// How many connections are kept, and for how long.
    pub pool: Pool,
    /// Where this section is in the file.
    pub origin: Origin,
}

/// What is spoken to a backend before its connections are handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `tcp`: nothing, the connection is handed over as soon as it is established.
    Tcp,
    /// `postgres`: the start-up and the login; functions get a session that is ready for queries.
    Postgres(Postgres),
    /// `redis`: the login, and the choice of the database.
    Redis(Redis),
    /// `mysql`: the login to MariaDB or MySQL.
    Mysql(Mysql),
}

impl Protocol {
    /// The file with the password, if there is one.
    #[must_use]
    pub fn password_file(&self) -> Option<&PathBuf> {
        match self {
            Self::Tcp => None,
            Self::Postgres(Postgres { password_file, .. })
            | Self::Redis(Redis { password_file, .. })
            | Self::Mysql(Mysql { password_file, .. }) => password_file.as_ref(),
        }
    }

    /// Why a session cannot be made as it was after its login.
    fn why_not_cleaned(&self) -> Option<&'static str> {
        match self {
            Self::Tcp => Some("can be \"recycle\" only with kind = \"postgres\" or \"redis\" or \"mysql\""),
            Self::Mysql(Mysql { database: None, .. }) => {
                Some("can be \"recycle\" only with a `database`: what a client selects stays selected")
            }
            Self::Postgres(_) | Self::Redis(_) | Self::Mysql(_) => None,
        }
    }
}

/// The keys of `kind = "mysql"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mysql {
    /// User to log in as. Required.
    pub user: String,
    /// Default database. Default: none.
    pub database: Option<String>,
    /// As [`Postgres::password_file`].
    pub password_file: Option<PathBuf>,
}

/// The keys of `kind = "redis"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redis {
    /// User of the server's access control list. Default: `default`.
    pub user: Option<String>,
    /// Number of the database, 0 to 65535. Default 0.
    pub database: u32,
    /// As [`Postgres::password_file`].
    pub password_file: Option<PathBuf>,
}

/// The keys of `kind = "postgres"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postgres {
    /// Role to log in as. Required.
    pub user: String,
    /// Database to connect to. Default: the same as `user`, as with libpq.
    pub database: String,
    /// File with the password, which only its owner may read. One newline at its end is not part of the
    /// password; everything else is, spaces too. Default: no password.
    pub password_file: Option<PathBuf>,
    /// SQL to run on each connection after the login, at most 32 statements: queries that warm its catalogue caches, and
    /// `PREPARE`s of statements that functions execute. Default none.
    pub warm_up: Vec<String>,
    /// What the server shows in `pg_stat_activity`; 1 to 63 printable ASCII characters. Default: not sent.
    pub application_name: Option<String>,
}

/// `tls`: how a backend is reached through TLS. `true` is a table without keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates that are trusted, in PEM; an absolute path. Default: those that this system trusts.
    pub ca_file: Option<PathBuf>,
    /// The DNS name, or IP address, that the server's certificate must be for. Default: the host in `address`.
    pub server_name: Option<String>,
    /// `cert_file` and `key_file`: our certificate with its chain and its private key, in PEM, for servers that ask
    /// who we are. Both or none; absolute paths. Default none.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Application protocols to offer (RFC 7301), best first; only with `kind = "tls"`. At most 8, each of 1 to 255
    /// bytes. Default none.
    pub alpn: Vec<String>,
    /// TLS begins at once, without asking the server for it: PostgreSQL from 17 on, and proxies that speak TLS for it.
    /// Only with `kind = "postgres"`. Default `false`.
    pub direct: bool,
}

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

/// The limits of one backend's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Ready connections to keep at all times, 0 to `max`. Default 4, or `max` where that is less.
    pub min_idle: usize,
    /// `size`: `"auto"` keeps more than `min_idle` ready while more are asked for. Default `"fixed"`: `false`.
    pub follow_demand: bool,
    /// The most connections, ready, leased and begun together; 1 to 10000. Default 64.
    pub max: usize,
    /// The most connections of all backends with the same address together, when this one begins another; 1 to 100000.
    /// Default `None`.
    pub server_max: Option<u32>,
    /// `on_release`: `"recycle"` cleans connections that clients of a socket close, and keeps them for clients of the same
    /// function; not with `tcp` and `tls`, and with `mysql` only if there is a `database`. Default `"discard"`: `false`.
    pub recycle: bool,
    /// How old a recycled connection may get, 1 m to 24 h. Default 1 h.
    pub max_age: Duration,
    /// Age at which an unused connection is replaced, 1 s to 24 h. Default 10 m.
    pub ttl: Duration,
    /// Deadline of connecting and logging in together, 10 ms to 5 m. Default 5 s.
    pub connect_timeout: Duration,
    /// How long a lease waits for a connection when all `max` are taken, 0 to 5 m. Default 1 s.
    pub wait: Duration,
    /// Ceiling of the back-off between failed attempts to connect, 100 ms to 1 h. Default 30 s.
    pub backoff_max: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            min_idle: 4,
            follow_demand: false,
            server_max: None,
            recycle: false,
            max_age: Duration::from_hours(1),
            max: 64,
            ttl: Duration::from_mins(10),
            connect_timeout: Duration::from_secs(5),
            wait: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
        }
    }
}

impl Backend {
    /// Whether `other` says the same, wherever it stands in its file.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self == other
    }

    /// The files with what proves who we are, and who the server is.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let tls = self.tls.iter().flat_map(|tls| {
            let client = tls.client.iter().flat_map(|(chain, key)| [chain, key]);
            tls.ca_file.iter().chain(client)
        });
        self.protocol.password_file().into_iter().chain(tls)
    }

    pub(crate) fn read(mut table: Table<'_>, known: &mut Known) -> Option<Self> {
        let line = table.line();
        let name = table.require("name", "", |v| {
            let name = v.name()?;
            match known.backends.get(&name) {
                Some(line) => v.fail(format!("{name:?} is already the backend on line {line}")),
                None => Some(name),
            }
        });
        if let Some(name) = &name {
            known.backends.insert(name.clone(), line);
            table.rename(format!("backend.{name}"));
        }
        let kind = Kind::read(&mut table);
        let protocol = kind.and_then(|kind| Protocol::read(&mut table, kind));
        let address = table.require("address", "", |v| Address::read(&v));
        let tls = Tls::read(&mut table, kind, address.as_ref());
        let pool = table.or("pool", Pool::default(), |v| {
            v.table("pool = { max = 64 }").map(|t| Pool::read(t, protocol.as_ref()))
        });
        let origin = table.finish();
        Some(Self { name: name?, protocol: protocol?, address: address?, tls: tls?, pool, origin })
    }
}

/// The keys which only some kinds have, and those kinds.
const LOGIN_KEYS: [(&str, &[Kind]); 5] = [
    ("user", &[Kind::Postgres, Kind::Redis, Kind::Mysql]),
    ("database", &[Kind::Postgres, Kind::Redis, Kind::Mysql]),
    ("password_file", &[Kind::Postgres, Kind::Redis, Kind::Mysql]),
    ("application_name", &[Kind::Postgres]),
    ("warm_up", &[Kind::Postgres]),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Tls,
    Postgres,
    Redis,
    Mysql,
}

impl Kind {
    const WORDS: [(&str, Self); 5] = [
        ("tcp", Self::Tcp),
        ("tls", Self::Tls),
        ("postgres", Self::Postgres),
        ("redis", Self::Redis),
        ("mysql", Self::Mysql),
    ];

    fn read(table: &mut Table<'_>) -> Option<Self> {
        let words = ": \"tcp\", \"tls\", \"postgres\", \"redis\" or \"mysql\"";
        let kind = table.require("kind", words, |v| v.choice(&Self::WORDS));
        for (key, kinds) in LOGIN_KEYS {
            match kind {
                Some(kind) if kinds.contains(&kind) => {}
                Some(kind) => {
                    let theirs: Vec<_> = kinds.iter().map(|kind| format!("{:?}", kind.word())).collect();
                    let (theirs, word) = (theirs.join(" or "), kind.word());
                    table.refuse(key, &format!("belongs to kind = {theirs}, and this backend is {word:?}"));
                }
                None => drop(table.get(key)),
            }
        }
        kind
    }

    fn word(self) -> &'static str {
        Self::WORDS.into_iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }
}

impl Protocol {
    fn read(table: &mut Table<'_>, kind: Kind) -> Option<Self> {
        match kind {
            Kind::Tcp | Kind::Tls => Some(Self::Tcp),
            Kind::Postgres => Postgres::read(table).map(Self::Postgres),
            Kind::Redis => Some(Self::Redis(Redis::read(table))),
            Kind::Mysql => Mysql::read(table).map(Self::Mysql),
        }
    }
}

impl Redis {
    fn read(table: &mut Table<'_>) -> Self {
        // A word that ends an ACL rule or a command would be another's.
        let user = table.get("user").and_then(|v| {
            v.matching("1 to 128 printable ASCII characters without spaces", |text| {
                (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
            })
        });
        let database = table.or("database", 0, |v| v.integer(0..=65_535));
        let password_file = table.get("password_file").and_then(|v| v.absolute_path());
        if let (Some(_), None) = (&user, &password_file) {
            table.require::<()>("password_file", " with a user", |_| None);
        }
        Self { user, database, password_file }
    }
}

impl Mysql {
    fn read(table: &mut Table<'_>) -> Option<Self> {
        let user = table.require("user", " by kind = \"mysql\"", |v| v.text().map(str::to_owned));
        let database = table.or("database", None, |v| v.text().map(|text| Some(text.to_owned())));
        let password_file = table.get("password_file").and_then(|v| v.absolute_path());
        Some(Self { user: user?, database, password_file })
    }
}

impl Tls {
    /// `None` when something about it is wrong, which has been reported.
    fn read(table: &mut Table<'_>, kind: Option<Kind>, address: Option<&Address>) -> Option<Option<Self>> {
        let by_kind = (kind == Some(Kind::Tls)).then(Self::default);
        let tls = match table.get("tls") {
            None => by_kind,
            Some(value) => {
                let (on, keys) = value.boolean_or_table("tls = { ca_file = \"/etc/headstart/ca.pem\" }")?;
                match (on, kind) {
                    (false, Some(Kind::Tls)) => {
                        value.fail("cannot be false with kind = \"tls\": without TLS the kind is \"tcp\"")?
                    }
                    (true, Some(Kind::Tcp)) => {
                        value.fail("is for other kinds: with TLS this one is \"tls\"")?
                    }
                    _ => {}
                }
                let tls = keys.map_or_else(Self::default, |keys| Self::of(keys, kind));
                on.then_some(tls)
            }
        };
        if tls.is_some() && matches!(address, Some(Address::Unix(_))) {
            table.refuse("address", "is a unix socket, where nobody can listen in: without TLS, then");
        }
        Some(tls)
    }

    fn of(mut table: Table<'_>, kind: Option<Kind>) -> Self {
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
        if kind.is_some_and(|kind| kind != Kind::Tls) {
            table.refuse("alpn", "belongs to kind = \"tls\"");
        }
        if kind.is_some_and(|kind| kind != Kind::Postgres) {
            table.refuse("direct", "belongs to kind = \"postgres\"");
        }
        let direct = table.or("direct", false, |v| v.boolean());
        let alpn = table.get("alpn").and_then(|v| {
            let names = v.list()?;
            if names.len() > 8 {
                return v.fail("must be at most 8 names");
            }
            let name = |v: Value<'_>| v.matching("1 to 255 bytes", |text| (1..=255).contains(&text.len()));
            names.into_iter().map(name).collect::<Option<Vec<_>>>()
        });
        table.finish();
        Self { ca_file, server_name, client, alpn: alpn.unwrap_or_default(), direct }
    }
}

impl Postgres {
    fn read(table: &mut Table<'_>) -> Option<Self> {
        let user = table.require("user", " by kind = \"postgres\"", |v| v.text().map(str::to_owned));
        let database = table.or("database", None, |v| v.text().map(|text| Some(text.to_owned())));
        let password_file = table.get("password_file").and_then(|v| v.absolute_path());
        let application_name = table.get("application_name").and_then(|v| {
            // A longer name is cut by the server (NAMEDATALEN), other characters become "?".
            let printable = |text: &str| text.bytes().all(|b| (b' '..=b'~').contains(&b));
            v.matching("1 to 63 printable ASCII characters", |t| (1..=63).contains(&t.len()) && printable(t))
        });
        let warm_up = table.or("warm_up", Vec::new(), |v| {
            let statements = v.list()?;
            if statements.len() > 32 {
                return v.fail("must be at most 32 statements");
            }
            statements.into_iter().map(|v| v.text().map(str::to_owned)).collect()
        });
        let user = user?;
        Some(Self {
            database: database.unwrap_or_else(|| user.clone()),
            user,
            password_file,
            application_name,
            warm_up,
        })
    }
}

impl Address {
    fn read(value: &Value<'_>) -> Option<Self> {
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

impl Pool {
    fn read(mut table: Table<'_>, protocol: Option<&Protocol>) -> Self {
        let (ms, secs, mins, hours) =
            (Duration::from_millis, Duration::from_secs, Duration::from_mins, Duration::from_hours);
        let default = Self::default();
        let max = table.or("max", default.max, |v| v.integer(1..=10_000));
        let pool = Self {
            min_idle: table.or("min_idle", default.min_idle.min(max), |v| {
                let min_idle = v.integer(0..=10_000)?;
                let message = || format!("must be at most max, which is {max}");
                if min_idle <= max { Some(min_idle) } else { v.fail(message()) }
            }),
            follow_demand: table
                .or("size", default.follow_demand, |v| v.choice(&[("fixed", false), ("auto", true)])),
            max,
            server_max: table.or("server_max", None, |v| server_max(&v, max)),
            recycle: table.or("on_release", default.recycle, |v| {
                let recycle = v.choice(&[("discard", false), ("recycle", true)])?;
                match protocol.filter(|_| recycle).and_then(Protocol::why_not_cleaned) {
                    Some(why) => v.fail(why),
                    None => Some(recycle),
                }
            }),
            max_age: table.or("max_age", default.max_age, |v| v.duration(mins(1)..=hours(24))),
            ttl: table.or("ttl", default.ttl, |v| v.duration(secs(1)..=hours(24))),
            connect_timeout: table
                .or("connect_timeout", default.connect_timeout, |v| v.duration(ms(10)..=mins(5))),
            wait: table.or("wait", default.wait, |v| v.duration(ms(0)..=mins(5))),
            backoff_max: table.or("backoff_max", default.backoff_max, |v| v.duration(ms(100)..=hours(1))),
        };
        table.finish();
        pool
    }
}

/// Less than the pool's own limit would be a mistake about one of the two.
fn server_max(value: &Value<'_>, max: usize) -> Option<Option<u32>> {
    let server_max = value.integer(1..=100_000_u32)?;
    if usize::try_from(server_max).is_ok_and(|limit| limit < max) {
        return value.fail(format!("must not be less than max, which is {max}"));
    }
    Some(Some(server_max))
}
