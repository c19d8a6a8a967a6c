//! `make bench`, its part about what people use today: the same function behind each, from the same client, with the same
//! database (PostgreSQL, TLS 1.3, SCRAM-SHA-256), by turns. What a cold start adds is counted from the warm answer of a
//! process that always runs.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use headstart_integration_tests::evidence::bench::querying::{self, QueryFunction, agent};
use headstart_integration_tests::evidence::bench::{self, Run};
use headstart_integration_tests::evidence::peers::{self, Peer, PeerPlace, PeerSetup};
use headstart_integration_tests::lab::site::{LIMIT, Site, unbounded};
use headstart_integration_tests::lab::{DockerDaemon, RunningAgent, client};

/// From the client to the node, and from there to the database.
const DISTANCES_MS: [(u64, u64); 2] = [(50, 5), (0, 0)];
/// Rounds that count, after one that does not.
const ROUNDS: usize = 30;
const QUICK_ROUNDS: usize = 3;
const FLOOR: &str = "always-warm";
const HEADSTART: &str = "headstart";

fn main() -> ExitCode {
    bench::main("peers", measure)
}

fn measure(run: &mut Run) -> Result<()> {
    let mut site = Site::with_tls()?;
    let docker = Arc::new(DockerDaemon::bridged()?);
    docker.bridge().context("it has one")?.route(&site.database_link)?;
    let functions = [
        QueryFunction::new(HEADSTART, &site, None, true)?,
        QueryFunction::new("headstart-docker", &site, Some(&docker), true)?,
    ];
    let agent = agent(unbounded().interface(site.link.host_if()), &site, &functions, &docker)?;
    let mut ways: Vec<(&str, Box<dyn Peer + '_>)> = Vec::new();
    for served in &functions {
        let address = site.link.host(served.function.port);
        ways.push((served.name, Box::new(Headstart { agent: &agent, served, address })));
    }
    let place = PeerPlace { site: &site, docker: &docker };
    for (name, start) in peers::ALL {
        match start(&place).with_context(|| name.to_owned())? {
            PeerSetup::Here(peer) => {
                run.note(name, peer.version());
                ways.push((name, peer));
            }
            PeerSetup::Missing(why) => run.note(name, &format!("not measured: {why}")),
        }
    }

    let distances = run.of(&DISTANCES_MS, &DISTANCES_MS[..1]);
    let rounds = run.many(ROUNDS, QUICK_ROUNDS);
    run.expect((1 + rounds * distances.len()) * ways.len());
    for round in 0..=rounds {
        // The first warms caches.
        let count = if round == 0 { 1 } else { distances.len() };
        for turn in run.order(count) {
            let (at, database) = distances[turn];
            site.place(Duration::from_millis(at), Duration::from_millis(database))?;
            let labels = [at, database].map(|ms| ms.to_string());
            for turn in run.order(ways.len()) {
                let (name, peer) = &mut ways[turn];
                run.step(&format!("{name} at {at} ms, database at {database} ms"))?;
                let answers = [ask(&site, &**peer), ask(&site, &**peer)];
                peer.cool()?;
                if round == 0 {
                    continue;
                }
                for (case, answer) in ["cold", "warm"].into_iter().zip(answers) {
                    let (lost, ms) = match answer {
                        Ok(ms) => (0.0, Some(ms)),
                        Err(error) => {
                            eprintln!("\n{name}: {error:#}; {:?}", peer.problems());
                            (1.0, None)
                        }
                    };
                    run.samples.add("peer_lost", &[("peer", name), ("case", case)], "requests", lost);
                    if let Some(ms) = ms {
                        run.samples.add("peer_ms", &figure(name, &**peer, case, &labels), "ms", ms);
                    }
                }
            }
        }
    }
    for (at, database) in distances {
        let labels = [at, database].map(|ms| ms.to_string());
        let of = |wanted: &str, case| {
            let (name, peer) = ways.iter().find(|(name, _)| *name == wanted)?;
            Some(run.samples.median("peer_ms", &figure(name, &**peer, case, &labels)))
        };
        let floor = of(FLOOR, "warm").context("nothing to count from")?;
        let added: Vec<_> = ways.iter().map(|(name, _)| of(name, "cold").map(|cold| cold - floor)).collect();
        let own = added[0].context("Headstart was not measured")?;
        for ((name, peer), added) in ways.iter().zip(added) {
            let Some(added) = added.filter(|_| *name != FLOOR) else { continue };
            let container = if peer.starts_container() { "yes" } else { "no" };
            let labels = [
                ("peer", *name),
                ("container", container),
                ("round_trip_ms", &labels[0]),
                ("database_round_trip_ms", &labels[1]),
            ];
            run.samples.add("peer_added_ms", &labels, "ms", added);
            if !name.starts_with(HEADSTART) {
                run.samples.add("peer_headstart_share", &labels, "ratio", own / added);
            }
        }
    }
    // They may explain a request that was lost.
    let problems: Vec<_> = ways.iter().filter(|(_, peer)| !peer.problems().is_empty()).collect();
    for (name, peer) in problems {
        run.note(&format!("problems of {name}"), &peer.problems().join("; "));
    }
    drop(ways);
    ensure!(agent.stop()?.success());
    Ok(())
}

fn figure<'a>(
    name: &'a str,
    peer: &dyn Peer,
    case: &'a str,
    [at, database]: &'a [String; 2],
) -> [(&'static str, &'a str); 5] {
    [
        ("peer", name),
        ("case", case),
        ("database", if peer.has_database() { "yes" } else { "no" }),
        ("round_trip_ms", at),
        ("database_round_trip_ms", database),
    ]
}

/// Milliseconds from the client's SYN to its whole answer.
fn ask(site: &Site, peer: &dyn Peer) -> Result<f64> {
    let (address, path) = (peer.address(), peer.path());
    let reply = site.client.enter(|| client::get(address, path, LIMIT))??;
    ensure!(reply.status == 200, "{reply:?}");
    Ok(reply.timings.total.as_secs_f64() * 1e3)
}

/// Headstart, as one of them.
#[derive(Debug)]
struct Headstart<'a> {
    agent: &'a RunningAgent,
    served: &'a QueryFunction,
    address: SocketAddr,
}

impl Peer for Headstart<'_> {
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn starts_container(&self) -> bool {
        true
    }

    fn path(&self) -> &'static str {
        querying::PATH
    }

    fn cool(&mut self) -> Result<()> {
        self.served.function.cool(self.agent, self.served.name)?;
        // What is measured is a start, not how fast a pool is filled again.
        self.agent.wait_idle("orders-db", 1, LIMIT)
    }
}
