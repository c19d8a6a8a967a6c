//! `contract = "lambda"`: handlers for AWS Lambda, unchanged, in containers without a network.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use headstart_integration_tests::lab::lambda::{LambdaFunction, Reply, ask, lacks_node_client};
use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    AgentSetup, Manager, PostgresServer, PostgresSetup, Rootfs, RunningAgent, build_static, cli, free_port,
    privilege,
};
use serde_json::{Value, json};

mod handlers;
mod misuse;

use handlers::{MEETING, NODE, NODE_MEETING, NODE_STREAM, PSYCOPG, PYTHON};

const NAME: &str = LambdaFunction::NAME;

/// One instance: a client that comes while another's answer is on its way would start one more.
const ONE: &str = "stop_grace = \"2s\"\nmax_instances = 1\n";

fn ready() -> bool {
    privilege::require_root("containers")
        && privilege::require_tools(&["runc", "python3", "/usr/lib/python3/dist-packages/pip"])
}

/// An agent with this function, at rest.
fn serving(function: &LambdaFunction) -> RunningAgent {
    serving_with(function, AgentSetup::default())
}

fn serving_with(function: &LambdaFunction, setup: AgentSetup) -> RunningAgent {
    start(setup.config(function.section()))
}

fn start(setup: AgentSetup) -> RunningAgent {
    let init = build_static("headstart-init", "headstart-init").unwrap();
    build_static("headstart-lambda", "headstart-lambda").unwrap();
    let agent = setup.setting("init", &format!("{init:?}")).start().unwrap();
    at_rest(&agent);
    agent
}

fn at_rest(agent: &RunningAgent) {
    let rest = |function: &Value| {
        function["state"] == "cold" && function["prepared"] == 1 && function["removing"] == 0
    };
    agent.wait_function(NAME, "at rest", LIMIT, rest).unwrap();
}

fn get(function: &LambdaFunction, path: &str) -> Reply {
    function.ask("GET", path, "", b"").unwrap()
}

fn told(agent: &RunningAgent, words: &str) {
    let told = |function: &Value| function["last_error"].as_str().is_some_and(|error| error.contains(words));
    agent.wait_function(NAME, words, LIMIT, told).unwrap();
}

/// Cold, warm, frozen while it waits for its next event, thawed, stopped, cold again.
fn lives(function: &LambdaFunction, hello: &str) {
    lives_at(function.port, serving(function), hello);
}

fn lives_at(port: u16, agent: RunningAgent, hello: &str) {
    let answered = |when: &str| {
        let reply = ask(port, "GET", "/", "", b"").unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, hello), "{when}\n{}", agent.log());
    };
    answered("cold");
    answered("warm");
    agent.operate(NAME, "freeze").unwrap();
    agent.wait_state(NAME, "frozen", LIMIT).unwrap();
    answered("thawed");
    let starts = agent.metrics().unwrap().sum("headstart_coldstarts_total", &[("outcome", "ready")]);
    assert!((starts - 1.0).abs() < f64::EPSILON, "{starts} starts");
    assert!(agent.functions().unwrap()[0]["last_error"].is_null());
    agent.stop_function(NAME).unwrap();
    at_rest(&agent);
    answered("cold again");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_handler_in_python_lives_like_a_function() {
    if ready() {
        lives(&LambdaFunction::python(PYTHON, ONE).unwrap(), "\"Hello World!\"");
    }
}

#[test]
fn a_handler_outlives_its_agent() {
    if !ready() {
        return;
    }
    let function = LambdaFunction::python(PYTHON, ONE).unwrap();
    let manager = Manager::new().unwrap();
    let agent = serving_with(&function, AgentSetup::default().manager(&manager));
    assert_eq!(get(&function, "/").status, 200);
    // The listener, the instance's control socket and its page.
    cli::eventually("stored", LIMIT, || Ok((manager.stored()?.len() == 3).then_some(()))).unwrap();
    // Its note is written by then.
    agent.wait_function(NAME, "warm", LIMIT, |function| function["running"][0]["open"] == 0).unwrap();
    let next = agent.kill().unwrap().start().unwrap();
    assert_eq!(get(&function, "/").status, 200, "{}", next.log());
    next.operate(NAME, "freeze").unwrap();
    next.wait_state(NAME, "frozen", LIMIT).unwrap();
    assert_eq!(get(&function, "/").status, 200);
    let starts = next.metrics().unwrap().sum("headstart_coldstarts_total", &[]);
    assert!(starts < 1.0, "it is the same instance: {starts} starts\n{}", next.log());
    assert!(next.stop().unwrap().success());
}

#[test]
fn requests_are_events_and_answers_are_responses() {
    if !ready() {
        return;
    }
    let function = LambdaFunction::python(PYTHON, ONE).unwrap();
    let agent = serving(&function);
    let event =
        function.ask("PUT", "/event?a=1&a=2", "cookie: c=3; d=4\r\nX-One: 1\r\n", b"body").unwrap().json();
    assert_eq!((&event["version"], &event["rawQueryString"]), (&json!("2.0"), &json!("a=1&a=2")));
    assert_eq!(event["cookies"], json!(["c=3", "d=4"]));
    assert_eq!((&event["headers"]["x-one"], &event["body"]), (&json!("1"), &json!("body")));
    assert_eq!(event["requestContext"]["http"]["sourceIp"], "127.0.0.1");
    let context = get(&function, "/context").json();
    assert_eq!((&context["name"], &context["memory"]), (&json!(NAME), &json!("128")), "{context}");
    assert_eq!((&context["version"], &context["handler"]), (&json!("$LATEST"), &json!("app.handler")));
    assert_eq!(context["root"], "/var/task");
    let left = context["left"].as_i64().unwrap();
    assert!(0 < left && left <= 3000, "{left}");
    for (kind, body) in [("text/plain", "text".as_bytes()), ("image/png", b"\0\xff\x80")] {
        let reply = function.ask("POST", "/back", &format!("content-type: {kind}\r\n"), body).unwrap();
        assert_eq!((reply.status, reply.body.as_slice()), (201, body));
        let head = reply.head.to_lowercase();
        for line in [
            "content-type: application/x-bytes",
            "x-method: post",
            "set-cookie: a=1; secure",
            "set-cookie: b=2",
        ] {
            assert!(head.contains(line), "{line}: {head}");
        }
    }
    assert!(agent.stop().unwrap().success());
}

#[test]
fn what_the_handler_does_wrong_is_answered_and_told() {
    if !ready() {
        return;
    }
    let function = LambdaFunction::python(PYTHON, &format!("{ONE}timeout = \"1500ms\"\n")).unwrap();
    // What kills the handler is in a user namespace then.
    let users = AgentSetup::default().setting("uids", "\"1900000000-1900065535\"");
    let agent = serving_with(&function, users);
    let pid = || get(&function, "/sleep/0").text();
    let first = pid();
    // (what is asked for, status, what the client is told, what the log says)
    for (path, status, client, log) in [
        ("/fail", 502, "the function has failed", "has failed: ValueError: not today"),
        (
            "/sleep/60000",
            504,
            "the function has taken too long",
            "the handler is ended: an invocation has taken longer",
        ),
        ("/exit", 502, "the function has ended", "the handler has ended: exit code 3"),
        ("/big/6291557", 502, "is larger than 6291556 bytes", "is larger than 6291556 bytes"),
    ] {
        let reply = get(&function, path);
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
        assert!(reply.text().contains(client), "{path}: {}", reply.text());
        assert!(!reply.text().contains("not today"), "what the handler says is not for clients");
        assert!(reply.head.contains("x-amzn-requestid: "), "{}", reply.head);
        agent.wait_log(log, LIMIT).unwrap();
        assert_eq!(get(&function, "/").status, 200, "{path} is over\n{}", agent.log());
    }
    assert_ne!(pid(), first, "the handler has been started anew");
    assert_eq!(get(&function, "/big/6291556").body.len(), 6_291_556);
    let large = vec![b'x'; 6_291_556];
    assert_eq!(
        function.ask("POST", "/", "", &large).unwrap().status,
        413,
        "the event is larger than its body"
    );
    assert_eq!(
        function.ask("POST", "/back", "content-type: text/plain\r\n", &large[..6_000_000]).unwrap().status,
        201
    );
    let starts = agent.metrics().unwrap().sum("headstart_coldstarts_total", &[("outcome", "ready")]);
    assert!((starts - 1.0).abs() < f64::EPSILON, "the instance stays: {starts} starts");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_client_that_finds_no_place_in_time_is_told_so() {
    if !ready() {
        return;
    }
    let keys = format!("{ONE}timeout = \"30s\"\nqueue_timeout = \"300ms\"\noverload = \"http-429\"\n");
    let function = LambdaFunction::python(PYTHON, &keys).unwrap();
    let agent = serving(&function);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| get(&function, "/sleep/1500").status);
        let busy = |function: &Value| function["running"][0]["open"] == 1;
        agent.wait_function(NAME, "busy", LIMIT, busy).unwrap();
        let second = get(&function, "/");
        assert_eq!(second.status, 429, "{}", second.text());
        assert_eq!(first.join().unwrap(), 200);
    });
    assert_eq!(get(&function, "/").status, 200);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_handler_that_cannot_start_is_told_of() {
    if !ready() {
        return;
    }
    let broken = LambdaFunction::python("import nowhere\n", ONE).unwrap();
    let lacking = LambdaFunction::python("other = 1\n", ONE).unwrap();
    let silent = format!("{ONE}init_timeout = \"500ms\"\n");
    for (function, words) in [
        (broken, "Runtime.ImportModuleError: Unable to import module 'app': No module named 'nowhere'"),
        (lacking, "Runtime.HandlerNotFound: Handler 'handler' missing on module 'app'"),
        (
            LambdaFunction::script("raise SystemExit('no config')\n", ONE).unwrap(),
            "exit code 1; its last line: no config",
        ),
        (
            LambdaFunction::script("import time\ntime.sleep(60)\n", &silent).unwrap(),
            "must be a client of the Lambda Runtime API",
        ),
    ] {
        let agent = serving(&function);
        agent.operate(NAME, "wake").unwrap();
        told(&agent, words);
        let explained = cli::headstart(&["explain", NAME, "--admin", &agent.admin().to_string()]).unwrap();
        assert!(explained.stdout.contains(words), "{}", explained.all);
        assert!(agent.stop().unwrap().success());
    }
}

#[test]
fn several_invocations_run_at_a_time_where_the_client_asks_for_them() {
    if !ready() {
        return;
    }
    let function = LambdaFunction::python(
        MEETING,
        &format!("memory = \"256MiB\"\n{ONE}timeout = \"30s\"\nconcurrency = 2\n"),
    )
    .unwrap();
    let [one, two] = meets(&function);
    assert_ne!(one, two, "its client makes processes");
    if lacks_node_client().is_none() {
        let keys = &format!("memory = \"512MiB\"\n{ONE}timeout = \"30s\"\nconcurrency = 2\n");
        meets(&LambdaFunction::node(NODE_MEETING, keys).unwrap());
    }
}

/// What two invocations answer that meet.
fn meets(function: &LambdaFunction) -> [String; 2] {
    let agent = serving(function);
    let answers = std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| get(function, "/")));
        both.map(|one| one.join().unwrap())
    });
    for answer in &answers {
        assert_eq!(answer.status, 200, "{}", agent.log());
    }
    assert!(agent.stop().unwrap().success());
    answers.map(|answer| answer.text())
}

fn streamed(reply: &Reply) {
    assert_eq!(
        (reply.status, reply.text().as_str(), reply.complete),
        (202, "one two three", true),
        "{}",
        reply.head
    );
    let head = reply.head.to_lowercase();
    assert!(head.contains("x-streamed: yes") && head.contains("set-cookie: a=1"), "{head}");
}

#[test]
fn a_handler_in_javascript_lives_and_streams() {
    if !ready() {
        return;
    }
    if let Some(lack) = lacks_node_client() {
        println!("skipped: the client for node cannot be compiled without {lack}");
        return;
    }
    let keys = &format!("memory = \"512MiB\"\n{ONE}");
    let function = LambdaFunction::node(NODE, keys).unwrap();
    lives(&function, "{\"message\":\"Hello from Lambda!\"}");
    let agent = serving(&function);
    assert_eq!(get(&function, "/fail").status, 502);
    agent.wait_log("has failed: TypeError: not today", LIMIT).unwrap();
    assert_eq!(get(&function, "/big/6291556").body.len(), 6_291_556);
    assert_eq!(get(&function, "/big/6291557").status, 502);
    assert_eq!(get(&function, "/").status, 200);
    assert!(agent.stop().unwrap().success());

    let function = LambdaFunction::node(NODE_STREAM, keys).unwrap();
    let agent = serving(&function);
    streamed(&get(&function, "/"));
    let bare = get(&function, "/bare");
    assert_eq!((bare.status, bare.text().as_str(), bare.complete), (200, "bare", true));
    assert!(bare.head.to_lowercase().contains("content-type: text/plain"), "{}", bare.head);
    let broken = get(&function, "/broken");
    assert!(broken.status == 202 && !broken.complete, "{broken:?}");
    agent.wait_log("is broken off: RangeError", LIMIT).unwrap();
    streamed(&get(&function, "/"));
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_handler_in_rust_lives_and_streams() {
    if !ready() {
        return;
    }
    let program = build_static("headstart-lab-functions", "lambda").unwrap();
    let function =
        LambdaFunction::program(&program, &format!("{ONE}timeout = \"30s\"\nconcurrency = 3\n")).unwrap();
    lives(&function, "{\"message\":\"Hello, world!\"}");
    let agent = serving(&function);
    streamed(&get(&function, "/stream"));
    assert_eq!(get(&function, "/fail").status, 502);
    assert_eq!(get(&function, "/big/6291556").body.len(), 6_291_556);
    assert_eq!(get(&function, "/big/6291557").status, 502);
    std::thread::scope(|scope| {
        let three = [(); 3].map(|()| scope.spawn(|| get(&function, "/meet/3").status));
        assert_eq!(three.map(|one| one.join().unwrap()), [200; 3], "{}", agent.log());
    });
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_handler_lives_in_other_runtimes_too() {
    if !ready() || !privilege::require_tools(&["dockerd"]) {
        return;
    }
    let program = build_static("headstart-lab-functions", "lambda").unwrap();
    for runtime in ["process", "docker"] {
        println!("{runtime}");
        let kind = FunctionKind::of(runtime, Rootfs::with_binary("lambda", &program).unwrap()).unwrap();
        let keys = format!("contract = \"lambda\"\n{ONE}");
        let function = TestFunction { port: free_port().unwrap().port(), prepared: 1, kind, keys };
        let mut setup = AgentSetup::default().config(&function.text(NAME, &[]));
        if let FunctionKind::Docker { docker, .. } = &function.kind {
            setup = setup.docker(docker);
        }
        lives_at(function.port, start(setup), "{\"message\":\"Hello, world!\"}");
    }
}

#[test]
fn a_runtime_api_that_is_not_installed_is_named() {
    if !ready() {
        return;
    }
    let function = LambdaFunction::script("", &format!("{ONE}prepared = 0\n")).unwrap();
    let setup = AgentSetup::default().setting("init", "\"/nowhere/init\"").config(function.section());
    let agent = setup.start().unwrap();
    agent.operate(NAME, "wake").unwrap();
    told(&agent, "/nowhere/headstart-lambda");
    told(&agent, "install it beside headstart-init");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_handler_has_its_database_without_a_network() {
    if !ready() || !privilege::require_tools(&["/usr/lib/postgresql"]) {
        return;
    }
    let postgres = PostgresSetup::default().start().unwrap();
    let backend = format!(
        "[[backend]]\nname = \"db\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = \"{}\"\n\
         password_file = {:?}\npool = {{ min_idle = 1, max = 4 }}\n",
        postgres.address(),
        PostgresServer::USER,
        PostgresServer::DATABASE,
        postgres.password_file().unwrap(),
    );
    let keys = format!("{ONE}backends = [\"db\"]\nbackend_sockets = true\n");
    let function = LambdaFunction::python(PSYCOPG, &keys).unwrap();
    let agent = serving_with(&function, AgentSetup::default().config(&backend));
    for when in ["cold", "warm"] {
        assert_eq!(get(&function, "/").text(), "42", "{when}\n{}", agent.log());
    }
    assert!(agent.stop().unwrap().success());
}
