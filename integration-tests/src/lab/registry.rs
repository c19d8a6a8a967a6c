//! A real registry of container images on loopback.

use super::{claim::free_port, process::ChildProcess, scratch::Scratch};
use anyhow::Result;
use std::{fmt::Write as _, fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

const LIMIT: Duration = Duration::from_secs(30);
const READY: &str = "listening on";

/// [`RegistryServer::PASSWORD`] by bcrypt, the only hash that it knows, at the lowest cost.
const HASH: &str = "$2b$04$abcdefghijklmnopqrstuuGLBRHW05/IYUWd2SYIkAlchhofoKnKe";

/// A running registry, empty at first. Killed and removed on drop.
#[derive(Debug)]
pub struct RegistryServer {
    address: SocketAddr,
    _server: ChildProcess,
    _files: Scratch,
}

impl RegistryServer {
    /// Who may pull and push, if logins are asked for.
    pub const USER: &'static str = "app";
    /// Its password: striking enough to be searched for in logs.
    pub const PASSWORD: &'static str = "r3gistry-s3cret";

    /// A registry on loopback, with or without logins.
    pub fn on_loopback(logins: bool) -> Result<Self> {
        let (files, address) = (Scratch::new("registry")?, free_port()?);
        let place = files.path().display();
        let mut text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {place}/data\nhttp:\n  addr: {address}\n"
        );
        if logins {
            write!(text, "auth:\n  htpasswd:\n    realm: lab\n    path: {place}/users\n")?;
            fs::write(files.path().join("users"), format!("{}:{HASH}\n", Self::USER))?;
        }
        let config = files.path().join("config.yml");
        fs::write(&config, text)?;
        let server = ChildProcess::spawn(Command::new("docker-registry").arg("serve").arg(config))?;
        server.wait_line(READY, LIMIT)?;
        Ok(Self { address, _server: server, _files: files })
    }

    /// Its host in names of images.
    pub fn host(&self) -> SocketAddr {
        self.address
    }

    /// A directory with what `docker login` would leave, for `DOCKER_CONFIG`.
    pub fn login(&self, files: &Scratch) -> Result<PathBuf> {
        // USER:PASSWORD in base64.
        let text = format!(
            "{{\"auths\": {{\"{}\": {{\"auth\": \"YXBwOnIzZ2lzdHJ5LXMzY3JldA==\"}}}}}}",
            self.address
        );
        fs::write(files.path().join("config.json"), text)?;
        Ok(files.path().to_owned())
    }
}
