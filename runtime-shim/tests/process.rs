//! Functions in processes of their own: what a process has only one of is its
//! control socket, its signals, its standard error and its exit code.
//!
//! The functions are in this very program: started again with a role in the
//! environment, it runs that function instead of the tests.

#![expect(clippy::unwrap_used, reason = "clippy exempts test functions, but not their helpers")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use axum::{Router, routing::get};
use headstart_wire::{Channel, Grant, GrantStatus, ToAgent};
use tokio::io::AsyncWriteExt;

#[cfg(feature = "http2")]
#[path = "process/http2.rs"]
mod http2;

use headstart_test_support::{FunctionProcess, PATIENCE, run_alone, start_with};

const ROLE: &str = "HEADSTART_TEST_ROLE";

/// How long the slow handler thinks.
const SLOW: Duration = Duration::from_millis(400);

/// "At once" on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(1);

fn role(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "the_function", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, name).stdout(Stdio::null());
    command
}

/// Not a test: the functions.
#[test]
fn the_function() {
    let code = match std::env::var(ROLE).as_deref() {
        Ok("http") => headstart::run(async |function| {
            let slow = async || {
                tokio::time::sleep(SLOW).await;
                "slow"
            };
            let app = Router::new().route("/", get("quick")).route("/slow", get(slow));
            function.serve(app).await
        }),
        Ok("stubborn") => headstart::run(async |function| {
            let mut limits = headstart::Limits::default();
            limits.drain_wait = Duration::from_millis(100);
            let function = function.with_limits(limits);
            let stay = async |mut connection: headstart::Connection| {
                let _ = connection.write_all(b"x").await;
                std::future::pending::<()>().await;
            };
            function.serve_connections(stay).await
        }),
        Ok("waiting") => headstart::run(async |function| {
            let _failed = function.backend("db").tcp().await;
            function.backend("db").tcp().await.map(drop)
        }),
        Ok("twice") => headstart::run(async |_function| headstart::attach().await.map(drop)),
        _ => return,
    };
    let failed = code == ExitCode::FAILURE;
    std::process::exit(i32::from(failed));
}

fn connect(address: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    let client = loop {
        match TcpStream::connect(address) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    };
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn ask(client: &mut TcpStream, path: &str) {
    // One write: a head in pieces is not yet a request in flight.
    client.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).unwrap();
}

/// Reads one response, up to the end of the expected body.
fn answered(client: &mut TcpStream, body: &str) {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(format!("\r\n\r\n{body}").as_bytes()) {
        let read = client.read(&mut byte).unwrap();
        assert!(read > 0, "the connection ended after {:?}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
}

fn closed(client: &mut TcpStream) {
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "the connection has ended");
}

#[test]
fn the_first_request_is_served_and_measured_once() {
    let instance = FunctionProcess::start(role("http"), Vec::new());
    // Waits in the kernel's queue until the function accepts.
    let mut early = connect(instance.address);
    ask(&mut early, "/");
    let (hello_ns, injected_ns, ready_ns) = instance.messages_until_ready();
    assert!(hello_ns <= injected_ns && injected_ns <= ready_ns);
    answered(&mut early, "quick");
    let ToAgent::Served { accept_ns, first_response_ns } = instance.next_message() else {
        panic!("served is told")
    };
    assert!(ready_ns <= accept_ns && accept_ns <= first_response_ns);

    ask(&mut early, "/");
    answered(&mut early, "quick");
    let mut later = connect(instance.address);
    ask(&mut later, "/");
    answered(&mut later, "quick");
    assert!(instance.agent.recv::<ToAgent>().unwrap_err().would_block(), "served is told once");
}

#[test]
fn sigterm_lets_the_request_in_flight_finish() {
    let instance = FunctionProcess::start(role("http"), Vec::new());
    let mut client = connect(instance.address);
    ask(&mut client, "/");
    answered(&mut client, "quick");
    ask(&mut client, "/slow");
    instance.messages_until_ready();
    instance.next_message();
    // Its handler has begun when another request has been answered.
    let mut other = connect(instance.address);
    ask(&mut other, "/");
    answered(&mut other, "quick");
    instance.terminate();
    answered(&mut client, "slow");
    closed(&mut client);
    closed(&mut other);
    let (status, _, said) = instance.ended();
    assert!(status.success(), "{said}");
}

#[test]
fn a_client_that_closes_its_half_is_answered() {
    let instance = FunctionProcess::start(role("http"), Vec::new());
    for (path, body) in [("/", "quick"), ("/slow", "slow")] {
        let mut client = connect(instance.address);
        ask(&mut client, path);
        client.shutdown(Shutdown::Write).unwrap();
        answered(&mut client, body);
        closed(&mut client);
    }
}

#[cfg(feature = "http2")]
#[test]
fn a_client_may_begin_with_http_2() {
    let instance = FunctionProcess::start(role("http"), Vec::new());
    let mut client = http2::Http2(connect(instance.address));
    // Also when its first bytes come one by one.
    for byte in b"PRI" {
        client.0.write_all(&[*byte]).unwrap();
    }
    client.0.write_all(b" * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    client.frame(http2::SETTINGS, 0, 0, &[]);
    let (_, _, ready_ns) = instance.messages_until_ready();
    client.ask(1, "/slow");
    client.ask(3, "/");
    assert_eq!(client.body(), (3, b"quick".to_vec()), "requests do not wait for each other");
    let ToAgent::Served { accept_ns, first_response_ns } = instance.next_message() else {
        panic!("served is told")
    };
    assert!(ready_ns <= accept_ns && accept_ns < first_response_ns);
    instance.terminate();
    assert_eq!(client.body(), (1, b"slow".to_vec()), "the request in flight is answered");
    let (status, _, said) = instance.ended();
    assert!(status.success() && said.is_empty(), "{said}");
}

#[test]
fn sigterm_does_not_wait_for_an_idle_client() {
    let instance = FunctionProcess::start(role("http"), Vec::new());
    let mut idle = connect(instance.address);
    ask(&mut idle, "/");
    answered(&mut idle, "quick");
    let _silent = connect(instance.address);
    instance.terminate();
    let (status, took, said) = instance.ended();
    assert!(status.success(), "{said}");
    assert!(took < AT_ONCE, "{took:?}");
    closed(&mut idle);
}

#[test]
fn sigterm_closes_connections_that_do_not_finish() {
    let instance = FunctionProcess::start(role("stubborn"), Vec::new());
    let mut client = connect(instance.address);
    client.read_exact(&mut [0]).unwrap();
    instance.terminate();
    let (status, took, said) = instance.ended();
    assert!(status.success() && said.contains("closing 1 connections that have not ended"), "{said}");
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn sigterm_ends_a_function_that_still_waits_for_its_backend() {
    let failed = GrantStatus::Failed { reason: "empty".into() };
    let grant = Grant { backend: "db".into(), status: failed };
    let instance = FunctionProcess::start(role("waiting"), vec![(grant, None)]);
    assert!(matches!(instance.next_message(), ToAgent::Hello { .. }));
    assert!(matches!(instance.next_message(), ToAgent::Ack { .. }));
    assert!(matches!(instance.next_message(), ToAgent::Request { .. }), "it waits for an answer now");
    instance.terminate();
    let (status, took, said) = instance.ended();
    assert!(status.success(), "{said}");
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn a_function_outlives_its_agent() {
    let mut instance = FunctionProcess::start(role("http"), Vec::new());
    instance.messages_until_ready();
    let said = instance.lose_agent();
    assert!(said.starts_with("headstart: the agent is gone, the function serves on without it"), "{said}");
    let mut client = connect(instance.address);
    ask(&mut client, "/");
    answered(&mut client, "quick");
    instance.terminate();
    let (status, _, said) = instance.ended();
    assert!(status.success() && said.is_empty(), "said once: {said}");
}

#[test]
fn another_version_is_one_clear_line_and_exit_code_1() {
    let (agent, function) = Channel::pair().unwrap();
    nix::sys::socket::send(agent.as_raw_fd(), b"HS\x09\0{}", nix::sys::socket::MsgFlags::empty()).unwrap();
    let output = start_with(role("http"), &function).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "headstart: the agent's lease cannot be received: a control message has version 9, \
         this side speaks 3: rebuild the function or the agent\n"
    );
}

#[test]
fn attaching_twice_is_an_error() {
    let (status, _, said) = FunctionProcess::start(role("twice"), Vec::new()).ended();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("already attached to the agent"), "{said}");
}

#[test]
fn a_control_descriptor_that_is_none_is_an_error() {
    for (value, problem) in [("2", "standard streams"), ("x", "number"), ("999", "no open descriptor")] {
        let mut command = role("http");
        command.env(headstart_wire::CONTROL_FD_ENV, value);
        let (status, said) = run_alone(command);
        assert!(!status.success() && said.contains(problem), "{said}");
    }
}

#[test]
fn without_an_agent_and_an_address_the_error_says_what_to_set() {
    let mut command = role("http");
    command.env_remove("PORT").env_remove("HEADSTART_LISTEN");
    let (status, said) = run_alone(command);
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("set HEADSTART_LISTEN=host:port, or PORT"), "{said}");
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = role("http");
    command.env("HEADSTART_LISTEN", &address);
    let (status, said) = run_alone(command);
    assert_eq!(status.code(), Some(1));
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
}
