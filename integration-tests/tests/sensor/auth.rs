//! `require_auth`: what clients with and without a key get, on an interface and over loopback.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use headstart_integration_tests::lab::client::Step;
use headstart_integration_tests::lab::node::{KeyFile, TestNode, headstart, trigger};
use headstart_integration_tests::lab::site::{LIMIT, TestFunction};
use headstart_integration_tests::lab::{RunningAgent, cli};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{KEY, OTHER_KEY, assert_cold, count, function};

/// A SYN that is dropped gets no answer however long one waits.
const BRIEF: Duration = Duration::from_millis(300);

fn start(node: &TestNode, keys: &KeyFile, function: &TestFunction) -> RunningAgent {
    let (key, value) = keys.setting();
    let setup = node.watching().lookup(true).syn(key, &value).config(&function.text("closed", &[]));
    let agent = setup.start().unwrap();
    function.rest(&agent, "closed").unwrap();
    agent
}

#[test]
fn wake_starts_early_for_those_with_a_key_only() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let keys = KeyFile::new(&[(1, KEY)]).unwrap();
    let function = function("id = 7\nrequire_auth = \"wake\"");
    let agent = start(&node, &keys, &function);
    let target = node.link.host(function.port);

    assert_eq!(node.get(function.port).unwrap().status, 200, "every client is answered");
    assert_eq!(trigger(&agent, "closed").unwrap(), "accept");
    assert!(count(&agent, "headstart_syn_suppressed_total", &[("reason", "unauthenticated")]) >= 1.0);
    function.cool(&agent, "closed").unwrap();

    // The ID alone proves nothing.
    let answer = node.get_tagged(&node.client, target, 7, None).unwrap();
    assert!(answer.contains("alive"), "{answer}");
    assert_eq!(trigger(&agent, "closed").unwrap(), "accept");
    function.cool(&agent, "closed").unwrap();

    let answer = node.get_tagged(&node.client, target, 7, Some(&keys)).unwrap();
    assert!(answer.contains("alive"), "{answer}");
    assert_eq!(trigger(&agent, "closed").unwrap(), "syn");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_wrong_or_unknown_key_is_as_good_as_none() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let keys = KeyFile::new(&[(1, KEY)]).unwrap();
    let function = function("id = 7\nrequire_auth = \"wake\"");
    let agent = start(&node, &keys, &function);
    let target = node.link.host(function.port);
    for (number, key, reason) in [(1, OTHER_KEY, "bad_tag"), (2, KEY, "unknown_key")] {
        let wrong = KeyFile::new(&[(number, key)]).unwrap();
        let answer = node.get_tagged(&node.client, target, 7, Some(&wrong)).unwrap();
        assert!(answer.contains("alive"), "{answer}");
        assert_eq!(trigger(&agent, "closed").unwrap(), "accept", "{reason}");
        let failures = count(&agent, "headstart_syn_auth_failures_total", &[("reason", reason)]);
        assert!(failures >= 1.0, "{reason}");
        function.cool(&agent, "closed").unwrap();
    }
    assert!(agent.stop().unwrap().success());
}

/// The key is the same: only the audience differs, from that of the node or from none.
#[test]
fn a_tag_for_another_audience_proves_nothing() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let keys = KeyFile::new(&[(1, KEY)]).unwrap();
    let function = function("id = 7\nrequire_auth = \"wake\"");
    let (key, value) = keys.setting();
    let setup = node.watching().lookup(true).syn(key, &value).syn("audience", "\"node-1\"");
    let agent = setup.config(&function.text("closed", &[])).start().unwrap();
    function.rest(&agent, "closed").unwrap();
    let target = node.link.host(function.port);
    let ask = |audience: &[&str]| {
        let mut command = headstart("tag", target, 7, Some(&keys)).unwrap();
        command.args(audience);
        let answer = node.get_tagged_with(&node.client, target, command).unwrap();
        assert!(answer.contains("alive"), "{audience:?}: {answer}");
        let trigger = trigger(&agent, "closed").unwrap();
        function.cool(&agent, "closed").unwrap();
        trigger
    };
    for other in [&["--audience", "node-2"][..], &[]] {
        let before = count(&agent, "headstart_syn_auth_failures_total", &[("reason", "bad_tag")]);
        assert_eq!(ask(other), "accept", "{other:?}");
        let after = count(&agent, "headstart_syn_auth_failures_total", &[("reason", "bad_tag")]);
        assert!(after > before, "{other:?}");
    }
    assert_eq!(ask(&["--audience", "node-1"]), "syn");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn connect_refuses_those_without_a_key_before_anything_happens() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let keys = KeyFile::new(&[(1, KEY)]).unwrap();
    let function = function("id = 7\nrequire_auth = \"connect\"");
    let agent = start(&node, &keys, &function);
    let target = node.link.host(function.port);

    let failure = node.get_in_vain(&node.client, target).unwrap();
    assert_eq!(failure.step, Step::Connect, "{failure}");
    assert_cold(&agent, "closed");
    assert!(count(&agent, "headstart_syn_packets_total", &[("kind", "refused")]) >= 1.0);

    let answer = node.get_tagged(&node.client, target, 7, Some(&keys)).unwrap();
    assert!(answer.contains("alive"), "{answer}");
    assert_eq!(trigger(&agent, "closed").unwrap(), "syn");
    // A warm function is no more open than a cold one.
    assert_eq!(node.get_in_vain(&node.client, target).unwrap().step, Step::Connect);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn connect_refuses_also_where_no_interface_is_watched() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let keys = KeyFile::new(&[(1, KEY)]).unwrap();
    let function = function("id = 7\nrequire_auth = \"connect\"");
    let agent = start(&node, &keys, &function);
    let local = SocketAddr::from(([127, 0, 0, 1], function.port));

    assert_eq!(node.get_in_vain(&node.node, local).unwrap().step, Step::Connect);
    assert_cold(&agent, "closed");
    assert!(count(&agent, "headstart_gate_refused_total", &[]) >= 1.0);
    let answer = node.get_tagged(&node.node, local, 7, Some(&keys)).unwrap();
    assert!(answer.contains("alive"), "{answer}");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn keys_are_replaced_without_a_restart() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let keys = KeyFile::new(&[(1, KEY)]).unwrap();
    let (old, new) = (KeyFile::new(&[(1, KEY)]).unwrap(), KeyFile::new(&[(2, OTHER_KEY)]).unwrap());
    let function = function("id = 7\nrequire_auth = \"wake\"");
    let agent = start(&node, &keys, &function);
    let target = node.link.host(function.port);
    let woken_by = |keys: &KeyFile| {
        node.get_tagged(&node.client, target, 7, Some(keys)).unwrap();
        let trigger = trigger(&agent, "closed").unwrap();
        function.cool(&agent, "closed").unwrap();
        trigger
    };
    let reread = |contents: &[(u8, [u8; 16])]| {
        keys.write(contents).unwrap();
        kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), Signal::SIGHUP).unwrap();
    };
    assert_eq!((woken_by(&old), woken_by(&new)), ("syn".to_owned(), "accept".to_owned()));

    // Both while clients change over.
    reread(&[(1, KEY), (2, OTHER_KEY)]);
    cli::eventually("the new key is known", LIMIT, || Ok((woken_by(&new) == "syn").then_some(()))).unwrap();
    assert_eq!(woken_by(&old), "syn");
    reread(&[(2, OTHER_KEY)]);
    cli::eventually("the old key is gone", LIMIT, || Ok((woken_by(&old) == "accept").then_some(()))).unwrap();
    assert_eq!(woken_by(&new), "syn");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_function_is_closed_and_opened_again_without_a_restart() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let keys = KeyFile::new(&[(1, KEY)]).unwrap();
    let mut function = function("id = 7");
    let agent = start(&node, &keys, &function);
    let target = node.link.host(function.port);
    assert_eq!(node.get(function.port).unwrap().status, 200);
    for (require_auth, admitted) in [("\"connect\"", false), ("false", true), ("\"connect\"", false)] {
        function.keys = function
            .keys
            .lines()
            .filter(|line| !line.starts_with("require_auth"))
            .fold(format!("require_auth = {require_auth}\n"), |keys, line| keys + line + "\n");
        agent.rewrite(&function.text("closed", &[])).unwrap();
        let reply = agent.ask("POST", "/api/v1/reload").unwrap();
        assert!(reply.status == 200 && reply.body.contains("\"changed\":[\"closed\"]"), "{}", reply.body);
        let stranger = node.client.enter(|| TcpStream::connect_timeout(&target, BRIEF).map(drop)).unwrap();
        assert_eq!(stranger.is_ok(), admitted, "{require_auth}: {stranger:?}");
        let answer = node.get_tagged(&node.client, target, 7, Some(&keys)).unwrap();
        assert!(answer.contains("alive"), "{answer}");
    }
    assert!(agent.stop().unwrap().success());
}
