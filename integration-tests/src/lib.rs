//! The laboratory in which Headstart is tested end to end, demonstrated and measured.
//!
//! Every piece undoes itself when it is dropped, and [`lab::Lease`] clears what a killed earlier
//! run left behind. Nothing outside the namespaces made here and loopback gets any traffic.
//!
//! ```no_run
//! use headstart_integration_tests::{client, lab::{Delay, Link, Namespace}};
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

pub mod privilege;

pub mod lab;

pub mod asker;
pub mod bench;
pub mod cli;
pub mod client;
pub mod fixture;
pub mod gateway;
pub mod interrupt;
pub mod leaks;
pub mod node;
pub mod peers;
pub mod report;
pub mod siege;
pub mod site;
pub mod usage;
pub mod usual;
