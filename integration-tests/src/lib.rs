//! Where Headstart is tested end to end, demonstrated and measured.
//!
//! - [`lab`]: namespaces, links with a delay, servers, the agent, clients, functions.
//! - [`evidence`]: what benches share, what Headstart is compared with, and the report.
//! - `tests/`: the tests themselves. `src/bin/`: the demo and the benches. `functions/`: the functions that they serve.
//!
//! Every piece undoes itself when it is dropped, and [`lab::LabLease`] clears what a killed earlier
//! run left behind. Nothing outside the namespaces made here and loopback gets any traffic.
//!
//! ```no_run
//! use headstart_integration_tests::lab::{Delay, Link, Namespace, client};
//! use std::time::Duration;
//!
//! # fn main() -> anyhow::Result<()> {
//! let site = Namespace::new("client")?;
//! let link = Link::connect(&site)?;                             // the agent watches link.host_if()
//! let _delay = Delay::new(&site, Duration::from_millis(20))?;
//! let target = link.host(8081);
//! let reply = site.enter(|| client::get(target, "/orders", Duration::from_secs(5)))??;
//! assert_eq!(reply.status, 200);
//! # Ok(()) }
//! ```

pub mod lab;

pub mod evidence;
