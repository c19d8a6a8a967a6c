//! The whole path in one place: a client behind a link, a database behind another, the agent between.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::client::{self, HttpReply};
use crate::lab::{
    AgentSetup, Distance, DockerDaemon, DockerImage, Link, Namespace, PostgresServer, PostgresSetup, Rootfs,
    RunningAgent, free_port, unique,
};

/// Longest wait for anything that takes milliseconds when all is well.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The stages of a cold start in path order, as metrics and timelines name them.
pub const STAGES: [&str; 8] = [
    "syn_to_event",
    "event_to_start",
    "start_to_exec",
    "exec_to_hello",
    "hello_to_injected",
    "init",
    "ready_to_accept",
    "first_response",
];

/// The durations in a timeline of a cold start as a whole, beside [`STAGES`].
pub const TOTALS: [&str; 3] = ["total", "hidden", "exposed"];

/// The database's port in its namespace.
const DATABASE_PORT: u16 = 5432;

/// A client's network and a database's network, each at its distance from this host.
#[derive(Debug)]
pub struct Site {
    // In this order they are taken down: delays before the links they are on.
    distances: [Distance; 2],
    /// The database, in a namespace of its own.
    pub postgres: PostgresServer,
    /// The host's end is where the agent watches for SYNs.
    pub link: Link,
    /// The host's end is where the agent's connections to the database begin.
    pub database_link: Link,
    /// Where clients run.
    pub client: Namespace,
    tls: bool,
}

impl Site {
    /// Round-trip times from the client to this host, and from this host to the database; zero adds nothing.
    pub fn new(round_trip: Duration, database_round_trip: Duration) -> Result<Self> {
        let mut site = Self::with(PostgresSetup::default(), false)?;
        site.place(round_trip, database_round_trip)?;
        Ok(site)
    }

    /// The same with a database that speaks TLS, and nothing is far away yet.
    pub fn with_tls() -> Result<Self> {
        Self::with(PostgresSetup::default().tls(), true)
    }

    fn with(postgres: PostgresSetup, tls: bool) -> Result<Self> {
        let (client, database) = (Namespace::new("client")?, Namespace::new("database")?);
        let (link, database_link) = (Link::connect(&client)?, Link::connect(&database)?);
        let postgres = postgres.inside(&database, database_link.peer(DATABASE_PORT)).start()?;
        let distances = [&client, &database].map(Distance::of);
        Ok(Self { distances, postgres, link, database_link, client, tls })
    }

    /// Moves the client and the database to other distances.
    pub fn place(&mut self, round_trip: Duration, database_round_trip: Duration) -> Result<()> {
        self.distances[0].set(round_trip)?;
        self.distances[1].set(database_round_trip)
    }

    /// The backend `orders-db`, for the agent's configuration.
    pub fn backend(&self, pool: &str) -> Result<String> {
        let mut tls = String::new();
        if self.tls {
            writeln!(tls, "tls = {{ ca_file = {:?} }}", self.postgres.ca_file())?;
        }
        Ok(format!(
            "[[backend]]\nname = \"orders-db\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\n\
             database = \"{}\"\npassword_file = {:?}\n{tls}pool = {pool}\n",
            self.postgres.address(),
            PostgresServer::USER,
            PostgresServer::DATABASE,
            self.password_file()?,
        ))
    }

    fn password_file(&self) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let file = self.postgres.password_file()?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        Ok(file)
    }

    /// An agent that watches the client's link, if `syn`, and serves `orders` as given.
    pub fn agent(&self, syn: bool, function: &TestFunction) -> Result<RunningAgent> {
        self.agent_for("orders", syn, function)
    }

    /// The same under another name, which its containers, cgroups and labels then bear.
    pub fn agent_for(&self, name: &str, syn: bool, function: &TestFunction) -> Result<RunningAgent> {
        let mut setup = unbounded();
        if syn {
            setup = setup.interface(self.link.host_if());
        }
        if let FunctionKind::Docker { docker, .. } = &function.kind {
            setup = setup.docker(docker);
        }
        let backend = self.backend("{ min_idle = 2, max = 16 }")?;
        let agent = setup.config(&backend).config(&function.text(name, &["orders-db"])).start()?;
        function.rest(&agent, name)?;
        Ok(agent)
    }

    /// One request from the client's network, on a new connection that sends at once.
    pub fn get(&self, port: u16, path: &str) -> Result<HttpReply> {
        let target = self.link.host(port);
        self.client.enter(|| client::get(target, path, LIMIT))?.with_context(|| format!("GET {path}"))
    }
}

/// An agent whose budgets are so large that one client without a key can start functions again and again.
pub fn unbounded() -> AgentSetup {
    AgentSetup::default()
        .syn("events", "{ source = 10000, function = 10000, global = 10000 }")
        .syn("starts", "{ function = { min = 1000, max = 1000 }, global = { min = 1000, max = 1000 } }")
}

/// The runtime of a function, and what it runs.
#[derive(Debug)]
pub enum FunctionKind {
    /// `runtime = "oci"`.
    Oci(Rootfs),
    /// `runtime = "docker"`.
    Docker {
        /// The daemon.
        docker: Arc<DockerDaemon>,
        /// The function.
        image: DockerImage,
    },
    /// `runtime = "process"`.
    Process(Program),
}

impl FunctionKind {
    /// A root filesystem, made ready for `runtime`.
    pub fn of(runtime: &str, rootfs: Rootfs) -> Result<Self> {
        Ok(match runtime {
            "oci" => Self::Oci(rootfs),
            "docker" => {
                let docker = DockerDaemon::shared()?;
                Self::Docker { image: rootfs.docker_image(&docker)?, docker }
            }
            _ => Self::Process(Program::copy(&rootfs)?),
        })
    }
}

/// A program where a process without privileges, with a `/tmp` of its own, can find it. Removed on drop.
#[derive(Debug)]
pub struct Program(PathBuf);

impl Program {
    fn copy(rootfs: &Rootfs) -> Result<Self> {
        let name = rootfs.command();
        let program = Self(Path::new("/var/lib").join(unique(name.trim_start_matches('/'))));
        fs::copy(rootfs.path().join(name.trim_start_matches('/')), &program.0)?;
        Ok(program)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

/// A function to serve.
#[derive(Debug)]
pub struct TestFunction {
    /// Where it listens, on every address.
    pub port: u16,
    /// Containers kept parked.
    pub prepared: usize,
    /// How it is run.
    pub kind: FunctionKind,
    /// Further keys of its section.
    pub keys: String,
}

impl TestFunction {
    /// An example, on a free port, with one parked container.
    pub fn example(name: &str, runtime: &str) -> Result<Self> {
        let kind = FunctionKind::of(runtime, Rootfs::example(name)?)?;
        Ok(Self { port: free_port()?.port(), prepared: 1, kind, keys: String::new() })
    }

    /// Its section of the configuration.
    pub fn text(&self, name: &str, backends: &[&str]) -> String {
        let (port, prepared, keys) = (self.port, self.prepared, &self.keys);
        let mut text = format!(
            "[[function]]\nname = \"{name}\"\nlisten = \"0.0.0.0:{port}\"\nprepared = {prepared}\n\
             backends = {backends:?}\n{keys}\n"
        );
        let inside = |rootfs: &Rootfs| format!("command = [{:?}]", rootfs.command());
        let written = match &self.kind {
            FunctionKind::Oci(rootfs) => {
                write!(text, "runtime = \"oci\"\nrootfs = {:?}\n{}\n", rootfs.path(), inside(rootfs))
            }
            FunctionKind::Docker { image, .. } => {
                write!(text, "runtime = \"docker\"\nimage = {:?}\n", image.tag())
            }
            FunctionKind::Process(Program(path)) => {
                write!(text, "runtime = \"process\"\ncommand = [{:?}]\n", path.display().to_string())
            }
        };
        debug_assert!(written.is_ok(), "a string takes everything");
        text
    }

    /// Waits until it is cold, its containers are parked, and nothing of an earlier instance is left.
    pub fn rest(&self, agent: &RunningAgent, name: &str) -> Result<()> {
        let prepared = self.prepared;
        agent.wait_function(name, "at rest", LIMIT, |function| {
            function["state"] == "cold" && function["prepared"] == prepared && function["removing"] == 0
        })?;
        Ok(())
    }

    /// Stops its instance and waits for rest: the next request is a cold one.
    pub fn cool(&self, agent: &RunningAgent, name: &str) -> Result<()> {
        agent.stop_function(name)?;
        self.rest(agent, name)
    }

    /// Where it listens, from this host.
    pub fn local(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }
}
