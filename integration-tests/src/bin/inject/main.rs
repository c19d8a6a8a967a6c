//! `make bench`, its part about injection.
//!
//! - `tcp`: getting a plain TCP connection, as the paper on injection measures it, and a container's whole life;
//! - `postgres`: from the entry of a process to its first query's result, PostgreSQL with TLS 1.3 and SCRAM;
//! - `relay`: what goes through the sockets of instances.

mod postgres;
mod relay;
mod tcp;

use std::process::ExitCode;

use anyhow::Result;
use headstart_integration_tests::evidence::bench::{self, Run};

fn main() -> ExitCode {
    bench::main("inject", measure)
}

fn measure(run: &mut Run) -> Result<()> {
    tcp::getting(run)?;
    tcp::lives(run)?;
    postgres::first_results(run)?;
    relay::reconnects(run)?;
    relay::throughput(run)
}
