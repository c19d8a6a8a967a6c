//! What is kept of running instances.

use std::fs::File;
use std::os::unix::net::UnixStream;

use headstart_wire::Channel;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{recv, send};

use super::*;

const INSTANCE: &str = "f-1";

fn page_of(bytes: usize, seals: SealFlag) -> OwnedFd {
    let page = File::from(memfd_create("page", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap());
    page.set_len(bytes as u64).unwrap();
    fcntl(&page, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    page.into()
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

fn page() -> OwnedFd {
    page_of(rustix::param::page_size(), all_seals())
}

/// An agent's end, and the instance's.
fn control() -> (OwnedFd, Channel) {
    let (agent, function) = Channel::pair().unwrap();
    (agent.into(), function)
}

fn inherited(descriptors: Vec<OwnedFd>) -> ServiceManager {
    ServiceManager {
        inherited: HashMap::from([(descriptor_store::name(INSTANCE), descriptors)]),
        ..ServiceManager::default()
    }
}

/// The two are told apart by what they are, in whatever order the manager gives them.
#[test]
fn an_instance_is_taken_once() {
    for turned in [false, true] {
        let ((control, _function), page) = (control(), page());
        let inode = |descriptor: &OwnedFd| nix::sys::stat::fstat(descriptor).unwrap().st_ino;
        let inodes = (inode(&control), inode(&page));
        let mut manager = inherited(if turned { vec![page, control] } else { vec![control, page] });
        assert!(manager.take_instance("f-2").is_none());
        let (control, page) = manager.take_instance(INSTANCE).unwrap();
        assert_eq!((inode(&control), inode(&page)), inodes);
        assert!(manager.take_instance(INSTANCE).is_none());
    }
}

#[test]
fn what_is_no_instance_is_not_taken() {
    let none =
        |descriptors, why: &str| assert!(inherited(descriptors).take_instance(INSTANCE).is_none(), "{why}");
    none(vec![page()], "only a page");
    none(vec![control().0], "only a control socket");
    let (stream, _peer) = UnixStream::pair().unwrap();
    none(vec![page(), stream.into()], "a stream");
    let (tcp, _) = listener();
    none(vec![page(), tcp], "a TCP listener");
    let directory = tempfile::tempdir().unwrap();
    none(vec![page(), listening_packets(&directory.path().join("socket"))], "a listening socket");
    none(vec![control().0, File::open("/dev/zero").unwrap().into()], "a device");
    let size = rustix::param::page_size();
    let file = tempfile::tempfile().unwrap();
    file.set_len(size as u64).unwrap();
    none(vec![control().0, file.into()], "a file on a disk");
    none(vec![control().0, page_of(size * 2, all_seals())], "two pages");
    none(vec![control().0, page_of(0, all_seals())], "no page");
    none(vec![control().0, page_of(size, all_seals() - SealFlag::F_SEAL_SHRINK)], "it can be truncated");
}

fn listening_packets(path: &std::path::Path) -> OwnedFd {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&socket, Backlog::new(1).unwrap()).unwrap();
    socket
}

#[test]
fn an_instance_is_kept_and_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, manager) = listening(directory.path().join("notify").to_str().unwrap());
    let ((control, _function), page) = (control(), page());
    let descriptor_store = manager.descriptor_store();
    descriptor_store.clone().store_instance(INSTANCE, control.as_fd(), page.as_fd()).unwrap();
    assert_eq!(received(&socket), ("FDSTORE=1\nFDNAME=instance-f-1".to_owned(), 2));
    descriptor_store.remove_instance(INSTANCE);
    assert_eq!(received(&socket), ("FDSTOREREMOVE=1\nFDNAME=instance-f-1".to_owned(), 0));
    assert!(is_legal(&descriptor_store::name(&"x".repeat(96))));
    // One descriptor without the other is useless, and is removed too; so are those that are not taken.
    let mut manager = ServiceManager { inherited: inherited(vec![control]).inherited, ..manager };
    assert!(manager.take_instance(INSTANCE).is_none());
    assert_eq!(received(&socket), ("FDSTOREREMOVE=1\nFDNAME=instance-f-1".to_owned(), 0));
    manager.inherited.insert(descriptor_store::name(INSTANCE), vec![page]);
    manager.ready();
    assert_eq!(received(&socket), ("FDSTOREREMOVE=1\nFDNAME=instance-f-1".to_owned(), 0));
}

/// Were it to wait, this test would take [`NotifySocket`]'s patience, and the node would stand still as long.
#[test]
fn a_manager_that_does_not_listen_is_not_waited_for() {
    let ((control, _function), page) = (control(), page());
    let keep = |descriptor_store: &DescriptorStore| {
        descriptor_store.store_instance(INSTANCE, control.as_fd(), page.as_fd())
    };
    assert_eq!(keep(&ServiceManager::default().descriptor_store()), Err(StoreError::NoManager));
    let directory = tempfile::tempdir().unwrap();
    let (socket, manager) = listening(directory.path().join("notify").to_str().unwrap());
    let descriptor_store = manager.descriptor_store();
    let begun = std::time::Instant::now();
    while keep(&descriptor_store).is_ok() {}
    assert_eq!(keep(&descriptor_store), Err(StoreError::NotReading));
    descriptor_store.remove_instance(INSTANCE);
    assert!(begun.elapsed() < std::time::Duration::from_secs(4));
    // It can be told again when it has read.
    received(&socket);
    keep(&descriptor_store).unwrap();
    drop(socket);
    assert_eq!(keep(&descriptor_store), Err(StoreError::NotReading));
}

/// The queue belongs to the socket, not to who has it open: nothing that an instance says between two agents is lost.
#[test]
fn messages_wait_in_a_kept_control_socket() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, manager) = listening(directory.path().join("notify").to_str().unwrap());
    let ((control, function), page) = (control(), page());
    let say = |text: &[u8]| assert_eq!(send(function.as_raw_fd(), text, MsgFlags::empty()), Ok(text.len()));
    say(b"unread");
    manager.descriptor_store().store_instance(INSTANCE, control.as_fd(), page.as_fd()).unwrap();
    say(b"kept");
    // The agent dies. The manager reads what it was told, perhaps only then.
    drop((control, page, manager));
    let (_, kept) = stored(&socket);
    say(b"alone");
    let (control, _page) = inherited(kept).take_instance(INSTANCE).unwrap();
    say(b"taken");
    let hear = || {
        let mut packet = [0; 16];
        let length = recv(control.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT)?;
        nix::Result::Ok(packet[..length].to_vec())
    };
    for text in [&b"unread"[..], b"kept", b"alone", b"taken"] {
        assert_eq!(hear().as_deref(), Ok(text));
    }
    assert_eq!(hear(), Err(nix::errno::Errno::EAGAIN), "it is still connected, and does not block");
    // And the other way.
    send(control.as_raw_fd(), b"hello", MsgFlags::empty()).unwrap();
    assert_eq!(recv(function.as_raw_fd(), &mut [0; 16], MsgFlags::MSG_DONTWAIT), Ok(5));
    drop(function);
    assert_eq!(hear().as_deref(), Ok(&b""[..]), "its end is seen");
}
