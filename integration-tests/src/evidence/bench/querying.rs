//! A function that answers each request with a query's result, over a connection that it has from the agent, or one that
//! it makes and logs in by itself.

use std::fs;
use std::sync::Arc;

use anyhow::Result;

use crate::lab::site::{FunctionKind, Site, TestFunction};
use crate::lab::{AgentSetup, DockerDaemon, PostgresServer, Rootfs, RunningAgent, build_static, free_port};

/// The path that is answered with a query's result.
pub const PATH: &str = "/query";

/// Its root filesystem, with what it needs to log in by itself.
pub fn rootfs(site: &Site) -> Result<Rootfs> {
    let rootfs = Rootfs::with_binary("probe", &build_static("headstart-lab-functions", "probe")?)?;
    fs::write(rootfs.path().join("password"), PostgresServer::PASSWORD)?;
    fs::copy(site.postgres.ca_file(), rootfs.path().join("ca.pem"))?;
    Ok(rootfs)
}

/// What makes it take the agent's connection.
pub fn injected() -> Vec<(&'static str, String)> {
    vec![("WAY", "injected".to_owned()), ("QUERY", "later".to_owned())]
}

/// What makes it connect and log in by itself: TLS 1.3 and SCRAM-SHA-256. `root` is where its root filesystem is.
pub fn direct(site: &Site, root: &str) -> Vec<(&'static str, String)> {
    vec![
        ("WAY", "direct".to_owned()),
        ("QUERY", "later".to_owned()),
        ("HOST", site.postgres.address().to_string()),
        ("DBUSER", PostgresServer::USER.to_owned()),
        ("DATABASE", PostgresServer::DATABASE.to_owned()),
        ("PASSWORD_FILE", format!("{root}/password")),
        ("CA_FILE", format!("{root}/ca.pem")),
    ]
}

/// A function that an agent serves, with one container ready.
#[derive(Debug)]
pub struct QueryFunction {
    /// Its name.
    pub name: &'static str,
    /// Whether it is given its connection.
    pub injected: bool,
    /// How it is run.
    pub function: TestFunction,
}

impl QueryFunction {
    /// On the Docker daemon's bridge, or of the OCI runtime, where it has no network.
    pub fn new(
        name: &'static str,
        site: &Site,
        docker: Option<&Arc<DockerDaemon>>,
        injected: bool,
    ) -> Result<Self> {
        let rootfs = rootfs(site)?;
        let variables = if injected { self::injected() } else { direct(site, "") };
        let variables: Vec<_> = variables.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
        let mut keys = format!("env = {{ {} }}\ntls_hand_over = {injected}\n", variables.join(", "));
        let kind = match docker {
            Some(docker) => {
                keys.push_str("network = \"bridge\"\n");
                FunctionKind::Docker { image: rootfs.docker_image(docker)?, docker: Arc::clone(docker) }
            }
            None => FunctionKind::Oci(rootfs),
        };
        let function = TestFunction { port: free_port()?.port(), prepared: 1, kind, keys };
        Ok(Self { name, injected, function })
    }

    /// How figures name what it runs in.
    pub fn runtime(&self) -> &'static str {
        if matches!(self.function.kind, FunctionKind::Oci(_)) { "oci-prepared" } else { "docker" }
    }
}

/// An agent that serves them, once all are at rest.
pub fn agent(
    setup: AgentSetup,
    site: &Site,
    functions: &[QueryFunction],
    docker: &DockerDaemon,
) -> Result<RunningAgent> {
    let setup = setup.docker(docker).config(&site.backend("{ min_idle = 4, max = 16 }")?);
    let add = |setup: AgentSetup, served: &QueryFunction| {
        let backends: &[&str] = if served.injected { &["orders-db"] } else { &[] };
        setup.config(&served.function.text(served.name, backends))
    };
    let agent = functions.iter().fold(setup, add).start()?;
    functions.iter().try_for_each(|served| served.function.rest(&agent, served.name))?;
    Ok(agent)
}
