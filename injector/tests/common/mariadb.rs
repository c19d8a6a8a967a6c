//! A MariaDB of our own, and the smallest client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

use headstart_injector::{Address, Tls, TlsSettings};

use super::PASSWORD;

/// A server of our own, killed and removed on drop.
pub(crate) struct Mariadb {
    child: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Mariadb {
    /// `None`, with a word about it, where MariaDB is not installed. An error in CI.
    pub(crate) fn start(tls: bool) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("hs-my-").tempdir().expect("a directory");
        let (path, data) = (directory.path(), directory.path().join("data"));
        // Each server begins by removing whatever temporary tables it finds, those of others too.
        let temporary = path.join("tmp");
        std::fs::create_dir(&temporary).expect("a directory");
        let made = Command::new("mariadb-install-db")
            .args([
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--user=root",
            ])
            .arg(format!("--datadir={}", data.display()))
            .env("TMPDIR", &temporary)
            .output();
        let Ok(made) = made else {
            assert!(std::env::var("CI").is_err(), "MariaDB is missing: apt-get install mariadb-server-core");
            eprintln!("SKIPPED: MariaDB is missing; to run this test: apt-get install mariadb-server-core");
            return None;
        };
        assert!(made.status.success(), "{}", said(made));
        let begin = format!(
            "create database orders;\n\
             create user app@'%' identified by '{PASSWORD}';\n\
             create user app@localhost identified by '{PASSWORD}';\n\
             create user open@'%';\ncreate user open@localhost;\n\
             create user private@'%' identified by '{PASSWORD}' require ssl;\n\
             grant all on orders.* to app@'%', app@localhost, open@'%', open@localhost, private@'%';\n"
        );
        std::fs::write(path.join("begin.sql"), begin).expect("written");
        let port =
            TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port();
        let mut command = Command::new("mariadbd");
        command
            .args(["--no-defaults", "--user=root", "--bind-address=127.0.0.1", "--skip-log-bin"])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}/my", path.display()))
            .arg(format!("--pid-file={}/pid", path.display()))
            .arg(format!("--init-file={}/begin.sql", path.display()))
            .arg(format!("--port={port}"))
            .env("TMPDIR", &temporary);
        if tls {
            let certified =
                rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
            std::fs::write(path.join("cert.pem"), certified.cert.pem()).expect("written");
            std::fs::write(path.join("key.pem"), certified.signing_key.serialize_pem()).expect("written");
            command.arg(format!("--ssl-cert={}/cert.pem", path.display()));
            command.arg(format!("--ssl-key={}/key.pem", path.display()));
        }
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("started");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.contains("ready for connections")));
        assert!(ready, "it has ended");
        // It must not lose its reader.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, directory, port })
    }

    /// Runs statements as the administrator.
    pub(crate) fn run(&self, sql: &str) {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "--user=root", "-e", sql]);
        command.arg(format!("--socket={}/my", self.directory.path().display()));
        let output = command.output().expect("mariadb");
        assert!(output.status.success(), "{}", said(output));
    }

    pub(crate) fn socket(&self) -> Address {
        Address::Unix(self.directory.path().join("my"))
    }

    pub(crate) fn tcp(&self) -> Address {
        Address::Tcp(format!("127.0.0.1:{}", self.port))
    }

    pub(crate) fn tls(&self) -> Option<Tls> {
        let ca_file = Some(self.directory.path().join("cert.pem"));
        let settings = TlsSettings { ca_file, server_name: "localhost".into(), ..TlsSettings::default() };
        Some(Tls::new(&settings).expect("TLS"))
    }
}

impl Drop for Mariadb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What it printed, errors included.
pub(crate) fn said(output: Output) -> String {
    String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8").trim().to_owned()
}

/// The first value of the first row, as the server writes it.
pub(crate) fn ask(stream: &mut (impl Read + Write), sql: &str) -> String {
    let length = u32::try_from(sql.len() + 1).expect("short").to_le_bytes();
    let mut packet = vec![length[0], length[1], length[2], 0, 3];
    packet.extend(sql.bytes());
    stream.write_all(&packet).expect("sent");
    let mut next = || answer(stream);
    assert_eq!(next(), [1], "one column");
    let (_column, end) = (next(), next());
    assert_eq!((end[0], end.len()), (0xfe, 5), "the old end of a list, as agreed");
    let row = next();
    next();
    // A NULL has no length.
    String::from_utf8(row.get(1..).unwrap_or_default().to_vec()).expect("UTF-8")
}

pub(crate) fn packet(stream: &mut impl Write, sequence: u8, body: &[u8]) {
    let length = u8::try_from(body.len()).expect("short");
    stream.write_all(&[&[length, 0, 0, sequence], body].concat()).expect("sent");
}

pub(crate) fn answer(stream: &mut impl Read) -> Vec<u8> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).expect("a header");
    let mut body = vec![0; usize::from(header[0]) | usize::from(header[1]) << 8];
    stream.read_exact(&mut body).expect("a body");
    body
}

/// As a client of a socket, which is asked for no password.
pub(crate) fn log_in(stream: &mut (impl Read + Write), user: &str, collation: u8) {
    answer(stream);
    // Protocol 4.1, plugins, and proofs of any length; multiple statements and results.
    let flags = 0x0008_0000_u32 | 0x8000 | 0x200 | 0x1_0000 | 0x2_0000;
    let head = [&flags.to_le_bytes()[..], &[0, 0, 0, 1, collation], &[0; 23]].concat();
    packet(stream, 1, &[&head[..], user.as_bytes(), b"\0\0mysql_native_password\0"].concat());
    assert_eq!(answer(stream)[0], 0, "OK");
}
