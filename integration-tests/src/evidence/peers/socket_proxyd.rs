//! systemd's proxy behind socket activation, for functions that know nothing of that: at the first connection the function
//! is started, and once it listens the proxy. Here a shell does what units of systemd say elsewhere: there need not be one
//! that runs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::socket_activate::{ActivatedUnit, PROGRAM};
use super::{Peer, PeerPlace, PeerSetup, missing, version};
use crate::evidence::bench::querying;
use crate::lab::{Rootfs, free_port};

const PROXY: &str = "/lib/systemd/systemd-socket-proxyd";
/// The function ends with the proxy. It is asked every millisecond whether it listens.
const SCRIPT: &str = r#"
env -u LISTEN_FDS -u LISTEN_PID HEADSTART_LISTEN=127.0.0.1:$1 setpriv --pdeathsig KILL "$0" 3<&- &
until { : <>/dev/tcp/127.0.0.1/$1; } 2>/dev/null; do sleep 0.001; done
exec "$2" 127.0.0.1:$1"#;

#[derive(Debug)]
struct SocketProxyd {
    version: String,
    activated: ActivatedUnit,
    _rootfs: Rootfs,
}

pub(super) fn start(place: &PeerPlace<'_>) -> Result<PeerSetup> {
    if let Some(missing) = missing(&[PROGRAM, "setpriv", "bash"], "apt-get install systemd util-linux bash") {
        return Ok(missing);
    }
    if !Path::new(PROXY).exists() {
        return Ok(PeerSetup::Missing(format!("{PROXY} is not there: apt-get install systemd")));
    }
    let (rootfs, address) = (place.rootfs()?, place.listen()?);
    let program = rootfs.path().join(rootfs.command().trim_start_matches('/')).display().to_string();
    let port = free_port()?.port().to_string();
    let words = ["bash", "-c", SCRIPT, &program, &port, PROXY].map(str::to_owned).to_vec();
    let variables = querying::direct(place.site, &rootfs.path().display().to_string());
    let activated = ActivatedUnit::listen(address, variables, words)?;
    let version = version(Command::new(PROGRAM).arg("--version"))?;
    Ok(PeerSetup::Here(Box::new(SocketProxyd { version, activated, _rootfs: rootfs })))
}

impl Peer for SocketProxyd {
    fn version(&self) -> &str {
        &self.version
    }

    fn address(&self) -> SocketAddr {
        self.activated.address
    }

    fn starts_container(&self) -> bool {
        false
    }

    fn cool(&mut self) -> Result<()> {
        self.activated.again()
    }
}
