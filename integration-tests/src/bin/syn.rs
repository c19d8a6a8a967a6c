//! `make bench`, its part about early starts: the first answer of a function that needs 250 ms to initialise, over the
//! distance of its client, by what starts it. The plot of the papers on starts by SYN.
//!
//! - `syn`: its SYN, as the agent does where it watches the interface;
//! - `accept`: its connection, as the agent does elsewhere;
//! - `first_byte`, `request`: the first byte, or the whole request, that a gateway before the function has read;
//! - `warm`: nothing, it runs.
//!
//! Over HTTPS the function speaks TLS, but for `request`, where the gateway has to.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use headstart_integration_tests::evidence::bench::{self, Run, Samples};
use headstart_integration_tests::evidence::gateway::{Gateway, When};
use headstart_integration_tests::lab::node::newest_start;
use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, STAGES, TOTALS, TestFunction, unbounded};
use headstart_integration_tests::lab::{
    AgentSetup, Distance, DockerDaemon, Link, Namespace, Rootfs, RunningAgent, build_static, client,
    free_port,
};
use headstart_statistics::mean;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// What the function of the papers needs, in milliseconds.
const INIT_MS: u64 = 250;
const ROUND_TRIPS_MS: [u64; 7] = [0, 5, 10, 25, 50, 100, 250];
const QUICK_ROUND_TRIPS_MS: [u64; 3] = [0, 50, 100];
/// Further ones where the break is looked for, on both sides of it.
const AROUND_BREAK_MS: [u64; 4] = [150, 200, 300, 350];
const QUICK_AROUND_BREAK_MS: [u64; 2] = [200, 300];
/// Where it is looked for.
const MAIN: &str = "oci-prepared";
const RUNTIMES: [&str; 5] = ["process", MAIN, "oci", "docker", "docker-bridge"];
/// Rounds that count, after one that does not.
const ROUNDS: usize = 10;
const QUICK_ROUNDS: usize = 2;
const FIGURE: &str = "syn_response_ms";
/// The stages of the starts, under the names that timelines have for them.
const STAGE: &str = "syn_stage_ms";

fn main() -> ExitCode {
    bench::main("syn", measure)
}

fn measure(run: &mut Run) -> Result<()> {
    let client = Namespace::new("client")?;
    let link = Link::connect(&client)?;
    let mut distance = Distance::of(&client);
    let docker = Arc::new(DockerDaemon::bridged()?);
    let certificate = Certificate::new(&link)?;
    let [early, late] = [functions(&docker, &certificate)?, functions(&docker, &certificate)?];
    // Only the one agent watches the client's link.
    let watching = agent(unbounded().interface(link.host_if()), &early, &docker)?;
    let waiting = agent(unbounded(), &late, &docker)?;
    let mut ways = Vec::new();
    for served in &early {
        ways.push(TriggerWay::new(&watching, served, "syn", link.host(served.function.port)));
    }
    for served in &late {
        ways.push(TriggerWay::new(&waiting, served, "accept", link.host(served.function.port)));
        let plain = late.iter().find(|other| other.runtime == served.runtime && !other.https);
        let request = if served.https { When::RequestInTls(certificate.server()?) } else { When::Request };
        for (trigger, when, behind) in
            [("first_byte", When::FirstByte, Some(served)), ("request", request, plain)]
        {
            let behind = behind.context("every runtime serves HTTP")?;
            let gateway = Gateway::start(when, link.host(free_port()?.port()), behind.function.local())?;
            let way = TriggerWay::new(&waiting, behind, trigger, gateway.address());
            ways.push(TriggerWay { https: served.https, _gateway: Some(gateway), ..way });
        }
    }

    let all = run.of(&ROUND_TRIPS_MS, &QUICK_ROUND_TRIPS_MS);
    let around = run.of(&AROUND_BREAK_MS, &QUICK_AROUND_BREAK_MS);
    let round_trips: Vec<u64> = all.iter().chain(&around).copied().collect();
    let rounds = run.many(ROUNDS, QUICK_ROUNDS);
    let wanted = |round: usize, round_trip: u64, way: &TriggerWay<'_>| {
        let docker = way.served.runtime.starts_with("docker");
        match round {
            // It warms caches.
            0 => round_trip == 0,
            // Docker takes so long that the rest would have to be short.
            round if docker && round % 2 == 0 => false,
            _ => all.contains(&round_trip) || way.shows_break(),
        }
    };
    run.expect(
        (0..=rounds)
            .map(|round| {
                let of = |round_trip: &u64| ways.iter().filter(|way| wanted(round, *round_trip, way)).count();
                round_trips.iter().map(of).sum::<usize>()
            })
            .sum(),
    );
    let client_config = certificate.client()?;
    for round in 0..=rounds {
        for at in run.order(round_trips.len()) {
            let round_trip = round_trips[at];
            distance.set(Duration::from_millis(round_trip))?;
            for turn in run.order(ways.len()) {
                let way = &ways[turn];
                if !wanted(round, round_trip, way) {
                    continue;
                }
                let round_trip = round_trip.to_string();
                run.step(&format!("{} at {round_trip} ms", way.name()))?;
                let cold = way.ask(&client, &client_config)?;
                let start = newest_start(way.agent, &way.served.name)?;
                let warm = (way.trigger == "syn").then(|| way.ask(&client, &client_config)).transpose()?;
                way.served.function.cool(way.agent, &way.served.name)?;
                if round == 0 {
                    continue;
                }
                run.samples.add(FIGURE, &way.labels(way.trigger, &round_trip), "ms", cold);
                // Where the handshake takes no time, its end may be seen before its begin.
                let early = f64::from(start["trigger"] == "syn");
                run.samples.add("syn_early", &way.labels(way.trigger, &round_trip), "starts", early);
                if let Some(warm) = warm {
                    run.samples.add(FIGURE, &way.labels("warm", &round_trip), "ms", warm);
                    ensure!(start["stages"]["total"].is_number(), "this start is not over: {start}");
                    for stage in STAGES.into_iter().chain(TOTALS) {
                        // The first response may not have been reported yet.
                        if let Some(seconds) = start["stages"][stage].as_f64() {
                            let labels = [("runtime", way.served.runtime), ("stage", stage)];
                            run.samples.add(STAGE, &labels, "ms", seconds * 1e3);
                        }
                    }
                }
            }
        }
    }
    let found = found_break(&run.samples, &round_trips).context("no break")?;
    let start = run.samples.median(STAGE, &[("runtime", MAIN), ("stage", "total")]);
    run.samples.add("syn_break_ms", &[("runtime", MAIN)], "ms", found);
    run.samples.add("syn_break_ratio", &[("runtime", MAIN)], "ratio", found / start);
    ensure!(watching.stop()?.success() && waiting.stop()?.success());
    Ok(())
}

/// A function of one kind.
struct SlowFunction {
    runtime: &'static str,
    https: bool,
    name: String,
    function: TestFunction,
}

/// Of each runtime one that speaks HTTP; and one that speaks HTTPS.
fn functions(docker: &Arc<DockerDaemon>, certificate: &Certificate) -> Result<Vec<SlowFunction>> {
    let binary = build_static("headstart-lab-functions", "slow")?;
    let function = |runtime: &'static str, https: bool| {
        let rootfs = Rootfs::with_binary("slow", &binary)?;
        let kind = match runtime {
            "process" => FunctionKind::of("process", rootfs)?,
            "docker" | "docker-bridge" => {
                FunctionKind::Docker { image: rootfs.docker_image(docker)?, docker: Arc::clone(docker) }
            }
            _ => FunctionKind::Oci(rootfs),
        };
        let tls = if https { certificate.variables() } else { String::new() };
        let mut keys = format!("env = {{ INIT_MS = \"{INIT_MS}\"{tls} }}\n");
        if runtime == "docker-bridge" {
            keys.push_str("network = \"bridge\"\n");
        }
        let name = if https { format!("{runtime}-https") } else { runtime.to_owned() };
        let function =
            TestFunction { port: free_port()?.port(), prepared: usize::from(runtime != "oci"), kind, keys };
        Ok(SlowFunction { runtime, https, name, function })
    };
    let plain = RUNTIMES.into_iter().map(|runtime| function(runtime, false));
    plain.chain([function(MAIN, true)]).collect()
}

fn agent(setup: AgentSetup, functions: &[SlowFunction], docker: &DockerDaemon) -> Result<RunningAgent> {
    let add =
        |setup: AgentSetup, served: &SlowFunction| setup.config(&served.function.text(&served.name, &[]));
    let agent = functions.iter().fold(setup.docker(docker), add).start()?;
    functions.iter().try_for_each(|served| served.function.rest(&agent, &served.name))?;
    Ok(agent)
}

/// A way to the first answer.
struct TriggerWay<'a> {
    agent: &'a RunningAgent,
    served: &'a SlowFunction,
    trigger: &'static str,
    https: bool,
    address: SocketAddr,
    _gateway: Option<Gateway>,
}

impl<'a> TriggerWay<'a> {
    fn new(
        agent: &'a RunningAgent,
        served: &'a SlowFunction,
        trigger: &'static str,
        address: SocketAddr,
    ) -> Self {
        Self { agent, served, trigger, https: served.https, address, _gateway: None }
    }

    fn shows_break(&self) -> bool {
        self.served.runtime == MAIN && self.trigger == "syn" && !self.https
    }

    fn protocol(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    fn name(&self) -> String {
        format!("{} {} by {}", self.served.runtime, self.protocol(), self.trigger)
    }

    fn labels<'b>(&self, trigger: &'b str, round_trip: &'b str) -> [(&'static str, &'b str); 4] {
        [
            ("runtime", self.served.runtime),
            ("protocol", self.protocol()),
            ("trigger", trigger),
            ("round_trip_ms", round_trip),
        ]
    }

    /// Milliseconds from the client's SYN to its whole answer.
    fn ask(&self, client: &Namespace, config: &Arc<ClientConfig>) -> Result<f64> {
        let reply = client.enter(|| match self.https {
            true => client::get_tls(self.address, "/", LIMIT, config),
            false => client::get(self.address, "/", LIMIT),
        })?;
        let reply = reply.with_context(|| format!("{}:\n{}", self.name(), self.agent.log()))?;
        ensure!(reply.status == 200 && reply.body == "ok", "{}: {reply:?}", self.name());
        Ok(reply.timings.total.as_secs_f64() * 1e3)
    }
}

/// What the function, or the gateway before it, shows to clients.
struct Certificate {
    certificate: String,
    key: String,
}

impl Certificate {
    fn new(link: &Link) -> Result<Self> {
        let certified = rcgen::generate_simple_self_signed([link.host(0).ip().to_string()])?;
        Ok(Self { certificate: certified.cert.pem(), key: certified.signing_key.serialize_pem() })
    }

    fn variables(&self) -> String {
        format!(", TLS_CERTIFICATE = {:?}, TLS_KEY = {:?}", self.certificate, self.key)
    }

    fn der(&self) -> Result<CertificateDer<'static>> {
        Ok(CertificateDer::from_pem_slice(self.certificate.as_bytes())?)
    }

    fn server(&self) -> Result<Arc<ServerConfig>> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())?;
        let config = ServerConfig::builder().with_no_client_auth();
        Ok(Arc::new(config.with_single_cert(vec![self.der()?], key)?))
    }

    /// It resumes no session, as a client that comes for the first time cannot.
    fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der()?)?;
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// The handshake, in milliseconds, from which on a cold answer takes as long as a warm one: where the line through what
/// being cold adds at shorter ones meets what it adds at longer ones.
fn found_break(samples: &Samples, round_trips: &[u64]) -> Option<f64> {
    let added = |round_trip: &u64| {
        let at = round_trip.to_string();
        let median = |trigger| {
            let labels =
                [("runtime", MAIN), ("protocol", "http"), ("trigger", trigger), ("round_trip_ms", &*at)];
            samples.median(FIGURE, &labels)
        };
        (f64::from(u32::try_from(*round_trip).unwrap_or(u32::MAX)), median("syn") - median("warm"))
    };
    // Not so near to the break that noise could decide on which side it is.
    let (before, after): (Vec<_>, Vec<_>) =
        round_trips.iter().filter(|at| at.abs_diff(INIT_MS) >= INIT_MS / 5).partition(|at| **at < INIT_MS);
    let (before, after): (Vec<_>, Vec<_>) =
        (before.into_iter().map(added).collect(), after.into_iter().map(added).collect());
    let (slope, at_zero) = line(&before)?;
    let rest = mean(&after.iter().map(|(_, added)| *added).collect::<Vec<_>>());
    Some((rest - at_zero) / slope)
}

/// Slope and intercept by least squares.
fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let (x, y): (Vec<f64>, Vec<f64>) = points.iter().copied().unzip();
    let (mean_x, mean_y) = (mean(&x), mean(&y));
    let sum = |of: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>();
    let slope = sum(&|(x, y)| (x - mean_x) * (y - mean_y)) / sum(&|(x, _)| (x - mean_x).powi(2));
    slope.is_finite().then_some((slope, mean_y - slope * mean_x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_break_is_found_where_it_is() {
        let mut samples = Samples::default();
        let round_trips = [0, 5, 50, 100, 150, 200, 250, 300, 350];
        for round_trip in round_trips {
            let (at, warm) = (round_trip.to_string(), 2.0 * round_trip as f64 + 1.0);
            let added = (255.0 - round_trip as f64).max(0.0) + 0.5;
            for (trigger, ms) in [("syn", warm + added), ("warm", warm)] {
                let labels =
                    [("runtime", MAIN), ("protocol", "http"), ("trigger", trigger), ("round_trip_ms", &*at)];
                samples.add(FIGURE, &labels, "ms", ms);
            }
        }
        let found = found_break(&samples, &round_trips).unwrap();
        assert!((found - 255.0).abs() < 0.01, "{found}");
        assert_eq!(found_break(&Samples::default(), &[]), None);
    }
}
