//! A knock starts a function before its client connects, and opens it to that client.

use std::net::{SocketAddr, UdpSocket};

use headstart_ebpf::auth::epoch;
use headstart_ebpf::knock::{self, Knock};
use headstart_integration_tests::lab::RunningAgent;
use headstart_integration_tests::lab::client::Step;
use headstart_integration_tests::lab::node::{KeyFile, TestNode, headstart, trigger, words};
use headstart_integration_tests::lab::site::{LIMIT, TestFunction};
use headstart_integration_tests::{lab, lab::cli};

use crate::common::{KEY, OTHER_KEY, assert_cold, count, function};

struct UdpTarget {
    node: TestNode,
    keys: KeyFile,
    function: TestFunction,
    agent: RunningAgent,
    port: u16,
}

impl UdpTarget {
    fn new() -> Option<Self> {
        Self::of(None)
    }

    /// A node of this audience.
    fn of(audience: Option<&str>) -> Option<Self> {
        let node = TestNode::new().unwrap()?;
        let keys = KeyFile::new(&[(1, KEY)]).unwrap();
        let function = function("id = 7\nrequire_auth = \"connect\"");
        let (key, value) = keys.setting();
        let port = lab::free_port().unwrap().port();
        let setup = node.watching().lookup(true).syn(key, &value).syn("knock_port", &port.to_string());
        let setup =
            audience.into_iter().fold(setup, |setup, name| setup.syn("audience", &format!("{name:?}")));
        let agent = setup.config(&function.text("closed", &[])).start().unwrap();
        function.rest(&agent, "closed").unwrap();
        Some(Self { node, keys, function, agent, port })
    }

    /// Sends these bytes to the knock's port, from the client.
    fn throw(&self, bytes: &[u8]) {
        let target = self.node.link.host(self.port);
        let sent = self.node.client.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(bytes, target).unwrap()
        });
        assert_eq!(sent.unwrap(), bytes.len());
    }

    /// How many knocks of any outcome were counted.
    fn counted(&self) -> f64 {
        count(&self.agent, "headstart_knocks_total", &[])
    }

    fn wait_counted(&self, number: f64) {
        cli::eventually("knocks are counted", LIMIT, || Ok((self.counted() >= number).then_some(())))
            .unwrap();
    }
}

#[test]
fn a_knock_starts_a_function_and_lets_its_sender_in() {
    let Some(door) = UdpTarget::new() else { return };
    let UdpTarget { node, keys, function, agent, port } = &door;
    node.knock(*port, 7, keys).unwrap();
    agent.wait_state("closed", "ready", LIMIT).unwrap();
    assert_eq!(trigger(agent, "closed").unwrap(), "knock");
    assert_eq!(node.get(function.port).unwrap().status, 200, "no tag is needed now");
    // To its sender only.
    let local = SocketAddr::from(([127, 0, 0, 1], function.port));
    assert_eq!(node.get_in_vain(&node.node, local).unwrap().step, Step::Connect);
}

#[test]
fn what_was_made_for_another_audience_opens_nothing() {
    let Some(door) = UdpTarget::of(Some("node-1")) else { return };
    let UdpTarget { node, keys, agent, port, .. } = &door;
    let knock = |audience: &[&str]| {
        let mut command = headstart("knock", node.link.host(*port), 7, Some(keys)).unwrap();
        node.client.run(command.args(audience)).unwrap()
    };
    knock(&[]);
    knock(&["--audience", "node-2"]);
    door.wait_counted(2.0);
    assert_cold(agent, "closed");
    knock(&["--audience", "node-1"]);
    agent.wait_state("closed", "ready", LIMIT).unwrap();
}

#[test]
fn garbage_and_forgeries_open_nothing() {
    let Some(door) = UdpTarget::new() else { return };
    let now = epoch(unix_seconds());
    let knock = |key, number, epoch, id| Knock::new(words(key), number, epoch, id, 42).encode();
    let good = knock(KEY, 1, now, 7);
    let mut flipped = good;
    flipped[knock::LEN - 1] ^= 1;
    let thrown: [&[u8]; 8] = [
        b"",
        b"HSKN",
        &[0; knock::LEN],
        &[good.as_slice(), b"!"].concat(),
        &flipped,
        &knock(OTHER_KEY, 1, now, 7),
        &knock(KEY, 3, now, 7),
        &knock(KEY, 1, now - 3, 7),
    ];
    for bytes in thrown {
        door.throw(bytes);
    }
    door.wait_counted(thrown.len() as f64);
    assert_cold(&door.agent, "closed");
    let target = door.node.link.host(door.function.port);
    assert_eq!(door.node.get_in_vain(&door.node.client, target).unwrap().step, Step::Connect);
}

#[test]
fn the_clock_of_a_knock_may_be_one_step_off_and_it_works_once() {
    let Some(door) = UdpTarget::new() else { return };
    // An epoch that passes while this runs makes a step of the next one, and nothing of the one before.
    let ahead = epoch(unix_seconds()) + 1;
    let knock = Knock::new(words(KEY), 1, ahead, 7, 1).encode();
    door.throw(&knock);
    door.agent.wait_state("closed", "ready", LIMIT).unwrap();
    door.function.cool(&door.agent, "closed").unwrap();
    let before = door.counted();
    door.throw(&knock);
    door.wait_counted(before + 1.0);
    assert_cold(&door.agent, "closed");
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}
