//! The handling of the agent, against a stand-in that speaks its interface.

use crate::common::{LIMIT, ROLE, copy_of_this_test, plays};
use headstart_integration_tests::{
    lab::privilege,
    lab::{AgentSetup, Scratch},
};
use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixListener, process::ExitStatusExt},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

const AGENT: &str = "agent";
const BROKEN_AGENT: &str = "broken agent";
const CONFIG: &str = "HEADSTART_TEST_CONFIG";

#[test]
fn an_agent_is_started_asked_and_stopped() {
    if !privilege::require_root("the laboratory belongs to root") {
        return;
    }
    let files = Scratch::new("stand-in").unwrap();
    let setup = AgentSetup::default().interface("lo").setting("log", "\"json\"");
    let setup = setup.config("[[function]]\nname = \"orders\"").variable("GREETING", "good day");
    let agent = setup.binary(&stand_in(&files, AGENT)).start().unwrap();

    let config = fs::read_to_string(agent.config()).unwrap();
    for line in ["interfaces = [\"lo\"]", "log = \"json\"", "name = \"orders\""] {
        assert!(config.contains(line), "{config}");
    }
    assert!(agent.state_dir().is_dir());
    assert_eq!(agent.wait_log("greeting", LIMIT).unwrap(), "greeting: good day");
    assert_eq!(agent.metrics().unwrap().get("headstart_instances", &[("state", "ready")]), Some(2.0));
    assert_eq!(agent.starts().unwrap()[0]["function"], "orders");
    assert_eq!(agent.wait_state("orders", "ready", LIMIT).unwrap()["instances"], 1);
    agent.stop_function("orders").unwrap();
    assert_eq!(agent.wait_state("orders", "cold", LIMIT).unwrap()["instances"], 0);
    let error = agent.wait_state("orders", "ready", Duration::from_millis(20)).unwrap_err().to_string();
    assert!(error.contains("orders is not ready"), "{error}");
    assert!(agent.open_fds().unwrap().iter().any(|target| target.starts_with("socket:")));
    assert!(agent.stop_function("other").is_err());
    assert_eq!(agent.stop().unwrap().signal(), Some(15), "the stand-in does not handle SIGTERM");
}

#[test]
fn an_agent_that_does_not_start_says_why() {
    if !privilege::require_root("the laboratory belongs to root") {
        return;
    }
    let files = Scratch::new("stand-in").unwrap();
    let error = AgentSetup::default().binary(&stand_in(&files, BROKEN_AGENT)).start().unwrap_err();
    assert!(error.to_string().contains("no such interface"), "{error:#}");
}

/// A program that calls this test binary in the part of the agent.
fn stand_in(files: &Scratch, role: &str) -> PathBuf {
    let copy = copy_of_this_test("agent::stand_in_for_the_agent", role);
    let mut script = format!("#!/bin/sh\nexport {CONFIG}=\"$3\" {ROLE}='{role}'\nexec");
    for word in [copy.get_program()].into_iter().chain(copy.get_args()) {
        script.push_str(&format!(" '{}'", word.to_string_lossy()));
    }
    let path = files.path().join("headstart");
    fs::write(&path, script + "\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Not a test: what [`stand_in`] runs.
#[test]
fn stand_in_for_the_agent() {
    assert!(!plays(BROKEN_AGENT), "no such interface");
    if !plays(AGENT) {
        return;
    }
    eprintln!("greeting: {}", env::var("GREETING").unwrap());
    let config = fs::read_to_string(env::var(CONFIG).unwrap()).unwrap();
    let admin = config.lines().find_map(|line| line.strip_prefix("admin = \"")?.strip_suffix('"')).unwrap();
    let state =
        config.lines().find_map(|line| line.strip_prefix("state_dir = \"")?.strip_suffix('"')).unwrap();
    let changes = UnixListener::bind(Path::new(state).join("admin.sock")).unwrap();
    let (connected, connections) = mpsc::channel::<Box<dyn Connection>>();
    let also = connected.clone();
    thread::spawn(move || changes.incoming().flatten().try_for_each(|stream| also.send(Box::new(stream))));
    let address = TcpListener::bind(admin).unwrap();
    thread::spawn(move || {
        address.incoming().flatten().try_for_each(|stream| connected.send(Box::new(stream)))
    });
    let (mut unready, mut cold_for) = (2, 3);
    for mut stream in connections {
        let stream = &mut *stream;
        let path = request(stream);
        match path.as_str() {
            "GET /readyz" if unready > 0 => {
                unready -= 1;
                answer(stream, 503, "not yet");
            }
            "GET /readyz" => answer(stream, 200, "ready"),
            "GET /metrics" => answer(stream, 200, "headstart_instances{function=\"a\",state=\"ready\"} 2\n"),
            "GET /api/v1/starts" => answer(stream, 200, "[{\"function\":\"orders\"}]"),
            "GET /api/v1/functions/orders" => {
                cold_for -= 1;
                let (state, count) = if cold_for < 0 { ("ready", 1) } else { ("cold", 0) };
                let body = format!("{{\"name\":\"orders\",\"state\":\"{state}\",\"instances\":{count}}}");
                answer(stream, 200, &body);
            }
            "POST /api/v1/functions/orders/stop" => {
                cold_for = i32::MAX;
                answer(stream, 200, "{}");
            }
            _ => answer(stream, 404, "unknown"),
        }
    }
}

trait Connection: Read + Write + Send {}
impl<T: Read + Write + Send> Connection for T {}

fn request(stream: &mut dyn Connection) -> String {
    let mut head = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let line = head.next().unwrap_or_default();
    head.for_each(drop);
    line.split(" HTTP/1.").next().unwrap_or_default().to_owned()
}

fn answer(stream: &mut dyn Connection, status: u16, body: &str) {
    let length = body.len();
    let _ = write!(stream, "HTTP/1.1 {status} Status\r\ncontent-length: {length}\r\n\r\n{body}");
}
