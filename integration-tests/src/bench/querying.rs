//! A function that answers each request with a query's result, over a connection that it has from the agent, or one that
//! it makes and logs in by itself.

use std::fs;
use std::sync::Arc;

use anyhow::Result;

use crate::lab::{Docker, Postgres, Rootfs, build_static, free_port};
use crate::site::{Function, Kind, Site};

/// The path that is answered with a query's result.
pub const PATH: &str = "/query";

/// Its root filesystem, with what it needs to log in by itself.
pub fn rootfs(site: &Site) -> Result<Rootfs> {
    let rootfs = Rootfs::with_binary("probe", &build_static("headstart-integration-tests", "probe")?)?;
    fs::write(rootfs.path().join("password"), Postgres::PASSWORD)?;
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
        ("DBUSER", Postgres::USER.to_owned()),
        ("DATABASE", Postgres::DATABASE.to_owned()),
        ("PASSWORD_FILE", format!("{root}/password")),
        ("CA_FILE", format!("{root}/ca.pem")),
    ]
}

/// A function for the agent: on the Docker daemon's bridge, or of the OCI runtime, with one container ready.
pub fn function(site: &Site, docker: Option<&Arc<Docker>>, variables: &[(&str, String)]) -> Result<Function> {
    let rootfs = rootfs(site)?;
    let variables: Vec<_> = variables.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
    let mut keys = format!("env = {{ {} }}\n", variables.join(", "));
    let kind = match docker {
        Some(docker) => {
            keys.push_str("network = \"bridge\"\n");
            Kind::Docker { image: rootfs.docker_image(docker)?, docker: Arc::clone(docker) }
        }
        None => Kind::Oci(rootfs),
    };
    Ok(Function { port: free_port()?.port(), prepared: 1, kind, keys })
}
