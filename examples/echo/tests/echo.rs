//! The example `echo`, started by an agent with its upstream connected.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use headstart_test_support::FunctionProcess;
use headstart_wire::{Grant, GrantStatus, Session};

#[test]
fn each_line_is_answered_by_the_upstream() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let injected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (upstream, _) = listener.accept().unwrap();
    let shout = std::thread::spawn(move || {
        let mut writer = upstream.try_clone().unwrap();
        for line in BufReader::new(upstream).lines() {
            writeln!(writer, "{}!", line.unwrap().to_uppercase()).unwrap();
        }
    });
    let status = GrantStatus::Ready { session: Session::Tcp, expires_ns: None, tls: None };
    let grant = Grant { backend: "upstream".into(), status };
    let function = Command::new(env!("CARGO_BIN_EXE_echo"));
    let instance = FunctionProcess::start(function, vec![(grant, Some(injected.into()))]);

    let mut client = TcpStream::connect(instance.address).unwrap();
    let mut answers = BufReader::new(client.try_clone().unwrap()).lines();
    for (line, answer) in [("hello", "HELLO!"), ("again", "AGAIN!")] {
        client.write_all(format!("{line}\n").as_bytes()).unwrap();
        assert_eq!(answers.next().unwrap().unwrap(), answer);
    }
    // The client is idle, and does not hold up the end.
    instance.terminate();
    let (status, _, said) = instance.ended();
    assert!(status.success(), "{said}");
    shout.join().unwrap();
}
