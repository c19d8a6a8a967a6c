//! A node and a client, each in a network of its own: for tests of the sensors, which see everything that
//! happens in their network.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use headstart_ebpf::auth::Key;
use serde_json::Value;

use crate::lab::client::{self, ClientFailure, HttpReply};
use crate::lab::site::LIMIT;
use crate::lab::{AgentSetup, Link, Namespace, RunningAgent, Scratch, binary, cli, privilege, run};

/// How long a client tries where it should get no answer: its SYN, and one retransmission a second later.
const IN_VAIN: Duration = Duration::from_millis(1_500);

/// A node, a client, and the link between them.
#[derive(Debug)]
pub struct TestNode {
    /// The node's end is its host end.
    pub link: Link,
    /// Where the agent runs.
    pub node: Namespace,
    /// Where clients run.
    pub client: Namespace,
}

impl TestNode {
    /// `None` where this machine cannot run such tests; the reason is printed.
    pub fn new() -> Result<Option<Self>> {
        let able = privilege::require_root("namespaces and eBPF programs")
            && privilege::require_tools(&["ip", "iptables", "runc"]);
        if !able {
            return Ok(None);
        }
        let (node, client) = (Namespace::new("node")?, Namespace::new("client")?);
        Ok(Some(Self { link: Link::between(&node, &client)?, node, client }))
    }

    /// An agent on the node that watches no interface yet.
    pub fn agent(&self) -> AgentSetup {
        AgentSetup::default().namespace(&self.node)
    }

    /// An agent on the node that watches the link.
    pub fn watching(&self) -> AgentSetup {
        self.agent().interface(self.link.host_if())
    }

    /// One request from the client.
    pub fn get(&self, port: u16) -> Result<HttpReply> {
        Ok(get_from(&self.client, self.link.host(port))??)
    }

    /// One request from the node itself.
    pub fn get_locally(&self, port: u16) -> Result<HttpReply> {
        Ok(get_from(&self.node, SocketAddr::from(([127, 0, 0, 1], port)))??)
    }

    /// A request that must fail, and soon.
    pub fn get_in_vain(&self, from: &Namespace, target: SocketAddr) -> Result<ClientFailure> {
        let tried = from.enter(|| client::get(target, "/", IN_VAIN))?;
        tried.err().with_context(|| format!("{target} has answered"))
    }

    /// A request by a program that knows nothing of options, a shell, under `headstart tag`. Its output.
    pub fn get_tagged(
        &self,
        from: &Namespace,
        target: SocketAddr,
        id: u32,
        keys: Option<&KeyFile>,
    ) -> Result<String> {
        self.get_tagged_with(from, target, headstart("tag", target, id, keys)?)
    }

    /// The same with this command of `headstart tag`.
    pub fn get_tagged_with(
        &self,
        from: &Namespace,
        target: SocketAddr,
        mut command: Command,
    ) -> Result<String> {
        let script = format!(
            r#"exec 3<>/dev/tcp/{}/{} && printf 'GET / HTTP/1.1\r\nconnection: close\r\n\r\n' >&3 && cat <&3"#,
            target.ip(),
            target.port()
        );
        // Every Debian has a bash; the static busybox cannot resolve even an address.
        command.args(["--", "timeout", "10", "bash", "-c", &script]);
        from.run(&mut command)
    }

    /// `headstart knock` from the client at the node's UDP port.
    pub fn knock(&self, port: u16, id: u32, keys: &KeyFile) -> Result<()> {
        self.client.run(&mut headstart("knock", self.link.host(port), id, Some(keys))?).map(drop)
    }
}

/// One request from `namespace`.
pub fn get_from(namespace: &Namespace, target: SocketAddr) -> Result<Result<HttpReply, ClientFailure>> {
    namespace.enter(|| client::get(target, "/", LIMIT))
}

/// `headstart tag` or `headstart knock`, for the function `id` at `target`.
pub fn headstart(what: &str, target: SocketAddr, id: u32, keys: Option<&KeyFile>) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.args([what, "--function", &id.to_string(), "--to", &target.to_string()]);
    if let Some(keys) = keys {
        command.arg("--key-file").arg(keys.path());
    }
    Ok(command)
}

/// The newest timeline of a function, once it is complete as far as ready.
pub fn newest_start(agent: &RunningAgent, name: &str) -> Result<Value> {
    cli::eventually(&format!("a timeline of {name} with ready"), LIMIT, || {
        let starts = agent.starts()?;
        let own = starts.as_array().and_then(|all| all.iter().rfind(|start| start["function"] == name));
        Ok(own.filter(|start| !start["ready_ns"].is_null()).cloned())
    })
}

/// What started the function last.
pub fn trigger(agent: &RunningAgent, name: &str) -> Result<String> {
    let start = newest_start(agent, name)?;
    start["trigger"].as_str().map(str::to_owned).with_context(|| format!("no trigger in {start}"))
}

/// A file with keys that only its owner can read.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    _files: Scratch,
}

impl KeyFile {
    /// Keys by number.
    pub fn new(keys: &[(u8, [u8; 16])]) -> Result<Self> {
        let files = Scratch::new("keys")?;
        let file = Self { path: files.path().join("keys"), _files: files };
        file.write(keys)?;
        Ok(file)
    }

    /// Writes it anew.
    pub fn write(&self, keys: &[(u8, [u8; 16])]) -> Result<()> {
        use std::fmt::Write as _;
        use std::io::Write as _;
        let mut text = String::new();
        for (number, key) in keys {
            let hex: String = key.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
            writeln!(text, "{number} {hex}")?;
        }
        let mut options = fs::OpenOptions::new();
        let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&self.path)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lines of `[syn]` that make an agent use it: key and value.
    pub fn setting(&self) -> (&'static str, String) {
        ("key_file", format!("{:?}", self.path))
    }
}

/// A key as the kernel's programs take it.
pub fn words(key: [u8; 16]) -> Key {
    let number = u128::from_le_bytes(key);
    [number as u64, (number >> 64) as u64]
}

/// Runs `ip` in a namespace.
pub fn ip(namespace: &Namespace, arguments: &str) -> Result<String> {
    run(Command::new("ip").args(["-n", namespace.name()]).args(arguments.split_whitespace()))
}
