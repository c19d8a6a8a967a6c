//! `make bench`, its injection part: from the entry of a process to its first query's result, PostgreSQL with TLS 1.3 and
//! SCRAM, by turns. It writes `target/bench/inject.json`, which the last part takes into the report, and fails when a promise
//! of SPECIFICATION.md is broken.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use headstart_injector::{
    Address, BackendKind, BackendSpec, Pool, PoolSettings, PostgresLogin, Secret, Sockets, Tls, TlsSettings,
};
use headstart_integration_tests::client;
use headstart_integration_tests::lab::{
    self, Agent, AgentSetup, Delay, Lease, Link, Namespace, Postgres, PostgresSetup, Process, Rootfs,
    Scratch, build_static, free_port, run_within,
};
use headstart_integration_tests::report::Figure;
use headstart_integration_tests::site::{Function, Kind, LIMIT};
use serde_json::Value;

/// The median of a way to the first result over that of the injected connection.
const RATIO: &str = "inject_first_result_ratio";
/// From the node to the database and back.
const ROUND_TRIPS_MS: [u64; 3] = [0, 1, 5];
/// Samples of each way, after some that do not count.
const TURNS: usize = 60;
const WARMUP: usize = 5;
/// Turns, seconds of each, and clients of what connects for each query.
const RECONNECT_TURNS: usize = 5;
const RECONNECT_SECONDS: u32 = 3;
const RECONNECT_CLIENTS: usize = 4;
/// A result of this many megabytes.
const COPY: &str = "copy (select repeat('x', 999999) from generate_series(1, 400)) to stdout";
const COPY_MB: f64 = 400.0;
/// Cold starts in a row, for the tail.
const STARTS: usize = 1_000;
const DATABASE_PORT: u16 = 5432;
/// The promises: how many times as long as injected the median of another way takes, at this round trip.
const PROMISES: [(&str, &str, f64); 2] = [("direct", "1", 5.0), ("pgbouncer_unix", "0", 1.0)];

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("inject: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "it needs root: network namespaces, PostgreSQL");
    let _lease = Lease::take()?;
    let (mut figures, mut broken) = (Vec::new(), Vec::new());
    for round_trip in ROUND_TRIPS_MS {
        println!("database at {round_trip} ms ...");
        for figure in first_results(round_trip)? {
            println!("  {}", figure.value());
            broken.extend(broken_promise(&figure.value()));
            figures.push(figure.value());
        }
    }
    println!("a connection for each query ...");
    for figure in reconnects()? {
        println!("  {}", figure.value());
        figures.push(figure.value());
    }
    println!("much data ...");
    for figure in throughput()? {
        println!("  {}", figure.value());
        figures.push(figure.value());
    }
    let directory = lab::target_dir().join("bench");
    fs::create_dir_all(&directory)?;
    let file = directory.join("inject.json");
    fs::write(&file, serde_json::to_string_pretty(&Value::from(figures))? + "\n")?;
    println!("The figures are in {}", file.display());
    ensure!(broken.is_empty(), "{}", broken.join("; "));
    Ok(())
}

/// What is wrong with a ratio that was promised to be higher.
fn broken_promise(figure: &Value) -> Option<String> {
    let (labels, ratio) = (&figure["labels"], figure["p50"].as_f64()?);
    let (_, at, bound) = PROMISES.into_iter().find(|(way, at, _)| {
        figure["name"] == RATIO && labels["against"] == *way && labels["database_round_trip_ms"] == *at
    })?;
    (ratio < bound).then(|| {
        format!(
            "{} takes {ratio:.2} times as long as injected with the database at {at} ms, not {bound}",
            labels["against"]
        )
    })
}

/// A way to the first result.
enum Way<'a> {
    /// An instance that the agent starts.
    Function(&'a Agent, &'a Function, &'static str),
    /// A process of its own, with these variables.
    Process(Vec<(&'static str, String)>),
}

impl Way<'_> {
    /// How long the connection took, and the result from the entry of the process on, in ms.
    fn measure(&self, probe: &Path) -> Result<(f64, f64)> {
        let text = match self {
            Self::Function(agent, function, name) => {
                let reply = client::get(function.local(), "/", LIMIT)?;
                ensure!(reply.status == 200, "{}\n{}", reply.body, agent.log());
                function.cool(agent, name)?;
                reply.body
            }
            Self::Process(variables) => {
                let mut command = Command::new(probe);
                run_within(LIMIT, command.envs(variables.iter().map(|(name, value)| (name, value))))?
            }
        };
        let ns = |text: Option<&str>| -> Result<f64> {
            Ok(text.context("two times")?.trim().parse::<f64>()? / 1e6)
        };
        let mut times = text.split(' ');
        Ok((ns(times.next())?, ns(times.next())?))
    }
}

fn first_results(round_trip_ms: u64) -> Result<Vec<Figure>> {
    let database = Namespace::new("database")?;
    let link = Link::connect(&database)?;
    let postgres = PostgresSetup::default().tls().inside(&database, link.peer(DATABASE_PORT)).start()?;
    let _delay = match round_trip_ms {
        0 => None,
        ms => Some(Delay::new(&database, Duration::from_millis(ms))?),
    };
    let probe = build_static("headstart-integration-tests", "probe")?;
    let function = |way: &str, keys: &str| -> Result<Function> {
        let kind = Kind::of("process", Rootfs::with_binary("probe", &probe)?)?;
        let keys = format!(
            "{keys}env = {{ WAY = {way:?}, HOST = \"/run/headstart/backends/orders-db\", \
                            DBUSER = {:?}, DATABASE = {:?} }}\n",
            Postgres::USER,
            Postgres::DATABASE
        );
        Ok(Function { port: free_port()?.port(), prepared: 1, kind, keys })
    };
    let injected = function("injected", "tls_hand_over = true\n")?;
    let relayed = function("injected", "")?;
    let socket = function("socket", "backend_sockets = true\n")?;
    let backend = format!(
        "[[backend]]\nname = \"orders-db\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = \"{}\"\n\
         password_file = {:?}\ntls = {{ ca_file = {:?} }}\npool = {{ min_idle = 4, max = 16 }}\n",
        postgres.address(),
        Postgres::USER,
        Postgres::DATABASE,
        postgres.password_file()?,
        postgres.ca_file(),
    );
    let mut setup = AgentSetup::default().config(&backend);
    let functions = [("injected", &injected), ("relayed", &relayed), ("socket", &socket)];
    for (name, function) in functions {
        setup = setup.config(&function.text(name, &["orders-db"]));
    }
    let agent = setup.start()?;
    for (name, function) in functions {
        function.rest(&agent, name)?;
    }
    let bouncer = Bouncer::start(&postgres)?;
    let process = |host: String, tls: bool| {
        let mut variables = vec![
            ("WAY", "direct".to_owned()),
            ("HOST", host),
            ("DBUSER", Postgres::USER.to_owned()),
            ("DATABASE", Postgres::DATABASE.to_owned()),
            ("PASSWORD_FILE", bouncer.password_file.clone()),
        ];
        variables.extend(tls.then(|| ("CA_FILE", postgres.ca_file().display().to_string())));
        Way::Process(variables)
    };
    let ways = [
        ("injected", Way::Function(&agent, &injected, "injected")),
        ("relayed", Way::Function(&agent, &relayed, "relayed")),
        ("socket", Way::Function(&agent, &socket, "socket")),
        ("pgbouncer_unix", process(bouncer.socket(), false)),
        ("pgbouncer_tcp", process(format!("127.0.0.1:{}", bouncer.port), false)),
        ("direct", process(postgres.address().to_string(), true)),
    ];
    let mut samples = [const { (Vec::new(), Vec::new()) }; 6];
    for turn in 0..WARMUP + TURNS {
        for ((name, way), (connected, result)) in ways.iter().zip(&mut samples) {
            let times = way.measure(&probe).with_context(|| (*name).to_owned())?;
            if turn >= WARMUP {
                connected.push(times.0);
                result.push(times.1);
            }
        }
    }
    let round_trip = round_trip_ms.to_string();
    let (mut figures, mut medians) = (Vec::new(), Vec::new());
    for ((name, _), (connected, result)) in ways.iter().zip(&samples) {
        let labels = [("way", *name), ("database_round_trip_ms", &*round_trip)];
        figures.push(Figure::new("inject_getting_ms", &labels, "ms", connected)?);
        figures.push(Figure::new("inject_first_result_ms", &labels, "ms", result)?);
        medians.push((*name, labels[1], figures.last().map_or(f64::NAN, |figure| figure.percentile(50.0))));
    }
    let injected = medians[0].2;
    for (name, round_trip, median) in &medians[1..] {
        figures.push(Figure::new(RATIO, &[("against", name), *round_trip], "ratio", &[median / injected])?);
    }
    if round_trip_ms == 0 {
        let mut getting = Vec::new();
        for _ in 0..STARTS {
            getting.push(ways[0].1.measure(&probe)?.0);
        }
        figures.push(Figure::new("inject_getting_many_ms", &[("way", "injected")], "ms", &getting)?);
    }
    ensure!(agent.stop()?.success());
    Ok(figures)
}

/// Clients that connect anew for each query, over the sockets of an instance: discarded and recycled sessions, by turns.
fn reconnects() -> Result<Vec<Figure>> {
    let postgres = PostgresSetup::default().tls().start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let files = Scratch::new("sockets")?;
    let script = files.path().join("query.sql");
    fs::write(&script, "select 1;\n")?;
    let mut figures = Vec::new();
    let ways = ["discard", "recycle"].map(|way| (way, files.path().join(way)));
    let mut samples = [const { (Vec::new(), Vec::new()) }; 2];
    for _ in 0..RECONNECT_TURNS {
        for ((way, directory), (rates, ticks)) in ways.iter().zip(&mut samples) {
            fs::create_dir_all(directory)?;
            let spec = spec(&postgres, *way == "recycle")?;
            let before = postgres.cpu_ticks()?;
            let rate = runtime.block_on(async {
                let pool = Pool::spawn(spec);
                let pools = std::slice::from_ref(&pool);
                let _sockets = Sockets::listen("f", "f-1", directory, pools, RECONNECT_CLIENTS + 1)?;
                let pgbench = pgbench(&script, &directory.join("orders-db"))?;
                tokio::task::spawn_blocking(move || rate(pgbench)).await?
            })?;
            let spent = postgres.cpu_ticks()? - before;
            rates.push(rate);
            // A tick is 10 ms (USER_HZ).
            ticks.push(f64::from(u32::try_from(spent)?) * 10.0 / (rate * f64::from(RECONNECT_SECONDS)));
        }
    }
    for ((way, _), (rates, ticks)) in ways.iter().zip(&samples) {
        let labels = [("on_release", *way)];
        figures.push(Figure::new("inject_reconnects_per_second", &labels, "1/s", rates)?);
        figures.push(Figure::new("inject_reconnect_server_cpu_ms", &labels, "ms", ticks)?);
    }
    Ok(figures)
}

/// What one client reads in a second, over TLS of its own and over the socket of an instance, whose TLS is the agent's.
fn throughput() -> Result<Vec<Figure>> {
    let postgres = PostgresSetup::default().tls().start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let files = Scratch::new("throughput")?;
    let spec = spec(&postgres, false)?;
    let mut rates = [const { Vec::new() }; 2];
    runtime.block_on(async {
        let pool = Pool::spawn(spec);
        let _sockets = Sockets::listen("f", "f-1", files.path(), std::slice::from_ref(&pool), 4)?;
        let address = postgres.address();
        let direct = [
            ("PGHOST", address.ip().to_string()),
            ("PGPORT", address.port().to_string()),
            ("PGSSLMODE", "verify-full".to_owned()),
            ("PGSSLROOTCERT", postgres.ca_file().display().to_string()),
            ("PGPASSWORD", Postgres::PASSWORD.to_owned()),
        ];
        let socket = [("PGHOST", files.path().join("orders-db").display().to_string())];
        for _ in 0..RECONNECT_TURNS {
            for (variables, rates) in [&direct[..], &socket].into_iter().zip(&mut rates) {
                let mut psql = Command::new("psql");
                psql.args(["-X", "-U", Postgres::USER, "-d", Postgres::DATABASE, "-c", COPY]);
                psql.envs(variables.iter().map(|(name, value)| (name, value)));
                psql.stdout(std::process::Stdio::null());
                let began = std::time::Instant::now();
                let status = tokio::task::spawn_blocking(move || psql.status()).await??;
                ensure!(status.success(), "psql: {status}");
                rates.push(COPY_MB / began.elapsed().as_secs_f64());
            }
        }
        Ok(())
    })?;
    let figure = |way, rates| Figure::new("inject_throughput_mb_per_second", &[("way", way)], "MB/s", rates);
    Ok(vec![figure("direct", &rates[0])?, figure("socket", &rates[1])?])
}

fn spec(postgres: &Postgres, recycle: bool) -> Result<BackendSpec> {
    let tls = TlsSettings {
        ca_file: Some(postgres.ca_file()),
        server_name: postgres.address().ip().to_string(),
        ..TlsSettings::default()
    };
    let login = PostgresLogin {
        user: Postgres::USER.to_owned(),
        database: Postgres::DATABASE.to_owned(),
        password: Some(Secret::new(Postgres::PASSWORD)),
        ..PostgresLogin::default()
    };
    Ok(BackendSpec {
        name: "orders-db".into(),
        kind: BackendKind::Postgres(login),
        address: Address::Tcp(postgres.address().to_string()),
        tls: Some(Tls::new(&tls)?),
        pool: PoolSettings { min_idle: 4, max: 16, recycle, ..PoolSettings::default() },
    })
}

fn pgbench(script: &Path, host: &Path) -> Result<Command> {
    let mut command = Command::new(Postgres::program("pgbench")?);
    command.args(["-n", "-C", "-c", &RECONNECT_CLIENTS.to_string(), "-T", &RECONNECT_SECONDS.to_string()]);
    command.args(["-U", Postgres::USER, "-f"]).arg(script).arg("-h").arg(host).arg(Postgres::DATABASE);
    Ok(command)
}

/// Transactions per second, the connections included.
fn rate(mut pgbench: Command) -> Result<f64> {
    let output = pgbench.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("tps = "));
    let number = line.and_then(|line| line.split(' ').nth(2));
    Ok(number.with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?.parse()?)
}

/// PgBouncer before the database, over TLS, with SCRAM on both sides, its pool full.
struct Bouncer {
    _server: Process,
    files: Scratch,
    port: u16,
    password_file: String,
}

impl Bouncer {
    fn start(postgres: &Postgres) -> Result<Self> {
        let files = Scratch::new("pgbouncer")?;
        let (path, port) = (files.path(), free_port()?.port());
        let users = path.join("users");
        fs::write(&users, format!("\"{}\" \"{}\"\n", Postgres::USER, Postgres::PASSWORD))?;
        let ca = path.join("ca.pem");
        fs::copy(postgres.ca_file(), &ca)?;
        let address = postgres.address();
        let config = path.join("pgbouncer.ini");
        fs::write(
            &config,
            format!(
                "[databases]\n{} = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir = {}\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = session\nmin_pool_size = 4\n\
             default_pool_size = 16\nserver_tls_sslmode = verify-full\nserver_tls_ca_file = {}\n\
             ignore_startup_parameters = extra_float_digits\n",
                Postgres::DATABASE,
                address.ip(),
                address.port(),
                path.display(),
                users.display(),
                ca.display(),
            ),
        )?;
        let user = nix::unistd::User::from_name("postgres")?.context("there is no user postgres")?;
        for file in [path, &users, &ca, &config] {
            chown(file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "/usr/sbin/pgbouncer"])
            .arg(&config);
        let server = Process::spawn(&mut command)?;
        server.wait_line("process up", LIMIT)?;
        let password_file = postgres.password_file()?.display().to_string();
        Ok(Self { _server: server, files, port, password_file })
    }

    fn socket(&self) -> String {
        self.files.path().join(format!(".s.PGSQL.{}", self.port)).display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_below_its_promise_is_told() {
        let figure = |against, at, ratio| {
            let labels = [("against", against), ("database_round_trip_ms", at)];
            broken_promise(&Figure::new(RATIO, &labels, "ratio", &[ratio]).ok()?.value())
        };
        assert!(figure("direct", "1", 4.9).is_some_and(|told| told.contains("4.90")));
        assert!(figure("pgbouncer_unix", "0", 0.99).is_some());
        for (against, at, ratio) in [("direct", "1", 5.0), ("direct", "0", 0.5), ("socket", "1", 0.5)] {
            assert_eq!(figure(against, at, ratio), None);
        }
    }
}
