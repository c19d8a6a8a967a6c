//! The node: functions that behave, which clients ask, functions that misbehave, a database, and an attacker's link.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use headstart_integration_tests::lab::flood::SpoofedRoutes;
use headstart_integration_tests::lab::node::TestNode;
use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    DockerDaemon, Link, Namespace, PostgresServer, Rootfs, RunningAgent, build_static, cli, fixture,
    free_port, target_dir,
};
use serde_json::Value;

use crate::rest::Rest;

/// They sleep and end by themselves too.
const SLEEPS: &str = "freeze_after = \"700ms\"\nstop_after = \"3s\"\n";

/// What misbehaves, in a container, and further keys of its function.
const HOSTILE: [(&str, &str); 21] = [
    ("exit", ""),
    ("silent", ""),
    ("hang", "concurrency = 1\nmax_instances = 1\n"),
    ("fork", ""),
    ("hog", "memory = \"64MiB\"\n"),
    ("stubborn", ""),
    ("header", ""),
    ("oversized", ""),
    ("version", ""),
    ("body", ""),
    ("out_of_order", ""),
    ("descriptors", ""),
    ("not_configured", ""),
    ("too_many", ""),
    ("late", ""),
    ("printer", ""),
    ("asker", ""),
    ("hoarder", ""),
    ("blocker", "max_instances = 1\nconcurrency = 1\n"),
    ("ender", ""),
    ("caller", "backend_sockets = true\n"),
];
const HOSTILE_KEYS: &str = "init_timeout = \"1s\"\nqueue_timeout = \"300ms\"\n";

/// Connections that the silent server holds at a time.
const HELD: usize = 64;

/// Node, agent and functions.
pub(crate) struct Stage {
    pub(crate) agent: RunningAgent,
    pub(crate) postgres: PostgresServer,
    /// They behave.
    pub(crate) functions: Vec<(String, TestFunction)>,
    /// They do not.
    pub(crate) hostile: Vec<(String, TestFunction)>,
    /// There after some reloads, and gone after others.
    guest: TestFunction,
    _routes: SpoofedRoutes,
    pub(crate) attack: Link,
    pub(crate) docker: std::sync::Arc<DockerDaemon>,
    backends: String,
    reloads: u32,
    pub(crate) node: TestNode,
}

impl Stage {
    /// The agent runs, and all is cold.
    pub(crate) fn new() -> Result<Self> {
        let node = TestNode::new()?.context("it needs root, and what `make install` installs")?;
        let attack = Link::between(&node.node, &Namespace::new("attacker")?)?;
        let routes = SpoofedRoutes::route(&attack)?;
        let docker = DockerDaemon::shared()?;
        let postgres = PostgresServer::inside(&node.node, SocketAddr::from(([127, 0, 0, 1], 5432)))?;
        let silent = node.node.enter(|| TcpListener::bind(("127.0.0.1", 0)))??;
        let silent_address = silent.local_addr()?;
        thread::spawn(move || hold(&silent));

        let password = postgres.password_file()?;
        fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let backends = format!(
            "[[backend]]\nname = \"orders-db\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\n\
             database = \"{}\"\npassword_file = {password:?}\n\
             pool = {{ min_idle = 2, max = 16, max_per_function = 8 }}\n\
             [[backend]]\nname = \"db\"\nkind = \"tcp\"\naddress = \"{silent_address}\"\n\
             pool = {{ min_idle = 1, max = 4 }}\n",
            postgres.address(),
            PostgresServer::USER,
            PostgresServer::DATABASE,
        );
        let mut orders = TestFunction::example("orders", "oci")?;
        SLEEPS.clone_into(&mut orders.keys);
        let functions = vec![
            (
                "oci".to_owned(),
                fixture::steady("oci", &format!("{SLEEPS}concurrency = 8\nmax_instances = 4\n"))?,
            ),
            ("process".to_owned(), fixture::steady("process", SLEEPS)?),
            ("docker".to_owned(), fixture::steady("docker", SLEEPS)?),
            ("unchanged".to_owned(), unchanged()?),
            ("orders".to_owned(), orders),
        ];
        let mut hostile = Vec::new();
        for (number, (mode, keys)) in HOSTILE.into_iter().enumerate() {
            // A process has no memory limit of its own where the controller is missing.
            let runtime = if number % 2 == 0 { "oci" } else { "process" };
            let mut function = fixture::function(mode, runtime, &format!("{HOSTILE_KEYS}{keys}"))?;
            function.prepared = 0;
            hostile.push((mode.replace('_', "-"), function));
        }
        let guest = fixture::steady("oci", SLEEPS)?;

        let init = build_static("headstart-init", "headstart-init")?;
        let setup = node.watching().interface(attack.host_if()).lookup(true).docker(&docker);
        let setup = setup.setting("init", &format!("{init:?}"));
        let setup = setup.config(&sections(&backends, &functions, &hostile, None, 0));
        let agent = setup.start()?;
        Ok(Self {
            agent,
            postgres,
            functions,
            hostile,
            guest,
            attack,
            docker,
            backends,
            reloads: 0,
            _routes: routes,
            node,
        })
    }

    /// What clients ask.
    pub(crate) fn targets(&self) -> Vec<(String, SocketAddr)> {
        self.functions
            .iter()
            .map(|(name, function)| (name.clone(), self.node.link.host(function.port)))
            .collect()
    }

    /// Changes a variable of one function, and adds or removes another.
    pub(crate) fn reload(&mut self) -> Result<()> {
        self.reloads += 1;
        let guest = (self.reloads % 2 == 1).then_some(&self.guest);
        self.agent.rewrite(&sections(&self.backends, &self.functions, &self.hostile, guest, self.reloads))?;
        let socket = self.agent.admin_socket();
        let said =
            headstart_integration_tests::lab::client::request_at(&socket, "POST", "/api/v1/reload", LIMIT)?;
        ensure!(said.status == 200, "{} {}", said.status, said.body);
        Ok(())
    }

    /// All is stopped; what the agent uses then.
    pub(crate) fn rest(&self, at: Duration) -> Result<Rest> {
        for (name, function) in &self.functions {
            cli::eventually(&format!("{name} is at rest"), LIMIT, || {
                let shown = self.shown(name)?;
                if shown["instances"] != 0 {
                    self.agent.stop_function(name)?;
                }
                let rests = shown["state"] == "cold"
                    && shown["prepared"] == function.prepared
                    && shown["queued"] == 0
                    && shown["removing"] == 0;
                Ok(rests.then_some(()))
            })?;
        }
        for (name, _) in &self.hostile {
            self.end(name)?;
        }
        Rest::look(self, at)
    }

    /// Ends a function that misbehaves.
    pub(crate) fn end(&self, name: &str) -> Result<()> {
        cli::eventually(&format!("{name} is gone"), LIMIT, || {
            // One of its last clients may have started it once more.
            self.agent.stop_function(name)?;
            let shown = self.shown(name)?;
            let gone =
                ["instances", "queued", "removing", "preparing"].into_iter().all(|key| shown[key] == 0);
            Ok(gone.then_some(()))
        })
    }

    fn shown(&self, name: &str) -> Result<Value> {
        let reply = self.agent.ask("GET", &format!("/api/v1/functions/{name}"))?;
        Ok(serde_json::from_str(&reply.body)?)
    }

    /// Writes the agent's log where it can be read.
    pub(crate) fn save_log(&self) -> Result<PathBuf> {
        let path = target_dir().join("soak.log");
        fs::write(&path, self.agent.log())?;
        Ok(path)
    }

    pub(crate) fn stop(self) -> Result<()> {
        ensure!(self.agent.stop()?.success(), "the agent did not end as it should");
        Ok(())
    }
}

/// Holds the last clients of a server that says nothing, far more than the pool has.
fn hold(listener: &TcpListener) {
    let mut held = VecDeque::new();
    for client in listener.incoming().flatten() {
        held.push_back(client);
        if held.len() > HELD {
            held.pop_front();
        }
    }
}

/// A server that knows nothing of Headstart.
fn unchanged() -> Result<TestFunction> {
    let binary = build_static("headstart-lab-functions", "unchanged")?;
    let kind = FunctionKind::of("oci", Rootfs::with_binary("unchanged", &binary)?)?;
    // It ends at once when it is asked to, with or without a client.
    let keys = format!("{SLEEPS}contract = \"port\"\nport = 8080\nenv = {{ MODE = \"events\" }}\n");
    Ok(TestFunction { port: free_port()?.port(), prepared: 1, kind, keys })
}

fn sections(
    backends: &str,
    functions: &[(String, TestFunction)],
    hostile: &[(String, TestFunction)],
    guest: Option<&TestFunction>,
    version: u32,
) -> String {
    let mut text = backends.to_owned();
    for (name, function) in functions {
        let backends: &[&str] = if name == "orders" { &["orders-db"] } else { &[] };
        text.push_str(&function.text(name, backends));
        if name == "process" {
            text.push_str(&format!("env = {{ VERSION = \"{version}\" }}\n"));
        }
    }
    for (name, function) in hostile {
        text.push_str(&function.text(name, &["db", "orders-db"]));
    }
    text.extend(guest.map(|guest| guest.text("guest", &[])));
    text
}
