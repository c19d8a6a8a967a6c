use super::*;
use crate::{Grant, GrantStatus, Lease, Session, ToAgent, ToFunction};
use std::fs::File;
use std::sync::Mutex;

/// Descriptors are counted in the whole process: tests that open `/dev/null` take turns.
static ALONE: Mutex<()> = Mutex::new(());

/// How many descriptors of this process are what the tests send.
fn open_descriptors() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.filter(|target| target.as_os_str() == "/dev/null").count()
}

fn grant() -> ToFunction {
    ToFunction::Grant(Grant {
        backend: "db".into(),
        status: GrantStatus::Ready { session: Session::Tcp, expires_ns: None, tls: None },
    })
}

/// Sends any bytes with any descriptors, as a hostile peer would.
fn send_raw(channel: &Channel, packet: &[u8], descriptors: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(packet)], control, MsgFlags::empty(), None).unwrap();
}

#[test]
fn descriptors_arrive_in_order_and_close_on_exec() {
    let _alone = ALONE.lock();
    let (agent, function) = Channel::pair().unwrap();
    let files = ["/dev/null", "/dev/zero", "/dev/full"];
    let opened = files.map(|file| File::open(file).unwrap());
    let lease = ToFunction::Lease(Lease {
        function: "f".into(),
        instance: "f-1".into(),
        concurrency: None,
        backends: vec![Grant {
            backend: "db".into(),
            status: GrantStatus::Ready { session: Session::Tcp, expires_ns: None, tls: None },
        }],
    });
    agent.send(&lease, &opened.each_ref().map(AsFd::as_fd)).unwrap();
    let received = function.recv::<ToFunction>().unwrap();
    assert_eq!(received.message, lease);
    let targets: Vec<_> = received
        .descriptors
        .iter()
        .map(|fd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap())
        .collect();
    assert_eq!(targets, files.map(std::path::PathBuf::from));
    let flags = nix::fcntl::fcntl(&received.descriptors[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags, nix::libc::FD_CLOEXEC);
}

#[test]
fn a_sender_cannot_forget_or_add_descriptors() {
    let _alone = ALONE.lock();
    let (agent, _function) = Channel::pair().unwrap();
    assert_eq!(agent.send(&grant(), &[]).unwrap_err().reason(), "descriptors");
    let null = File::open("/dev/null").unwrap();
    let two = [null.as_fd(), null.as_fd()];
    assert_eq!(agent.send(&grant(), &two).unwrap_err().reason(), "descriptors");
}

#[test]
fn hostile_packets_are_refused_and_leak_nothing() {
    let _alone = ALONE.lock();
    // As on a kernel that cannot forbid descriptors.
    let (agent, function) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let (agent, function) = (Channel(agent), Channel(function));
    agent.set_nonblocking(true).unwrap();
    let null = File::open("/dev/null").unwrap();
    let many = vec![null.as_raw_fd(); MAX_DESCRIPTORS];
    let good = ToAgent::Ready { ready_ns: 1 }.encode().unwrap();
    let before = open_descriptors();
    for (packet, descriptors, reason) in [
        (&good[..], &many[..1], "descriptors"),
        (&good[..], &many[..2], "descriptors"),
        (&good[..], &many[..], "descriptors"),
        (&vec![b'x'; ToAgent::MAX_BYTES + 1][..], &many[..1], "oversized"),
        (&vec![b'x'; 100_000][..], &many[..], "oversized"),
        (b"", &many[..1], "closed"),
        (&good[..3], &many[..1], "header"),
        (b"HS\x01\0{}", &many[..1], "version"),
        (b"HS\x03\0{", &many[..1], "body"),
    ] {
        send_raw(&function, packet, descriptors);
        assert_eq!(agent.recv::<ToAgent>().unwrap_err().reason(), reason);
        let began = std::time::Instant::now();
        while open_descriptors() != before {
            // They are closed by another thread.
            assert!(began.elapsed().as_secs() < 30, "after {reason}");
            std::thread::yield_now();
        }
    }
    assert!(agent.recv::<ToAgent>().unwrap_err().would_block());
    drop(function);
    assert_eq!(agent.recv::<ToAgent>().unwrap_err().reason(), "closed");
}

#[test]
fn a_full_queue_blocks_the_sender_and_not_the_agent() {
    let _alone = ALONE.lock();
    let (agent, _function) = Channel::pair().unwrap();
    let error = loop {
        let grant = Grant { backend: "db".into(), status: GrantStatus::Pending };
        if let Err(error) = agent.send(&ToFunction::Grant(grant), &[]) {
            break error;
        }
    };
    assert!(error.would_block(), "{error}");
}

#[test]
fn a_dead_peer_is_an_error_and_not_a_signal() {
    let _alone = ALONE.lock();
    let (agent, function) = Channel::pair().unwrap();
    drop(agent);
    assert_eq!(function.send(&ToAgent::Ready { ready_ns: 1 }, &[]).unwrap_err().reason(), "io");
}
