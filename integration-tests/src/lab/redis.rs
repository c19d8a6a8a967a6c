//! A real Redis on loopback.

use super::{claim::free_port, process::ChildProcess, scratch::Scratch};
use anyhow::Result;
use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

const LIMIT: Duration = Duration::from_secs(30);
const READY: &str = "Ready to accept connections";

/// A running server with user [`RedisServer::USER`]. Killed and removed on drop.
#[derive(Debug)]
pub struct RedisServer {
    address: SocketAddr,
    _server: ChildProcess,
    files: Scratch,
}

impl RedisServer {
    /// The user that functions use.
    pub const USER: &'static str = "app";
    /// Its password: striking enough to be searched for in logs.
    pub const PASSWORD: &'static str = "correct-horse-r3dis";

    /// A server on loopback.
    pub fn on_loopback() -> Result<Self> {
        let (files, address) = (Scratch::new("redis")?, free_port()?);
        let text = format!(
            "bind {}\nport {}\ndir {}\nsave \"\"\nuser default off\nuser {} on >{} ~* &* +@all\n",
            address.ip(),
            address.port(),
            files.path().display(),
            Self::USER,
            Self::PASSWORD,
        );
        let config = files.path().join("redis.conf");
        fs::write(&config, text)?;
        let server = ChildProcess::spawn(Command::new("redis-server").arg(config))?;
        server.wait_line(READY, LIMIT)?;
        Ok(Self { address, _server: server, files })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A file with the password, for `password_file` in the agent's configuration.
    pub fn password_file(&self) -> Result<PathBuf> {
        self.files.secret("password", Self::PASSWORD)
    }
}
