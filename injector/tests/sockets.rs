//! Sockets for drivers that know nothing of pools: here for `psql`, which is libpq.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{Postgres, postgres, spec, until};
use headstart_injector::{BackendKind, BackendSpec, Pool, Sockets};

struct Bed {
    server: Postgres,
    pool: Pool,
    sockets: Sockets,
    directory: tempfile::TempDir,
}

impl Bed {
    /// Must be called within a runtime of several threads: clients block theirs.
    fn new(clients_max: usize) -> Option<Self> {
        Self::with(clients_max, |_| {})
    }

    fn with(clients_max: usize, change: impl FnOnce(&mut BackendSpec)) -> Option<Self> {
        let server = Postgres::start()?;
        let mut spec = spec(BackendKind::Postgres(postgres("scrammer")), server.tcp());
        change(&mut spec);
        let pool = Pool::spawn(spec);
        let directory = tempfile::tempdir().expect("a directory");
        let sockets = Sockets::listen("f", "f-1", directory.path(), std::slice::from_ref(&pool), clients_max)
            .expect("sockets");
        Some(Self { server, pool, sockets, directory })
    }

    fn host(&self) -> PathBuf {
        self.directory.path().join("orders-db")
    }

    fn psql(&self) -> Command {
        let mut command = Command::new("psql");
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "scrammer",
            "-d",
            "orders",
            "-w",
        ]);
        command.arg("-h").arg(self.host()).env_remove("PGPASSWORD");
        command
    }

    fn query(&self, sql: &str) -> String {
        said(self.psql().args(["-c", sql]).output().expect("psql"))
    }
}

/// What it printed, errors included.
fn said(output: Output) -> String {
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).expect("UTF-8").trim().to_owned()
}

fn socket(host: &Path) -> UnixStream {
    UnixStream::connect(host.join(".s.PGSQL.5432")).expect("connected")
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_needs_no_password_and_gets_what_it_asks_for() {
    let Some(bed) = Bed::new(8) else { return };
    assert_eq!(bed.query("select current_user, current_database()"), "scrammer|orders");
    assert_eq!(bed.query("show application_name"), "psql");
    let options = "-c statement_timeout=1234 --search_path=a\\,\\ b";
    let mut psql = bed.psql();
    psql.env("PGOPTIONS", options).args(["-c", "show statement_timeout", "-c", "show search_path"]);
    let shown = said(psql.output().expect("psql"));
    assert_eq!(shown, "1234ms\na, b");
    // Nothing of it stays for the next: every client has a connection of its own.
    assert_eq!(bed.query("show statement_timeout"), "0");
    let long = bed.query("select repeat('x', 3000000)");
    assert_eq!(long.len(), 3_000_000);
    until(&bed.pool, "nothing is left", |status| status.leased == 0).await;
}

/// asyncpg's pool sends `RESET ALL` whenever a connection comes back to it.
const ASYNCPG: &str = r#"
import asyncio, asyncpg, sys
async def main():
    settings = {"search_path": "apart", "statement_timeout": "1234", "timezone": "Asia/Tokyo"}
    pool = await asyncpg.create_pool(
        host=sys.argv[1], user="scrammer", database="orders", min_size=1, max_size=1, server_settings=settings)
    for _ in range(3):
        async with pool.acquire() as connection:
            shown = [await connection.fetchval("show " + name) for name in settings]
            print(*shown, await connection.fetchval("select pg_backend_pid()"))
            await connection.execute("set timezone = 'CET'")
    await pool.close()
asyncio.run(main())
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_asks_for_at_its_login_is_what_reset_goes_back_to() {
    for recycle in [false, true] {
        let Some(bed) = Bed::with(8, |spec| spec.pool.recycle = recycle) else { return };
        let mut pids = Vec::new();
        for _ in 0..2 {
            let mut python = Command::new("/usr/bin/python3");
            let shown = said(python.args(["-c", ASYNCPG]).arg(bed.host()).output().expect("python3"));
            let lines: Vec<_> = shown.lines().map(|line| line.rsplit_once(' ').unwrap_or_default()).collect();
            assert_eq!(lines.len(), 3, "{shown}");
            assert!(lines.iter().all(|(values, _)| *values == "apart 1234ms Asia/Tokyo"), "{shown}");
            pids.push(lines[2].1.to_owned());
            until(&bed.pool, "nothing is leased", |status| status.leased == 0).await;
        }
        assert_eq!(pids[0] == pids[1], recycle, "the same session");
        let mut psql = bed.psql();
        psql.env("PGOPTIONS", "-c search_path=b -c log_connections=off");
        let text = said(psql.args(["-c", "discard all", "-c", "show search_path"]).output().expect("psql"));
        assert!(text.contains("permission denied to set parameter \"log_connections\""), "{text}");
        let mut psql = bed.psql();
        psql.env("PGOPTIONS", "-c search_path=b").args(["-c", "discard all", "-c", "show search_path"]);
        assert_eq!(said(psql.output().expect("psql")), "b");
        // Who asks for nothing gets nothing of that.
        assert_eq!(bed.query("show search_path"), "\"$user\", public");
        assert!(!bed.pool.is_down(), "a refused parameter is no failure of the server");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_honoured_is_refused_as_the_server_would() {
    let Some(bed) = Bed::new(8) else { return };
    let with = |arguments: &[&str], (name, value): (&str, &str)| {
        said(bed.psql().env(name, value).args(arguments).args(["-c", "select 1"]).output().expect("psql"))
    };
    let none = ("A", "B");
    for (said, why) in [
        (with(&["-U", "root"], none), "the agent logs in as \"scrammer\""),
        (with(&["-d", "postgres"], none), "lead to the database \"orders\""),
        (with(&["-d", "dbname=orders replication=database"], none), "replication is not possible"),
        (with(&[], ("PGOPTIONS", "-d 5")), "only parameters can be set"),
        // The server's own words.
        (with(&[], ("PGOPTIONS", "-c no_such=1")), "no_such"),
        (with(&[], ("PGOPTIONS", "-c work_mem=x")), "invalid value for parameter \"work_mem\""),
        (with(&[], ("PGOPTIONS", "-c fsync=off")), "fsync"),
        (with(&[], ("PGOPTIONS", "-c application_name=');drop\\ role\\ scrammer;--")), "1"),
    ] {
        assert!(said.contains(why), "{why}: {said}");
    }
    assert_eq!(bed.query("select 1"), "1", "the other session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_cancelled_by_its_own_client_only() {
    let Some(bed) = Bed::new(8) else { return };
    let sleeping =
        "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'";
    let sleep = || -> Child {
        let mut command = bed.psql();
        command.args(["-c", "select pg_sleep(60)"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("psql")
    };
    let (mut other, own) = (sleep(), sleep());
    while bed.server.psql(sleeping).trim() != "2" {}

    // The server's process number is public; the secret is not, and is not the server's.
    let pids = bed.server.psql("select pid from pg_stat_activity where query like 'select pg_sleep%'");
    for pid in pids.split_whitespace().map(|pid| pid.parse::<i32>().expect("a number")) {
        for secret in [0, 1, pid] {
            let mut guess = socket(&bed.host());
            for number in [16, 80_877_102, pid, secret] {
                guess.write_all(&number.to_be_bytes()).expect("sent");
            }
            assert_eq!(guess.read(&mut [0]).expect("closed"), 0, "as a server does");
        }
    }
    assert_eq!(bed.server.psql(sleeping).trim(), "2");

    let id = nix::unistd::Pid::from_raw(own.id().try_into().expect("a process"));
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).expect("sent");
    let text = said(own.wait_with_output().expect("psql"));
    assert!(text.contains("canceling statement due to user request"), "{text}");
    assert_eq!(bed.server.psql(sleeping).trim(), "1", "the other sleeps on");

    // All ends with the sockets.
    drop(bed.sockets);
    until(&bed.pool, "nothing is left", |status| status.leased == 0).await;
    assert!(!other.wait().expect("psql").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_clients_are_told_and_the_first_connection_is_ready_before_it_is_asked_for() {
    let Some(bed) = Bed::new(1) else { return };
    bed.sockets.expect_clients();
    until(&bed.pool, "one is reserved", |status| status.leased == 1).await;
    let mut psql = bed.psql();
    let mut first = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql");
    let mut stdin = first.stdin.take().expect("a pipe");
    stdin.write_all(b"select 1;\n").expect("sent");
    let mut one = [0; 2];
    first.stdout.take().expect("a pipe").read_exact(&mut one).expect("an answer");
    assert_eq!(bed.pool.status().leased, 1, "it was the reserved one");
    let text = bed.query("select 1");
    assert!(text.contains("as many connections as it may have"), "{text}");
    drop(stdin);
    assert!(first.wait().expect("psql").success());
    until(&bed.pool, "nothing is left", |status| status.leased == 0).await;
    // Its place is free a moment after its connection.
    assert!((0..100).any(|_| bed.query("select 1") == "1"), "there is room again");
}

/// A client that says nothing costs a descriptor of the agent for as long as its place is its own.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_say_nothing_are_no_more_than_there_are_places() {
    let Some(bed) = Bed::new(1) else { return };
    let host = bed.host();
    let closed = tokio::task::spawn_blocking(move || {
        let clients: Vec<_> = (0..100).map(|_| socket(&host)).collect();
        let ended = |client: &&UnixStream| {
            client.set_nonblocking(true).expect("a socket");
            matches!((&**client).read(&mut [0; 64]), Ok(0))
        };
        let began = std::time::Instant::now();
        // One is served, and sixteen are asked what they want.
        while clients.iter().filter(ended).count() < 100 - 17 {
            assert!(began.elapsed().as_secs() < 30, "{}", clients.iter().filter(ended).count());
            std::thread::yield_now();
        }
    });
    closed.await.expect("clients");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named() {
    let Some(bed) = Bed::new(8) else { return };
    bed.server.stop();
    let text = bed.query("select 1");
    assert!(text.contains("backend orders-db at 127.0.0.1:") && text.contains("cannot connect"), "{text}");
    assert!(!text.contains(common::PASSWORD));
    bed.server.run();
    assert_eq!(bed.query("select 1"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_cleaned_and_used_again_by_the_same_function_only() {
    let warm = vec!["prepare warm as select 7".to_owned()];
    let Some(bed) = Bed::with(8, |spec| {
        spec.pool.recycle = true;
        let BackendKind::Postgres(login) = &mut spec.kind else { panic!("PostgreSQL") };
        login.warm_up = warm;
    }) else {
        return;
    };
    let pid = "select pg_backend_pid()";
    let first = bed.query(pid);
    until(&bed.pool, "kept", |status| status.kept == 1).await;
    // It leaves behind what it can, in an open transaction.
    let dirt = "set statement_timeout = 1234; create temporary table t (i int); \
                prepare p as select 1; listen c; select pg_advisory_lock(1); declare k cursor with hold for select 1; \
                begin; select pg_backend_pid()";
    let said = bed.query(dirt);
    assert!(said.ends_with(&first), "the same session: {said}");
    until(&bed.pool, "kept", |status| status.kept == 1).await;
    let rest = "select current_user, current_setting('statement_timeout'), to_regclass('t') is null, \
                (select count(*) from pg_prepared_statements), (select count(*) from pg_cursors), \
                (select count(*) from pg_locks where locktype = 'advisory'), (select count(*) from pg_listening_channels())";
    // The only statement that is prepared is the one that the login leaves.
    assert_eq!(bed.query(rest), "scrammer|0|t|1|0|0|0");
    assert_eq!(bed.query("execute warm"), "7");
    until(&bed.pool, "kept", |status| status.kept == 1).await;
    assert_eq!(bed.query(pid), first);

    // Another function has other sessions.
    let directory = tempfile::tempdir().expect("a directory");
    let pools = std::slice::from_ref(&bed.pool);
    let _other = Sockets::listen("g", "g-1", directory.path(), pools, 8).expect("sockets");
    until(&bed.pool, "kept", |status| status.kept == 1).await;
    let mut psql = bed.psql();
    psql.arg("-h").arg(directory.path().join("orders-db")).args(["-c", pid]);
    assert_ne!(self::said(psql.output().expect("psql")), first);
    until(&bed.pool, "both are kept", |status| status.kept == 2).await;

    // Who leaves without a word, or in the middle of something, leaves nothing for others.
    let mut killed: Child = bed.psql().args(["-c", "select pg_sleep(60)"]).spawn().expect("psql");
    until(&bed.pool, "leased", |status| status.leased == 1).await;
    killed.kill().expect("killed");
    killed.wait().expect("gone");
    until(&bed.pool, "given up", |status| status.leased == 0).await;
    assert_eq!(bed.pool.status().kept, 1, "that of the other function");
    assert_ne!(bed.query(pid), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_gets_no_older_than_allowed() {
    let Some(bed) = Bed::with(8, |spec| {
        (spec.pool.recycle, spec.pool.max_age) = (true, std::time::Duration::ZERO);
    }) else {
        return;
    };
    assert_eq!(bed.query("select 1"), "1");
    let status = until(&bed.pool, "given up", |status| status.leased == 0).await;
    assert_eq!((status.kept, status.tally.recycled), (0, 0));
}
