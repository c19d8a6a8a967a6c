//! A cold start the usual way, to compare with: the request arrives at an activator, which then
//! runs a container, waits for its port and forwards the bytes. It has no needless delay; it only
//! learns late, builds the container late, and leaves connecting to the function.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::evidence::gateway::{Gateway, GatewayUpstream, When, lock, reach};
use crate::lab::{ChildProcess, Rootfs, Scratch, run, unique};

const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A function behind a request-triggered activator. Everything ends on drop.
#[derive(Debug)]
pub struct Usual {
    // It goes before what is behind it.
    gateway: Gateway,
    function: Arc<UsualFunction>,
}

#[derive(Debug)]
struct UsualFunction {
    bundle: Scratch,
    upstream: SocketAddr,
    container: Mutex<Option<UsualContainer>>,
}

#[derive(Debug)]
struct UsualContainer {
    id: String,
    root: PathBuf,
    process: ChildProcess,
}

impl Usual {
    /// Listens on `listen` for the function in `rootfs`, which will itself listen on `upstream` in
    /// the host's network. `environment` is all it is told: where to listen, where its database is.
    pub fn start(
        rootfs: &Rootfs,
        environment: &[(&str, &str)],
        listen: SocketAddr,
        upstream: SocketAddr,
    ) -> Result<Self> {
        let function = Arc::new(UsualFunction {
            bundle: bundle(rootfs, environment)?,
            upstream,
            container: Mutex::default(),
        });
        let gateway = Gateway::start(When::FirstByte, listen, Arc::clone(&function))?;
        Ok(Self { gateway, function })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.gateway.address()
    }

    /// Kills and deletes the container: the next request is a cold one again.
    pub fn stop(&self) -> Result<()> {
        let container = lock(&self.function.container).take();
        container.map_or(Ok(()), UsualContainer::stop)
    }

    /// What went wrong so far: nothing, in a valid comparison.
    pub fn problems(&self) -> Vec<String> {
        self.gateway.problems()
    }
}

impl Drop for Usual {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

impl GatewayUpstream for Arc<UsualFunction> {
    fn connect(&self) -> Result<TcpStream> {
        let mut container = lock(&self.container);
        let running = container.take_if(|it| !it.process.ended_within(Duration::ZERO));
        let running = running.map_or_else(|| UsualContainer::run(&self.bundle), Ok)?;
        reach(self.upstream, &container.insert(running).process)
    }
}

impl UsualContainer {
    fn run(bundle: &Scratch) -> Result<Self> {
        let (id, root) = (unique("usual"), bundle.path().join("state"));
        let mut command = Command::new("runc");
        command.arg("--root").arg(&root).arg("run").arg("--bundle").arg(bundle.path()).arg(&id);
        Ok(Self { id, root, process: ChildProcess::spawn(&mut command)? })
    }

    /// `runc run` deletes its container when the function has ended; deleting by force ends it.
    fn stop(mut self) -> Result<()> {
        let mut command = Command::new("runc");
        run(command.arg("--root").arg(&self.root).args(["delete", "--force", &self.id]))?;
        self.process.wait(STOP_LIMIT)?;
        Ok(())
    }
}

/// What `runc spec` proposes, with the function's command and environment, the host's network, and
/// no terminal.
fn bundle(rootfs: &Rootfs, environment: &[(&str, &str)]) -> Result<Scratch> {
    let files = Scratch::new("bundle")?;
    run(Command::new("runc").arg("spec").arg("--bundle").arg(files.path()))?;
    let config = files.path().join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
    let variables: Vec<_> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!([rootfs.command()]);
    spec["process"]["env"] = json!(variables);
    spec["root"]["path"] = json!(rootfs.path());
    spec["linux"]["cgroupsPath"] = json!(format!("/{}", unique("usual")));
    let namespaces = spec["linux"]["namespaces"].as_array_mut().context("runc spec has changed")?;
    namespaces.retain(|namespace| namespace["type"] != "network");
    fs::write(&config, spec.to_string())?;
    Ok(files)
}
