//! What goes through the sockets of an instance.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use headstart_injector::{
    Address, BackendKind, BackendSpec, Pool, PoolSettings, PostgresLogin, Secret, Sockets, Tls, TlsSettings,
};
use headstart_integration_tests::evidence::bench::Run;
use headstart_integration_tests::lab::{PostgresServer, PostgresSetup, Scratch};

/// Turns, seconds of each, and clients of what connects for each query.
const TURNS: usize = 5;
const QUICK_TURNS: usize = 1;
const RECONNECT_SECONDS: u32 = 3;
const RECONNECT_CLIENTS: usize = 4;
/// A result of this many megabytes.
const COPY: &str = "copy (select repeat('x', 999999) from generate_series(1, 400)) to stdout";
const COPY_MB: f64 = 400.0;

/// Clients that connect anew for each query, over the sockets of an instance: discarded and recycled sessions, by turns.
pub(super) fn reconnects(run: &mut Run) -> Result<()> {
    let postgres = PostgresSetup::default().tls().start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let files = Scratch::new("sockets")?;
    let script = files.path().join("query.sql");
    fs::write(&script, "select 1;\n")?;
    let ways = ["discard", "recycle"].map(|way| (way, files.path().join(way)));
    let turns = run.many(TURNS, QUICK_TURNS);
    run.expect(turns * ways.len());
    for _ in 0..turns {
        for turn in run.order(ways.len()) {
            let (way, directory) = &ways[turn];
            run.step(&format!("a connection for each query, {way}"))?;
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
            let labels = [("on_release", *way)];
            run.samples.add("inject_reconnects_per_second", &labels, "1/s", rate);
            // A tick is 10 ms (USER_HZ).
            let each = f64::from(u32::try_from(spent)?) * 10.0 / (rate * f64::from(RECONNECT_SECONDS));
            run.samples.add("inject_reconnect_server_cpu_ms", &labels, "ms", each);
        }
    }
    Ok(())
}
/// What one client reads in a second, over TLS of its own and over the socket of an instance, whose TLS is the agent's.
pub(super) fn throughput(run: &mut Run) -> Result<()> {
    let postgres = PostgresSetup::default().tls().start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let files = Scratch::new("throughput")?;
    let spec = spec(&postgres, false)?;
    let turns = run.many(TURNS, QUICK_TURNS);
    run.expect(turns * 2);
    runtime.block_on(async {
        let pool = Pool::spawn(spec);
        let _sockets = Sockets::listen("f", "f-1", files.path(), std::slice::from_ref(&pool), 4)?;
        let address = postgres.address();
        let direct = [
            ("PGHOST", address.ip().to_string()),
            ("PGPORT", address.port().to_string()),
            ("PGSSLMODE", "verify-full".to_owned()),
            ("PGSSLROOTCERT", postgres.ca_file().display().to_string()),
            ("PGPASSWORD", PostgresServer::PASSWORD.to_owned()),
        ];
        let socket = [("PGHOST", files.path().join("orders-db").display().to_string())];
        for _ in 0..turns {
            for (way, variables) in [("direct", &direct[..]), ("socket", &socket)] {
                run.step(&format!("much data, {way}"))?;
                let mut psql = Command::new("psql");
                psql.args(["-X", "-U", PostgresServer::USER, "-d", PostgresServer::DATABASE, "-c", COPY]);
                psql.envs(variables.iter().map(|(name, value)| (name, value)));
                psql.stdout(std::process::Stdio::null());
                let began = std::time::Instant::now();
                let status = tokio::task::spawn_blocking(move || psql.status()).await??;
                ensure!(status.success(), "psql: {status}");
                let rate = COPY_MB / began.elapsed().as_secs_f64();
                run.samples.add("inject_throughput_mb_per_second", &[("way", way)], "MB/s", rate);
            }
        }
        Ok(())
    })
}

fn spec(postgres: &PostgresServer, recycle: bool) -> Result<BackendSpec> {
    let tls = TlsSettings {
        ca_file: Some(postgres.ca_file()),
        server_name: postgres.address().ip().to_string(),
        ..TlsSettings::default()
    };
    let login = PostgresLogin {
        user: PostgresServer::USER.to_owned(),
        database: PostgresServer::DATABASE.to_owned(),
        password: Some(Secret::new(PostgresServer::PASSWORD)),
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
    let mut command = Command::new(PostgresServer::program("pgbench")?);
    command.args(["-n", "-C", "-c", &RECONNECT_CLIENTS.to_string(), "-T", &RECONNECT_SECONDS.to_string()]);
    command
        .args(["-U", PostgresServer::USER, "-f"])
        .arg(script)
        .arg("-h")
        .arg(host)
        .arg(PostgresServer::DATABASE);
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
