//! workerd, the runtime of Workers: the process is started for the first connection, and its isolate with it. A function in
//! JavaScript without a database: no more than how long such a runtime takes.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::{Peer, PeerPlace, PeerSetup, version};
use crate::evidence::gateway::{Gateway, GatewayUpstream, When, lock, reach};
use crate::lab::{ChildProcess, Scratch, free_port, target_dir};

const LIMIT: Duration = Duration::from_secs(10);
const WORKER: &str = "export default { fetch() { return new Response('42'); } };\n";

#[derive(Debug)]
struct Workerd {
    version: String,
    gateway: Gateway,
    function: Arc<WorkerdFunction>,
}

#[derive(Debug)]
struct WorkerdFunction {
    program: PathBuf,
    files: Scratch,
    address: SocketAddr,
    process: Mutex<Option<ChildProcess>>,
}

pub(super) fn start(place: &PeerPlace<'_>) -> Result<PeerSetup> {
    let program = target_dir().join("peers/node_modules/@cloudflare/workerd-linux-64/bin/workerd");
    if !program.exists() {
        let how = "npm install --prefix target/peers workerd, as `make peers` does";
        return Ok(PeerSetup::Missing(format!("workerd is not there: {how}")));
    }
    let (files, address) = (Scratch::new("workerd")?, free_port()?);
    fs::write(files.path().join("worker.js"), WORKER)?;
    fs::write(files.path().join("config.capnp"), config(address))?;
    let version = version(Command::new(&program).arg("--version"))?;
    let function = Arc::new(WorkerdFunction { program, files, address, process: Mutex::default() });
    let gateway = Gateway::start(When::FirstByte, place.listen()?, Arc::clone(&function))?;
    Ok(PeerSetup::Here(Box::new(Workerd { version, gateway, function })))
}

fn config(address: SocketAddr) -> String {
    format!(
        "using Workerd = import \"/workerd/workerd.capnp\";\n\
         const config :Workerd.Config = (\n  \
           services = [(name = \"main\", worker = .worker)],\n  \
           sockets = [(name = \"http\", address = \"{address}\", http = (), service = \"main\")]\n);\n\
         const worker :Workerd.Worker = (\n  \
           modules = [(name = \"worker.js\", esModule = embed \"worker.js\")],\n  \
           compatibilityDate = \"2025-01-01\"\n);\n"
    )
}

impl WorkerdFunction {
    fn spawn(&self) -> Result<ChildProcess> {
        let config: &Path = &self.files.path().join("config.capnp");
        ChildProcess::spawn(Command::new(&self.program).arg("serve").arg(config))
    }
}

impl GatewayUpstream for Arc<WorkerdFunction> {
    fn connect(&self) -> Result<TcpStream> {
        let mut process = lock(&self.process);
        let running = process.take_if(|it| !it.ended_within(Duration::ZERO));
        let running = running.map_or_else(|| self.spawn(), Ok)?;
        reach(self.address, process.insert(running))
    }
}

impl Peer for Workerd {
    fn version(&self) -> &str {
        &self.version
    }

    fn address(&self) -> SocketAddr {
        self.gateway.address()
    }

    fn starts_container(&self) -> bool {
        false
    }

    fn path(&self) -> &'static str {
        "/"
    }

    fn has_database(&self) -> bool {
        false
    }

    fn cool(&mut self) -> Result<()> {
        if let Some(mut process) = lock(&self.function.process).take() {
            process.stop(Signal::SIGKILL, LIMIT)?;
        }
        Ok(())
    }

    fn problems(&self) -> Vec<String> {
        self.gateway.problems()
    }
}
