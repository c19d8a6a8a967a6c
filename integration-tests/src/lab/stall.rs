//! A node with a function that misbehaves, and two neighbours that should notice nothing.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::lab::site::{LIMIT, TestFunction, unbounded};
use crate::lab::{RunningAgent, cli, client, fixture};

/// Modes of the fixture that clients come to all the time: the agent answers them, or the listener is gone.
const CALLED: [&str; 2] = ["blocker", "ender"];

/// Modes of the fixture that keep the agent busy, and further keys of their function.
pub const MODES: [(&str, &str); 5] = [
    ("printer", ""),
    ("asker", ""),
    ("blocker", "queue_timeout = \"100ms\"\nmax_instances = 1\nconcurrency = 1\n"),
    ("ender", ""),
    ("caller", "backend_sockets = true\n"),
];

/// The neighbours: one is frozen and woken, the other is started cold.
const WAKES: &str = "wakes";
const STARTS: &str = "starts";

/// How long a client of the function that misbehaves tries, and the pause before the next.
const CALL_LIMIT: Duration = Duration::from_millis(200);
const CALL_PAUSE_MS: u8 = 5;

/// What a neighbour, and an operator, have waited.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// For `/healthz`.
    pub healthz: Duration,
    /// For the answer of a function that has to start.
    pub cold: Duration,
    /// For the answer of a function that is frozen.
    pub wake: Duration,
}

/// The node.
#[derive(Debug)]
pub struct StalledNode {
    /// Its agent.
    pub agent: RunningAgent,
    wakes: TestFunction,
    starts: TestFunction,
    modes: Vec<(&'static str, TestFunction)>,
    _server: TcpListener,
}

impl StalledNode {
    /// With a function for each of [`MODES`], and a backend that accepts and says nothing.
    pub fn new() -> Result<Self> {
        let server = TcpListener::bind(("127.0.0.1", 0))?;
        let address = server.local_addr()?;
        let accepting = server.try_clone()?;
        thread::spawn(move || accepting.incoming().flatten().collect::<Vec<_>>());
        let [wakes, starts] = [fixture::steady("process", "")?, fixture::steady("process", "")?];
        let backend = format!(
            "[[backend]]\nname = \"db\"\nkind = \"tcp\"\naddress = \"{address}\"\npool = {{ min_idle = 1, max = 4 }}\n"
        );
        let mut setup = unbounded().lookup(true).config(&backend);
        setup = setup.config(&wakes.text(WAKES, &[])).config(&starts.text(STARTS, &[]));
        let mut modes = Vec::new();
        for (mode, keys) in MODES {
            let mut function = fixture::function(mode, "process", keys)?;
            // A function that is not its turn leaves no work behind.
            function.prepared = 0;
            setup = setup.config(&function.text(mode, &["db"]));
            modes.push((mode, function));
        }
        let agent = setup.start()?;
        wakes.rest(&agent, WAKES)?;
        starts.rest(&agent, STARTS)?;
        Ok(Self { agent, wakes, starts, modes, _server: server })
    }

    /// What neighbours wait, `rounds` times, while the function of `mode` is under way; of no mode: at rest.
    pub fn block(&self, mode: Option<&str>, rounds: usize) -> Result<Vec<Waits>> {
        let Some(mode) = mode else { return (0..rounds).map(|_| self.round()).collect() };
        let called = self.modes.iter().find(|(name, _)| *name == mode && CALLED.contains(name));
        let over = Arc::new(AtomicBool::new(false));
        let calling = called.map(|(_, function)| call(function.local(), Arc::clone(&over)));
        self.agent.operate(mode, "wake")?;
        self.agent.wait_function(mode, "started", LIMIT, |shown| shown["state"] != "cold")?;
        let measured = (0..rounds).map(|_| self.round()).collect();
        over.store(true, Ordering::Relaxed);
        if let Some(calling) = calling {
            drop(calling.join());
        }
        cli::eventually("it is gone", LIMIT, || {
            // One of its last clients may have started it once more.
            self.agent.stop_function(mode)?;
            let reply = self.agent.ask("GET", &format!("/api/v1/functions/{mode}"))?;
            let shown: Value = serde_json::from_str(&reply.body)?;
            Ok((shown["instances"] == 0 && shown["queued"] == 0).then_some(()))
        })?;
        measured
    }

    fn round(&self) -> Result<Waits> {
        let get = |address: SocketAddr, path: &str| -> Result<Duration> {
            let reply = client::get(address, path, LIMIT)?;
            ensure!(reply.status == 200, "{reply:?}\n{}", self.agent.log());
            Ok(reply.timings.total)
        };
        let healthz = get(self.agent.admin(), "/healthz")?;
        let cold = get(self.starts.local(), "/")?;
        self.starts.cool(&self.agent, STARTS)?;
        get(self.wakes.local(), "/")?;
        self.agent.operate(WAKES, "freeze")?;
        self.agent.wait_state(WAKES, "frozen", LIMIT)?;
        let wake = get(self.wakes.local(), "/")?;
        Ok(Waits { healthz, cold, wake })
    }
}

/// Clients that come one after the other, and want nothing.
fn call(address: SocketAddr, over: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            drop(TcpStream::connect_timeout(&address, CALL_LIMIT));
            // A signal may cut the pause short.
            nix::poll::poll(&mut [], CALL_PAUSE_MS).unwrap_or_default();
        }
    })
}
