//! A PostgreSQL 15 server of the test's own, and an agent's logged-in session on it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use headstart_wire::{Grant, GrantStatus, Session};
use tempfile::TempDir;

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

/// A running server; stopped when dropped.
pub(crate) struct Postgres {
    directory: TempDir,
    pub(crate) port: u16,
}

impl Postgres {
    /// None, with a word on standard error, where PostgreSQL is not installed.
    /// In CI that is a failure.
    pub(crate) fn start() -> Option<Self> {
        if !Path::new(PROGRAMS).exists() {
            assert!(std::env::var_os("CI").is_none(), "PostgreSQL 15 is not installed in {PROGRAMS}");
            eprintln!("SKIPPED: PostgreSQL 15 is not installed in {PROGRAMS}");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("headstart-orders-").tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { directory, port };
        if nix::unistd::geteuid().is_root() {
            run(Command::new("chown").arg("postgres").arg(server.directory.path()));
        }
        let data = server.data();
        run(server.program("initdb").args(["-D", &data, "-U", "app", "--auth=trust", "--no-sync"]));
        let options = format!(
            "-c port={port} -c listen_addresses=127.0.0.1 -c fsync=off -c unix_socket_directories={}",
            server.directory.path().display()
        );
        let log = format!("{}/log", server.directory.path().display());
        run(server
            .program("pg_ctl")
            .args(["-D", &data, "-w", "-t", "60", "-l", &log, "-o", &options, "start"]));
        let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/schema.sql");
        let address = format!("host=127.0.0.1 port={port} user=app dbname=postgres");
        run(Command::new(format!("{PROGRAMS}/psql")).args(["-q", "-d", &address, "-f", schema]));
        Some(server)
    }

    /// A grant over TCP, and the process number of its session.
    pub(crate) fn grant_tcp(&self) -> ((Grant, Option<OwnedFd>), i32) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let session = log_in(&mut stream);
        stream.set_nonblocking(true).unwrap();
        ready(session, stream.into())
    }

    /// The same over the server's unix socket.
    pub(crate) fn grant_unix(&self) -> ((Grant, Option<OwnedFd>), i32) {
        let path = self.directory.path().join(format!(".s.PGSQL.{}", self.port));
        let mut stream = UnixStream::connect(path).unwrap();
        let session = log_in(&mut stream);
        stream.set_nonblocking(true).unwrap();
        ready(session, stream.into())
    }

    fn data(&self) -> String {
        format!("{}/data", self.directory.path().display())
    }

    /// A server program, which refuses to run as root.
    fn program(&self, name: &str) -> Command {
        let path = format!("{PROGRAMS}/{name}");
        let mut command = Command::new(&path);
        if nix::unistd::geteuid().is_root() {
            command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", &path]);
        }
        command.current_dir(self.directory.path());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut stop = self.program("pg_ctl");
        let _ = stop.args(["-D", &self.data(), "-m", "immediate", "stop"]).stdout(Stdio::null()).status();
    }
}

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

fn ready(session: Session, socket: OwnedFd) -> ((Grant, Option<OwnedFd>), i32) {
    let Session::Postgres { process_id, .. } = session else { panic!("a PostgreSQL session") };
    let grant = Grant {
        backend: "orders-db".into(),
        status: GrantStatus::Ready { session, expires_ns: None, tls: None },
    };
    ((grant, Some(socket)), process_id)
}

/// What the agent does: start-up message out, answers in, up to ReadyForQuery.
fn log_in(stream: &mut (impl Read + Write)) -> Session {
    let parameters = b"user\0app\0database\0postgres\0client_encoding\0UTF8\0\0";
    let length = u32::try_from(8 + parameters.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes()[..], &196_608u32.to_be_bytes(), parameters].concat()).unwrap();
    let (mut process, mut parameters) = (0, Vec::new());
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        stream.read_exact(&mut body).unwrap();
        let texts: Vec<_> = body.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text)).collect();
        match head[0] {
            b'S' => parameters.push((texts[0].to_string(), texts[1].to_string())),
            b'K' => process = i32::from_be_bytes([body[0], body[1], body[2], body[3]]),
            b'Z' => break,
            b'R' => assert_eq!(body, [0; 4], "no password is asked for"),
            other => panic!("unexpected message {:?}: {texts:?}", char::from(other)),
        }
    }
    Session::Postgres { process_id: process, user: "app".into(), database: "postgres".into(), parameters }
}
