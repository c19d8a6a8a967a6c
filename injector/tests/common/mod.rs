//! Real PostgreSQL servers of our own, pools to try, and the smallest client that can adopt a descriptor.
#![expect(dead_code, reason = "every test file uses its own part of it")]

pub(crate) mod mariadb;
pub(crate) mod redis;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use headstart_injector::{
    Address, BackendKind, BackendSpec, HandOver, Lease, Pool, PoolSettings, PoolStatus, PostgresLogin,
    Secret, TlsMode,
};
use postgres_protocol::message::{backend::Message, frontend};

pub(crate) const PASSWORD: &str = "s3cret-s4uce";

/// Roles, the method that `pg_hba.conf` asks of each, and how their password is stored.
const ROLES: [(&str, &str, &str); 5] = [
    // Whom a certificate is for.
    ("certified", "cert", "scram-sha-256"),
    ("truster", "trust", "scram-sha-256"),
    ("hasher", "md5", "md5"),
    ("scrammer", "scram-sha-256", "scram-sha-256"),
    ("shouter", "password", "scram-sha-256"),
];

/// A server with its own data directory, stopped and removed on drop.
pub(crate) struct Postgres {
    directory: tempfile::TempDir,
    bin: PathBuf,
    pub(crate) port: u16,
    /// Parameters beside the usual ones, as `name=value`.
    settings: Vec<String>,
}

impl Postgres {
    /// `None`, with a word about it, where PostgreSQL is not installed. An error in CI.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(|_| Vec::new())
    }

    /// As [`Postgres::start`], with parameters that `prepare` gives, in which a file may be named that it writes into
    /// the data directory.
    pub(crate) fn start_with(prepare: impl FnOnce(&Path) -> Vec<String>) -> Option<Self> {
        let Some(bin) = find_bin() else {
            assert!(std::env::var("CI").is_err(), "PostgreSQL is missing: apt-get install postgresql");
            eprintln!("SKIPPED: PostgreSQL is missing; to run this test: apt-get install postgresql");
            return None;
        };
        // Some builds of POSTGRES_BIN have no TLS.
        Some(Self::start_of(bin, std::env::var_os("POSTGRES_BIN").is_none(), prepare))
    }

    /// As [`Postgres::start_with`], with the programs in this directory.
    pub(crate) fn start_of(bin: PathBuf, tls: bool, prepare: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let directory = tempfile::Builder::new().prefix("hs-pg-").tempdir().expect("a directory");
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").expect("users").expect("user postgres");
            nix::unistd::chown(directory.path(), Some(user.uid), Some(user.gid)).expect("chown");
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        drop(listener);
        let mut server = Self { directory, bin, port, settings: Vec::new() };
        server.initialise(tls);
        server.settings = prepare(&server.data());
        if nix::unistd::geteuid().is_root() {
            // What it wrote is the server's.
            let (data, user) =
                (server.data(), nix::unistd::User::from_name("postgres").expect("users").expect("user"));
            for entry in std::fs::read_dir(data).expect("the data directory") {
                nix::unistd::chown(&entry.expect("an entry").path(), Some(user.uid), Some(user.gid))
                    .expect("chown");
            }
        }
        server.run();
        let mut sql = String::from("create database orders;\n");
        for (role, _, encryption) in ROLES {
            sql += &format!("set password_encryption = '{encryption}';\n");
            sql += &format!("create role {role} login password '{PASSWORD}';\n");
        }
        server.psql(&sql);
        server
    }

    fn initialise(&self, tls: bool) {
        let data = self.data();
        let data = data.to_str().expect("UTF-8");
        self.tool("initdb", &["-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]);
        let mut hba = String::from("local all postgres trust\n");
        for (role, method, _) in ROLES {
            if method == "cert" && !tls {
                continue;
            }
            let (local, host) = if method == "cert" { ("reject", "hostssl") } else { (method, "host") };
            hba += &format!("local all {role} {local}\n{host} all {role} 127.0.0.1/32 {method}\n");
        }
        std::fs::write(self.data().join("pg_hba.conf"), hba).expect("pg_hba.conf");
    }

    /// Starts it, again or for the first time, and returns when it accepts connections.
    pub(crate) fn run(&self) {
        let mut options = format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories={} -c fsync=off \
             -c max_connections=100 -c autovacuum=off",
            self.port,
            self.socket_directory().display()
        );
        for setting in &self.settings {
            options += &format!(" -c {setting}");
        }
        let log = self.directory.path().join("log");
        let (data, log) = (self.data(), log.to_str().expect("UTF-8").to_owned());
        let data = data.to_str().expect("UTF-8");
        self.tool("pg_ctl", &["start", "-w", "-s", "-D", data, "-l", &log, "-o", &options]);
    }

    /// Stops it, and returns when it is gone.
    pub(crate) fn stop(&self) {
        let data = self.data();
        self.tool("pg_ctl", &["stop", "-w", "-s", "-m", "fast", "-D", data.to_str().expect("UTF-8")]);
    }

    /// Runs SQL as the superuser; the answer without decoration.
    pub(crate) fn psql(&self, sql: &str) -> String {
        let (port, host) = (self.port.to_string(), self.socket_directory().display().to_string());
        let mut arguments = vec!["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres"];
        arguments.extend(["-p", &port, "-h", &host, "-d", "postgres"]);
        let lines: Vec<&str> = sql.lines().collect();
        lines.iter().for_each(|line| arguments.extend(["-c", line]));
        self.tool("psql", &arguments)
    }

    fn tool(&self, name: &str, arguments: &[&str]) -> String {
        let program = self.bin.join(name);
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        // A server keeps the descriptors it is born with, so pipes would never end: use a file.
        let answer = tempfile::tempfile().expect("a file");
        let shared = answer.try_clone().expect("a descriptor");
        let complaints = shared.try_clone().expect("a descriptor");
        command.args(arguments).current_dir("/").stdout(shared).stderr(complaints);
        let status = command.status().unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut text = String::new();
        std::io::Seek::rewind(&mut &answer).expect("rewind");
        (&answer).read_to_string(&mut text).expect("text");
        assert!(status.success(), "{name} {arguments:?}: {text}");
        text
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(crate) fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn socket(&self) -> Address {
        Address::Unix(self.socket_directory().join(format!(".s.PGSQL.{}", self.port)))
    }

    pub(crate) fn tcp(&self) -> Address {
        Address::Tcp(format!("127.0.0.1:{}", self.port))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            self.stop();
        }
    }
}

/// The newest installed version: Debian's place, else wherever `pg_config` says. `POSTGRES_BIN` names the directory of
/// another one.
fn find_bin() -> Option<PathBuf> {
    if let Some(bin) = std::env::var_os("POSTGRES_BIN") {
        return Some(bin.into());
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok();
    let debian = versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin")).max();
    let asked = || {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
    };
    debian.or_else(asked).filter(|bin| bin.join("initdb").exists())
}

/// A login as `role`, with the right password.
pub(crate) fn postgres(role: &str) -> PostgresLogin {
    PostgresLogin {
        user: role.into(),
        database: "orders".into(),
        password: Some(Secret::new(PASSWORD)),
        ..PostgresLogin::default()
    }
}

/// A backend with quick retries and no idle connections of its own.
pub(crate) fn spec(kind: BackendKind, address: Address) -> BackendSpec {
    let pool = PoolSettings {
        min_idle: 0,
        follow_demand: false,
        server_max: None,
        max_per_function: None,
        recycle: false,
        max_age: Duration::from_secs(3600),
        max: 4,
        ttl: Duration::from_secs(600),
        connect_timeout: Duration::from_secs(10),
        peer_timeout: Duration::from_secs(60),
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        wait: Duration::from_secs(10),
    };
    BackendSpec { name: "orders-db".into(), kind, address, tls: None, pool }
}

/// As a function gets it whose TLS, if there is any, the agent speaks.
pub(crate) fn relayed(lease: Lease) -> HandOver {
    lease.hand_over(TlsMode::Relay).expect("handed over")
}

/// Waits, for at most 60 s, until the pool is in a state.
pub(crate) async fn until(pool: &Pool, what: &str, reached: impl Fn(&PoolStatus) -> bool) -> PoolStatus {
    for _ in 0..30_000 {
        let status = pool.status();
        if reached(&status) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(2)).await; // a pool announces nothing
    }
    panic!("never {what}: {:?}", pool.status());
}

/// A PostgreSQL client that begins where a lease ends.
pub(crate) struct Adopted {
    stream: TcpStream, // or any other stream socket: only reads and writes
    buf: BytesMut,
}

impl Adopted {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let stream = TcpStream::from(fd);
        stream.set_nonblocking(false).expect("blocking mode");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        Self { stream, buf: BytesMut::new() }
    }

    /// The first column of the first row, or the SQLSTATE of the error.
    pub(crate) fn query(&mut self, sql: &str) -> Result<String, String> {
        let mut message = BytesMut::new();
        frontend::query(sql, &mut message).expect("a query");
        self.stream.write_all(&message).expect("sent");
        let mut outcome = Err("no row".to_owned());
        loop {
            match self.next() {
                Some(Message::DataRow(row)) => {
                    let range = row.ranges().next().expect("ranges").flatten().expect("a value");
                    outcome = Ok(String::from_utf8_lossy(&row.buffer()[range]).into_owned());
                }
                Some(Message::ErrorResponse(body)) => {
                    let code = body.fields().find(|field| Ok(field.type_() == b'C')).expect("fields");
                    let code = code.map(|code| String::from_utf8_lossy(code.value_bytes()).into_owned());
                    outcome = Err(code.unwrap_or_default());
                }
                Some(Message::ReadyForQuery(_)) => return outcome,
                Some(_) => {}
                None => return Err("closed".into()),
            }
        }
    }

    /// Logs out, and returns when the server's process is gone.
    pub(crate) fn finish(mut self) {
        self.stream.write_all(b"X\0\0\0\x04").expect("sent");
        assert!(self.next().is_none(), "the server has nothing to add");
    }

    fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = Message::parse(&mut self.buf).expect("a message") {
                return Some(message);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk).expect("an answer") {
                0 => return None,
                read => self.buf.extend_from_slice(&chunk[..read]),
            }
        }
    }
}
