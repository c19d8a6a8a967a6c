//! What a session keeps of its last client after it was cleaned: the table of docs/functions.md, row by row.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use common::mariadb::{Mariadb, answer, ask, log_in, packet};
use common::redis::Redis;
use common::{PASSWORD, Postgres, postgres, spec, until};
use headstart_injector::{BackendKind, BackendSpec, MysqlLogin, Pool, RedisLogin, Secret, Sockets};

/// Sockets of one backend, whose sessions are used again or not.
struct Bed {
    pool: Pool,
    _sockets: Sockets,
    directory: tempfile::TempDir,
    socket: &'static str,
}

impl Bed {
    fn new(mut spec: BackendSpec, recycle: bool, socket: &'static str) -> Self {
        spec.pool.recycle = recycle;
        let pool = Pool::spawn(spec);
        let directory = tempfile::tempdir().expect("a directory");
        let pools = std::slice::from_ref(&pool);
        let sockets = Sockets::listen("f", "f-1", directory.path(), pools, 8).expect("sockets");
        Self { pool, _sockets: sockets, directory, socket }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("orders-db").join(self.socket)
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).expect("connected");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a limit");
        stream
    }

    /// Waits until the session of the last client is cleaned, or given up.
    async fn left(&self, sessions: u64, what: &str) {
        let status = until(&self.pool, "nothing is leased", |status| status.leased == 0).await;
        assert_eq!(status.tally.recycled, sessions, "{what}: cleaned and kept");
    }
}

/// Logs in to a socket as a client of MariaDB.
fn mysql(bed: &Bed) -> UnixStream {
    let mut stream = bed.connect();
    log_in(&mut stream, "app", 45);
    stream
}

/// Runs statements that have no result, then leaves as a client does.
fn leave(mut stream: UnixStream, statements: &str) {
    for statement in statements.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        match statement {
            // As the user without a password.
            "COM_CHANGE_USER" => {
                packet(&mut stream, 0, b"\x11open\0\0\0\x21\0mysql_native_password\0");
                assert_eq!(answer(&mut stream)[0], 0xfe, "another proof is asked for");
                packet(&mut stream, 3 - 1, b"");
                assert_eq!(answer(&mut stream)[0], 0, "OK");
            }
            _ if statement.starts_with("SELECT") || statement.starts_with("SHOW") => {
                ask(&mut stream, statement);
            }
            _ => {
                packet(&mut stream, 0, &[b"\x03", statement.as_bytes()].concat());
                assert_eq!(answer(&mut stream)[0], 0, "{statement}: OK");
            }
        }
    }
    packet(&mut stream, 0, &[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_mariadb_keeps_nothing() {
    let Some(server) = Mariadb::start(false) else { return };
    server.run(
        "create role reader, writer; grant reader to app@localhost; grant writer to app@localhost; \
         set default role reader for app@localhost; \
         create table orders.t (i int); create table orders.u (i int); insert into orders.t values (1), (2), (3); flush privileges",
    );
    let login = MysqlLogin {
        user: "app".into(),
        password: Some(Secret::new(PASSWORD)),
        database: Some("orders".into()),
    };
    let spec = spec(BackendKind::Mysql(login), server.socket());
    let (fresh, used) = (Bed::new(spec.clone(), false, "mysql.sock"), Bed::new(spec, true, "mysql.sock"));
    let traces = [
        ("SET ROLE writer", "CURRENT_ROLE()"),
        ("SET ROLE NONE", "CURRENT_ROLE()"),
        ("COM_CHANGE_USER", "CONCAT(CURRENT_USER(), USER())"),
        ("COM_CHANGE_USER", "CURRENT_ROLE()"),
        ("COM_CHANGE_USER", "@@character_set_client"),
        ("USE information_schema", "DATABASE()"),
        (
            "SET NAMES latin1",
            "CONCAT(@@character_set_client, @@character_set_results, @@collation_connection)",
        ),
        ("SET character_set_server = latin1", "@@character_set_server"),
        ("SET collation_database = latin1_bin", "@@collation_database"),
        ("SET @a = 1", "@a IS NULL"),
        ("SET sql_mode = 'ANSI'", "@@sql_mode"),
        ("SET autocommit = 0", "@@autocommit"),
        ("SET time_zone = '+05:00'", "@@time_zone"),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "@@tx_isolation"),
        ("SET timestamp = 1", "UNIX_TIMESTAMP() > 2"),
        ("SET insert_id = 77", "@@insert_id"),
        ("SET max_statement_time = 1", "@@max_statement_time"),
        ("START TRANSACTION; INSERT INTO t VALUES (4)", "CONCAT(@@in_transaction, (SELECT COUNT(*) FROM t))"),
        ("XA START 'x'; INSERT INTO t VALUES (4)", "CONCAT(@@in_transaction, (SELECT COUNT(*) FROM t))"),
        ("DO GET_LOCK('l', 0)", "IS_FREE_LOCK('l')"),
        ("LOCK TABLES t READ", "(SELECT COUNT(*) FROM u)"),
        ("SELECT LAST_INSERT_ID(7)", "LAST_INSERT_ID()"),
        ("SELECT SQL_CALC_FOUND_ROWS i FROM t LIMIT 1", "FOUND_ROWS()"),
        ("INSERT INTO t SELECT 4 FROM t", "ROW_COUNT()"),
        ("DO CAST('x' AS INT)", "@@warning_count"),
        ("DO RAND(1); SET rand_seed1 = 5, rand_seed2 = 5", "ROUND(RAND() * 0x3FFFFFFF) = 20"),
    ];
    let mut kept = Vec::new();
    for (n, (does, asks)) in traces.iter().copied().enumerate() {
        let sql = format!("SELECT {asks}");
        let mut stream = mysql(&fresh);
        let expected = ask(&mut stream, &sql);
        drop(stream);
        leave(mysql(&used), does);
        used.left(2 * n as u64 + 1, does).await;
        let mut stream = mysql(&used);
        let found = ask(&mut stream, &sql);
        if found != expected {
            kept.push(format!("{does}: {asks} is {found:?}, not {expected:?}"));
        }
        leave(stream, "");
        used.left(2 * n as u64 + 2, does).await;
    }
    assert!(kept.is_empty(), "{kept:#?}");
    // What stays, as the table says.
    let profiles = "SELECT COUNT(*) > 0 FROM information_schema.profiling";
    assert_eq!(ask(&mut mysql(&fresh), profiles), "0");
    leave(mysql(&used), "SET profiling = 1; DO 1");
    used.left(2 * traces.len() as u64 + 1, "SHOW PROFILES").await;
    assert_eq!(ask(&mut mysql(&used), profiles), "1");
    assert_eq!(used.pool.status().tally.connects, 2, "one session, beside one of another kind");
}

/// `psql`, which ends its session properly.
fn psql(bed: &Bed, sql: &str) -> String {
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-A", "-t", "-U", "scrammer", "-d", "orders", "-w"]).env_remove("PGPASSWORD");
    let parts = sql.split(';').flat_map(|part| ["-c", part]);
    command.arg("-h").arg(bed.directory.path().join("orders-db")).args(parts);
    let output = command.output().expect("psql");
    String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8").trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_postgres_keeps_what_the_table_says() {
    let Some(server) = Postgres::start() else { return };
    server.psql("create role other;\ngrant other to scrammer;\n");
    let spec = spec(BackendKind::Postgres(postgres("scrammer")), server.tcp());
    let (fresh, used) =
        (Bed::new(spec.clone(), false, ".s.PGSQL.5432"), Bed::new(spec, true, ".s.PGSQL.5432"));
    let traces = [
        ("set role other", "current_user"),
        ("set session authorization scrammer", "session_user"),
        ("set search_path = a, b", "current_setting('search_path')"),
        ("set statement_timeout = 1234", "current_setting('statement_timeout')"),
        ("set timezone = 'Asia/Tokyo'", "current_setting('timezone')"),
        ("set client_encoding = latin1", "current_setting('client_encoding')"),
        ("set application_name = 'x'", "current_setting('application_name')"),
        (
            "set session characteristics as transaction read only",
            "current_setting('default_transaction_read_only')",
        ),
        ("begin; set transaction read only", "current_setting('transaction_read_only')"),
        ("create temporary table t (i int)", "to_regclass('t') is null and to_regclass('pg_temp.t') is null"),
        ("prepare p as select 1", "(select count(*) from pg_prepared_statements)"),
        ("begin; declare k cursor with hold for select 1; commit", "(select count(*) from pg_cursors)"),
        ("listen c", "(select count(*) from pg_listening_channels())"),
        ("select pg_advisory_lock(1)", "(select count(*) from pg_locks where locktype = 'advisory')"),
        ("create temporary sequence s; select nextval('s')", "lastval()"),
        ("select setseed(0.5)", "random() = 0.9851677175347999"),
    ];
    let mut kept = Vec::new();
    for (n, (does, asks)) in traces.iter().copied().enumerate() {
        let sql = format!("select {asks}");
        let expected = psql(&fresh, &sql);
        psql(&used, does);
        used.left(2 * n as u64 + 1, does).await;
        let found = psql(&used, &sql);
        if found != expected {
            kept.push(format!("{does}: {asks} is {found:?}, not {expected:?}"));
        }
        used.left(2 * n as u64 + 2, does).await;
    }
    assert!(kept.is_empty(), "{kept:#?}");
    assert_eq!(used.pool.status().tally.connects, 1, "it was one session");

    // What stays, as the table says.
    let setting = "select current_setting('app.tenant', true) is null";
    assert_eq!(psql(&fresh, setting), "t");
    psql(&used, "set app.tenant = 7");
    used.left(2 * traces.len() as u64 + 1, "settings").await;
    assert_eq!(psql(&used, setting), "f");
    used.left(2 * traces.len() as u64 + 2, "settings").await;
    assert_eq!(psql(&used, "select current_setting('app.tenant', true)"), "", "but not its value");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_redis_keeps_nothing() {
    let Some(server) = Redis::start() else { return };
    let login = RedisLogin { user: Some("app".into()), password: Some(Secret::new(PASSWORD)), database: 3 };
    let spec = spec(BackendKind::Redis(login), server.tcp());
    let (fresh, used) = (Bed::new(spec.clone(), false, "redis.sock"), Bed::new(spec, true, "redis.sock"));
    let ask = |stream: &mut UnixStream, command: &str| {
        stream.write_all(format!("{command}\r\n").as_bytes()).expect("sent");
        let mut lines = BufReader::new(&*stream).lines().map(|line| line.expect("a line"));
        let first = lines.next().expect("an answer");
        if first.starts_with('$') { lines.next().expect("a text") } else { first }
    };
    // All but what is different in each session, and at each moment.
    let state = |stream: &mut UnixStream| {
        let info = ask(stream, "CLIENT INFO");
        let changes = [
            "id",
            "addr",
            "multi",
            "laddr",
            "fd",
            "age",
            "idle",
            "tot-mem",
            "qbuf",
            "qbuf-free",
            "rbp",
            "rbs",
        ];
        let fields = info.split(' ').filter(|field| {
            let name = field.split('=').next().unwrap_or_default();
            !changes.contains(&name) && !name.starts_with("tot-")
        });
        fields.collect::<Vec<_>>().join(" ")
    };
    let expected = state(&mut fresh.connect());
    // Older servers do not know all of them.
    let traces = [
        "CLIENT NO-EVICT ON",
        "CLIENT NO-TOUCH ON",
        "CLIENT SETINFO LIB-NAME x",
        "CLIENT SETINFO LIB-VER 9",
        "CLIENT SETNAME x",
        "CLIENT TRACKING ON BCAST",
        "SELECT 5",
        "WATCH k",
        "MULTI",
        "AUTH default s3cret-s4uce",
        "READONLY",
        "ASKING",
    ];
    for (n, does) in traces.iter().copied().enumerate() {
        let mut stream = used.connect();
        ask(&mut stream, does);
        drop(stream);
        used.left(2 * n as u64 + 1, does).await;
        let mut stream = used.connect();
        assert_eq!(state(&mut stream), expected, "{does}");
        drop(stream);
        used.left(2 * n as u64 + 2, does).await;
    }
    assert_eq!(used.pool.status().tally.connects, 1, "it was one session");
}
