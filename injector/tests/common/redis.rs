//! A Redis of our own.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use headstart_injector::{Address, Tls, TlsSettings};

use super::PASSWORD;

/// A server of our own, killed and removed on drop.
pub(crate) struct Redis {
    child: Child,
    pub(crate) directory: tempfile::TempDir,
    port: u16,
    tls_port: u16,
}

impl Redis {
    /// `None`, with a word about it, where Redis is not installed. An error in CI. `REDIS_SERVER` names another program.
    pub(crate) fn start() -> Option<Self> {
        let program = std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
        Self::start_of(program.as_ref(), false)
    }

    /// As [`Redis::start`], of this program.
    pub(crate) fn start_of(program: &Path, tls: bool) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let user = format!("user app on >{PASSWORD} ~* &* +@all");
        let mut text = format!(
            "port {port}\nbind 127.0.0.1\nunixsocket {dir}/redis\ndir {dir}\nsave \"\"\nrequirepass {PASSWORD}\n{user}\n",
            dir = directory.path().display()
        );
        let tls_port = free_port();
        if tls {
            let certified =
                rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
            let path = |name: &str| directory.path().join(name).display().to_string();
            std::fs::write(path("cert.pem"), certified.cert.pem()).expect("written");
            std::fs::write(path("key.pem"), certified.signing_key.serialize_pem()).expect("written");
            text += &format!("tls-port {tls_port}\ntls-cert-file {}\n", path("cert.pem"));
            text += &format!("tls-key-file {}\ntls-auth-clients no\n", path("key.pem"));
        }
        let config = directory.path().join("redis.conf");
        std::fs::write(&config, text).expect("written");
        let started = Command::new(program).arg(config).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = started else {
            assert!(std::env::var("CI").is_err(), "Redis is missing: apt-get install redis-server");
            eprintln!("SKIPPED: Redis is missing; to run this test: apt-get install redis-server");
            return None;
        };
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let ready = lines.any(|line| {
            line.is_ok_and(|line| ["connections at", "connections unix"].iter().any(|end| line.contains(end)))
        });
        assert!(ready, "it has ended");
        // It must not lose its reader.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, directory, port, tls_port })
    }

    pub(crate) fn tls(&self) -> (Address, Option<Tls>) {
        let ca_file = Some(self.directory.path().join("cert.pem"));
        let settings = TlsSettings { ca_file, server_name: "localhost".into(), ..TlsSettings::default() };
        (Address::Tcp(format!("127.0.0.1:{}", self.tls_port)), Some(Tls::new(&settings).expect("TLS")))
    }

    pub(crate) fn socket(&self) -> Address {
        Address::Unix(self.directory.path().join("redis"))
    }

    pub(crate) fn tcp(&self) -> Address {
        Address::Tcp(format!("127.0.0.1:{}", self.port))
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port()
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
