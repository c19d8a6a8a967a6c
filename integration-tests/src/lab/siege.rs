//! A node under attack: many open functions, one that requires a key, a client, and an attacker with a link of
//! its own, as uplinks have queues of their own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::flood::{Flood, FloodProcess, SpoofedRoutes};
use crate::lab::node::{KeyFile, TestNode};
use crate::lab::site::{LIMIT, TestFunction};
use crate::lab::{Link, Namespace, RunningAgent, cli, fixture};

/// The function that starts early for clients with a key only.
pub const CLOSED: &str = "closed";

/// Its ID.
pub const CLOSED_ID: u32 = 7;

/// The first of the open functions' ports; the node's network has no other listeners.
const FIRST_PORT: u16 = 8_000;

/// Early starts a second that clients without a key may cause: at least, and at most.
pub const BUDGET: (u32, u32) = (2, 4);

/// A key of 128 bits.
const KEY: [u8; 16] = *b"sixteen secret b";

/// The CPU that floods are sent from: the last, as interrupts are rather on the first. Also for a process that is
/// kept off it.
pub fn last_cpu() -> Result<usize> {
    // A list of ranges, "0-3" or "0,2-3" (admin-guide/cputopology).
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let last = online.trim().rsplit([',', '-']).next().and_then(|number| number.parse().ok());
    last.with_context(|| format!("not a list of CPUs: {online}"))
}

/// The node under attack, and those around it.
#[derive(Debug)]
pub struct Siege {
    /// On the node.
    pub agent: RunningAgent,
    /// The function for clients with a key: parked, so that its starts are short.
    pub closed: TestFunction,
    /// The client's key.
    pub keys: KeyFile,
    open: Vec<(String, u16)>,
    _program: TestFunction,
    _routes: SpoofedRoutes,
    attack: Link,
    decoy: Link,
    /// The node and its client.
    pub node: TestNode,
}

impl Siege {
    /// An agent with so many open functions, of which none runs. `None` where this machine cannot run it.
    pub fn new(open: u16) -> Result<Option<Self>> {
        let Some(node) = TestNode::new()? else { return Ok(None) };
        let (attacker, elsewhere) = (Namespace::new("attacker")?, Namespace::new("elsewhere")?);
        let decoy = Link::between(&elsewhere, &attacker)?;
        let attack = Link::between(&node.node, &attacker)?;
        let routes = SpoofedRoutes::route(&attack)?;
        let keys = KeyFile::new(&[(1, KEY)])?;
        let closed = fixture::function("plain", "oci", "id = 7\nrequire_auth = \"wake\"")?;

        let (key, file) = keys.setting();
        let (least, most) = BUDGET;
        let starts =
            format!("{{ function = {{ min = 1, max = 2 }}, global = {{ min = {least}, max = {most} }} }}");
        let mut setup = node.watching().interface(attack.host_if()).lookup(true).syn(key, &file);
        setup = setup.syn("starts", &starts).syn("unused_after", "\"1s\"");
        setup = setup.config(&closed.text(CLOSED, &[]));
        // Many functions of one program, none of them parked: it is their number that counts.
        let mut program = fixture::function("plain", "process", "backlog = 128")?;
        program.prepared = 0;
        let mut functions = Vec::new();
        for number in 0..open {
            program.port = FIRST_PORT + number;
            let name = format!("open-{number}");
            setup = setup.config(&program.text(&name, &[]));
            functions.push((name, program.port));
        }
        let agent = setup.start()?;
        closed.rest(&agent, CLOSED)?;
        Ok(Some(Self {
            agent,
            closed,
            keys,
            open: functions,
            _program: program,
            _routes: routes,
            attack,
            decoy,
            node,
        }))
    }

    /// SYNs to every function, as fast as one core sends them.
    pub fn flood(&self, lasting: Duration) -> Result<FloodProcess> {
        self.send(&self.attack, lasting)
    }

    /// The same to a network where there is no node: what the sender alone takes from this machine.
    pub fn flood_elsewhere(&self, lasting: Duration) -> Result<FloodProcess> {
        self.send(&self.decoy, lasting)
    }

    fn send(&self, link: &Link, lasting: Duration) -> Result<FloodProcess> {
        let mut ports: Vec<_> = self.open.iter().map(|(_, port)| *port).collect();
        ports.push(self.closed.port);
        Flood::new(link, &ports)?.lasting(lasting).cpu(last_cpu()?).start()
    }

    /// The open functions: name and port.
    pub fn open(&self) -> &[(String, u16)] {
        &self.open
    }

    /// Where the closed function is, from the client.
    pub fn target(&self) -> SocketAddr {
        self.node.link.host(self.closed.port)
    }

    /// Stops every open function that runs, and waits until none does.
    pub fn cool(&self) -> Result<()> {
        let all = self.agent.functions()?;
        let all = all.as_array().context("the functions are a list")?;
        let running = all.iter().filter(|function| function["state"] != "cold");
        let names = running.filter_map(|function| function["name"].as_str()).filter(|name| *name != CLOSED);
        let names: Vec<_> = names.collect();
        for name in &names {
            // A function whose container is still being made has nothing to stop yet: ask again.
            cli::eventually(&format!("{name} is cold"), LIMIT, || {
                self.agent.stop_function(name)?;
                let all = self.agent.functions()?;
                let found = all.as_array().and_then(|all| all.iter().find(|one| one["name"] == **name));
                Ok(found.filter(|one| one["state"] == "cold").map(drop))
            })?;
        }
        Ok(())
    }
}
