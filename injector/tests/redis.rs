//! Every way to log in to a real Redis.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{PASSWORD, relayed, spec, until};
use headstart_injector::{Address, BackendKind, BackendSpec, Pool, RedisLogin, Secret, Session, Sockets};

/// A server of our own, killed and removed on drop.
struct Redis {
    child: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Redis {
    /// `None`, with a word about it, where Redis is not installed. An error in CI.
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let port =
            TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port();
        let user = format!("user app on >{PASSWORD} ~* +@all");
        let text = format!(
            "port {port}\nbind 127.0.0.1\nunixsocket {dir}/redis\ndir {dir}\nsave \"\"\nrequirepass {PASSWORD}\n{user}\n",
            dir = directory.path().display()
        );
        let config = directory.path().join("redis.conf");
        std::fs::write(&config, text).expect("written");
        let started = Command::new("redis-server").arg(config).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = started else {
            assert!(std::env::var("CI").is_err(), "Redis is missing: apt-get install redis-server");
            eprintln!("SKIPPED: Redis is missing; to run this test: apt-get install redis-server");
            return None;
        };
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.contains("ready to accept connections at")));
        assert!(ready, "it has ended");
        // It must not lose its reader.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, directory, port })
    }

    fn socket(&self) -> Address {
        Address::Unix(self.directory.path().join("redis"))
    }

    fn tcp(&self) -> Address {
        Address::Tcp(format!("127.0.0.1:{}", self.port))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn backend(user: Option<&str>, password: Option<&str>, database: u32, address: Address) -> BackendSpec {
    let password = password.map(Secret::new);
    let login = RedisLogin { user: user.map(str::to_owned), password, database };
    spec(BackendKind::Redis(login), address)
}

fn ask(stream: &mut UnixStream, words: &str) -> String {
    stream.write_all(format!("{words}\r\n").as_bytes()).expect("sent");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    line.trim().to_owned()
}

#[tokio::test]
async fn users_and_databases_are_those_of_the_login() {
    let Some(server) = Redis::start() else { return };
    for (user, address) in
        [(None, server.tcp()), (Some("app"), server.socket()), (Some("default"), server.tcp())]
    {
        let pool = Pool::spawn(backend(user, Some(PASSWORD), 3, address));
        let lease = relayed(pool.lease().await.expect("a lease"));
        assert_eq!(lease.session, Session::Redis { user: user.map(str::to_owned), database: 3 });
        let mut stream = UnixStream::from(lease.fd); // or any other stream socket
        stream.set_nonblocking(false).expect("blocking mode");
        assert_eq!(ask(&mut stream, "SET a b"), "+OK");
        let info = ask(&mut stream, "CLIENT KILL TYPE pubsub");
        assert!(info.starts_with(':'), "{info}");
    }
    for (user, password, said) in [
        (None, None, "NOAUTH"),
        (None, Some("wrong"), "WRONGPASS"),
        (Some("nobody"), Some(PASSWORD), "WRONGPASS"),
    ] {
        let error = Pool::spawn(backend(user, password, 0, server.tcp())).lease().await.expect_err("refused");
        assert!(error.to_string().contains(said) && !error.retry_helps(), "{error}");
        assert!(!error.to_string().contains(PASSWORD));
    }
    let error =
        Pool::spawn(backend(None, Some(PASSWORD), 99, server.tcp())).lease().await.expect_err("refused");
    assert!(error.to_string().contains("out of range"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knows_no_password_is_logged_in() {
    let Some(server) = Redis::start() else { return };
    let pool = Pool::spawn(backend(Some("app"), Some(PASSWORD), 0, server.tcp()));
    let directory = tempfile::tempdir().expect("a directory");
    let sockets =
        Sockets::listen("f", "f-1", directory.path(), std::slice::from_ref(&pool), 4).expect("sockets");
    let path: PathBuf = directory.path().join("orders-db/redis.sock");
    let cli = |words: &[&str]| {
        let output = Command::new("redis-cli").arg("-s").arg(&path).args(words).output().expect("redis-cli");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    };
    assert_eq!(cli(&["ACL", "WHOAMI"]), "app");
    assert_eq!((cli(&["SET", "k", "v"]), cli(&["-3", "GET", "k"])), ("OK".to_owned(), "v".to_owned()));
    until(&pool, "nothing is left", |status| status.leased == 0).await;
    drop(sockets);
}
