//! A container of Docker's, driven as a gateway would: over the daemon's API.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::docker::DockerDaemon;
use super::rootfs::{DockerImage, Rootfs};

/// Where the function inside listens.
const PORT: u16 = 8080;
const START_LIMIT: Duration = Duration::from_secs(30);

/// A container on the bridge of its daemon. Removed on drop, with its image.
#[derive(Debug)]
pub struct LabContainer {
    id: String,
    docker: Arc<DockerDaemon>,
    /// Where it is reached, while it runs.
    address: Mutex<Option<SocketAddr>>,
    _image: DockerImage,
}

impl LabContainer {
    /// Creates it, with what its function is told beside where to listen.
    pub fn create(docker: &Arc<DockerDaemon>, rootfs: &Rootfs, variables: &[(&str, String)]) -> Result<Self> {
        let image = rootfs.docker_image(docker)?;
        let mut arguments = vec!["create".to_owned(), "--network=bridge".to_owned()];
        arguments.push(format!("--env=HEADSTART_LISTEN=0.0.0.0:{PORT}"));
        arguments.extend(variables.iter().map(|(name, value)| format!("--env={name}={value}")));
        arguments.push(image.tag().to_owned());
        let id = docker.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?.trim().to_owned();
        Ok(Self { id, docker: Arc::clone(docker), address: Mutex::default(), _image: image })
    }

    /// Starts it, if it does not run.
    pub fn start(&self) -> Result<()> {
        let mut address = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        if address.is_none() {
            self.order("start")?;
            let ip = self.inspect()?["NetworkSettings"]["IPAddress"].as_str().map(str::parse::<Ipv4Addr>);
            *address = Some((ip.context("it has no address")??, PORT).into());
        }
        Ok(())
    }

    /// A connection to the function, once that listens.
    pub fn connect(&self) -> Result<TcpStream> {
        let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
        let address = address.context("it was not started")?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match TcpStream::connect(address) {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    // Asking takes about a millisecond: that is the pause.
                    let state = &self.inspect()?["State"];
                    let goes_on = state["Running"] == true && Instant::now() < deadline;
                    ensure!(goes_on, "{error}; {state}\n{}", self.docker.run(&["logs", &self.id])?);
                }
            }
        }
    }

    /// Kills it, if it runs; it can be started again.
    pub fn kill(&self) -> Result<()> {
        if self.address.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            self.order("kill")?;
            self.order("wait")?;
        }
        Ok(())
    }

    /// Freezes it.
    pub fn pause(&self) -> Result<()> {
        self.order("pause")
    }

    /// Goes on with it, if it is paused.
    pub fn unpause(&self) -> Result<()> {
        if self.inspect()?["State"]["Paused"] == true { self.order("unpause") } else { Ok(()) }
    }

    fn order(&self, what: &str) -> Result<()> {
        let (status, body) = self.docker.ask("POST", &format!("/containers/{}/{what}", self.id))?;
        ensure!((200..300).contains(&status), "{what}: {status} {body}");
        Ok(())
    }

    fn inspect(&self) -> Result<Value> {
        let (status, body) = self.docker.ask("GET", &format!("/containers/{}/json", self.id))?;
        ensure!(status == 200, "{status} {body}");
        Ok(serde_json::from_str(&body)?)
    }
}
