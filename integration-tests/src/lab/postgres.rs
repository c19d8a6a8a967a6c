//! A real PostgreSQL with a data directory of its own, on loopback or inside a namespace.

use super::{
    claim::free_port,
    command::run,
    netns::Namespace,
    process::ChildProcess,
    scratch::{Scratch, unique},
    target_dir,
};
use anyhow::{Context, Result};
use nix::{sys::signal::Signal, unistd::User};
use std::{
    fs::{self, File, Permissions},
    net::SocketAddr,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(30);
const READY: &str = "database system is ready to accept connections";
const SUPERUSER_PASSWORD: &str = "superuser-5up3r-s3cret";

/// Part of the template's name: change it with anything that goes into the template.
const TEMPLATE_VERSION: &str = "2";

/// How a [`PostgresServer`] runs.
#[derive(Clone, Debug, Default)]
pub struct PostgresSetup {
    place: Option<(Namespace, SocketAddr)>,
    tls: bool,
    settings: Vec<(String, String)>,
}

impl PostgresSetup {
    /// Runs inside `namespace` on `address`, instead of on loopback with any free port.
    pub fn inside(mut self, namespace: &Namespace, address: SocketAddr) -> Self {
        self.place = Some((namespace.clone(), address));
        self
    }

    /// With TLS, under a certificate for its address: see [`PostgresServer::ca_file`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        for setting in [("ssl", "on"), ("ssl_cert_file", "server.pem"), ("ssl_key_file", "server.key")] {
            self = self.setting(setting.0, setting.1);
        }
        self
    }

    /// Sets a parameter as in `postgresql.conf`.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the server and waits until it accepts connections.
    pub fn start(self) -> Result<PostgresServer> {
        let files = Scratch::new("postgres")?;
        let owner = owner()?;
        for directory in ["socket", "home"] {
            let path = files.path().join(directory);
            fs::create_dir(&path)?;
            chown(&path, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
        }
        let data = files.path().join("data");
        run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(template()?).arg(&data))?;
        let address = match &self.place {
            Some((_, address)) => *address,
            None => free_port()?,
        };
        if self.tls {
            let certified = rcgen::generate_simple_self_signed([address.ip().to_string()])?;
            let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
            fs::write(files.path().join("ca.pem"), &certificate)?;
            for (name, text) in [("server.pem", certificate), ("server.key", key)] {
                let file = data.join(name);
                fs::write(&file, text)?;
                fs::set_permissions(&file, Permissions::from_mode(0o600))?;
                chown(&file, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
            }
        }
        let mut postgres = PostgresServer { setup: self, address, server: None, files };
        postgres.start()?;
        Ok(postgres)
    }
}

/// A running server with user [`PostgresServer::USER`] and database [`PostgresServer::DATABASE`]. Passwords are
/// checked with SCRAM on every way in. Stopped and removed on drop.
#[derive(Debug)]
pub struct PostgresServer {
    setup: PostgresSetup,
    address: SocketAddr,
    server: Option<ChildProcess>,
    files: Scratch,
}

impl PostgresServer {
    /// The role that functions use.
    pub const USER: &'static str = "app";
    /// Its password: striking enough to be searched for in logs.
    pub const PASSWORD: &'static str = "correct-horse-s3cret";
    /// Its database.
    pub const DATABASE: &'static str = "orders";

    /// A server on loopback with default settings.
    pub fn on_loopback() -> Result<Self> {
        PostgresSetup::default().start()
    }

    /// A server inside `namespace` with default settings.
    pub fn inside(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        PostgresSetup::default().inside(namespace, address).start()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The directory of its unix socket, for `PGHOST`: reachable from every network namespace.
    pub fn socket_dir(&self) -> PathBuf {
        self.files.path().join("socket")
    }

    /// Its address as a function would be given it, password included.
    pub fn url(&self) -> String {
        format!("postgres://{}:{}@{}/{}", Self::USER, Self::PASSWORD, self.address, Self::DATABASE)
    }

    /// A file with the password, for `password_file` in the agent's configuration.
    pub fn password_file(&self) -> Result<PathBuf> {
        self.files.secret("password", Self::PASSWORD)
    }

    /// The certificate that proves who it is, if it has TLS.
    pub fn ca_file(&self) -> PathBuf {
        self.files.path().join("ca.pem")
    }

    /// A program of PostgreSQL itself: what is in the PATH chooses one.
    pub fn program(name: &str) -> Result<PathBuf> {
        Ok(programs()?.join(name))
    }

    /// Runs SQL as the application's user; returns rows as lines and columns parted by `|`.
    pub fn sql(&self, text: &str) -> Result<String> {
        psql(&self.socket_dir(), self.address.port(), (Self::USER, Self::PASSWORD, Self::DATABASE), text)
    }

    /// Runs SQL as the superuser.
    pub fn admin_sql(&self, text: &str) -> Result<String> {
        let login = ("postgres", SUPERUSER_PASSWORD, Self::DATABASE);
        psql(&self.socket_dir(), self.address.port(), login, text)
    }

    /// Starts it after [`PostgresServer::stop`].
    pub fn start(&mut self) -> Result<()> {
        let mut command = as_owner("postgres")?;
        command.current_dir(self.files.path().join("home"));
        command.arg("-D").arg(self.files.path().join("data")).arg("-k").arg(self.socket_dir());
        command.args(["-h", &self.address.ip().to_string(), "-p", &self.address.port().to_string()]);
        for (name, value) in &self.setup.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let server = match &self.setup.place {
            Some((namespace, _)) => namespace.enter(|| ChildProcess::spawn(&mut command))??,
            None => ChildProcess::spawn(&mut command)?,
        };
        server.wait_line(READY, LIMIT)?;
        self.server = Some(server);
        Ok(())
    }

    /// Shuts it down, with its connections (SIGINT: a "fast" shutdown).
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.stop(Signal::SIGINT, LIMIT)?;
        }
        Ok(())
    }

    /// Stops and starts it on the same address: every connection breaks.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// Processor time of its processes so far, those that have ended included, in clock ticks (proc(5), `stat`).
    pub fn cpu_ticks(&self) -> Result<u64> {
        let server = self.server.as_ref().context("it does not run")?.id();
        let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children"))?;
        // Its own with that of those that it has waited for; theirs.
        let mut ticks = fields(server, 13..17)?;
        for child in children.split_whitespace() {
            // One that ends meanwhile counts next time.
            ticks += child.parse().ok().and_then(|child| fields(child, 13..15).ok()).unwrap_or_default();
        }
        Ok(ticks)
    }

    /// What the server has logged since its last start.
    pub fn log(&self) -> String {
        self.server.as_ref().map(ChildProcess::log).unwrap_or_default()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // SIGQUIT is immediate and, other than SIGKILL, frees the shared memory.
        if let Some(server) = &mut self.server
            && let Err(error) = server.stop(Signal::SIGQUIT, LIMIT)
        {
            eprintln!("{error:#}");
        }
    }
}

fn psql(
    host: &Path,
    port: u16,
    (user, password, database): (&str, &str, &str),
    text: &str,
) -> Result<String> {
    let mut command = Command::new(programs()?.join("psql"));
    command.env("PGPASSWORD", password).arg("-h").arg(host).args(["-p", &port.to_string(), "-U", user]);
    command.args(["-d", database, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
    Ok(run(&mut command)?.trim_end().to_owned())
}

/// A data directory with the roles and the database in it, made once and kept below `target`:
/// copying takes a tenth of the time.
fn template() -> Result<PathBuf> {
    let version = run(Command::new(programs()?.join("postgres")).arg("--version"))?;
    let version = version.split_whitespace().nth(2).context("a version like no other")?;
    let cache = target_dir().join("lab");
    fs::create_dir_all(&cache)?;
    let path = cache.join(format!("postgres-{version}-{TEMPLATE_VERSION}"));
    let lock = File::create(cache.join("postgres.lock"))?;
    lock.lock()?;
    if !path.exists() {
        let unfinished = cache.join(unique("postgres"));
        make_template(&unfinished)?;
        fs::rename(unfinished, &path)?;
    }
    Ok(path)
}

fn make_template(destination: &Path) -> Result<()> {
    // In a scratch directory, because the target directory may be closed to the owner.
    let files = Scratch::new("initdb")?;
    let (data, passwords) = (files.path().join("data"), files.path().join("passwords"));
    let owner = owner()?;
    fs::create_dir(&data)?;
    chown(&data, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
    fs::write(&passwords, SUPERUSER_PASSWORD)?;
    let mut initdb = as_owner("initdb")?;
    initdb.current_dir(&data).arg("-D").arg(&data).arg("--pwfile").arg(&passwords);
    run(initdb.args(["-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"]))?;

    let hba = "local all all scram-sha-256\nhost all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n";
    fs::write(data.join("pg_hba.conf"), hba)?;
    // A shutdown waits for clients that connected and said nothing, up to the authentication timeout.
    let settings = "\nauthentication_timeout = 3s\nfsync = off\nfull_page_writes = off\nsynchronous_commit = off\n\
                    dynamic_shared_memory_type = mmap\nlogging_collector = off\njit = off\n";
    let configuration = data.join("postgresql.conf");
    fs::write(&configuration, fs::read_to_string(&configuration)? + settings)?;

    let mut command = as_owner("postgres")?;
    command.current_dir(&data).arg("-D").arg(&data).args(["-h", "", "-k"]).arg(&data);
    let mut server = ChildProcess::spawn(&mut command)?;
    server.wait_line(READY, LIMIT)?;
    let (user, password, database) =
        (PostgresServer::USER, PostgresServer::PASSWORD, PostgresServer::DATABASE);
    let role = format!("create role {user} login password '{password}'");
    for statement in [role, format!("create database {database} owner {user}")] {
        psql(&data, 5432, ("postgres", SUPERUSER_PASSWORD, "postgres"), &statement)?;
    }
    server.stop(Signal::SIGINT, LIMIT)?;
    run(Command::new("cp").arg("-a").arg(&data).arg(destination))?;
    Ok(())
}

/// The directory of the newest installed server's programs. Those in the PATH are wrappers.
fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?.flatten();
    let newest = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    let newest = newest.context("PostgreSQL is not installed")?;
    Ok(PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin")))
}

fn owner() -> Result<User> {
    User::from_name("postgres")?.context("there is no user postgres")
}

/// PostgreSQL refuses to run as root.
fn as_owner(program: &str) -> Result<Command> {
    let owner = owner()?;
    let mut command = Command::new(programs()?.join(program));
    command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
    Ok(command)
}

/// The sum of these fields of `stat`, counted from 0.
fn fields(process: u32, range: std::ops::Range<usize>) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in parentheses, may hold blanks.
    let (_, rest) = stat.rsplit_once(") ").context("a process without a name")?;
    let words: Vec<&str> = rest.split(' ').collect();
    let range = range.start - 2..range.end - 2;
    words.get(range).context("a short line")?.iter().map(|word| Ok(word.parse::<u64>()?)).sum()
}
