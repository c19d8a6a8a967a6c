//! Plain TCP: what the paper on injection measures.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use headstart_integration_tests::evidence::bench::Run;
use headstart_integration_tests::evidence::report::levene;
use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    AgentSetup, Distance, DockerDaemon, Link, Namespace, Rootfs, build_static, client, free_port, run_within,
};

/// What is added to the handshake; the paper has no 1 ms, which is what a server in the same data centre may take.
const ADDED_MS: [u64; 5] = [0, 1, 10, 50, 100];
const QUICK_ADDED_MS: [u64; 2] = [0, 1];
const ITERATIONS: usize = 1_000;
const QUICK_ITERATIONS: usize = 50;
/// Lives of a container of Docker's, each of which takes half a second.
const LIVES: usize = 60;
const QUICK_LIVES: usize = 3;
const WARMUP: usize = 3;
const PORT: u16 = 7000;
const GETTING: &str = "inject_get_us";
const LIFE: &str = "inject_lifecycle_ms";

/// The connection is there: directly, in a process that was just started; or injected, in an instance.
pub(super) fn getting(run: &mut Run) -> Result<()> {
    let mut server = SilentServer::start()?;
    let probe = build_static("headstart-lab-functions", "probe")?;
    let function = function(
        FunctionKind::of("process", Rootfs::with_binary("probe", &probe)?)?,
        "injected",
        &server,
        "",
    )?;
    let agent = server.agent().config(&function.text("probe", &["orders-db"])).start()?;
    function.rest(&agent, "probe")?;
    let added = run.of(&ADDED_MS, &QUICK_ADDED_MS);
    let iterations = run.many(ITERATIONS, QUICK_ITERATIONS);
    run.expect((WARMUP + iterations) * added.len() * 2);
    // A distance for a while: to change it takes longer than a connection.
    for at in run.order(added.len()) {
        server.distance.set(Duration::from_millis(added[at]))?;
        let at = added[at].to_string();
        for iteration in 0..WARMUP + iterations {
            for way in run.order(2) {
                let way = ["direct", "injected"][way];
                run.step(&format!("{way}, {at} ms added"))?;
                let text = if way == "direct" {
                    let mut command = Command::new(&probe);
                    command.envs([("WAY", "connect"), ("QUERY", "later")]);
                    run_within(LIMIT, command.env("HOST", server.address.to_string()))?
                } else {
                    agent.wait_idle("orders-db", 1, LIMIT)?;
                    let reply = client::get(function.local(), "/", LIMIT)?;
                    ensure!(reply.status == 200, "{}\n{}", reply.body, agent.log());
                    function.cool(&agent, "probe")?;
                    reply.body
                };
                let got = text.split(' ').next().context("a time")?.trim().parse::<f64>()? / 1e3;
                if iteration >= WARMUP {
                    run.samples.add(GETTING, &[("way", way), ("added_ms", &at)], "us", got);
                }
            }
        }
    }
    for at in added {
        let at = at.to_string();
        let samples = ["direct", "injected"]
            .map(|way| run.samples.get(GETTING, &[("way", way), ("added_ms", &at)]).to_vec());
        compare(run, "inject_get", &at, &samples)?;
    }
    ensure!(agent.stop()?.success());
    Ok(())
}

/// From the request for a container to its removal, where its function gets a connection meanwhile.
pub(super) fn lives(run: &mut Run) -> Result<()> {
    let mut server = SilentServer::start()?;
    let docker = Arc::new(DockerDaemon::bridged()?);
    docker.bridge().context("it has one")?.route(&server.link)?;
    let functions = ["direct", "injected"].map(|way| {
        let rootfs = Rootfs::with_binary("probe", &build_static("headstart-lab-functions", "probe")?)?;
        let kind = FunctionKind::Docker { image: rootfs.docker_image(&docker)?, docker: Arc::clone(&docker) };
        let word = if way == "direct" { "connect" } else { way };
        anyhow::Ok((way, function(kind, word, &server, "network = \"bridge\"\n")?))
    });
    let mut setup = server.agent().docker(&docker);
    let mut served = Vec::new();
    for function in functions {
        let (way, function) = function?;
        let backends: &[&str] = if way == "injected" { &["orders-db"] } else { &[] };
        setup = setup.config(&function.text(way, backends));
        served.push((way, function));
    }
    let agent = setup.start()?;
    let added = run.of(&ADDED_MS, &QUICK_ADDED_MS);
    let lives = run.many(LIVES, QUICK_LIVES);
    run.expect((1 + lives) * added.len() * served.len());
    for life in 0..=lives {
        for at in run.order(added.len()) {
            server.distance.set(Duration::from_millis(added[at]))?;
            let at = added[at].to_string();
            for turn in run.order(served.len()) {
                let (way, function) = &served[turn];
                run.step(&format!("a life, {way}, {at} ms added"))?;
                agent.wait_idle("orders-db", 1, LIMIT)?;
                let begin = Instant::now();
                let reply = client::get(function.local(), "/", LIMIT)?;
                ensure!(reply.status == 200, "{}\n{}", reply.body, agent.log());
                function.cool(&agent, way)?;
                let took = begin.elapsed().as_secs_f64() * 1e3;
                if life > 0 {
                    run.samples.add(LIFE, &[("way", way), ("added_ms", &at)], "ms", took);
                }
            }
        }
    }
    for at in added {
        let at = at.to_string();
        let samples = ["direct", "injected"]
            .map(|way| run.samples.get(LIFE, &[("way", way), ("added_ms", &at)]).to_vec());
        compare(run, "inject_lifecycle", &at, &samples)?;
    }
    ensure!(agent.stop()?.success());
    Ok(())
}

/// How many times as long the one takes as the other, and whether they vary alike.
fn compare(run: &mut Run, what: &str, at: &str, [direct, injected]: &[Vec<f64>; 2]) -> Result<()> {
    let (ratio, p) = match what {
        "inject_get" => ("inject_get_ratio", "inject_get_levene_p"),
        _ => ("inject_lifecycle_ratio", "inject_lifecycle_levene_p"),
    };
    let median = |samples: &[f64]| {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        headstart_statistics::percentile(&sorted, 50.0)
    };
    run.samples.add(ratio, &[("added_ms", at)], "ratio", median(direct) / median(injected));
    let groups = [&direct[..], injected];
    run.samples.derive(p, &[("added_ms", at)], "1", levene::levene(&groups)?.p, levene::basis(&groups));
    Ok(())
}

fn function(kind: FunctionKind, way: &str, server: &SilentServer, keys: &str) -> Result<TestFunction> {
    let keys = format!(
        "{keys}env = {{ WAY = {way:?}, QUERY = \"later\", HOST = {:?} }}\n",
        server.address.to_string()
    );
    let prepared = usize::from(matches!(kind, FunctionKind::Process(_)));
    Ok(TestFunction { port: free_port()?.port(), prepared, kind, keys })
}

/// What accepts connections on another host, and says nothing.
struct SilentServer {
    distance: Distance,
    link: Link,
    address: SocketAddr,
    _namespace: Namespace,
}

impl SilentServer {
    fn start() -> Result<Self> {
        let namespace = Namespace::new("server")?;
        let link = Link::connect(&namespace)?;
        let address = link.peer(PORT);
        let listener = namespace.enter(|| TcpListener::bind(address))??;
        // They end with the process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || (&stream).read(&mut [0]));
            }
        });
        Ok(Self { distance: Distance::of(&namespace), link, address, _namespace: namespace })
    }

    /// An agent with a pool of connections to it.
    fn agent(&self) -> AgentSetup {
        AgentSetup::default().config(&format!(
            "[[backend]]\nname = \"orders-db\"\nkind = \"tcp\"\naddress = \"{}\"\n\
             pool = {{ min_idle = 16, max = 64 }}\n",
            self.address
        ))
    }
}
