//! Fronts: one address for many functions, with clients of others.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use common::{Place, ready};
use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::{Delay, Link, Manager, Namespace, RunningAgent, cli, run_within};

/// The kernel's report of a SYN comes before its client speaks.
const ROUND_TRIP: Duration = Duration::from_millis(100);

/// So often it was started for each of these triggers, and never for another. Its readiness may be reported after its answer.
#[track_caller]
fn started(agent: &RunningAgent, function: &str, triggers: &[(&str, u32)]) {
    let wanted: u32 = triggers.iter().map(|(_, starts)| starts).sum();
    let counted = || {
        let metrics = agent.metrics()?;
        let all = metrics.sum("headstart_coldstarts_total", &[("function", function)]);
        Ok((all >= f64::from(wanted)).then_some(metrics))
    };
    let metrics = cli::eventually("it is started", LIMIT, counted).unwrap();
    let labels = |trigger| [("function", function), ("trigger", trigger), ("outcome", "ready")];
    let count = |trigger| metrics.sum("headstart_coldstarts_total", &labels(trigger));
    let counts: Vec<_> = triggers.iter().map(|(trigger, _)| (*trigger, count(trigger))).collect();
    let expected: Vec<_> = triggers.iter().map(|(trigger, starts)| (*trigger, f64::from(*starts))).collect();
    assert_eq!(counts, expected, "{function}\n{}", agent.log());
}

#[test]
fn clients_reach_the_functions_that_they_name() {
    if !ready() {
        return;
    }
    let place = Place::new();
    place.certificate("one", &["a.test", "*.b.test", "c.test"], 2090);
    let sections = [
        place.function("many", 13, "hosts = [\"c.test\"]\n"),
        place.front("tls", 0, "certificates = [CERTIFICATES]\n"),
        place.front("plain", 1, "default = \"rest\"\n"),
        place.function("rest", 10, "hosts = [\"a.test\"]\nconcurrency = 1\n"),
        place.function("api", 11, "hosts = [\"a.test\"]\npaths = [\"/api/\"]\nconcurrency = 1\n"),
        place.function("wild", 12, "hosts = [\"*.b.test\"]\nconcurrency = 1\n"),
    ];
    let agent = place.agent(&sections.join("\n")).start().unwrap();
    for name in ["rest", "api", "wild"] {
        agent.wait_state(name, "cold", LIMIT).unwrap();
    }

    // One connection, two functions; what a client says of itself is replaced.
    let said = place.curl(&[
        "-w",
        "\n%{num_connects}\n",
        "-H",
        "X-Forwarded-For: 192.0.2.9",
        &place.url("https", 0, "a.test", "/api/x?y=1"),
        &place.url("https", 0, "a.test", "/apix"),
    ]);
    let lines: Vec<_> = said.lines().collect();
    let [api, rest] =
        [lines[0], lines[2]].map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    assert_eq!((lines[1], lines[3]), ("1", "0"), "{said}");
    assert_eq!((&api["name"], &api["path"]), (&"api".into(), &"/api/x?y=1".into()));
    assert_eq!((&rest["name"], &rest["path"]), (&"rest".into(), &"/apix".into()));
    let header = |name: &str| api["headers"][name].as_str().unwrap_or_default().to_owned();
    assert_eq!(header("x-forwarded-for"), "127.0.0.1", "{api}");
    assert_eq!((header("x-forwarded-proto"), header("x-forwarded-host")), ("https".into(), "a.test".into()));
    assert_eq!(header("forwarded"), "for=127.0.0.1;proto=https;host=\"a.test\"");

    // Its host is its own: it is asked for at the ClientHello, and started once.
    assert_eq!(
        place.python(0, "x.b.test", "versions"),
        "TLSv1.2 http/1.1 HTTP/1.1 200 OK\nTLSv1.3 http/1.1 HTTP/1.1 200 OK\n"
    );
    for (function, trigger) in [("api", "host"), ("rest", "host"), ("wild", "sni")] {
        started(&agent, function, &[(trigger, 1)]);
    }
    assert_eq!(place.python(0, "a.test", "upgrade"), "HTTP/1.1 101 Switching Protocols\none\ntwo\n");

    // Large bodies, both ways.
    let large = place.scratch.path().join("large");
    fs::write(&large, vec![b'x'; 4 << 20]).unwrap();
    let upload = format!("@{}", large.display());
    let said = place.curl(&["--data-binary", &upload, &place.url("https", 0, "a.test", "/")]);
    assert!(said.contains("\"body\": 4194304"), "{said}");
    let out = ["-o", "/dev/null", "-w", "%{size_download}"];
    let said = place.curl(&[&out[..], &[&place.url("https", 0, "a.test", "/large")]].concat());
    assert_eq!(said, "16777216");

    // One connection of HTTP/2, two functions.
    let cookies = ["-H", "Cookie: a=1", "-H", "Cookie: b=2"];
    let said = place.curl(
        &[
            &["--http2", "-w", "\n%{http_version} %{num_connects}\n"][..],
            &cookies,
            &[&place.url("https", 0, "a.test", "/api/"), &place.url("https", 0, "a.test", "/")],
        ]
        .concat(),
    );
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].contains("\"api\"") && lines[2].contains("\"rest\""), "{said}");
    assert_eq!((lines[1], lines[3]), ("2 1", "2 0"), "{said}");
    assert!(lines[0].contains("a=1; b=2") && lines[0].contains("\"host\": \"a.test:"), "{said}");
    let said = place.h2load(0, "c.test", &["-n", "200", "-c", "2", "-m", "100"]);
    assert!(said.contains("200 succeeded, 0 failed, 0 errored"), "{said}");

    // Without TLS, and what no function has.
    let said = place.curl(&[&place.url("http", 1, "y.b.test", "/")]);
    assert!(said.contains("\"wild\"") && said.contains("\"x-forwarded-proto\": \"http\""), "{said}");
    assert!(place.curl(&[&place.url("http", 1, "other.test", "/")]).contains("\"rest\""), "the default");
    let status = |arguments: &[&str]| {
        place.curl(&[&["-o", "/dev/null", "-w", "%{http_code}"][..], arguments].concat())
    };
    let url = place.url("https", 0, "a.test", "/");
    assert_eq!(status(&["-H", "Host: x.b.test", &url]), "421", "a session for another host");
    assert_eq!(status(&[&place.url("https", 0, "a.test", "/dies")]), "502");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn what_is_no_client_is_told_so_and_bounded() {
    if !ready() {
        return;
    }
    let place = Place::new();
    place.certificate("one", &["a.test"], 2090);
    let bounds = "certificates = [CERTIFICATES]\nhandshake_timeout = \"500ms\"\nsource_connections = 4\n";
    let sections = [place.front("tls", 0, bounds), place.function("a", 10, "hosts = [\"a.test\"]\n")];
    let agent = place.agent(&sections.join("\n")).start().unwrap();

    assert_eq!(place.python(0, "a.test", "silent"), "b''\n");
    assert_eq!(place.python(0, "a.test", "garbage"), "21 2\n", "a fatal alert");
    assert_eq!(place.python(0, "a.test", "unasked"), "GOAWAY\n");
    let plain = place.curl(&["-o", "-", "-w", "%{http_code}", &place.url("http", 0, "a.test", "/")]);
    assert_eq!(plain, "this address speaks HTTPS: begin with https://\n400");
    let refused = place.curl_fails(&[&place.url("https", 0, "other.test", "/")]);
    assert!(refused.contains("unrecognized name"), "{refused}");
    let refused = place.openssl(0, &["-noservername"]);
    assert!(refused.contains("alert number 112"), "{refused}");
    let seen = place.openssl(0, &["-servername", "a.test", "-brief", "-verify_return_error"]);
    assert!(seen.contains("TLSv1.3") && seen.contains("Verification: OK"), "{seen}");

    // One source has no more connections than that, and they end.
    let limited = || {
        let held: Vec<_> = (0..5).map(|_| TcpStream::connect(place.address(0))).collect();
        let labels = [("front", "tls"), ("reason", "source_limit")];
        let refused = agent.metrics()?.sum("headstart_front_connections_total", &labels);
        drop(held);
        Ok((refused > 0.0).then_some(()))
    };
    cli::eventually("the source has too many", LIMIT, limited).unwrap();
    let served = || Ok(place.try_curl(&[&place.url("https", 0, "a.test", "/")]).ok());
    assert!(cli::eventually("it is served", LIMIT, served).unwrap().contains("\"a\""));
    let metrics = agent.metrics().unwrap();
    for outcome in ["done", "plain", "failed", "timeout", "unknown_name"] {
        let labels = [("front", "tls"), ("outcome", outcome)];
        assert!(metrics.sum("headstart_front_handshakes_total", &labels) >= 1.0, "{outcome}");
    }
    assert!(agent.stop().unwrap().success());
}

#[test]
fn bytes_are_carried_as_they_are() {
    if !ready() {
        return;
    }
    let place = Place::new();
    place.certificate("one", &["a.test"], 2090);
    let keys = "certificates = [CERTIFICATES]\ncarry = \"bytes\"\nproxy_protocol = true\nalpn = [\"h2\"]\n";
    let sections = [place.front("raw", 0, keys), place.function("raw", 10, "hosts = [\"a.test\"]\n")];
    let agent = place.agent(&sections.join("\n")).start().unwrap();
    assert_eq!(place.python(0, "a.test", "raw"), "the address is mine\nearly\nlater\nh2\n");
    let metrics = agent.metrics().unwrap();
    let labels = [("front", "raw"), ("reason", "bytes")];
    assert_eq!(metrics.get("headstart_front_connections_total", &labels), Some(1.0));
    started(&agent, "raw", &[("sni", 1)]);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_reload_changes_certificates_and_fronts_and_the_next_agent_has_their_sockets() {
    if !ready() {
        return;
    }
    let (place, manager) = (Place::new(), Manager::new().unwrap());
    place.certificate("one", &["a.test"], 2089);
    let front = place.front("tls", 0, "certificates = [CERTIFICATES]\n");
    let function = place.function("a", 10, "hosts = [\"a.test\"]\n");
    let agent = place.agent(&format!("{front}{function}")).manager(&manager).start().unwrap();

    let mut held = place.python_command(0, "a.test", "held");
    let mut held = held.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(held.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "HTTP/1.1 200 OK");

    assert_eq!(place.python(0, "a.test", "heads"), "400 False\n400 False\n200 False\n200 False\n");

    let shown = || run_within(LIMIT, &mut place.headstart(&agent, "front")).unwrap();
    let before = shown();
    assert!(before.contains("a.test") && before.contains("functions: a"), "{before}");
    let reload = || agent.ask("POST", "/api/v1/reload").unwrap();

    // A certificate without its key is refused, and nothing changes.
    let file = place.certificate("one", &["b.test"], 2090);
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, whole.split("-----BEGIN PRIVATE").next().unwrap()).unwrap();
    let refused = reload();
    assert!(refused.status == 409 && refused.body.contains("front tls:"), "{}", refused.body);
    assert!(refused.body.contains("has no private key"), "{}", refused.body);
    assert!(place.curl(&[&place.url("https", 0, "a.test", "/")]).contains("\"a\""));

    fs::write(&file, whole).unwrap();
    let other = place.front("plain", 1, "");
    let function = place.function("a", 10, "hosts = [\"a.test\", \"b.test\"]\n");
    agent.rewrite(&format!("{front}{other}{function}")).unwrap();
    assert_eq!(reload().status, 200);
    assert!(place.curl(&[&place.url("https", 0, "b.test", "/")]).contains("\"a\""));
    assert!(place.curl(&[&place.url("http", 1, "b.test", "/")]).contains("\"a\""));
    assert!(shown().contains("b.test"), "{}", shown());
    let mut asks = held.stdin.take().unwrap();
    asks.write_all(b"\n").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "HTTP/1.1 200 OK", "a connection outlives a reload");
    // It does not keep what a reload has taken away.
    let moved = place.function("a", 10, "hosts = [\"b.test\"]\n");
    agent.rewrite(&format!("{front}{other}{moved}")).unwrap();
    assert_eq!(reload().status, 200);
    asks.write_all(b"\n").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "HTTP/1.1 404 Not Found");
    agent.rewrite(&format!("{front}{other}{function}")).unwrap();
    assert_eq!(reload().status, 200);
    asks.write_all(b"\n").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "HTTP/1.1 200 OK");
    drop(asks);
    assert!(held.wait().unwrap().success());
    assert_eq!(place.python(1, "b.test", "half-closed"), "200\n");
    let stored = manager.stored().unwrap();
    assert_eq!(stored.iter().filter(|name| name.starts_with("listen-")).count(), 3, "{stored:?}");

    // While no agent runs, clients wait.
    let killed = agent.kill().unwrap();
    let waits = TcpStream::connect(place.address(1)).unwrap();
    let agent = killed.start().unwrap();
    assert!(place.curl(&[&place.url("http", 1, "b.test", "/")]).contains("\"a\""));
    drop(waits);

    agent.rewrite(&format!("{front}{function}")).unwrap();
    assert_eq!(agent.ask("POST", "/api/v1/reload").unwrap().status, 200);
    let closed = || Ok(TcpStream::connect(place.address(1)).is_err().then_some(()));
    cli::eventually("the front is closed", LIMIT, closed).unwrap();
    assert!(agent.stop().unwrap().success());
}

#[test]
fn check_tells_what_clients_would_refuse() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let file = place.certificate("one", &["a.test"], 2020);
    let text = format!(
        "{}{}",
        place.front("tls", 0, "certificates = [CERTIFICATES]\n"),
        place.function("a", 10, "hosts = [\"a.test\", \"*.b.test\"]\n")
    );
    let config = place.scratch.path().join("check.toml");
    let check = |text: &str| {
        fs::write(&config, place.filled(text)).unwrap();
        cli::headstart(&["check", "--config", &config.display().to_string()]).unwrap()
    };
    let outcome = check(&text);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.all.contains(&format!("front.tls.certificates: {} expired", file.display())),
        "{}",
        outcome.all
    );
    assert!(
        outcome.all.contains("function.a.hosts: no certificate of front \"tls\" is for *.b.test"),
        "{}",
        outcome.all
    );
    assert!(!outcome.all.contains("is for a.test"), "{}", outcome.all);
}

/// A front that cannot be served costs nothing else, and is tried again.
#[test]
fn a_front_that_cannot_be_served_is_said_and_tried_again() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let sections = [
        place.front("tls", 0, "certificates = [CERTIFICATES]\n"),
        place.front("plain", 1, ""),
        place.function("a", 10, "hosts = [\"a.test\"]\n"),
    ];
    let agent = place.agent(&sections.join("\n")).start_unready().unwrap();
    let unready = agent.ask("GET", "/readyz").unwrap();
    assert!(unready.status == 503 && unready.body.contains("front tls: no file in"), "{}", unready.body);
    assert!(place.curl(&[&place.url("http", 1, "a.test", "/")]).contains("\"a\""));
    place.certificate("one", &["a.test"], 2090);
    agent.wait_log("what had been in the way is gone", LIMIT).unwrap();
    assert!(place.curl(&[&place.url("https", 0, "a.test", "/")]).contains("\"a\""));
    assert!(agent.stop().unwrap().success());
}

/// A client that comes again is expected to mean the same function.
#[test]
fn the_function_that_a_source_went_to_last_is_started_at_its_syn() {
    if !ready() {
        return;
    }
    let place = Place::new();
    place.certificate("one", &["a.test", "b.test"], 2090);
    let client = Namespace::new("client").unwrap();
    let link = Link::connect(&client).unwrap();
    let _far = Delay::new(&client, ROUND_TRIP).unwrap();
    let front = place.front("tls", 0, "certificates = [CERTIFICATES]\n").replace("127.0.0.1", "0.0.0.0");
    let functions = ["a", "b"].map(|name| {
        place.function(
            name,
            if name == "a" { 10 } else { 11 },
            &format!("hosts = [\"{name}.test\"]\nconcurrency = 1\n"),
        )
    });
    let agent = place.agent(&format!("{front}{}", functions.concat())).interface(link.host_if());
    let many = "{ function = { min = 100, max = 100 }, global = { min = 100, max = 100 } }";
    let agent = agent.syn("starts", many).start().unwrap();
    let ask = |name: &str| {
        let url = place.url("https", 0, &format!("{name}.test"), "/");
        let said = client.run(&mut place.curl_to(link.host(0).ip(), &[&url])).unwrap();
        assert!(said.contains(&format!("\"{name}\"")), "{said}");
    };
    let cool = |name: &str| {
        agent.stop_function(name).unwrap();
        agent
            .wait_function(name, "cold", LIMIT, |function| {
                function["state"] == "cold" && function["removing"] == 0
            })
            .unwrap();
    };
    let started = |name: &str, by_sni: u32, by_guess: u32| {
        started(&agent, name, &[("sni", by_sni), ("syn-guess", by_guess)])
    };
    let guesses = |outcome: &str| {
        let labels = [("front", "tls"), ("outcome", outcome)];
        agent.metrics().unwrap().sum("headstart_front_guesses_total", &labels)
    };
    for name in ["a", "b"] {
        agent.wait_state(name, "cold", LIMIT).unwrap();
    }
    ask("a");
    started("a", 1, 0);
    cool("a");
    ask("a");
    // Once, and at the SYN.
    started("a", 1, 1);
    assert_eq!((guesses("right"), guesses("wrong")), (1.0, 0.0));
    cool("a");
    ask("b");
    assert_eq!((guesses("right"), guesses("wrong")), (1.0, 1.0));
    started("b", 1, 0);

    // A front keeps its number, and so what is known of it, when others come.
    agent.wait_state("a", "ready", LIMIT).unwrap();
    cool("b");
    let other = place.front("other", 1, "");
    agent.rewrite(&format!("{front}{other}{}", functions.concat())).unwrap();
    assert_eq!(agent.ask("POST", "/api/v1/reload").unwrap().status, 200);
    ask("b");
    started("b", 1, 1);
    assert!(agent.stop().unwrap().success());
}
