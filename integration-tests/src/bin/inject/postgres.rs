//! From the entry of a process to its first query's result, by several ways and distances, by turns.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use headstart_integration_tests::evidence::bench::Run;
use headstart_integration_tests::evidence::report::levene;
use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    AgentSetup, ChildProcess, Distance, Link, Namespace, PostgresServer, PostgresSetup, Rootfs, RunningAgent,
    Scratch, build_static, client, free_port, run_within,
};

/// From the node to the database and back.
const ROUND_TRIPS_MS: [u64; 6] = [0, 1, 5, 10, 50, 100];
const QUICK_ROUND_TRIPS_MS: [u64; 2] = [0, 1];
/// Samples of each way and distance, after some that do not count.
const TURNS: usize = 60;
const QUICK_TURNS: usize = 10;
const WARMUP: usize = 3;
/// Cold starts in a row, for the tail.
const STARTS: usize = 1_000;
const QUICK_STARTS: usize = 100;
const DATABASE_PORT: u16 = 5432;
const GETTING: &str = "inject_getting_ms";
const FIRST_RESULT: &str = "inject_first_result_ms";

/// A way to the first result.
enum SessionWay<'a> {
    /// An instance that the agent starts.
    Function(&'a RunningAgent, &'a TestFunction, &'static str),
    /// A process of its own, with these variables.
    Process(Vec<(&'static str, String)>),
}

impl SessionWay<'_> {
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

pub(super) fn first_results(run: &mut Run) -> Result<()> {
    let database = Namespace::new("database")?;
    let link = Link::connect(&database)?;
    let mut distance = Distance::of(&database);
    let postgres = PostgresSetup::default().tls().inside(&database, link.peer(DATABASE_PORT)).start()?;
    let probe = build_static("headstart-lab-functions", "probe")?;
    let function = |way: &str, keys: &str| -> Result<TestFunction> {
        let kind = FunctionKind::of("process", Rootfs::with_binary("probe", &probe)?)?;
        let keys = format!(
            "{keys}env = {{ WAY = {way:?}, HOST = \"/run/headstart/backends/orders-db\", \
                            DBUSER = {:?}, DATABASE = {:?} }}\n",
            PostgresServer::USER,
            PostgresServer::DATABASE
        );
        Ok(TestFunction { port: free_port()?.port(), prepared: 1, kind, keys })
    };
    let injected = function("injected", "tls_hand_over = true\n")?;
    let relayed = function("injected", "")?;
    let socket = function("socket", "backend_sockets = true\n")?;
    let backend = format!(
        "[[backend]]\nname = \"orders-db\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = \"{}\"\n\
         password_file = {:?}\ntls = {{ ca_file = {:?} }}\npool = {{ min_idle = 4, max = 16 }}\n",
        postgres.address(),
        PostgresServer::USER,
        PostgresServer::DATABASE,
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
            ("DBUSER", PostgresServer::USER.to_owned()),
            ("DATABASE", PostgresServer::DATABASE.to_owned()),
            ("PASSWORD_FILE", bouncer.password_file.clone()),
        ];
        variables.extend(tls.then(|| ("CA_FILE", postgres.ca_file().display().to_string())));
        SessionWay::Process(variables)
    };
    let ways = [
        ("injected", SessionWay::Function(&agent, &injected, "injected")),
        ("relayed", SessionWay::Function(&agent, &relayed, "relayed")),
        ("socket", SessionWay::Function(&agent, &socket, "socket")),
        ("pgbouncer_unix", process(bouncer.socket(), false)),
        ("pgbouncer_tcp", process(format!("127.0.0.1:{}", bouncer.port), false)),
        ("direct", process(postgres.address().to_string(), true)),
    ];
    let round_trips = run.of(&ROUND_TRIPS_MS, &QUICK_ROUND_TRIPS_MS);
    let turns = run.many(TURNS, QUICK_TURNS);
    run.expect((WARMUP + turns) * round_trips.len() * ways.len());
    for turn in 0..WARMUP + turns {
        for at in run.order(round_trips.len()) {
            let at = round_trips[at];
            distance.set(Duration::from_millis(at))?;
            let at = at.to_string();
            for way in run.order(ways.len()) {
                let (name, way) = &ways[way];
                run.step(&format!("{name}, database at {at} ms"))?;
                agent.wait_idle("orders-db", 1, LIMIT)?;
                let (connected, result) = way.measure(&probe).with_context(|| (*name).to_owned())?;
                if turn >= WARMUP {
                    let labels = [("way", *name), ("database_round_trip_ms", &*at)];
                    run.samples.add(GETTING, &labels, "ms", connected);
                    run.samples.add(FIRST_RESULT, &labels, "ms", result);
                }
            }
        }
    }
    for at in &round_trips {
        let at = ("database_round_trip_ms", &*at.to_string());
        for (figure, ratio) in
            [(GETTING, "inject_getting_ratio"), (FIRST_RESULT, "inject_first_result_ratio")]
        {
            for (name, _) in &ways[1..] {
                let [injected, other] =
                    ["injected", name].map(|way| run.samples.median(figure, &[("way", way), at]));
                run.samples.add(ratio, &[("against", name), at], "ratio", other / injected);
            }
        }
        let labels = |way| [("way", way), at];
        let samples =
            ["direct", "injected"].map(|way| run.samples.get(GETTING, &[("way", way), at]).to_vec());
        let groups = [&samples[0][..], &samples[1]];
        let p = levene::levene(&groups)?.p;
        run.samples.derive("inject_getting_levene_p", &[at], "1", p, levene::basis(&groups));
        let more = run.samples.median(FIRST_RESULT, &labels("socket"))
            - run.samples.median(FIRST_RESULT, &labels("injected"));
        run.samples.add("inject_socket_more_ms", &[at], "ms", more);
    }
    distance.set(Duration::ZERO)?;
    let starts = run.many(STARTS, QUICK_STARTS);
    run.expect(starts);
    for _ in 0..starts {
        run.step("one cold start after the other")?;
        let (connected, _) = ways[0].1.measure(&probe)?;
        run.samples.add("inject_getting_many_ms", &[("way", "injected")], "ms", connected);
    }
    ensure!(agent.stop()?.success());
    Ok(())
}

/// PgBouncer before the database, over TLS, with SCRAM on both sides, its pool full.
struct Bouncer {
    _server: ChildProcess,
    files: Scratch,
    port: u16,
    password_file: String,
}

impl Bouncer {
    fn start(postgres: &PostgresServer) -> Result<Self> {
        let files = Scratch::new("pgbouncer")?;
        let (path, port) = (files.path(), free_port()?.port());
        let users = path.join("users");
        fs::write(&users, format!("\"{}\" \"{}\"\n", PostgresServer::USER, PostgresServer::PASSWORD))?;
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
                PostgresServer::DATABASE,
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
        let server = ChildProcess::spawn(&mut command)?;
        server.wait_line("process up", LIMIT)?;
        let password_file = postgres.password_file()?.display().to_string();
        Ok(Self { _server: server, files, port, password_file })
    }

    fn socket(&self) -> String {
        self.files.path().join(format!(".s.PGSQL.{}", self.port)).display().to_string()
    }
}
