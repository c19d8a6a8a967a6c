//! The service manager of the laboratory keeps what a service stores, and hands it to the next.

use std::io::{IoSlice, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use headstart_integration_tests::lab::{self, Manager};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

fn store(manager: &Manager, name: &str, listener: &TcpListener) {
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(manager.socket()).unwrap();
    let text = format!("FDSTORE=1\nFDNAME={name}\n");
    let rights = [listener.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    let data = [IoSlice::new(text.as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &data, &control, MsgFlags::empty(), None).unwrap();
}

fn say(manager: &Manager, text: &str) {
    UnixDatagram::unbound().unwrap().send_to(text.as_bytes(), manager.socket()).unwrap();
}

#[test]
fn what_a_service_stored_outlives_it_and_is_handed_to_the_next() {
    let manager = Manager::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    store(&manager, "first", &listener);
    store(&manager, "same-again", &listener);
    store(&manager, "second", &TcpListener::bind("127.0.0.1:0").unwrap());
    assert_eq!(manager.stored().unwrap(), ["first", "second"]);
    drop(listener);

    // The service's own end of it is closed, and clients are still taken in.
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"hello").unwrap();

    // A script that shows what it got stands for the next service.
    let script =
        r#"echo "$LISTEN_FDS $LISTEN_FDNAMES $((LISTEN_PID - $$))"; readlink /proc/$$/fd/3 /proc/$$/fd/4"#;
    let said = lab::run(manager.command(Path::new("/bin/sh")).unwrap().args(["-c", script])).unwrap();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "2 first:second 0", "{said}");
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[1..].iter().all(|line| line.starts_with("socket:")), "{said}");

    say(&manager, "FDSTOREREMOVE=1\nFDNAME=first");
    assert_eq!(manager.stored().unwrap(), ["second"]);
    assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0, "no process keeps it open");
}

#[test]
fn a_service_that_stored_nothing_gets_nothing() {
    let manager = Manager::new().unwrap();
    say(&manager, "READY=1\n");
    say(&manager, "STATUS=up\nREADY=1");
    assert_eq!(manager.heard("READY=1").unwrap(), 2);
    let script = r#"echo "${LISTEN_FDS-none} ${LISTEN_PID-none} $NOTIFY_SOCKET""#;
    let said = lab::run(manager.command(Path::new("/bin/sh")).unwrap().args(["-c", script])).unwrap();
    assert_eq!(said.trim(), format!("none none {}", manager.socket().display()));
}
