//! systemd's proxy behind socket activation, for functions that know nothing of that: at the first connection the function
//! is started, and once it listens the proxy. Here a shell does what units of systemd say elsewhere: there need not be one
//! that runs.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::socket_activate::{ActivatedUnit, PROGRAM};
use super::{Peer, PeerPlace, PeerSetup, missing, version};
use crate::evidence::bench::querying;
use crate::lab::site::LIMIT;
use crate::lab::{Rootfs, free_port, settle};

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
    /// Where it listens behind the proxy.
    function: SocketAddr,
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
    let function = free_port()?;
    let words =
        ["bash", "-c", SCRIPT, &program, &function.port().to_string(), PROXY].map(str::to_owned).to_vec();
    let variables = querying::direct(place.site, &rootfs.path().display().to_string());
    let activated = ActivatedUnit::listen(address, variables, words)?;
    let version = version(Command::new(PROGRAM).arg("--version"))?;
    Ok(PeerSetup::Here(Box::new(SocketProxyd { version, activated, function, _rootfs: rootfs })))
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
        self.activated.again()?;
        // It is killed when the proxy has ended, which takes a moment. The next proxy must not find it.
        let listens = settle(LIMIT, || Ok(TcpStream::connect(self.function).is_ok()), |listens| !listens)?;
        ensure!(!listens, "the function still listens on {}", self.function);
        Ok(())
    }
}
