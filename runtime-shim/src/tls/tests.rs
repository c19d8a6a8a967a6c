//! Sessions with OpenSSL's own server, handed over by the real pool.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use headstart_injector::{
    Address, BackendKind, BackendSpec, DiscardReason, HandOver, LeaseSlot, Pool, PoolSettings, Tls, TlsMode,
    TlsSettings,
};
use headstart_wire::{Flow, Grant, GrantStatus, TlsSession, ToAgent, ToFunction, ktls};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::{KernelStream, KeyUpdates, UserTlsStream};
use crate::testing::{FakeAgent, PATIENCE, attached};
use crate::{BackendStream, Function};

const SUITES: [&str; 2] = ["TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// `openssl s_server`: prints what it receives, sends what is typed, and obeys lines of one letter.
struct Server {
    _child: Child,
    typed: ChildStdin,
    printed: Lines<BufReader<ChildStdout>>,
    port: u16,
    directory: tempfile::TempDir,
}

impl Server {
    async fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(directory.path().join("cert.pem"), certified.cert.pem()).unwrap();
        std::fs::write(directory.path().join("key.pem"), certified.signing_key.serialize_pem()).unwrap();
        // It says so at once when it has obeyed, if its output is flushed at each line.
        let mut child = Command::new("stdbuf")
            .args([
                "-oL",
                "openssl",
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-cert",
                "cert.pem",
                "-key",
                "key.pem",
            ])
            .args(arguments)
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("stdbuf and openssl are installed");
        let (typed, printed) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let printed = BufReader::new(printed).lines();
        let mut server = Self { _child: child, typed, printed, port: 0, directory };
        let accepts = server.prints("ACCEPT ").await;
        server.port = accepts.rsplit(':').next().unwrap().parse().unwrap();
        server
    }

    fn spec(&self) -> BackendSpec {
        let ca_file = Some(self.directory.path().join("cert.pem"));
        let tls = TlsSettings { ca_file, server_name: "localhost".into(), ..TlsSettings::default() };
        BackendSpec {
            name: "db".into(),
            kind: BackendKind::Tcp,
            address: Address::Tcp(format!("127.0.0.1:{}", self.port)),
            tls: Some(Tls::new(&tls).unwrap()),
            // The server serves one at a time.
            pool: PoolSettings {
                min_idle: 1,
                max: 1,
                wait: Duration::from_secs(5),
                ..PoolSettings::default()
            },
        }
    }

    async fn prints(&mut self, text: &str) -> String {
        let found = async {
            loop {
                let line = self.printed.next_line().await.unwrap().expect("the server goes on");
                if line.contains(text) {
                    return line;
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("the server prints {text:?}"))
    }

    async fn types(&mut self, line: &str) {
        self.typed.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// Has it obey this letter, which it confirms.
    async fn obeys(&mut self, letter: &str) {
        self.types(letter).await;
        self.prints("SSL_do_handshake -> 1").await;
    }
}

/// Whether the kernel has the keys of sessions, and so must be able to change them.
fn keys_stay() -> bool {
    ktls::is_loaded() && !ktls::can_rekey()
}

/// A session in the function's hands, with an agent that knows the next keys.
struct Handed {
    _function: Function,
    stream: BackendStream,
    asked: Asked,
}

/// Whose next keys were asked for.
type Asked = Arc<Mutex<Vec<Flow>>>;

async fn hand_over(server: &Server) -> (Pool, HandOver) {
    let pool = Pool::spawn(server.spec());
    let lease = pool.lease().await.unwrap();
    (pool, lease.hand_over(TlsMode::Kernel).unwrap())
}

impl Handed {
    async fn begin(server: &Server) -> Self {
        let (_, HandOver { fd, session, tls, slot }) = hand_over(server).await;
        assert!(tls.is_some(), "handed over");
        let status = GrantStatus::Ready { session, expires_ns: None, tls: tls.map(Box::new) };
        let (agent, function) = attached(vec![(Grant { backend: "db".into(), status }, Some(fd))]).await;
        let asked = answer(agent, slot);
        let (stream, _) = function.backend("db").stream().await.unwrap();
        Self { _function: function, stream, asked }
    }

    async fn says(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn hears(&mut self, line: &str) {
        let mut heard = vec![0; line.len() + 1];
        timeout(PATIENCE, self.stream.read_exact(&mut heard)).await.expect(line).unwrap();
        assert_eq!(heard, format!("{line}\n").as_bytes());
    }

    /// For good, since its kernel cannot follow.
    async fn hears_of_new_keys(&mut self) {
        for _ in 0..2 {
            let error = timeout(PATIENCE, self.stream.read(&mut [0])).await.expect("an end").unwrap_err();
            assert!(error.to_string().contains("which this kernel does not support"), "{error}");
        }
    }
}

/// Gives next keys until the control socket is closed.
fn answer(agent: FakeAgent, slot: LeaseSlot) -> Asked {
    let asked = Asked::default();
    let told = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            match agent.0.recv::<ToAgent>() {
                Ok(received) => {
                    let ToAgent::NextKey { connection, flow } = received.message else { continue };
                    assert_eq!(slot.tls_connection(), Some(connection));
                    told.lock().unwrap().push(flow);
                    let key = slot.next_key(flow);
                    agent.0.send(&ToFunction::NextKey { connection, flow, key }, &[]).unwrap();
                }
                Err(error) if error.would_block() => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(_) => return,
            }
        }
    });
    asked
}

#[tokio::test]
async fn both_ways_and_keys_change_whoever_wants_it() {
    for suite in SUITES {
        let mut server = Server::start(&["-tls1_3", "-ciphersuites", suite]).await;
        let mut handed = Handed::begin(&server).await;
        handed.says("from the function").await;
        server.prints("from the function").await;
        server.types("from the server").await;
        handed.hears("from the server").await;

        // What is longer than a record comes whole.
        let long = "x".repeat(100_000);
        handed.says(&long).await;
        let mut printed = 0;
        while printed < long.len() {
            printed += server.prints("x").await.trim().len();
        }

        if keys_stay() {
            server.obeys("K").await;
            handed.hears_of_new_keys().await;
            continue;
        }
        // The server changes its own keys, and does not ask for ours.
        server.obeys("k").await;
        server.types("with other keys").await;
        handed.hears("with other keys").await;
        handed.says("with the old").await;
        server.prints("with the old").await;

        // It changes its own, and asks for ours: they come with what we say next.
        for turn in ["first", "second"] {
            server.obeys("K").await;
            server.types(turn).await;
            handed.hears(turn).await;
            handed.says(turn).await;
            server.prints(turn).await;
        }

        let both = [Flow::FromServer, Flow::ToServer];
        assert_eq!(
            *handed.asked.lock().unwrap(),
            [&[Flow::FromServer], &both[..], &both].concat(),
            "{suite}"
        );
    }
}

#[tokio::test]
async fn a_worn_key_is_replaced() {
    let mut server = Server::start(&["-tls1_3"]).await;
    let (_, HandOver { fd, session: _, tls, slot }) = hand_over(&server).await;
    let (agent, function) = attached(Vec::new()).await;
    let asked = answer(agent, slot);
    let known = Arc::clone(function.agent().unwrap());
    let stream = std::net::TcpStream::from(fd);
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let TlsSession { connection, suite, keys } = tls.unwrap();
    let later = KeyUpdates::new(known, connection, PATIENCE);
    let mut stream: Box<dyn AsyncWrite + Unpin> = match keys {
        Some(keys) => {
            let mut stream = UserTlsStream::new(stream, suite, &keys, later).unwrap();
            stream.sealer.set_limit(3);
            Box::new(stream)
        }
        None => {
            let mut stream = KernelStream::new(stream, suite, later).unwrap();
            stream.limit = 3;
            Box::new(stream)
        }
    };
    for line in ["one", "two", "three", "four", "five", "six", "seven"] {
        let written = stream.write_all(format!("{line}\n").as_bytes()).await;
        if keys_stay() && line == "four" {
            assert!(written.unwrap_err().to_string().contains("which this kernel does not support"));
            return;
        }
        written.unwrap();
        stream.flush().await.unwrap();
        server.prints(line).await;
    }
    // Each key was good for three records.
    assert_eq!(*asked.lock().unwrap(), [Flow::ToServer, Flow::ToServer]);
}

#[tokio::test]
async fn an_end_without_close_notify_is_no_end() {
    let mut server = Server::start(&["-tls1_3"]).await;
    let mut handed = Handed::begin(&server).await;
    server._child.kill().await.unwrap();
    let end = timeout(PATIENCE, handed.stream.read(&mut [0])).await.expect("an end");
    let kind = end.expect_err("something may be missing").kind();
    use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
    assert!([ConnectionReset, UnexpectedEof].contains(&kind), "{kind}");
}

#[tokio::test]
async fn both_say_goodbye() {
    let mut server = Server::start(&["-tls1_3"]).await;
    let mut handed = Handed::begin(&server).await;
    handed.says("last words").await;
    handed.stream.shutdown().await.unwrap();
    server.prints("last words").await;
    // "DONE" for a close_notify, "ERROR" for an end without.
    server.prints("DONE").await;
    // It answers with its own, which is a good end.
    assert_eq!(timeout(PATIENCE, handed.stream.read(&mut [0])).await.expect("an end").unwrap(), 0);
}

/// The kernel's, or one end of a relay: neither knows of TLS.
#[tokio::test]
async fn a_driver_that_wants_a_descriptor_gets_one() {
    let mut server = Server::start(&["-tls1_3", "-num_tickets", "0"]).await;
    let (_, HandOver { fd, session, tls, slot }) = hand_over(&server).await;
    let in_kernel = tls.as_ref().unwrap().keys.is_none();
    let status = GrantStatus::Ready { session, expires_ns: None, tls: tls.map(Box::new) };
    let (agent, function) = attached(vec![(Grant { backend: "db".into(), status }, Some(fd))]).await;
    answer(agent, slot);
    let mut stream = function.backend("db").tcp().await.unwrap();
    stream.write_all(b"in the clear\n").await.unwrap();
    server.prints("in the clear").await;
    server.types("and back").await;
    let mut heard = [0; 9];
    timeout(PATIENCE, stream.read_exact(&mut heard)).await.expect("an answer").unwrap();
    assert_eq!(&heard, b"and back\n");
    server.obeys("K").await;
    server.types("with new keys").await;
    let read = timeout(PATIENCE, stream.read_exact(&mut [0; 14])).await.expect("an answer");
    match in_kernel {
        // New keys are no data: that takes who knows of TLS.
        true => assert_eq!(read.unwrap_err().raw_os_error(), Some(nix::libc::EIO)),
        false => assert_eq!(read.unwrap(), 14),
    }
}

/// The tests below hold for whoever has the keys; this one says who does.
#[tokio::test]
async fn the_kernel_gets_the_keys_where_it_takes_them() {
    for suite in SUITES {
        let server = Server::start(&["-tls1_3", "-ciphersuites", suite]).await;
        let (_, HandOver { tls, .. }) = hand_over(&server).await;
        assert_eq!(tls.unwrap().keys.is_none(), ktls::is_loaded(), "{suite}");
    }
}

#[tokio::test]
async fn an_agent_that_does_not_know_the_next_key_ends_the_session() {
    if keys_stay() {
        return;
    }
    for known in [true, false] {
        let mut server = Server::start(&["-tls1_3"]).await;
        let (_, HandOver { fd, session, tls, .. }) = hand_over(&server).await;
        let status = GrantStatus::Ready { session, expires_ns: None, tls: tls.map(Box::new) };
        let (agent, function) = attached(vec![(Grant { backend: "db".into(), status }, Some(fd))]).await;
        let (mut stream, _) = function.backend("db").stream().await.unwrap();
        server.types("before").await;
        stream.read_exact(&mut [0; 7]).await.unwrap();
        server.obeys("k").await;
        server.types("after").await;
        let reading = tokio::spawn(async move { stream.read(&mut [0]).await });
        let ToAgent::NextKey { connection, flow } = agent.next_message().await else { panic!("no question") };
        if known {
            agent.0.send(&ToFunction::NextKey { connection, flow, key: None }, &[]).unwrap();
        } else {
            drop(agent);
        }
        let error = timeout(PATIENCE, reading).await.expect("no hang").unwrap().unwrap_err();
        let said = if known { "did not hand the connection over" } else { "agent is gone" };
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_be_handed_over_is_relayed() {
    for (arguments, said) in
        [(&["-tls1_2"][..], "TLS 1.2"), (&["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"], "AES-128")]
    {
        let mut server = Server::start(arguments).await;
        let (_pool, HandOver { fd, tls, slot, .. }) = hand_over(&server).await;
        assert!(tls.is_none() && slot.tls_connection().is_none(), "{said}");
        assert!(slot.next_key(Flow::ToServer).is_none());
        let mut stream = BackendStream::adopt(fd).unwrap();
        stream.write_all(b"relayed\n").await.unwrap();
        server.prints("relayed").await;
    }
}

#[tokio::test]
async fn while_it_is_idle_tickets_and_new_keys_are_borne_and_words_are_not() {
    let mut server = Server::start(&["-tls1_3"]).await;
    let pool = Pool::spawn(server.spec());
    let reached = async |what: &str, reached: &dyn Fn(&headstart_injector::PoolStatus) -> bool| {
        let wait = async {
            while !reached(&pool.status()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: {:?}", pool.status()));
    };
    reached("idle", &|status| status.idle == 1).await;
    server.obeys("K").await;
    let HandOver { fd, tls, slot, .. } = pool.lease().await.unwrap().hand_over(TlsMode::Kernel).unwrap();
    assert_eq!(pool.status().tally.connects, 1, "neither tickets nor new keys are a reason to begin anew");
    // The answer that the server is owed is in the session, which therefore stays.
    assert!(tls.is_none());
    let mut stream = BackendStream::adopt(fd).unwrap();
    stream.write_all(b"with the new keys\n").await.unwrap();
    server.prints("with the new keys").await;

    drop((stream, slot));
    reached("the next", &|status| status.tally.connects == 2 && status.idle == 1).await;
    server.types("too early").await;
    reached("another", &|status| status.tally.discards[&DiscardReason::UnreadMessage] == 1).await;
}
