//! The timed clients.

use crate::common::{LIMIT, echo};
use headstart_integration_tests::lab::client::{self, LineClient, Step};
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

#[test]
fn an_answer_is_read_by_its_length_or_to_its_end() {
    for answer in ["HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nokay?", "HTTP/1.0 201 Created\r\n\r\nok"]
    {
        let reply = client::request(server(answer), "POST", "/orders", "body", LIMIT).unwrap();
        assert_eq!((reply.status, &reply.body[..2]), (201, "ok"));
        let timings = reply.timings;
        assert!(timings.connect <= timings.first_byte && timings.first_byte <= timings.total, "{timings:?}");
    }
}

#[test]
fn a_failure_names_its_step() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fails = |address, limit| client::get(address, "/", limit).unwrap_err().step;
    assert_eq!(fails(closed, LIMIT), Step::Connect);
    assert_eq!(fails(server(""), LIMIT), Step::Wait);
    assert_eq!(fails(server("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"), LIMIT), Step::Read);
    assert_eq!(fails(server("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"), LIMIT), Step::Read);

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    assert_eq!(fails(address, Duration::from_millis(30)), Step::Wait);
}

#[test]
fn lines_are_answered_one_by_one() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    echo(listener);
    let mut client = LineClient::connect(address, LIMIT).unwrap();
    for line in ["one", "two", ""] {
        assert_eq!(client.ask(line).unwrap(), line);
    }
}

/// Gives `answer` to one request.
fn server(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        head.take_while(|line| !line.is_empty()).for_each(drop);
        stream.write_all(answer.as_bytes()).unwrap();
    });
    address
}
