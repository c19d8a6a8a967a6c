//! A real MariaDB on loopback.

use super::{claim::free_port, command::run_within, process::ChildProcess, scratch::Scratch};
use anyhow::Result;
use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);
const READY: &str = "ready for connections";

/// A running server with user [`MariadbServer::USER`] and database [`MariadbServer::DATABASE`]. Killed and removed on drop.
#[derive(Debug)]
pub struct MariadbServer {
    address: SocketAddr,
    _server: ChildProcess,
    files: Scratch,
}

impl MariadbServer {
    /// The user that functions use.
    pub const USER: &'static str = "app";
    /// The database that it may use.
    pub const DATABASE: &'static str = "orders";
    /// Its password: striking enough to be searched for in logs.
    pub const PASSWORD: &'static str = "correct-horse-mar1adb";

    /// A server on loopback.
    pub fn on_loopback() -> Result<Self> {
        let (files, address) = (Scratch::new("mariadb")?, free_port()?);
        let path = files.path();
        let data = format!("--datadir={}/data", path.display());
        // Each server begins by removing whatever temporary tables it finds, those of others too.
        let temporary = path.join("tmp");
        fs::create_dir(&temporary)?;
        let mut install = Command::new("mariadb-install-db");
        install.args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--user=root",
        ]);
        run_within(LIMIT, install.arg(&data).env("TMPDIR", &temporary))?;
        let (user, database, password) = (Self::USER, Self::DATABASE, Self::PASSWORD);
        let begin = format!(
            "create database {database};\ncreate user {user} identified by '{password}';\n\
             grant all on {database}.* to {user};\n"
        );
        fs::write(path.join("begin.sql"), begin)?;
        let mut server = Command::new("mariadbd");
        server.args(["--no-defaults", "--user=root", "--skip-log-bin"]).arg(data).env("TMPDIR", temporary);
        server.arg(format!("--socket={}/socket", path.display()));
        server.arg(format!("--pid-file={}/pid", path.display()));
        server.arg(format!("--init-file={}/begin.sql", path.display()));
        server.arg(format!("--bind-address={}", address.ip()));
        server.arg(format!("--port={}", address.port()));
        let server = ChildProcess::spawn(&mut server)?;
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
