//! The pool against servers that only the test knows, most of them with the clock in the test's hands.

mod common;

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as Blocking;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use common::{PASSWORD, postgres, relayed, spec, until};
use headstart_injector::{
    Address, BackendKind, BackendSpec, DiscardReason, FailureReason, FallbackReason, LeaseError, Pool,
    RedisLogin, ServerQuotas, Session,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A listening socket in a directory of its own.
struct Server {
    directory: tempfile::TempDir,
    listener: Option<UnixListener>,
}

impl Server {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("socket")).expect("a listener");
        Self { directory, listener: Some(listener) }
    }

    fn spec(&self, min_idle: usize, max: usize) -> BackendSpec {
        let mut spec = spec(BackendKind::Tcp, Address::Unix(self.directory.path().join("socket")));
        (spec.pool.min_idle, spec.pool.max) = (min_idle, max);
        spec
    }

    /// Accepts for ever, and passes the connections on.
    fn accept(&mut self) -> mpsc::UnboundedReceiver<UnixStream> {
        let listener = self.listener.take().expect("not yet accepting");
        let (sender, accepted) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if sender.send(stream).is_err() {
                    return;
                }
            }
        });
        accepted
    }
}

#[tokio::test(start_paused = true)]
async fn idle_connections_expire_and_are_replaced() {
    let mut server = Server::start();
    let mut accepted = server.accept();
    let pool = Pool::spawn(server.spec(2, 4));
    let mut first = [accepted.recv().await.expect("one"), accepted.recv().await.expect("two")];
    let begun = Instant::now();
    for stream in &mut first {
        assert_eq!(stream.read(&mut [0]).await.expect("readable"), 0, "closed by the pool");
    }
    let age = begun.elapsed();
    assert!((Duration::from_secs(480)..Duration::from_secs(601)).contains(&age), "{age:?}");
    let status = until(&pool, "full again", |s| s.idle == 2).await;
    assert_eq!(status.tally.discards[&DiscardReason::Expired], 2);
    assert_eq!(status.tally.connects, 4);
}

/// Answers every second login as if it were full, and serves the others as Redis does.
#[tokio::test(start_paused = true)]
async fn a_server_that_fails_every_second_login_fills_the_pool_all_the_same() {
    let mut server = Server::start();
    let mut accepted = server.accept();
    let mut spec = server.spec(4, 8);
    spec.kind = BackendKind::Redis(RedisLogin::default());
    let pool = Pool::spawn(spec);
    tokio::spawn(async move {
        let (mut number, mut served) = (0, Vec::new());
        while let Some(mut stream) = accepted.recv().await {
            number += 1;
            if stream.read(&mut [0; 64]).await.is_err() {
                continue;
            }
            let answer: &[u8] =
                if number % 2 == 0 { b"+PONG\r\n" } else { b"-ERR max number of clients reached\r\n" };
            if stream.write_all(answer).await.is_ok() && number % 2 == 0 {
                served.push(stream);
            }
        }
    });
    let status = until(&pool, "full", |status| status.idle == 4).await;
    assert_eq!((status.tally.connects, status.last_error), (4, None));
    assert!(status.tally.failures[&FailureReason::Server] >= 3, "{:?}", status.tally.failures);
    // What a lease gets was logged in, or it is an error that says why.
    for _ in 0..12 {
        match pool.lease().await {
            Ok(lease) => assert_eq!(lease.session, Session::Redis { user: None, database: 0 }),
            Err(error) => assert!(error.to_string().contains("max number of clients") && error.retry_helps()),
        }
    }
    until(&pool, "full again", |status| status.idle == 4 && status.leased == 0).await;
}

/// Packets are dropped without an error: idle connections look alive until keep-alive notices.
#[tokio::test(start_paused = true)]
async fn a_cut_costs_an_error_in_time_and_recovery_takes_no_longer_than_the_back_off() {
    let mut server = Server::start();
    let mut accepted = server.accept();
    let mut spec = server.spec(1, 4);
    spec.kind = BackendKind::Redis(RedisLogin::default());
    spec.pool.connect_timeout = Duration::from_secs(5);
    let pool = Pool::spawn(spec);
    let (cut, mut is_cut) = tokio::sync::watch::channel(true);
    tokio::spawn(async move {
        while let Some(mut stream) = accepted.recv().await {
            let mut is_cut = is_cut.clone();
            tokio::spawn(async move {
                let _ = is_cut.wait_for(|cut| !cut).await;
                let _ = stream.read(&mut [0; 64]).await;
                let _ = stream.write_all(b"+PONG\r\n").await;
                std::future::pending::<()>().await;
            });
        }
        let _ = is_cut.changed().await;
    });
    let begun = Instant::now();
    let error = pool.lease().await.expect_err("nothing answers");
    assert!(error.to_string().contains("not logged in after 5000 ms") && error.retry_helps(), "{error}");
    assert!(begun.elapsed() <= Duration::from_secs(11), "{:?}", begun.elapsed());
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(pool.status().last_error.is_some());
    cut.send(false).expect("the server listens");
    let begun = Instant::now();
    until(&pool, "full again", |status| status.idle == 1).await;
    // The pause that is under way, or the attempt.
    assert!(begun.elapsed() <= Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn pools_of_one_server_have_a_limit_together() {
    let mut server = Server::start();
    let _accepted = server.accept();
    let quotas = ServerQuotas::default();
    let pool = |server_max| {
        let mut spec = server.spec(1, 4);
        (spec.pool.server_max, spec.pool.wait) = (Some(server_max), Duration::from_secs(10));
        let pool = Pool::new(spec, &quotas);
        pool.start(&tokio::runtime::Handle::current());
        pool
    };
    let (one, two) = (pool(5), pool(5));
    let all = || [one.status(), two.status()].map(|s| s.idle + s.connecting + s.leased).iter().sum::<usize>();
    until(&one, "idle", |s| s.idle == 1).await;
    until(&two, "idle", |s| s.idle == 1).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(one.lease().await.expect("room"));
    }
    // The last one has to come from what the other has idle.
    held.push(two.lease().await.expect("its idle one"));
    assert_eq!(all(), 5);
    let error = two.lease().await.expect_err("no room");
    assert!(error.to_string().contains("5 for all backends of its server"), "{error}");
    let waiting = tokio::spawn(two.lease());
    until(&two, "waiting", |s| s.waiting == 1).await;
    held.swap_remove(0); // of the other pool
    waiting.await.expect("no panic").expect("its place");
    assert!(all() <= 5);
    drop(held);
    until(&one, "at rest", |s| s.idle == 1 && s.leased == 0).await;
    until(&two, "at rest", |s| s.idle == 1 && s.leased == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_function_has_no_more_than_its_share() {
    let mut server = Server::start();
    let _accepted = server.accept();
    let mut spec = server.spec(0, 4);
    spec.pool.max_per_function = Some(2);
    let pool = Pool::spawn(spec);
    let [greedy, other] = ["greedy", "other"].map(Arc::<str>::from);
    let inherited = pool.inherit(&greedy);
    let held = pool.lease_of(&greedy).await.expect("its second");
    assert!(pool.try_lease_of(&greedy).is_none());
    let error = pool.lease_of(&greedy).await.expect_err("no third");
    assert_eq!(error.reason(), FallbackReason::ShareExhausted);
    assert!(error.to_string().contains("none of the 2 connections that one function may have"), "{error}");
    // There is room for others, and for the function as soon as it has given one back.
    let _others = pool.lease_of(&other).await.expect("room");
    let waiting = tokio::spawn(pool.lease_of(&greedy));
    drop(held);
    let _held = waiting.await.expect("no panic").expect("its share");
    drop(inherited);
    pool.lease_of(&greedy).await.expect("also that of an earlier agent");
}

#[tokio::test(start_paused = true)]
async fn lease_waits_for_room_and_no_longer_than_allowed() {
    let mut server = Server::start();
    let _accepted = server.accept();
    let pool = Pool::spawn(server.spec(0, 1));
    let held = pool.lease().await.expect("the only one");
    assert_eq!(held.fallback, Some(FallbackReason::PoolEmpty));
    assert!(pool.try_lease().is_none());

    let begun = Instant::now();
    let error = pool.lease().await.expect_err("exhausted");
    assert!(matches!(error, LeaseError::Exhausted { max: 1, .. }), "{error}");
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert_eq!(pool.status().tally.fallbacks[&FallbackReason::PoolExhausted], 1);

    let waiting = tokio::spawn(pool.lease());
    until(&pool, "waiting", |s| s.waiting == 1).await;
    drop(held);
    let next = waiting.await.expect("no panic").expect("room again");
    assert_eq!(next.session, Session::Tcp);
    assert_eq!((pool.status().leased, pool.status().tally.discards[&DiscardReason::Used]), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_follows_demand_is_ready_for_the_next_burst() {
    let mut server = Server::start();
    let _accepted = server.accept();
    let mut spec = server.spec(1, 8);
    spec.pool.follow_demand = true;
    let pool = Pool::spawn(spec);
    until(&pool, "one is idle", |s| s.idle == 1).await;
    let burst: Vec<_> = (0..5).map(|_| pool.lease()).collect();
    for lease in burst {
        lease.await.expect("a lease");
    }
    let status = until(&pool, "five are idle", |s| s.idle == 5).await;
    assert_eq!((status.min_idle, status.wanted), (1, 5));
    let burst: Vec<_> = (0..5).map(|_| pool.try_lease().expect("an idle connection")).collect();
    drop(burst);
    // Never beyond the limit; and connections that are no longer needed are not replaced.
    drop((0..20).map(|_| pool.lease()).collect::<Vec<_>>());
    let status = until(&pool, "as many as there may be", |s| s.idle == 8).await;
    assert_eq!(status.wanted, 8);
    tokio::time::sleep(Duration::from_secs(1_300)).await;
    let status = until(&pool, "at rest", |s| s.idle == 1).await;
    assert_eq!(status.wanted, 1);
}

#[tokio::test]
async fn lease_begins_before_it_is_awaited_and_costs_nothing_once_unwanted() {
    let mut server = Server::start();
    let mut accepted = server.accept();
    let pool = Pool::spawn(server.spec(0, 4));
    let lease = pool.lease();
    let _stream = accepted.recv().await.expect("begun without a poll");
    assert!(lease.await.is_ok());
    drop(pool.lease());
    let _stream = accepted.recv().await.expect("begun, and not broken off");
    let status = until(&pool, "given up", |s| s.tally.discards[&DiscardReason::Surplus] == 1).await;
    assert_eq!((status.idle, status.leased, status.connecting, status.waiting), (0, 0, 0, 0));
}

#[tokio::test]
async fn connection_with_an_unread_message_is_not_handed_over() {
    let mut server = Server::start();
    let mut accepted = server.accept();
    let pool = Pool::spawn(server.spec(3, 4));
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(accepted.recv().await.expect("a connection"));
    }
    until(&pool, "full", |s| s.idle == 3).await;
    // No await from here on: the pool itself cannot notice before the lease does.
    assert_eq!(streams[0].try_write(b"notice").expect("written"), 6);
    drop(streams.remove(1));
    let lease = pool.try_lease().expect("the third");
    let (message, closed) = (DiscardReason::UnreadMessage, DiscardReason::ClosedByServer);
    let discards = pool.status().tally.discards;
    assert_eq!((discards[&message], discards[&closed]), (1, 1));
    drop(lease);
    until(&pool, "full again", |s| s.idle == 3).await;
}

#[tokio::test(start_paused = true)]
async fn server_that_accepts_and_closes_is_not_hammered() {
    let mut server = Server::start();
    let mut accepted = server.accept();
    let mut spec = server.spec(4, 8);
    (spec.pool.backoff_min, spec.pool.backoff_max) = (Duration::from_millis(100), Duration::from_secs(10));
    let _pool = Pool::spawn(spec);
    let end = Instant::now() + Duration::from_secs(600);
    let mut connections = 0;
    while let Ok(Some(stream)) = tokio::time::timeout_at(end, accepted.recv()).await {
        drop(stream);
        connections += 1;
    }
    // About one per 5 s (the mean of 0.1 to 10 s), each perhaps followed by its siblings.
    assert!((50..1000).contains(&connections), "{connections}");
}

#[tokio::test]
async fn dead_backend_fails_a_storm_quickly_one_attempt_at_a_time() {
    let server = Server::start();
    let mut spec = server.spec(0, 64);
    spec.address = Address::Unix(server.directory.path().join("nobody"));
    (spec.pool.backoff_min, spec.pool.backoff_max) = (Duration::from_secs(60), Duration::from_secs(60));
    let pool = Pool::spawn(spec);
    pool.lease().await.expect_err("no server listens");
    let leases: Vec<_> = (0..500).map(|_| pool.lease()).collect();
    for lease in leases {
        assert!(matches!(lease.await, Err(LeaseError::Connect(_))));
    }
    let status = pool.status();
    assert_eq!(status.tally.failures[&FailureReason::Dial], 2);
    assert_eq!(status.tally.fallbacks[&FallbackReason::ConnectFailed], 501);
    assert!(status.next_attempt_in.is_some_and(|pause| pause > Duration::from_secs(50)));
}

/// Counts what is open at the server. It closes when the client has closed, and has counted then.
async fn count(
    mut accepted: mpsc::UnboundedReceiver<UnixStream>,
    open: Arc<AtomicUsize>,
    peak: Arc<AtomicUsize>,
) {
    while let Some(mut stream) = accepted.recv().await {
        peak.fetch_max(open.fetch_add(1, SeqCst) + 1, SeqCst);
        let open = Arc::clone(&open);
        tokio::spawn(async move {
            let _end = stream.read(&mut [0]).await;
            open.fetch_sub(1, SeqCst);
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_never_sees_more_than_the_limit() {
    let mut server = Server::start();
    let (open, peak) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    tokio::spawn(count(server.accept(), Arc::clone(&open), Arc::clone(&peak)));
    let mut spec = server.spec(5, 64);
    spec.pool.wait = Duration::from_secs(60);
    let pool = Pool::spawn(spec);
    let leases: Vec<_> = (0..500).map(|_| tokio::spawn(pool.lease())).collect();
    for lease in leases {
        let lease = lease.await.expect("no panic").expect("a lease");
        tokio::task::spawn_blocking(move || {
            let lease = relayed(lease);
            let mut stream = Blocking::from(lease.fd);
            stream.set_nonblocking(false).expect("blocking mode");
            stream.shutdown(Shutdown::Write).expect("shut down");
            assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
            drop((stream, lease.slot));
        });
    }
    until(&pool, "calm", |s| s.tally.discards[&DiscardReason::Used] == 500 && s.idle >= 5).await;
    println!("peak at the server: {}", peak.load(SeqCst));
    assert!((1..=64).contains(&peak.load(SeqCst)));
}

#[tokio::test]
async fn closed_pool_lets_go_of_everything_but_leases() {
    let mut server = Server::start();
    let mut accepted = server.accept();
    let pool = Pool::spawn(server.spec(1, 2));
    let mut first = accepted.recv().await.expect("one");
    until(&pool, "full", |s| s.idle == 1).await;
    let lease = pool.lease().await.expect("the idle one");
    let mut second = accepted.recv().await.expect("two");
    until(&pool, "full", |s| s.idle == 1).await;
    let other = pool.try_lease().expect("the second");
    let waiting = pool.lease();
    pool.close();
    pool.close();
    assert!(matches!(waiting.await, Err(LeaseError::Closed { .. })));
    assert!(matches!(pool.lease().await, Err(LeaseError::Closed { .. })));
    assert!(pool.try_lease().is_none() && pool.status().closed);
    drop(other);
    assert_eq!(second.read(&mut [0]).await.expect("readable"), 0);
    first.write_all(b"x").await.expect("still open");
    let mut stream = Blocking::from(relayed(lease).fd);
    stream.set_nonblocking(false).expect("blocking mode");
    stream.read_exact(&mut [0]).expect("leased connections stay");
}

#[tokio::test]
async fn last_handle_closes_the_pool() {
    let mut server = Server::start();
    let mut accepted = server.accept();
    let pool = Pool::spawn(server.spec(1, 2));
    let mut stream = accepted.recv().await.expect("one");
    drop(pool.clone());
    until(&pool, "full", |s| s.idle == 1).await;
    drop(pool);
    assert_eq!(stream.read(&mut [0]).await.expect("readable"), 0);
}

#[tokio::test]
async fn descriptor_is_prepared_as_documented() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = Address::Tcp(listener.local_addr().expect("an address").to_string());
    let pool = Pool::spawn(spec(BackendKind::Tcp, address));
    let lease = relayed(pool.lease().await.expect("a lease"));
    let socket = socket2::SockRef::from(&lease.fd);
    assert!(socket.tcp_nodelay().expect("known") && socket.keepalive().expect("known"));
    assert_eq!(socket.tcp_keepalive_time().expect("known"), Duration::from_secs(30));
    assert!(socket.nonblocking().expect("known"));
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let flags = fcntl(lease.fd.as_fd(), FcntlArg::F_GETFD).expect("known");
    assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    let _: OwnedFd = lease.fd;
}

#[tokio::test(start_paused = true)]
async fn login_that_stops_in_the_middle_times_out() {
    let mut server = Server::start();
    let mut accepted = server.accept();
    let mut spec = server.spec(0, 4);
    spec.kind = BackendKind::Postgres(postgres("app"));
    let pool = Pool::spawn(spec);
    let begun = Instant::now();
    let lease = tokio::spawn(pool.lease());
    let mut stream = accepted.recv().await.expect("a connection");
    stream.write_all(b"R\0\0\0\x08\0\0\0\0S\0\0").await.expect("written");
    let error = lease.await.expect("no panic").expect_err("timed out");
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert!(error.to_string().contains("not logged in after 10000 ms") && error.retry_helps(), "{error}");
    assert_eq!(pool.status().tally.failures[&FailureReason::Timeout], 1);
}

#[tokio::test]
async fn nothing_shows_the_password() {
    let mut server = Server::start();
    let mut accepted = server.accept();
    let mut spec = server.spec(0, 4);
    spec.kind = BackendKind::Postgres(postgres("app"));
    let mut shown = vec![format!("{spec:?}")];
    let pool = Pool::spawn(spec);
    let lease = tokio::spawn(pool.lease());
    let mut stream = accepted.recv().await.expect("a connection");
    let words = format!("SFATAL\0C28000\0Mwrong: {PASSWORD}\0\0");
    let length = u32::try_from(words.len() + 4).expect("short");
    stream
        .write_all(&[b"E".as_slice(), &length.to_be_bytes(), words.as_bytes()].concat())
        .await
        .expect("written");
    let error = lease.await.expect("no panic").expect_err("refused");
    shown.extend([format!("{error}"), format!("{error:?}"), format!("{pool:?}")]);
    shown.push(serde_json::to_string(&pool.status()).expect("JSON"));

    let lease = tokio::spawn(pool.lease());
    let mut stream = accepted.recv().await.expect("a connection");
    let welcome = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x2a\x11\x22\x33\x44Z\0\0\0\x05I";
    stream.write_all(welcome).await.expect("written");
    let lease = lease.await.expect("no panic").expect("a lease");
    shown.extend([format!("{lease:?}"), format!("{pool:?}"), format!("{:?}", pool.status())]);
    shown.push(serde_json::to_string(&lease.session).expect("JSON"));
    for text in shown {
        assert!(!text.contains(PASSWORD), "{text}");
        assert!(!text.contains("287454020") && !text.contains("17, 34, 51, 68"), "the cancel key: {text}");
    }
}
