use super::*;
use crate::start::{BoxFuture, ControlEnd, Exit, StartError};
use headstart_injector::{Address, BackendKind, BackendSpec, PoolSettings, TlsMode};
use headstart_wire::{Channel, Direction, GrantStatus, ToAgent, ToFunction};
use std::os::fd::AsRawFd;
use tokio::net::TcpListener;

/// A process that never ends; `owns` is its answer about every peer.
struct Still {
    owns: bool,
}

impl Process for Still {
    fn release(&self) -> BoxFuture<'_, Result<u64, StartError>> {
        Box::pin(std::future::pending())
    }
    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(std::future::pending())
    }
    fn freeze(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async { Ok(()) })
    }
    fn thaw(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async { Ok(()) })
    }
    fn terminate(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async { Ok(()) })
    }
    fn directory(&self) -> &std::path::Path {
        std::path::Path::new("")
    }
    fn owns(&self, _pid: i32) -> bool {
        self.owns
    }
}

const OWN: Still = Still { owns: true };

/// A pool over a server that accepts and sends nothing. The caller must keep the server.
async fn pool(name: &str, idle: usize) -> (Pool, TcpListener) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Tcp(server.local_addr().unwrap().to_string());
    let settings = PoolSettings { min_idle: idle, max: 100, ..PoolSettings::default() };
    let spec =
        BackendSpec { name: name.to_owned(), kind: BackendKind::Tcp, address, tls: None, pool: settings };
    let pool = Pool::spawn(spec);
    while pool.status().idle < idle {
        tokio::task::yield_now().await;
    }
    (pool, server)
}

fn resources(pools: Vec<Pool>) -> Resources {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    Resources {
        function: "orders".into(),
        listener: Arc::new(listener.into()),
        concurrency: Some(2),
        pools,
        by_socket: false,
        ports: Vec::new(),
        tls: TlsMode::Relay,
    }
}

fn page() -> OwnedFd {
    headstart_wire::Activity::create().unwrap().1
}

/// A conversation over an inherited socket, and the function's end of it.
fn inherited(pools: Vec<Pool>) -> (Conversation, Channel) {
    let (agent, function) = Channel::pair().unwrap();
    (
        Conversation::begin(resources(pools), "orders-1", ControlEnd::Connected(agent), page()).unwrap(),
        function,
    )
}

fn say(function: &Channel, messages: &[ToAgent]) {
    for message in messages {
        function.send(message, &[]).unwrap();
    }
}

const HELLO: ToAgent = ToAgent::Hello { shim: String::new(), hello_ns: 1 };
const ACK: ToAgent = ToAgent::Ack { injected_ns: 2 };
const READY: ToAgent = ToAgent::Ready { ready_ns: 3 };
const SERVED: ToAgent = ToAgent::Served { accept_ns: 4, first_response_ns: 5 };

#[tokio::test]
async fn the_lease_is_there_before_the_function_sends_a_message() {
    let (pool, _server) = pool("db", 1).await;
    let (_conversation, function) = inherited(vec![pool.clone()]);
    let received = function.recv::<ToFunction>().unwrap();
    assert_eq!(received.descriptors.len(), 3, "listener, page and connection");
    let ToFunction::Lease(lease) = received.message else { panic!("no lease") };
    assert!(lease.backends[0].is_ready());
    assert_eq!(pool.status().leased, 1);
}

#[tokio::test]
async fn events_are_reported_in_order_and_the_slot_goes_back_to_the_pool() {
    let (pool, _server) = pool("db", 1).await;
    let (mut conversation, function) = inherited(vec![pool.clone()]);
    say(&function, &[HELLO, ACK, READY, SERVED]);
    assert_eq!(conversation.next(&OWN).await, ShimEvent::Hello { hello_ns: 1 });
    assert_eq!(conversation.next(&OWN).await, ShimEvent::Injected { injected_ns: 2 });
    assert_eq!(conversation.next(&OWN).await, ShimEvent::Ready { ready_ns: 3 });
    assert_eq!(conversation.next(&OWN).await, ShimEvent::Served { accept_ns: 4, first_response_ns: 5 });
    drop(function);
    assert_eq!(conversation.next(&OWN).await, ShimEvent::Closed);
    drop(conversation);
    assert_eq!(pool.status().leased, 0);
}

#[tokio::test]
async fn messages_out_of_order_close_the_socket() {
    for (before, wrong) in [
        (vec![], ACK),
        (vec![], READY),
        (vec![], SERVED),
        (vec![HELLO], HELLO),
        (vec![HELLO], READY),
        (vec![HELLO, ACK], ACK),
        (vec![HELLO, ACK], SERVED),
        (vec![HELLO, ACK, READY], READY),
        (vec![HELLO, ACK, READY, SERVED], SERVED),
        (vec![HELLO], ToAgent::Request { backend: "db".into() }),
        (vec![HELLO, ACK], ToAgent::Request { backend: "other".into() }),
        (vec![HELLO, ACK, READY], ToAgent::NextKey { connection: 7, flow: headstart_wire::Flow::ToServer }),
    ] {
        let (pool, _server) = pool("db", 0).await;
        let (mut conversation, function) = inherited(vec![pool]);
        say(&function, &before);
        for _ in &before {
            assert_ne!(conversation.next(&OWN).await, ShimEvent::Closed);
        }
        say(&function, std::slice::from_ref(&wrong));
        assert_eq!(conversation.next(&OWN).await, ShimEvent::Closed, "{wrong:?} after {before:?}");
        while function.recv::<ToFunction>().is_ok() {}
        assert!(function.send(&HELLO, &[]).is_err(), "the agent's end is closed");
    }
}

#[tokio::test]
async fn a_connection_that_was_not_ready_follows_the_lease() {
    let (pool, _server) = pool("db", 0).await;
    let (mut conversation, function) = inherited(vec![pool]);
    let lease = function.recv::<ToFunction>().unwrap();
    let ToFunction::Lease(lease) = lease.message else { panic!("no lease") };
    assert_eq!(lease.backends[0].status, GrantStatus::Pending);
    say(&function, &[HELLO, ACK]);
    conversation.next(&OWN).await;
    conversation.next(&OWN).await;
    function.set_nonblocking(true).unwrap();
    let grant = loop {
        tokio::select! {
            event = conversation.next(&OWN) => assert_eq!(event, ShimEvent::BackendsChanged),
            () = tokio::task::yield_now() => {}
        }
        match function.recv::<ToFunction>() {
            Err(error) if error.would_block() => {}
            grant => break grant.unwrap(),
        }
    };
    assert_eq!(grant.descriptors.len(), 1);
    say(&function, &[ACK, READY]);
    assert_eq!(conversation.next(&OWN).await, ShimEvent::Ready { ready_ns: 3 });
}

#[tokio::test]
async fn an_instance_cannot_take_connections_without_end() {
    let (pool, _server) = pool("db", 1).await;
    let (mut conversation, function) = inherited(vec![pool.clone()]);
    say(&function, &[HELLO, ACK]);
    conversation.next(&OWN).await;
    conversation.next(&OWN).await;
    for _ in 0..LEASES_MAX {
        say(&function, &[ToAgent::Request { backend: "db".into() }]);
    }
    assert_eq!(conversation.next(&OWN).await, ShimEvent::Closed);
    let status = pool.status();
    assert_eq!(status.leased + status.waiting, LEASES_MAX, "{status:?}");
}

#[tokio::test]
async fn descriptors_from_a_function_are_refused() {
    let (mut conversation, function) = inherited(Vec::new());
    let packet = HELLO.encode().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let rights = [nix::sys::socket::ControlMessage::ScmRights(&[null.as_raw_fd()])];
    let data = [std::io::IoSlice::new(&packet)];
    let flags = nix::sys::socket::MsgFlags::empty();
    // A kernel that can forbid them does; then the function goes on without.
    let sent = nix::sys::socket::sendmsg::<()>(function.as_raw_fd(), &data, &rights, flags, None);
    if sent.is_err() {
        say(&function, &[HELLO]);
    }
    let refused = if sent.is_ok() { ShimEvent::Closed } else { ShimEvent::Hello { hello_ns: 1 } };
    assert_eq!(conversation.next(&OWN).await, refused);
}

/// It always has something to say.
#[tokio::test(start_paused = true)]
async fn an_instance_that_floods_the_agent_gets_its_share_and_others_their_turn() {
    let (agent, function) = Channel::pair().unwrap();
    function.set_nonblocking(true).unwrap();
    let mut conversation =
        Conversation::resume(resources(Vec::new()), "orders-1", agent.into(), &[]).unwrap();
    let fill = || (0u64..).take_while(|_| function.send(&READY, &[]).is_ok()).count();
    let room = fill();
    let (seconds, mut taken) = (4, 0);
    for _ in 0..10 * seconds {
        let pause = Duration::from_millis(100);
        assert!(tokio::time::timeout(pause, conversation.next(&OWN)).await.is_err(), "nothing to report");
        taken += fill();
    }
    let share = (MESSAGES_BURST + seconds * MESSAGES_PER_SECOND + 1) as usize;
    assert!(taken >= room.min(share / 2) && taken <= share, "{taken} of {share}");
}

/// A listening control socket in a directory of its own, as Docker's instances get.
fn listening() -> (tempfile::TempDir, std::path::PathBuf, OwnedFd) {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&listener, Backlog::new(4).unwrap()).unwrap();
    (directory, path, listener)
}

fn connect(path: &std::path::Path) -> Channel {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let peer = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(peer.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    Channel::from(peer)
}

#[tokio::test]
async fn an_instance_that_connects_gets_its_lease_and_another_process_does_not() {
    let (_directory, path, listener) = listening();
    let mut conversation =
        Conversation::begin(resources(Vec::new()), "orders-1", ControlEnd::Listening(listener), page())
            .unwrap();

    let other = connect(&path);
    tokio::select! {
        event = conversation.next(&Still { owns: false }) => panic!("{event:?}"),
        () = async { for _ in 0..100 { tokio::task::yield_now().await; } } => {}
    }
    assert!(other.recv::<ToFunction>().is_err(), "closed without a message");

    let instance = connect(&path);
    say(&instance, &[HELLO]);
    assert_eq!(conversation.next(&OWN).await, ShimEvent::Hello { hello_ns: 1 });
    assert_eq!(instance.recv::<ToFunction>().unwrap().descriptors.len(), 2, "the listener and the page");
}
