//! The example `orders`, on a real PostgreSQL: with sessions that were logged in
//! for it, and without an agent.

#![expect(clippy::unwrap_used, reason = "clippy exempts test functions, but not their helpers")]

mod support {
    pub(crate) mod postgres;
}

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Instant;

use headstart_test_support::{FunctionProcess, PATIENCE};
use headstart_wire::{Grant, GrantStatus, ToAgent, monotonic_ns};
use serde_json::{Value, json};
use support::postgres::Postgres;

fn orders() -> Command {
    Command::new(env!("CARGO_BIN_EXE_orders"))
}

/// One request on a connection of its own; the status line and the JSON body.
fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (String, Value) {
    let deadline = Instant::now() + PATIENCE;
    let mut client = loop {
        match TcpStream::connect(address) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    };
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    client.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap())
}

fn answer(pid: i32) -> (String, Value) {
    ("HTTP/1.1 200 OK".into(), json!({ "answer": 42, "backend_pid": pid }))
}

#[test]
fn an_injected_session_answers() {
    let Some(server) = Postgres::start() else { return };
    for (grant, pid) in [server.grant_tcp(), server.grant_unix()] {
        let instance = FunctionProcess::start(orders(), vec![grant]);
        assert_eq!(ask(instance.address, "GET", "/", ""), answer(pid), "by that very session");
    }
}

#[test]
fn orders_are_kept() {
    let Some(server) = Postgres::start() else { return };
    let (grant, _) = server.grant_tcp();
    let instance = FunctionProcess::start(orders(), vec![grant]);
    let (status, order) = ask(instance.address, "POST", "/orders", r#"{"item":"tea"}"#);
    assert_eq!((&status[..], &order), ("HTTP/1.1 201 Created", &json!({ "id": 1, "item": "tea" })));
    let (_, list) = ask(instance.address, "GET", "/orders", "");
    assert_eq!(list, json!([{ "id": 1, "item": "tea" }]));
}

#[test]
fn a_session_that_the_agent_could_not_make_is_made_directly() {
    let Some(server) = Postgres::start() else { return };
    let status = GrantStatus::Failed { reason: "pool empty".into() };
    let grant = Grant { backend: "orders-db".into(), status };
    let mut command = orders();
    let url = format!("postgres://app@127.0.0.1:{}/postgres", server.port);
    command.env("HEADSTART_BACKEND_ORDERS_DB_URL", url);
    let instance = FunctionProcess::start(command, vec![(grant, None)]);
    assert_eq!(ask(instance.address, "GET", "/", "").1["answer"], 42);
    instance.terminate();
    let (status, _, said) = instance.ended();
    assert!(status.success() && said.contains("reason=failed: the agent failed (pool empty)"), "{said}");
}

#[test]
fn without_an_agent_it_listens_and_connects_by_itself() {
    let Some(server) = Postgres::start() else { return };
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = orders();
    command
        .env("HEADSTART_LISTEN", address.to_string())
        .stderr(Stdio::null())
        .env("HEADSTART_BACKEND_ORDERS_DB_URL", format!("postgres://app@127.0.0.1:{}/postgres", server.port));
    let mut function = command.spawn().unwrap();
    assert_eq!(ask(address, "GET", "/", "").1["answer"], 42);
    function.kill().unwrap();
    function.wait().unwrap();
}

/// Not a promise, a look: `cargo test --release -p orders -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn start_up_takes_about_a_millisecond() {
    let Some(server) = Postgres::start() else { return };
    const ROUNDS: usize = 100;
    let mut stages: [Vec<u64>; 5] = Default::default();
    for _ in 0..ROUNDS {
        let (grant, pid) = server.grant_tcp();
        let spawn_ns = monotonic_ns().unwrap();
        let instance = FunctionProcess::start(orders(), vec![grant]);
        let (hello_ns, injected_ns, ready_ns) = instance.messages_until_ready();
        assert_eq!(ask(instance.address, "GET", "/", ""), answer(pid));
        let ToAgent::Served { accept_ns, first_response_ns } = instance.next_message() else {
            panic!("served")
        };
        let times = [spawn_ns, hello_ns, injected_ns, ready_ns];
        for (stage, pair) in stages.iter_mut().zip(times.windows(2)) {
            stage.push(pair[1] - pair[0]);
        }
        stages[3].push(ready_ns - hello_ns);
        stages[4].push(first_response_ns - accept_ns);
    }
    let names =
        ["spawn to hello", "hello to injected", "injected to ready", "hello to ready", "accept to response"];
    for (name, mut times) in names.iter().zip(stages) {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100] / 1000;
        println!("{name:20} p50 {:6} us  p90 {:6} us  min {:6} us", at(50), at(90), at(0));
    }
}
