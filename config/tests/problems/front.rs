//! `[[front]]`, and the keys of functions that lead to it.

use std::time::Duration;

use headstart_config::{Carry, Config};

use crate::{GOOD, check};

/// A front without a problem.
const FRONT: &str = "[[front]]\nname = \"p\"\nlisten = \"[::]:80\"\n";

#[test]
fn every_key_has_a_default() {
    let config = Config::parse("h.toml", FRONT).unwrap();
    let front = &config.fronts[0];
    assert_eq!((front.carry, front.proxy_protocol, front.certificates.len()), (Carry::Requests, false, 0));
    assert_eq!((&front.alpn[..], front.default.as_deref()), (&["http/1.1".to_owned()][..], None));
    assert_eq!((front.connections, front.source_connections, front.backlog), (4096, 256, 1024));
    assert_eq!(
        (front.handshake_timeout, front.idle_timeout),
        (Duration::from_secs(10), Duration::from_mins(5))
    );
}

#[test]
fn hosts_and_paths_are_read_in_lower_case() {
    let text = format!("[[function]]\n{GOOD}hosts = [\"A.Example\"]\npaths = [\"/Api\"]\n{FRONT}");
    let config = Config::parse("h.toml", &text).unwrap();
    assert_eq!(config.functions[0].hosts, ["a.example"]);
    assert_eq!(config.functions[0].paths, ["/Api"], "paths are case-sensitive");
}

#[test]
fn keys() {
    let bytes = "certificates = [\"/c\"]\ncarry = \"bytes\"\n";
    for (keys, problem) in [
        ("certificates = [\"c\"]", "certificates[0]: must be an absolute path"),
        (
            "carry = \"bytes\"",
            "carry: needs certificates: without TLS only requests say which function is meant",
        ),
        ("carry = \"byte\"", "carry: unknown value \"byte\", did you mean \"bytes\"?"),
        (
            "proxy_protocol = true",
            "proxy_protocol: needs carry = \"bytes\": requests bring the client's address in their header, and are HTTP",
        ),
        ("default = \"g\"", "default: there is no function \"g\""),
        ("connections = 0", "connections: must be 1 to 65535"),
        ("idle_timeout = \"1ms\"", "idle_timeout: must be 1s to 24h"),
        (&format!("{bytes}alpn = []"), "alpn: must be 1 to 8 protocols, as in [\"h2\", \"http/1.1\"]"),
    ] {
        let line = 3 + keys.lines().count();
        check(&format!("{FRONT}{keys}\n"), &[&format!("{line}: front.p.{problem}")]);
    }
}

#[test]
fn two_functions_cannot_have_one_host_unless_their_paths_differ() {
    let two = |one: &str, other: &str| {
        format!(
            "{FRONT}[[function]]\n{GOOD}hosts = [\"a.example\"]\n{one}\n[[function]]\nname = \"g\"\n\
             listen = \"[::]:82\"\nruntime = \"process\"\ncommand = [\"/f\"]\nhosts = [\"A.example\"]\n{other}\n"
        )
    };
    let taken = |path: &str| {
        format!("16: function.g.hosts: a.example{path} is already that of function \"f\" on line 4")
    };
    check(&two("", ""), &[&taken("/")]);
    check(&two("paths = [\"/x/\"]", "paths = [\"/y\", \"/x\"]"), &[&taken("/x")]);
    check(&two("", "paths = [\"/x\"]"), &[]);
}

#[test]
fn what_a_front_cannot_lead_to_is_said() {
    check(
        &format!("[[function]]\n{GOOD}hosts = [\"a\"]"),
        &["6: function.f.hosts: leads nowhere without a [[front]]: add one, or remove hosts"],
    );
    check(
        &format!("{FRONT}[[function]]\n{GOOD}paths = [\"/x\"]"),
        &["9: function.f.paths: needs hosts: the names under which the paths are"],
    );
    check(
        &format!("{FRONT}[[function]]\n{GOOD}hosts = [\"a:443\"]"),
        &[
            "9: function.f.hosts[0]: must be a host as in \"orders.example.com\" or \"*.shop.example.com\", without a port",
        ],
    );
    let closed = "[syn]\nkey_file = \"/k\"\n";
    check(
        &format!("{closed}{FRONT}[[function]]\n{GOOD}require_auth = \"connect\"\nhosts = [\"a\"]"),
        &[
            "12: function.f.hosts: cannot be with require_auth = \"connect\": a front has no key to connect with",
        ],
    );
}

#[test]
fn an_address_is_a_front_s_alone() {
    check(
        &format!("[syn]\n[[function]]\nid = 1\n{}{FRONT}", GOOD.replace(":81", ":80")),
        &["10: front.p.listen: overlaps with [::]:80 of function \"f\" on line 5"],
    );
    check(
        &format!("{FRONT}{}", FRONT.replace("\"p\"", "\"q\"")),
        &["6: front.q.listen: overlaps with [::]:80 of front \"p\" on line 3"],
    );
}
