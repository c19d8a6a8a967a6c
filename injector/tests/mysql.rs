//! Every way to log in to a real MariaDB, and its clients that know nothing of pools.

mod common;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;

use common::mariadb::{Mariadb, ask, said};
use common::{PASSWORD, relayed, spec, until};
use headstart_injector::{
    Address, BackendKind, BackendSpec, MysqlLogin, Pool, Secret, Session, Sockets, Tls, TlsSettings,
};

fn login(user: &str, password: Option<&str>) -> MysqlLogin {
    MysqlLogin { user: user.into(), password: password.map(Secret::new), database: Some("orders".into()) }
}

fn backend(login: MysqlLogin, address: Address) -> BackendSpec {
    spec(BackendKind::Mysql(login), address)
}

#[tokio::test(flavor = "multi_thread")]
async fn users_log_in_over_every_transport() {
    let Some(server) = Mariadb::start(true) else { return };
    for (user, password, address, tls) in [
        ("app", Some(PASSWORD), server.tcp(), None),
        ("app", Some(PASSWORD), server.socket(), None),
        ("app", Some(PASSWORD), server.tcp(), server.tls()),
        ("private", Some(PASSWORD), server.tcp(), server.tls()),
        ("open", None, server.tcp(), None),
    ] {
        let (encrypted, over_tls) = (tls.is_some(), format!("{user} at {address}"));
        let pool = Pool::spawn(BackendSpec { tls, ..backend(login(user, password), address) });
        let lease = pool.lease().await.expect(&over_tls);
        let Session::Mysql { user: logged_in, database, connection_id, server_version, .. } = &lease.session
        else {
            panic!("{:?}", lease.session)
        };
        assert_eq!((logged_in.as_str(), database.as_deref()), (user, Some("orders")));
        assert!(server_version.contains("MariaDB"), "{server_version}");
        let connection_id = connection_id.to_string();
        let lease = relayed(lease);
        tokio::task::spawn_blocking(move || {
            let mut stream = std::os::unix::net::UnixStream::from(lease.fd); // or any other stream socket
            stream.set_nonblocking(false).expect("blocking mode");
            assert_eq!(ask(&mut stream, "select connection_id()"), connection_id);
            assert_eq!(ask(&mut stream, "select database()"), "orders");
            assert_eq!(ask(&mut stream, "select @@character_set_client"), "utf8mb4");
            let cipher = ask(&mut stream, "select ifnull((select variable_value from information_schema.session_status where variable_name = 'ssl_version'), '')");
            assert_eq!(!cipher.is_empty(), encrypted, "{over_tls}: {cipher}");
        })
        .await
        .expect("asked");
    }
}

#[tokio::test]
async fn refusals_say_whose_fault_it_is() {
    let Some(server) = Mariadb::start(false) else { return };
    let refusal = async |spec: BackendSpec| {
        let error = Pool::spawn(spec).lease().await.expect_err("refused");
        let text = error.to_string();
        assert!(text.contains("orders-db") && !text.contains(PASSWORD), "{text}");
        (text, error.retry_helps())
    };
    let (text, retry) = refusal(backend(login("app", Some("wrong")), server.tcp())).await;
    assert!(text.contains("Access denied") && !retry, "{text}");
    let (text, retry) = refusal(backend(login("app", None), server.tcp())).await;
    assert!(text.contains("Access denied") && !retry, "{text}");
    let elsewhere = MysqlLogin { database: Some("nowhere".into()), ..login("app", Some(PASSWORD)) };
    let (text, retry) = refusal(backend(elsewhere, server.tcp())).await;
    assert!(text.contains("nowhere") && !retry, "{text}");
    let tls = Tls::new(&TlsSettings { server_name: "localhost".into(), ..TlsSettings::default() }).ok();
    let (text, retry) =
        refusal(BackendSpec { tls, ..backend(login("app", Some(PASSWORD)), server.tcp()) }).await;
    assert!(text.contains("does not offer TLS") && !retry, "{text}");
}

struct Bed {
    server: Mariadb,
    pool: Pool,
    _sockets: Sockets,
    directory: tempfile::TempDir,
}

impl Bed {
    fn new(clients_max: usize) -> Option<Self> {
        Self::with(clients_max, |_| {})
    }

    fn with(clients_max: usize, change: impl FnOnce(&mut BackendSpec)) -> Option<Self> {
        let server = Mariadb::start(true)?;
        let mut spec =
            BackendSpec { tls: server.tls(), ..backend(login("app", Some(PASSWORD)), server.tcp()) };
        change(&mut spec);
        let pool = Pool::spawn(spec);
        let directory = tempfile::tempdir().expect("a directory");
        let pools = std::slice::from_ref(&pool);
        let sockets = Sockets::listen("f", "f-1", directory.path(), pools, clients_max).expect("sockets");
        Some(Self { server, pool, _sockets: sockets, directory })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("orders-db/mysql.sock")
    }

    /// MariaDB's own client.
    fn client(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "--user=app", "--batch", "--skip-column-names"]);
        command.args(arguments).env("MYSQL_UNIX_PORT", self.path());
        said(command.output().expect("mariadb"))
    }

    fn python(&self, script: &str) -> String {
        let script = format!("import pymysql\nprint({script})");
        said(
            Command::new("/usr/bin/python3")
                .args(["-c", &script])
                .env("SOCKET", self.path())
                .output()
                .expect("python3"),
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_need_no_password_and_get_what_they_ask_for() {
    let Some(bed) = Bed::new(8) else { return };
    assert_eq!(bed.client(&["-e", "select current_user(), database()"]), "app@localhost\torders");
    assert_eq!(bed.client(&["orders", "-e", "select repeat('x', 1000000)"]).len(), 1_000_000);
    let charset = "select @@character_set_client, @@character_set_results, @@collation_connection";
    assert_eq!(
        bed.client(&["--default-character-set=latin1", "-e", charset]),
        "latin1\tlatin1\tlatin1_swedish_ci"
    );
    // Nothing of it stays for the next: every client has a connection of its own.
    assert_eq!(
        bed.client(&["--default-character-set=utf8mb4", "-e", charset]),
        "utf8mb4\tutf8mb4\tutf8mb4_general_ci"
    );
    let prepared = "prepare s from 'select ? + 1'; set @a = 41; execute s using @a";
    assert_eq!(bed.client(&["-e", prepared]), "42");
    until(&bed.pool, "nothing is left", |status| status.leased == 0).await;

    let connect = "pymysql.connect(unix_socket=__import__('os').environ['SOCKET'], user='app'";
    let one = |arguments: &str, sql: &str| {
        bed.python(&format!("(lambda c: (c.execute({sql:?}), c.fetchall()))({connect}{arguments}).cursor())"))
    };
    assert_eq!(one("", "select 1"), "(1, ((1,),))");
    let two = one(", client_flag=65536", "select 1; select 2");
    assert_eq!(two, "(1, ((1,),))", "multiple statements were asked for");
    let two = one(", client_flag=0", "select 1; select 2");
    assert!(two.contains("1064"), "and are an error when they were not: {two}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_refused_in_the_servers_words() {
    let Some(bed) = Bed::new(3) else { return };
    for (arguments, said) in [
        (
            &["--user=root", "-e", "select 1"][..],
            "ERROR 1045 (28000): Access denied for user 'root': log in as 'app'",
        ),
        (&["mysql", "-e", "select 1"], "ERROR 1049 (42000): Unknown database 'mysql'"),
    ] {
        let text = bed.client(arguments);
        assert!(text.contains(said), "{text}");
    }
    // Bad packets end their own connection only.
    for bytes in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0, 0, 1], &[4, 0, 0, 1, 0, 2, 0, 0], &[3, 0, 0, 1, 1, 2, 3]]
    {
        let mut client = std::os::unix::net::UnixStream::connect(bed.path()).expect("connected");
        client.write_all(bytes).expect("sent");
        client.shutdown(std::net::Shutdown::Write).expect("shut down");
        let mut answer = Vec::new();
        // Unread bytes of ours may turn the end into a reset.
        let _ = client.read_to_end(&mut answer);
        until(&bed.pool, "nothing is left", |status| status.leased == 0).await;
    }
    assert_eq!(bed.client(&["-e", "select 1"]), "1");

    // One more than there may be. (The places of those before may be taken for a moment yet.)
    let mut holders = Vec::new();
    let refused = loop {
        let mut client = std::os::unix::net::UnixStream::connect(bed.path()).expect("connected");
        let mut begin = [0; 5];
        client.read_exact(&mut begin).expect("the head of a packet, and its first byte");
        if begin[4] == 0xff {
            let mut error = Vec::new();
            client.read_to_end(&mut error).expect("an error");
            break error;
        }
        assert!(holders.len() < 3, "too many were let in");
        holders.push(client);
    };
    assert_eq!(refused[..2], 1040_u16.to_le_bytes());
    assert!(String::from_utf8_lossy(&refused).contains("close some"), "{refused:?}");
    drop(bed.server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_cleaned_and_used_again_by_the_same_function_only() {
    let Some(bed) = Bed::with(8, |spec| spec.pool.recycle = true) else { return };
    let id = "select connection_id()";
    let utf8 = "--default-character-set=utf8mb4";
    let first = bed.client(&[utf8, "-e", id]);
    until(&bed.pool, "kept", |status| status.kept > 0 && status.leased == 0).await;
    // It leaves behind what it can, in an open transaction.
    let dirt = "set @a = 1, sql_mode = 'ANSI', autocommit = 0; create temporary table t (i int); \
                prepare p from 'select 1'; do get_lock('l', 0); use information_schema; \
                set names latin1; start transaction; select connection_id()";
    let said = bed.client(&[utf8, "-e", dirt]);
    assert_eq!(said, first, "the same session");
    until(&bed.pool, "kept", |status| status.kept > 0 && status.leased == 0).await;
    let rest = "select @a is null, @@sql_mode = @@global.sql_mode, @@autocommit, is_free_lock('l'), database(), \
                @@in_transaction, @@character_set_client, @@collation_connection, connection_id()";
    let clean = format!("1\t1\t1\t1\torders\t0\tutf8mb4\tutf8mb4_general_ci\t{first}");
    assert_eq!(bed.client(&[utf8, "-e", rest]), clean);
    until(&bed.pool, "kept", |status| status.kept > 0 && status.leased == 0).await;
    for (gone, said) in [("select * from t", "1146"), ("execute p", "1243")] {
        let text = bed.client(&[utf8, "-e", gone]);
        assert!(text.contains(said), "{text}");
        until(&bed.pool, "kept", |status| status.kept > 0 && status.leased == 0).await;
    }
    // Statements in a row are an error again.
    let connect = "pymysql.connect(unix_socket=__import__('os').environ['SOCKET'], user='app'";
    let two = |flags: &str| {
        // Reads every answer before it leaves: otherwise the session is not used again.
        let steps = "(k.execute('select connection_id(); select 2'), k.nextset(), c.close())";
        bed.python(&format!("(lambda c: (lambda k: {steps})(c.cursor()))({connect}{flags}))"))
    };
    assert_eq!(two(", client_flag=65536"), "(1, True, None)");
    until(&bed.pool, "kept", |status| status.kept > 0 && status.leased == 0).await;
    assert!(two(", client_flag=0").contains("1064"));

    // Another function has other sessions.
    let directory = tempfile::tempdir().expect("a directory");
    let pools = std::slice::from_ref(&bed.pool);
    let _other = Sockets::listen("g", "g-1", directory.path(), pools, 8).expect("sockets");
    until(&bed.pool, "given up", |status| status.leased == 0).await;
    let recycled = bed.pool.status().tally.recycled;
    let socket = format!("--socket={}", directory.path().join("orders-db/mysql.sock").display());
    assert_ne!(bed.client(&[&socket, utf8, "-e", id]), first);
    until(&bed.pool, "kept too", |status| status.tally.recycled == recycled + 1).await;

    // Who leaves in the middle of something leaves nothing for others.
    let before = bed.client(&["-e", id]);
    until(&bed.pool, "kept again", |status| status.leased == 0).await;
    let socket = bed.path();
    let mut killed = Command::new("mariadb")
        .args(["--no-defaults", "--user=app", "-e", "select sleep(60)"])
        .env("MYSQL_UNIX_PORT", socket)
        .spawn()
        .expect("mariadb");
    until(&bed.pool, "leased", |status| status.leased == 1).await;
    killed.kill().expect("killed");
    killed.wait().expect("gone");
    until(&bed.pool, "given up", |status| status.leased == 0).await;
    assert_ne!(bed.client(&["-e", id]), before);
    drop(bed.server);
}

/// Clients that ask for something at their login, which cannot be had later, get a session that has begun with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_a_session_that_has_begun_as_it_asks() {
    let Some(bed) = Bed::with(8, |spec| spec.pool.recycle = true) else { return };
    let (ignore_space, found_rows) = (256, 2);
    let run = |flags: u32, charset: &str, steps: &str| {
        bed.python(&format!(
            "(lambda c: (lambda k: ({steps}, k.execute('select connection_id()'), k.fetchone()[0], \
             k.execute('select @@sql_mode, @@character_set_client, @@collation_connection'), k.fetchone(), \
             c.thread_id(), c.close()))(c.cursor()))(pymysql.connect(unix_socket=__import__('os').environ['SOCKET'], \
             user='app', charset='{charset}', client_flag={flags}))"
        ))
    };
    assert_eq!(bed.client(&["-e", "create table t (i int); insert into t values (1)"]), "");
    let changed = "k.execute('update t set i = 1')";
    let fields = |text: String| -> Vec<String> {
        text.trim_matches(['(', ')'])
            .split(", ")
            .map(|field| field.trim_matches(['(', ')', '\'']).to_owned())
            .collect()
    };
    let mut ids = Vec::new();
    for (flags, charset, matched, found) in [
        (0, "utf8mb4", "0", "utf8mb4"),
        (found_rows, "utf8mb4", "1", "utf8mb4"),
        (ignore_space, "latin1", "0", "latin1"),
    ] {
        for turn in 0..3 {
            until(&bed.pool, "nothing is leased", |status| status.leased == 0).await;
            let said = fields(run(flags, charset, changed));
            assert_eq!(said[0], matched, "{flags}: {said:?}");
            assert!(said.iter().any(|field| field == found), "{charset}: {said:?}");
            let ignores = said.iter().any(|field| field.contains("IGNORE_SPACE"));
            assert_eq!(ignores, flags == ignore_space, "{said:?}, in turn {turn}");
            if turn > 0 {
                // The one that was cleaned, and the client knows its number.
                assert_eq!(ids.last(), Some(&said[2]), "{said:?}");
                assert_eq!(said.iter().filter(|field| **field == said[2]).count(), 2, "{said:?}");
            }
            ids.push(said[2].clone());
        }
    }
    // Clients that differ take turns, and find what is there.
    let connects = bed.pool.status().tally.connects;
    for (flags, charset) in [(found_rows, "utf8mb4"), (ignore_space, "latin1")].repeat(2) {
        until(&bed.pool, "nothing is leased", |status| status.leased == 0).await;
        assert!(run(flags, charset, changed).contains(charset));
    }
    assert_eq!(bed.pool.status().tally.connects, connects);
    // A file of the client's.
    let file = bed.directory.path().join("rows");
    std::fs::write(&file, "7\n8\n").expect("written");
    let load = format!("load data local infile '{}' into table t; select sum(i) from t", file.display());
    assert_eq!(bed.client(&["--local-infile=1", "-e", &load]), "16");
    // Any collation of the server's, by its number.
    for collation in [224, 33, 255] {
        let mut stream = std::os::unix::net::UnixStream::connect(bed.path()).expect("connected");
        common::mariadb::log_in(&mut stream, "app", collation);
        let found = ask(&mut stream, "select concat(@@character_set_client, ' ', @@collation_connection)");
        let expected = match collation {
            224 => "utf8mb4 utf8mb4_unicode_ci",
            33 => "utf8mb3 utf8mb3_general_ci",
            _ => "latin1 latin1_swedish_ci", // which it does not know
        };
        assert_eq!(found, expected);
    }
}
