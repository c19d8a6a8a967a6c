use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::process::Command;

use command_fds::{CommandFdExt as _, FdMapping};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use proptest::prelude::*;

use super::*;

mod instances;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn listener() -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener.into(), address)
}

fn holding(key: impl ToString, descriptor: impl Into<OwnedFd>) -> ServiceManager {
    ServiceManager {
        inherited: HashMap::from([(key.to_string(), vec![descriptor.into()])]),
        ..ServiceManager::default()
    }
}

/// A manager to talk to, on an abstract socket or in a directory.
fn listening(path: &str) -> (UnixDatagram, ServiceManager) {
    let at = match path.strip_prefix('@') {
        Some(name) => UnixAddress::from_abstract_name(name).unwrap(),
        None => UnixAddress::from_pathname(path).unwrap(),
    };
    let socket = UnixDatagram::bind_addr(&at).unwrap();
    let notify = Some(Arc::new(NotifySocket::to(path.as_ref()).unwrap()));
    (socket, ServiceManager { notify, ..ServiceManager::default() })
}

/// The next message, and how many descriptors came with it.
fn received(socket: &UnixDatagram) -> (String, usize) {
    let (text, descriptors) = stored(socket);
    (text, descriptors.len())
}

/// The next message, and the descriptors that came with it.
fn stored(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let mut bytes = [0u8; 1024];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT).unwrap();
    let mut descriptors = Vec::new();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            let numbers = numbers.into_iter().map(|number| (number, String::new())).collect();
            descriptors.extend(take(numbers).unwrap().into_iter().map(|(_, descriptor)| descriptor));
        }
    }
    let length = message.bytes;
    (String::from_utf8_lossy(&bytes[..length]).into_owned(), descriptors)
}

#[test]
fn a_manager_that_does_not_read_is_waited_for_by_a_thread_that_keeps_the_order() {
    let (socket, mut manager) = listening("@headstart-test-slow-manager");
    manager.start_thread().unwrap();
    let (listener, address) = listener();
    let began = std::time::Instant::now();
    // More than the queue of the socket holds (net.unix.max_dgram_qlen).
    let count = 900;
    for number in 0..count {
        let key = ListenerKey::Hidden(address, number);
        if number % 2 == 0 { manager.store_listener(key, &listener) } else { manager.remove_listener(key) }
    }
    assert!(began.elapsed().as_secs() < 5, "the caller does not wait: {:?}", began.elapsed());
    socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    let mut bytes = [0; 256];
    for number in 0..count {
        let length = socket.recv(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..length]);
        assert!(text.ends_with(&format!("-{number}")), "{number}: {text}");
    }
}

#[test]
fn every_place_has_a_legal_name_of_its_own() {
    let keys = [
        (ListenerKey::Bound(address("0.0.0.0:8081")), "listen-0.0.0.0_8081"),
        (ListenerKey::Bound(address("[::]:8081")), "listen-[__]_8081"),
        (ListenerKey::Bound(address("[fe80::1%3]:80")), "listen-[fe80__1%3]_80"),
        (ListenerKey::Hidden(address("0.0.0.0:8081"), 7), "listen-0.0.0.0_8081-7"),
        (ListenerKey::Hidden(address("0.0.0.0:808"), 17), "listen-0.0.0.0_808-17"),
    ];
    for (key, name) in keys {
        assert_eq!(key.to_string(), name);
        assert!(is_legal(name), "{name}");
    }
    for name in ["a:b", "a\nb", "\u{e4}", "\u{7f}", &"x".repeat(256)] {
        assert!(!is_legal(name), "{name:?}");
    }
}

#[test]
fn a_listener_is_taken_once_with_its_connections() {
    let (kept, at) = listener();
    let _early = TcpStream::connect(at).unwrap();
    let mut manager = holding(ListenerKey::Bound(at), kept);
    assert!(manager.has_listener(ListenerKey::Bound(at)));
    TcpListener::from(manager.take_listener(ListenerKey::Bound(at)).unwrap()).accept().unwrap();
    assert!(
        !manager.has_listener(ListenerKey::Bound(at))
            && manager.take_listener(ListenerKey::Bound(at)).is_none()
    );
}

#[test]
fn what_is_not_what_its_name_says_is_not_taken() {
    let at = address("127.0.0.1:9");
    let key = ListenerKey::Bound(at);
    let (elsewhere, there) = listener();
    assert!(holding(key, elsewhere).take_listener(key).is_none(), "another address");
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let key = ListenerKey::Bound(udp.local_addr().unwrap());
    assert!(holding(key, udp).take_listener(key).is_none(), "UDP");
    let (target, at) = listener();
    let connected = TcpStream::connect(at).unwrap();
    let key = ListenerKey::Bound(connected.local_addr().unwrap());
    assert!(holding(key, connected).take_listener(key).is_none(), "not listening");
    let key = ListenerKey::Bound(there);
    assert!(holding(key, std::fs::File::open("/dev/null").unwrap()).take_listener(key).is_none(), "a file");
    drop(target);
}

#[test]
fn a_hidden_listener_may_have_any_port_of_loopback() {
    let shared = address("0.0.0.0:8081");
    let (kept, _) = listener();
    let mut manager = holding(ListenerKey::Hidden(shared, 7), kept);
    assert!(
        manager.take_listener(ListenerKey::Hidden(shared, 8)).is_none()
            && manager.take_listener(ListenerKey::Bound(shared)).is_none()
    );
    assert!(manager.take_listener(ListenerKey::Hidden(shared, 7)).is_some());
    let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    assert!(
        holding(ListenerKey::Hidden(shared, 7), everywhere)
            .take_listener(ListenerKey::Hidden(shared, 7))
            .is_none()
    );
}

#[test]
fn the_manager_hears_what_to_keep_and_what_to_drop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let abstract_name = format!("@headstart-test-{}", std::process::id());
    for path in [path.to_str().unwrap(), &abstract_name] {
        let (socket, mut manager) = listening(path);
        let (kept, at) = listener();
        manager.store_listener(ListenerKey::Bound(at), &kept);
        assert_eq!(received(&socket), (format!("FDSTORE=1\nFDNAME={}", ListenerKey::Bound(at)), 1));
        // One that no function wants, and one that cannot even be named.
        manager.inherited.insert("unknown".to_owned(), vec![listener().0]);
        manager.inherited.insert("x\nREADY=1".to_owned(), vec![listener().0]);
        manager.ready();
        assert_eq!(received(&socket), ("FDSTOREREMOVE=1\nFDNAME=unknown".to_owned(), 0));
        assert_eq!(received(&socket), ("READY=1".to_owned(), 0));
        assert!(manager.inherited.is_empty());
        manager.stopping(Duration::from_secs(40));
        assert_eq!(received(&socket), ("STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000".to_owned(), 0));
        // What does not fit its name must not stay there either.
        let key = ListenerKey::Bound(address("127.0.0.1:9"));
        manager.inherited.insert(key.to_string(), vec![kept]);
        assert!(manager.take_listener(key).is_none());
        assert_eq!(received(&socket), (format!("FDSTOREREMOVE=1\nFDNAME={key}"), 0));
    }
}

#[test]
fn a_manager_that_is_gone_does_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let (socket, mut manager) = listening(path.to_str().unwrap());
    drop(socket);
    manager.store_listener(ListenerKey::Bound(address("127.0.0.1:9")), &listener().0);
    manager.ready();
    manager.stopping(Duration::ZERO);
    ServiceManager::default().ready();
}

#[test]
fn a_notify_socket_is_a_path_or_abstract() {
    let long = format!("/{}", "x".repeat(200));
    for path in ["", "@", "relative", "vsock:2:1234", &long] {
        assert!(NotifySocket::to(path.as_ref()).is_err(), "{path:?}");
    }
}

#[test]
fn only_what_is_meant_for_this_process_is_announced() {
    let announced = |pid: &str, count: &str, names: &str| {
        let (pid, count, names) = (OsString::from(pid), OsString::from(count), OsString::from(names));
        super::announced(42, |name| match name {
            "LISTEN_PID" => Some(pid.clone()),
            "LISTEN_FDS" => Some(count.clone()),
            "LISTEN_FDNAMES" => Some(names.clone()),
            _ => None,
        })
    };
    assert_eq!(announced("42", "2", "a:b"), [(3, "a".to_owned()), (4, "b".to_owned())]);
    // Nobody's by name: closed in the end.
    for names in ["", "a", "a:b:c"] {
        assert_eq!(announced("42", "2", names), [(3, String::new()), (4, String::new())], "{names:?}");
    }
    for (pid, count) in [
        ("41", "1"),
        ("", "1"),
        ("x", "1"),
        ("-42", "1"),
        ("42", ""),
        ("42", "0"),
        ("42", "-1"),
        ("42", "65537"),
    ] {
        assert_eq!(announced(pid, count, "a"), [], "{pid:?} {count:?}");
    }
    assert_eq!(announced("42", "4294967295", "a"), []);
    assert_eq!(super::announced(42, |_| None), []);
}

proptest! {
    #[test]
    fn no_environment_is_too_strange(
        pid in prop::option::of("42|[0-9]{0,12}"),
        count in prop::option::of("[0-9]{0,6}|.{0,8}"),
        names in prop::option::of(prop::collection::vec(any::<u8>(), 0..64)),
    ) {
        let announced = announced(42, |name| match name {
            "LISTEN_PID" => pid.clone().map(OsString::from),
            "LISTEN_FDS" => count.clone().map(OsString::from),
            "LISTEN_FDNAMES" => names.clone().map(|names| std::ffi::OsStr::from_bytes(&names).to_owned()),
            _ => None,
        });
        prop_assert!(announced.len() <= INHERITED_MAX as usize);
        for (number, (descriptor, name)) in announced.iter().enumerate() {
            prop_assert_eq!(*descriptor, FIRST + number as RawFd);
            prop_assert!(!name.contains(':'));
        }
    }
}

/// Set where this test's process is the heir.
const HEIR: &str = "HEADSTART_TEST_HEIR";

/// Descriptors are inherited across an exec only, so the heir is a process of its own: this test again.
#[test]
fn descriptors_are_inherited_and_their_numbers_free_again() {
    if let Some(at) = env::var_os(HEIR) {
        return inherit(address(at.to_str().unwrap()));
    }
    let (kept, at) = listener();
    let mut early = TcpStream::connect(at).unwrap();
    early.write_all(b"hello").unwrap();
    let test = "manager::tests::descriptors_are_inherited_and_their_numbers_free_again";
    let mut heir = Command::new("sh");
    // The process that the shell becomes has the shell's number.
    heir.args(["-c", "LISTEN_PID=$$ exec \"$0\" --exact \"$1\" --test-threads=1"]);
    heir.arg(env::current_exe().unwrap()).arg(test).env(HEIR, at.to_string());
    // The second is not open, and the third's name is not that of a listener.
    heir.env("LISTEN_FDS", "3").env("LISTEN_FDNAMES", format!("{}:closed:other", ListenerKey::Bound(at)));
    let other = std::fs::File::open("/dev/null").unwrap().into();
    let mappings =
        vec![FdMapping { parent_fd: kept, child_fd: 3 }, FdMapping { parent_fd: other, child_fd: 5 }];
    heir.fd_mappings(mappings).unwrap();
    let output = heir.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn inherit(at: SocketAddr) {
    let mut manager = ServiceManager::from_environment();
    let mut names: Vec<_> = manager.inherited.keys().cloned().collect();
    names.sort_unstable();
    assert_eq!(names, [ListenerKey::Bound(at).to_string(), "other".to_owned()]);
    for number in [3, 5] {
        let link = std::fs::read_link(format!("/proc/self/fd/{number}"));
        assert!(link.is_err(), "{number} is still {link:?}");
    }
    let listener = manager.take_listener(ListenerKey::Bound(at)).unwrap();
    let flags = nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags, nix::fcntl::FdFlag::FD_CLOEXEC.bits());
    let (mut early, _) = TcpListener::from(listener).accept().unwrap();
    let mut bytes = [0u8; 5];
    io::Read::read_exact(&mut early, &mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}
