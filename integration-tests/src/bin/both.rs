//! `make bench`, its part about the two halves together: the first answer of a function, which needs a query, over the
//! distances of its client and of its database (PostgreSQL, TLS 1.3, SCRAM-SHA-256).
//!
//! - `all`: started by the SYN, with a connection that is logged in;
//! - `syn`: started by the SYN, connecting by itself; `inject`: the other way round;
//! - `neither`: started by the connection, connecting by itself;
//! - `warm`: it runs.
//!
//! In all the container is there before, so that only the halves differ. A function that connects by itself needs a
//! network, which only Docker gives it.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use headstart_integration_tests::evidence::bench::querying::{self, QueryFunction, agent};
use headstart_integration_tests::evidence::bench::{self, Run};
use headstart_integration_tests::lab::node::newest_start;
use headstart_integration_tests::lab::site::{LIMIT, Site, unbounded};
use headstart_integration_tests::lab::{DockerDaemon, RunningAgent, client};

const ROUND_TRIPS_MS: [u64; 4] = [0, 10, 50, 100];
const QUICK_ROUND_TRIPS_MS: [u64; 2] = [0, 50];
const DATABASE_ROUND_TRIPS_MS: [u64; 3] = [0, 5, 20];
const QUICK_DATABASE_ROUND_TRIPS_MS: [u64; 1] = [5];
/// Rounds that count, after one that does not.
const ROUNDS: usize = 10;
const QUICK_ROUNDS: usize = 2;

fn main() -> ExitCode {
    bench::main("both", measure)
}

fn measure(run: &mut Run) -> Result<()> {
    let mut site = Site::with_tls()?;
    let docker = Arc::new(DockerDaemon::bridged()?);
    docker.bridge().context("it has one")?.route(&site.database_link)?;
    let functions = || -> Result<[QueryFunction; 3]> {
        Ok([
            QueryFunction::new("docker-injected", &site, Some(&docker), true)?,
            QueryFunction::new("docker-direct", &site, Some(&docker), false)?,
            QueryFunction::new("oci-injected", &site, None, true)?,
        ])
    };
    let [early, late] = [functions()?, functions()?];
    // Only the one agent watches the client's link.
    let watching = agent(unbounded().interface(site.link.host_if()), &site, &early, &docker)?;
    let waiting = agent(unbounded(), &site, &late, &docker)?;
    let mut ways = Vec::new();
    for (agent, functions, names) in
        [(&watching, &early, ["all", "syn"]), (&waiting, &late, ["inject", "neither"])]
    {
        for served in functions {
            let name = names[usize::from(!served.injected)];
            ways.push(HalvesWay { agent, served, name, address: site.link.host(served.function.port) });
        }
    }

    let round_trips = run.of(&ROUND_TRIPS_MS, &QUICK_ROUND_TRIPS_MS);
    let database_round_trips = run.of(&DATABASE_ROUND_TRIPS_MS, &QUICK_DATABASE_ROUND_TRIPS_MS);
    let cells: Vec<(u64, u64)> = round_trips
        .iter()
        .flat_map(|at| database_round_trips.iter().map(move |database| (*at, *database)))
        .collect();
    let rounds = run.many(ROUNDS, QUICK_ROUNDS);
    run.expect((1 + rounds * cells.len()) * ways.len());
    for round in 0..=rounds {
        // The first warms caches.
        let count = if round == 0 { 1 } else { cells.len() };
        for cell in run.order(count) {
            let (at, database) = cells[cell];
            site.place(Duration::from_millis(at), Duration::from_millis(database))?;
            let distances = [at, database].map(|ms| ms.to_string());
            for turn in run.order(ways.len()) {
                let way = &ways[turn];
                run.step(&format!(
                    "{} {} at {at} ms, database at {database} ms",
                    way.served.runtime(),
                    way.name
                ))?;
                way.wait_pool()?;
                let cold = way.ask(&site)?;
                let start = newest_start(way.agent, way.served.name)?;
                let warm = way.ask(&site)?;
                way.served.function.cool(way.agent, way.served.name)?;
                if round > 0 {
                    // Where the handshake takes no time, its end may be seen before its begin.
                    let early = f64::from(start["trigger"] == "syn");
                    run.samples.add("both_early", &way.labels(way.name, &distances), "starts", early);
                    run.samples.add("both_ms", &way.labels(way.name, &distances), "ms", cold);
                    if way.name == "all" {
                        run.samples.add("both_ms", &way.labels("warm", &distances), "ms", warm);
                    }
                }
            }
        }
    }
    for at in &round_trips {
        for database in &database_round_trips {
            let distances = [*at, *database].map(|ms| ms.to_string());
            for way in &ways {
                let median = |name| run.samples.median("both_ms", &way.labels(name, &distances));
                let added = median(way.name) - median("warm");
                run.samples.add("both_added_ms", &way.labels(way.name, &distances), "ms", added);
            }
        }
    }
    ensure!(watching.stop()?.success() && waiting.stop()?.success());
    Ok(())
}

struct HalvesWay<'a> {
    agent: &'a RunningAgent,
    served: &'a QueryFunction,
    name: &'static str,
    address: SocketAddr,
}

impl HalvesWay<'_> {
    fn labels<'b>(&self, way: &'b str, [at, database]: &'b [String; 2]) -> [(&'static str, &'b str); 4] {
        [
            ("runtime", self.served.runtime()),
            ("way", way),
            ("round_trip_ms", at),
            ("database_round_trip_ms", database),
        ]
    }

    /// A connection waits: what is measured is a start, not how fast a pool is filled again.
    fn wait_pool(&self) -> Result<()> {
        self.agent.wait_idle("orders-db", 1, LIMIT)
    }

    /// Milliseconds from the client's SYN to its whole answer.
    fn ask(&self, site: &Site) -> Result<f64> {
        let reply = site.client.enter(|| client::get(self.address, querying::PATH, LIMIT))?;
        let reply = reply.with_context(|| format!("{}:\n{}", self.name, self.agent.log()))?;
        ensure!(reply.status == 200, "{}: {reply:?}\n{}", self.name, self.agent.log());
        Ok(reply.timings.total.as_secs_f64() * 1e3)
    }
}
