//! Every way to log in to a real Redis.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use common::redis::Redis;
use common::{PASSWORD, relayed, spec, until};
use headstart_injector::{
    Address, BackendKind, BackendSpec, DiscardReason, Pool, RedisLogin, Secret, Session, Sockets,
};

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

/// Says these lines, and reads as many answers; then leaves without a word.
fn talk(path: &std::path::Path, lines: &[&str]) -> Vec<String> {
    let mut stream = UnixStream::connect(path).expect("connected");
    let answers = lines.iter().map(|line| ask(&mut stream, line)).collect();
    drop(stream);
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_cleaned_and_used_again_by_the_same_function_only() {
    let Some(server) = Redis::start() else { return };
    let mut spec = backend(Some("app"), Some(PASSWORD), 3, server.tcp());
    spec.pool.recycle = true;
    let pool = Pool::spawn(spec);
    let (directory, elsewhere) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("another"));
    let pools = std::slice::from_ref(&pool);
    let sockets = [("f", &directory), ("g", &elsewhere)]
        .map(|(function, at)| Sockets::listen(function, "i-1", at.path(), pools, 4).expect("sockets"));
    let path = |at: &tempfile::TempDir| at.path().join("orders-db/redis.sock");
    let (path, other) = (path(&directory), path(&elsewhere));
    let idle = || until(&pool, "nothing is leased", |status| status.leased == 0);

    let first = talk(&path, &["CLIENT ID"]);
    idle().await;
    // It leaves behind what it can.
    let dirt = ["CLIENT ID", "SELECT 5", "CLIENT SETNAME dirty", "WATCH k", "MULTI", "SET k v"];
    assert_eq!(talk(&path, &dirt), [&first[0], "+OK", "+OK", "+OK", "+OK", "+QUEUED"]);
    idle().await;
    let mut stream = UnixStream::connect(&path).expect("connected");
    assert_eq!(ask(&mut stream, "CLIENT ID"), first[0], "the same session");
    stream.write_all(b"HELLO 3\r\n").expect("sent");
    let mut lines = BufReader::new(&stream).lines().map(|line| line.expect("a line"));
    assert!(lines.any(|line| line == "*0"), "the last of its fields, the modules");
    drop(stream);
    idle().await;
    let mut stream = UnixStream::connect(&path).expect("connected");
    assert_eq!(ask(&mut stream, "CLIENT ID"), first[0]);
    stream.write_all(b"CLIENT INFO\r\n").expect("sent");
    let mut lines = BufReader::new(&stream).lines().map(|line| line.expect("a line"));
    let info = lines.nth(1).expect("a line after its length");
    assert_eq!(lines.next().as_deref(), Some(""));
    for field in [" db=3 ", " name= ", " flags=N ", " user=app ", " resp=2"] {
        assert!(info.contains(field), "{field}: {info}");
    }
    drop(stream);
    idle().await;
    assert_eq!(pool.status().tally.recycled, 4);
    assert_eq!(pool.status().kept, 1);
    // Another function has other sessions.
    assert_ne!(talk(&other, &["CLIENT ID"]), first);
    idle().await;
    assert_eq!(pool.status().tally.recycled, 5);

    // A session with an incomplete or unanswered command, or with answers of its own, is not used again.
    for left in
        ["*2\r\n$3\r\nGET\r\n$1", "BLPOP none 60\r\n", "SUBSCRIBE a b\r\n", "CLIENT REPLY OFF\r\nPING\r\n"]
    {
        let before = talk(&path, &["CLIENT ID"]);
        idle().await;
        let recycled = pool.status().tally.recycled;
        let mut stream = UnixStream::connect(&path).expect("connected");
        assert_eq!(ask(&mut stream, "CLIENT ID"), before[0]);
        stream.write_all(left.as_bytes()).expect("sent");
        if left.starts_with("SUBSCRIBE") {
            // A relay that has passed on what came has also seen it.
            let mut lines = BufReader::new(&stream).lines();
            lines.by_ref().take(12).for_each(drop);
        }
        drop(stream);
        idle().await;
        assert_eq!(pool.status().tally.recycled, recycled, "{left}");
        assert_ne!(talk(&path, &["CLIENT ID"]), before, "{left}");
        idle().await;
    }
    drop(sockets);
}

/// A failover: the name leads to another server, and the earlier server refuses writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_a_replica_now_is_left() {
    let (Some(one), Some(two)) = (Redis::start(), Redis::start()) else { return };
    // A name that moves: a relay to the one or the other.
    let (front, to) =
        (std::net::TcpListener::bind("127.0.0.1:0").expect("a port"), std::sync::Mutex::new(one.tcp()));
    let address = Address::Tcp(front.local_addr().expect("its address").to_string());
    let to: &'static std::sync::Mutex<Address> = Box::leak(Box::new(to));
    std::thread::spawn(move || {
        for client in front.incoming().flatten() {
            let Address::Tcp(server) = to.lock().expect("an address").clone() else { return };
            let Ok(server) = std::net::TcpStream::connect(server) else { continue };
            let (client, server) = (std::sync::Arc::new(client), std::sync::Arc::new(server));
            for (from, to) in [(client.clone(), server.clone()), (server, client)] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut &*from, &mut &*to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    let mut spec = backend(None, Some(PASSWORD), 0, address);
    (spec.pool.recycle, spec.pool.min_idle) = (true, 2);
    let pool = Pool::spawn(spec);
    let directory = tempfile::tempdir().expect("a directory");
    let sockets =
        Sockets::listen("f", "f-1", directory.path(), std::slice::from_ref(&pool), 4).expect("sockets");
    let path = directory.path().join("orders-db/redis.sock");
    let ready = || until(&pool, "two are ready", |status| (status.idle, status.leased) == (2, 0));
    ready().await;
    // A reader that stays, and a writer.
    let mut reader = UnixStream::connect(&path).expect("connected");
    assert_eq!(ask(&mut reader, "GET k"), "$-1");
    assert_eq!(talk(&path, &["SET k v"]), ["+OK"]);
    // Only connections that are idle when the answer comes are given up for it.
    until(&pool, "only the reader's is leased", |status| (status.idle, status.leased) == (2, 1)).await;
    let Address::Tcp(primary) = two.tcp() else { panic!("TCP") };
    let (host, port) = primary.split_once(':').expect("a port");
    *to.lock().expect("an address") = two.tcp();
    let mut admin = UnixStream::connect(one.directory.path().join("redis")).expect("connected");
    assert_eq!(ask(&mut admin, &format!("AUTH {PASSWORD}")), "+OK");
    assert_eq!(ask(&mut admin, &format!("REPLICAOF {host} {port}")), "+OK");

    assert!(talk(&path, &["SET k v"])[0].starts_with("-READONLY"), "one client is told");
    drop(reader);
    ready().await;
    let status = pool.status();
    assert!(status.kept == 0 && status.tally.discards[&DiscardReason::ReadOnly] > 0, "{status:?}");
    for _ in 0..3 {
        assert_eq!(talk(&path, &["SET k v"]), ["+OK"]);
    }
    drop(sockets);
}
