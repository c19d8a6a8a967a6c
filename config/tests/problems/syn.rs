//! `[syn]`, and the keys of functions that depend on it.

use std::net::IpAddr;
use std::time::Duration;

use headstart_config::{BudgetRange, Cidr, Config, EventLimits, MAX_CIDRS, RequireAuth, StartBudget};

use crate::{GOOD, check, problems};

#[test]
fn every_key_has_a_default() {
    let syn = Config::parse("h.toml", "").unwrap().syn;
    assert_eq!(syn.pin_dir.to_str(), Some("/sys/fs/bpf/headstart"));
    assert!(syn.lookup);
    assert_eq!((syn.key_file, syn.audience, syn.knock_port), (None, None, None));
    assert_eq!((syn.knock_opens, syn.unused_after), (Duration::from_secs(30), Duration::from_secs(10)));
    assert_eq!((syn.allow, syn.ignore), (Vec::new(), Vec::new()));
    assert_eq!(syn.events, EventLimits { source: 64, function: 256, global: 1_024 });
    let (function, global) = (BudgetRange { min: 1, max: 16 }, BudgetRange { min: 8, max: 128 });
    assert_eq!(syn.starts, StartBudget { function, global, allow: BudgetRange { min: 64, max: 1_024 } });
}

#[test]
fn every_key_is_read() {
    let text = "[syn]\npin_dir = \"/p\"\nlookup = false\nkey_file = \"/k\"\naudience = \"b-1\"\nknock_port = 65535\n\
                knock_opens = \"1h\"\nallow = [\"192.0.2.1\"]\nignore = [\"2001:db8::/32\", \"0.0.0.0/0\"]\n\
                unused_after = \"5m\"\nevents = { source = 1, function = 2, global = 1000000 }\n\
                starts = { function = { max = 1 }, global = { min = 3, max = 4 }, allow = { max = 5 } }";
    let syn = Config::parse("h.toml", text).unwrap().syn;
    assert_eq!((syn.pin_dir.to_str(), syn.lookup), (Some("/p"), false));
    assert_eq!((syn.key_file.unwrap().to_str(), syn.knock_port), (Some("/k"), Some(65_535)));
    assert_eq!(syn.audience.as_deref(), Some("b-1"));
    assert_eq!((syn.knock_opens, syn.unused_after), (Duration::from_hours(1), Duration::from_mins(5)));
    let cidr = |address: &str, bits| Cidr { address: address.parse::<IpAddr>().unwrap(), bits };
    assert_eq!(syn.allow, [cidr("192.0.2.1", 32)]);
    assert_eq!(syn.ignore, [cidr("2001:db8::", 32), cidr("0.0.0.0", 0)]);
    assert_eq!(syn.events, EventLimits { source: 1, function: 2, global: 1_000_000 });
    // A default minimum does not exceed the maximum that is written.
    let (function, global) = (BudgetRange { min: 1, max: 1 }, BudgetRange { min: 3, max: 4 });
    assert_eq!(syn.starts, StartBudget { function, global, allow: BudgetRange { min: 5, max: 5 } });
}

#[test]
fn keys() {
    let cases = [
        ("pin_dir = \"bpf\"", "pin_dir: must be an absolute path"),
        ("lookup = \"yes\"", "lookup: must be true or false, not a string"),
        ("key_file = \"keys\"", "key_file: must be an absolute path"),
        ("audience = \"a\"", "audience: needs key_file: it makes other keys of those"),
        ("knock_port = 7", "knock_port: needs key_file: a knock proves that its sender has a key"),
        ("knock_port = 0", "knock_port: must be 1 to 65535"),
        ("knock_port = 65536", "knock_port: must be 1 to 65535"),
        ("knock_opens = \"999ms\"", "knock_opens: must be 1s to 1h"),
        ("knock_opens = \"2h\"", "knock_opens: must be 1s to 1h"),
        ("unused_after = \"6m\"", "unused_after: must be 1s to 5m"),
        (
            "unused_after = 10",
            "unused_after: has no unit: must be a whole number with a unit (ms, s, m, h), as in \"10s\"",
        ),
        ("events = 64", "events: must be a table, as events = { source = 64 }, not an integer"),
        ("events = { source = 0 }", "events.source: must be 1 to 1000000"),
        ("events = { function = 1000001 }", "events.function: must be 1 to 1000000"),
        ("events = { global = \"9\" }", "events.global: must be a whole number, not a string"),
        ("events = { sources = 9 }", "events.sources: unknown key, did you mean \"source\"?"),
        ("starts = 8", "starts: must be a table, as starts = { global = { max = 128 } }, not an integer"),
        (
            "starts = { function = 8 }",
            "starts.function: must be a table, as function = { min = 1, max = 16 }, not an integer",
        ),
        ("starts = { function = { min = 17 } }", "starts.function.min: must be at most max, which is 16"),
        ("starts = { global = { min = 0 } }", "starts.global.min: must be 1 to 100000"),
        ("starts = { global = { max = 100001 } }", "starts.global.max: must be 1 to 100000"),
        ("starts = { global = { maxi = 1 } }", "starts.global.maxi: unknown key, did you mean \"max\"?"),
        ("keyfile = \"/k\"", "keyfile: unknown key, did you mean \"key_file\"?"),
    ];
    for (text, message) in cases {
        check(&format!("[syn]\n{text}"), &[&format!("2: syn.{message}")]);
    }
    check("syn = 1", &["1: syn: must be a table, as [syn], not an integer"]);
}

#[test]
fn networks() {
    let form = "must be a network, as in \"10.0.0.0/8\" or \"2001:db8::/32\", or an address";
    let all = "includes all of IPv4 (as ::ffff:0:0/96): write \"2000::/3\" for the global addresses of IPv6, \
               \"0.0.0.0/0\" for IPv4";
    let cases = [
        ("localhost", form),
        ("", form),
        ("10.0.0.0/", form),
        ("10.0.0.0/+8", form),
        ("10.0.0.0/8/8", form),
        ("10.0.0.0/255.0.0.0", form),
        ("fe80::1%eth0", form),
        ("10.0.0.0/33", "the number after \"/\" must be 0 to 32"),
        ("::1/129", "the number after \"/\" must be 0 to 128"),
        ("::1/99999999999", "the number after \"/\" must be 0 to 128"),
        ("10.1.2.3/8", "has bits set beyond the prefix: write \"10.0.0.0/8\""),
        ("0.0.0.1/0", "has bits set beyond the prefix: write \"0.0.0.0/0\""),
        ("2001:db8::1/32", "has bits set beyond the prefix: write \"2001:db8::/32\""),
        ("8000::/0", all),
        ("::/0", all),
        ("::/80", all),
        ("::fffe:0:0/95", all),
        ("::ffff:10.0.0.0/104", "is IPv4 inside IPv6: write it as IPv4, \"10.0.0.0/8\""),
        ("::ffff:10.1.2.3/104", "is IPv4 inside IPv6: write it as IPv4, \"10.0.0.0/8\""),
        ("::ffff:192.0.2.1", "is IPv4 inside IPv6: write it as IPv4, \"192.0.2.1/32\""),
    ];
    for (network, message) in cases {
        let text = format!("[syn]\nallow = [\n  \"192.0.2.7\",\n  {network:?},\n]");
        check(&text, &[&format!("4: syn.allow[1]: {message}")]);
    }
    for network in ["0.0.0.0/0", "10.0.0.1", "10.0.0.1/32", "::1", "::/81", "2000::/3", "::ffff:1:0:0/96"] {
        check(&format!("[syn]\nignore = [{network:?}]"), &[]);
    }
    check("[syn]\nignore = [7]", &["2: syn.ignore[0]: must be a string, not an integer"]);
    check("[syn]\nignore = \"::1\"", &["2: syn.ignore: must be a list, not a string"]);
}

#[test]
fn networks_are_listed_once() {
    check(
        "[syn]\nallow = [\"10.0.0.1\", \"10.0.0.1/32\"]",
        &["2: syn.allow[1]: 10.0.0.1/32 is listed twice"],
    );
    // The longest prefix decides, so that these two differ.
    check("[syn]\nallow = [\"10.0.0.0/8\"]\nignore = [\"10.0.0.0/16\"]", &[]);
    check(
        "[syn]\nignore = [\"::1\", \"10.0.0.0/8\"]\nallow = [\"10.0.0.0/8\"]",
        &["2: syn.ignore[1]: 10.0.0.0/8 is in allow on line 3 too: remove it from one of the two"],
    );
    let many = |count: usize| -> String {
        let networks: Vec<_> = (0..count).map(|i| format!("\"10.{}.{}.0/24\"", i / 256, i % 256)).collect();
        format!("[syn]\nignore = [{}]", networks.join(", "))
    };
    assert_eq!(Config::parse("h.toml", &many(MAX_CIDRS)).unwrap().syn.ignore.len(), MAX_CIDRS);
    check(&many(MAX_CIDRS + 1), &["2: syn.ignore: must be at most 2048 networks, not 2049"]);
}

#[test]
fn ids() {
    let cases = [
        ("id = 0", "id: must be 1 to 4294967295"),
        ("id = 4294967296", "id: must be 1 to 4294967295"),
        ("id = \"7\"", "id: must be a whole number, not a string"),
    ];
    for (text, message) in cases {
        check(&format!("[[function]]\n{GOOD}{text}"), &[&format!("6: function.f.{message}")]);
    }
    let twice = functions(&[("[::]:81", "id = 7"), ("[::]:82", "id = 7")]);
    check(&twice, &["12: function.f1.id: 7 is already the id of function \"f0\" on line 6"]);
    let config = Config::parse("h.toml", &functions(&[("[::]:81", "id = 4294967295")])).unwrap();
    assert_eq!(config.functions[0].id, Some(u32::MAX));
}

#[test]
fn functions_that_must_be_authenticated_need_keys() {
    let message = "must be false or \"wake\" or \"connect\"";
    let cases = [
        ("true", message),
        ("1", message),
        ("\"false\"", message),
        ("\"conect\"", "unknown value \"conect\", did you mean \"connect\"?"),
        ("\"wake\"", "needs the keys of clients: name their file with key_file in [syn]"),
        ("\"connect\"", "needs the keys of clients: name their file with key_file in [syn]"),
    ];
    for (value, message) in cases {
        let text = format!("[[function]]\n{GOOD}require_auth = {value}");
        check(&text, &[&format!("6: function.f.require_auth: {message}")]);
    }
    for (value, read) in
        [("false", RequireAuth::No), ("\"wake\"", RequireAuth::Wake), ("\"connect\"", RequireAuth::Connect)]
    {
        let text = format!("[[function]]\n{GOOD}require_auth = {value}\n[syn]\nkey_file = \"/k\"");
        assert_eq!(Config::parse("h.toml", &text).unwrap().functions[0].require_auth, read);
    }
    let wake = format!("[[function]]\n{GOOD}require_auth = \"wake\"");
    let mistakes = [("syn = 1\n", 1), ("[syn]\nkey_file = \"k\"\n", 2), ("[syn]\nkey_file = 1\n", 2)];
    for (mistake, line) in mistakes {
        let problems = problems(&format!("{mistake}{wake}"));
        assert_eq!(problems.len(), 1, "one mistake is one problem: {problems:?}");
        assert!(problems[0].starts_with(&format!("{line}: syn")), "{problems:?}");
    }
}

#[test]
fn functions_with_different_ids_share_an_address() {
    let at = "[::]:81";
    check(&functions(&[(at, "id = 1"), (at, "id = 2"), (at, "")]), &[]);
    check(&functions(&[(at, ""), (at, "id = 1"), (at, "id = 2")]), &[]);
    check(&functions(&[(at, "id = 1"), (at, "id = 2")]), &[]);
    let clash = "overlaps with [::]:81 of function \"f0\" on line 3: of the functions that share an address, \
                 all but one need an id";
    check(&functions(&[(at, ""), (at, "id = 1"), (at, "")]), &[&format!("15: function.f2.listen: {clash}")]);
    // Whoever has no ID is in the way, not who was first.
    check(
        &functions(&[(at, "id = 1"), (at, ""), (at, "")]),
        &[&format!("15: function.f2.listen: {}", clash.replace("f0", "f1").replace("line 3", "line 9"))],
    );
    check(&functions(&[(at, ""), (at, "id = 0")]), &["12: function.f1.id: must be 1 to 4294967295"]);
    // An ID does not help where one address contains the other.
    for (first, second) in [("0.0.0.0:81", "127.0.0.1:81"), ("[::ffff:127.0.0.1]:81", "127.0.0.1:81")] {
        check(
            &functions(&[(first, "id = 1"), (second, "id = 2")]),
            &[&format!("9: function.f1.listen: overlaps with {first} of function \"f0\" on line 3")],
        );
    }
    let admin = format!("[agent]\nadmin = \"[::]:81\"\n{}", functions(&[(at, "id = 1")]));
    check(&admin, &["5: function.f0.listen: overlaps with agent.admin"]);
}

#[test]
fn shared_addresses_need_the_socket_lookup() {
    let text = |lookup: &str| {
        format!("{}\n[syn]\nlookup = {lookup}", functions(&[("[::]:81", ""), ("[::]:81", "id = 1")]))
    };
    check(&text("true"), &[]);
    check(
        &text("false"),
        &[
            "9: function.f1.listen: shares [::]:81 with function \"f0\" on line 3, which needs lookup = true in [syn]",
        ],
    );
    check(&text("1"), &["15: syn.lookup: must be true or false, not an integer"]);
}

/// Functions f0, f1, .. of six lines each: the `listen` of one is on its third, the text given on its last.
fn functions(functions: &[(&str, &str)]) -> String {
    let function = |(i, (listen, rest)): (usize, &(&str, &str))| {
        format!(
            "[[function]]\nname = \"f{i}\"\nlisten = {listen:?}\nruntime = \"process\"\ncommand = [\"/f\"]\n{rest}\n"
        )
    };
    functions.iter().enumerate().map(function).collect()
}
