//! `headstart knock` as a user runs it: one packet that a node believes, or a word on what to do.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, SystemTime};

use headstart_agent::audience::key_for;
use headstart_ebpf::auth::epoch;
use headstart_ebpf::knock::{Knock, LEN};

use crate::common::{KEY, headstart, in_namespace, key_file, root, said, write_keys};

/// For a packet on the loopback that was already sent.
const PATIENCE: Duration = Duration::from_secs(10);

fn node(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("a free port");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
    socket
}

/// What has been sent to the node, which must be a knock.
fn received(node: &UdpSocket) -> Knock {
    let mut payload = [0; 2 * LEN];
    let (len, _) = node.recv_from(&mut payload).expect("a packet");
    let payload = <&[u8; LEN]>::try_from(&payload[..len]).expect("the length of a knock");
    Knock::decode(payload).expect("a knock")
}

fn now() -> u64 {
    epoch(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("later than 1970").as_secs())
}

/// `headstart knock` at `node` for function 7 with the keys of [`key_file`].
fn knock(to: &str, keys: &tempfile::TempDir, more: &str) -> Command {
    headstart(&format!("knock --to {to} --function 7 --key-file {}/keys {more}", keys.path().display()))
}

#[test]
fn a_node_with_the_key_believes_the_packet() {
    let keys = key_file();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let node = node(address);
        let to = node.local_addr().unwrap().to_string();
        let before = now();
        let output = knock(&to, &keys, "").output().unwrap();
        assert_eq!(said(&output), (0, String::new()));
        assert!(output.stdout.is_empty());
        let knock = received(&node);
        assert_eq!((knock.function, knock.key), (7, 2), "the newest key");
        assert!((before..=now()).contains(&knock.epoch));
        assert_eq!(knock.tag, knock.claim().tag(KEY));
    }
}

#[test]
fn an_audience_has_keys_of_its_own() {
    let (keys, node) = (key_file(), node("127.0.0.1:0"));
    let to = node.local_addr().unwrap().to_string();
    assert_eq!(said(&knock(&to, &keys, "--audience shop-eu-1").output().unwrap()).0, 0);
    let knock = received(&node);
    assert_eq!(knock.tag, knock.claim().tag(key_for(KEY, Some("shop-eu-1"))));
    assert_ne!(knock.tag, knock.claim().tag(KEY));
}

#[test]
fn a_key_can_be_chosen() {
    let (keys, node) = (key_file(), node("127.0.0.1:0"));
    let to = node.local_addr().unwrap().to_string();
    assert_eq!(said(&knock(&to, &keys, "--key 1").output().unwrap()).0, 0);
    let knock = received(&node);
    assert_eq!((knock.key, knock.tag), (1, knock.claim().tag([u64::MAX; 2])));
}

#[test]
fn every_run_sends_one_packet_and_no_two_are_the_same() {
    let (keys, node) = (key_file(), node("127.0.0.1:0"));
    let to = node.local_addr().unwrap().to_string();
    for _ in 0..4 {
        assert_eq!(said(&knock(&to, &keys, "").output().unwrap()).0, 0);
    }
    let mut nonces: Vec<_> = (0..4).map(|_| received(&node).nonce).collect();
    nonces.sort_unstable();
    nonces.dedup();
    assert_eq!(nonces.len(), 4);
    // All four were in the socket's queue before the last process ended: a fifth would be there, too.
    node.set_nonblocking(true).unwrap();
    assert!(node.recv_from(&mut [0; LEN]).is_err());
}

#[test]
fn a_host_name_and_words_on_request() {
    let (keys, node) = (key_file(), node("127.0.0.1:0"));
    let port = node.local_addr().unwrap().port();
    let (code, text) = said(&knock(&format!("localhost:{port}"), &keys, "--verbose").output().unwrap());
    assert_eq!(code, 0);
    assert!(text.contains("function 7 with key 2"), "{text}");
    assert!(!text.contains("0001020304"), "{text}");
}

#[test]
fn it_needs_no_privilege() {
    let (keys, node) = (key_file(), node("127.0.0.1:0"));
    let to = node.local_addr().unwrap().to_string();
    let plain = knock(&to, &keys, "");
    let mut bare = Command::new("setpriv");
    bare.args(["--inh-caps=-all", "--no-new-privs"]);
    if nix::unistd::geteuid().is_root() {
        bare.arg("--bounding-set=-all");
    }
    let output = bare.arg(plain.get_program()).args(plain.get_args()).output().unwrap();
    assert_eq!(said(&output), (0, String::new()));
    assert_eq!(received(&node).function, 7);
}

#[test]
fn bad_usage_and_unusable_keys_end_with_2_and_say_what_to_do() {
    let keys = key_file();
    let dir = keys.path().display().to_string();
    write_keys(&keys.path().join("open"), "1 000102030405060708090a0b0c0d0e0f\n", 0o644);
    write_keys(&keys.path().join("empty"), "# no key yet\n", 0o600);
    for (arguments, expected) in [
        ("--to 127.0.0.1 --function 7 --key-file DIR/keys", "there is no port"),
        ("--to ::1:9 --function 7 --key-file DIR/keys", "in brackets"),
        ("--to 127.0.0.1:0 --function 7 --key-file DIR/keys", "1 to 65535"),
        ("--to 127.0.0.1:9 --function 0 --key-file DIR/keys", "--function"),
        ("--to 127.0.0.1:9 --function 7", "--key-file"),
        ("--to 127.0.0.1:9 --function 7 --key-file DIR/keys --key 16", "1..=15"),
        ("--to 127.0.0.1:9 --function 7 --key-file DIR/keys --key 3", "number 1, 2; choose"),
        ("--to 127.0.0.1:9 --function 7 --key-file DIR/empty", "it has none"),
        ("--to 127.0.0.1:9 --function 7 --key-file DIR/open", "chmod 600"),
        ("--to 127.0.0.1:9 --function 7 --key-file DIR/none", "No such file"),
    ] {
        let output = headstart(&format!("knock {}", arguments.replace("DIR", &dir))).output().unwrap();
        let (code, text) = said(&output);
        assert_eq!(code, 2, "{arguments}: {text}");
        assert!(text.contains(expected), "{arguments}: {text}");
    }
}

#[test]
fn a_knock_that_cannot_be_sent_fails_with_the_reason() {
    if !root() {
        return;
    }
    let keys = key_file();
    // Nothing is up in a new namespace, not even the loopback.
    let (code, text) = in_namespace(|| said(&knock("127.0.0.1:9", &keys, "").output().unwrap()));
    assert_eq!(code, 1);
    assert!(text.contains("127.0.0.1:9: Network is unreachable"), "{text}");
    let (code, text) = said(&knock("no-such-host.invalid:9", &keys, "").output().unwrap());
    assert_eq!(code, 1);
    assert!(text.contains("no-such-host.invalid cannot be resolved"), "{text}");
}
