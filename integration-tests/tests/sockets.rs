//! Drivers that know nothing of Headstart, in containers without a network: they find their database as a socket.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use headstart_integration_tests::lab::client::{self, HttpReply};
use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    AgentSetup, Manager, MariadbServer, PostgresServer, PostgresSetup, RedisServer, Rootfs, RunningAgent,
    build_static, cli, free_port, privilege,
};
use serde_json::Value;

const NAME: &str = "reports";
const PSQL: &str = "/usr/lib/postgresql";
const MARIADB: &str = "/usr/bin/mariadb";

fn ready() -> bool {
    privilege::require_root("containers and PostgreSQL")
        && privilege::require_tools(&[
            "runc",
            "dockerd",
            "python3",
            "psql",
            "redis-server",
            "mariadbd",
            MARIADB,
            PSQL,
        ])
}

fn client_program(name: &str) -> std::path::PathBuf {
    PostgresServer::program(name).unwrap()
}

fn function(runtime: &str) -> TestFunction {
    let binary = build_static("headstart-lab-functions", "steady").unwrap();
    let rootfs = Rootfs::with_binary("steady", &binary).unwrap();
    for program in [client_program("psql"), client_program("pgbench"), MARIADB.into()] {
        rootfs.add_program(&program).unwrap();
    }
    let kind = FunctionKind::of(runtime, rootfs).unwrap();
    // What is not there cannot be asked for: no password, no address.
    let keys = "backend_sockets = true\nmemory = \"256MiB\"\n".to_owned();
    TestFunction { port: free_port().unwrap().port(), prepared: 1, kind, keys }
}

fn backend(postgres: &PostgresServer, tls: bool) -> String {
    let tls = if tls { format!("tls = {{ ca_file = {:?} }}\n", postgres.ca_file()) } else { String::new() };
    format!(
        "[[backend]]\nname = \"orders-db\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\n\
         database = \"{}\"\npassword_file = {:?}\npool = {{ min_idle = 2, max = 16 }}\n{tls}",
        postgres.address(),
        PostgresServer::USER,
        PostgresServer::DATABASE,
        postgres.password_file().unwrap(),
    )
}

fn mysql(mariadb: &MariadbServer) -> String {
    format!(
        "[[backend]]\nname = \"sales-db\"\nkind = \"mysql\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = \"{}\"\n\
         password_file = {:?}\n",
        mariadb.address(),
        MariadbServer::USER,
        MariadbServer::DATABASE,
        mariadb.password_file().unwrap(),
    )
}

fn serve(function: &TestFunction, backend: &str, setup: AgentSetup) -> RunningAgent {
    let mut setup = setup.config(backend);
    if let FunctionKind::Docker { docker, .. } = &function.kind {
        setup = setup.docker(docker);
    }
    let agent = setup.config(&function.text(NAME, &["orders-db"])).start().unwrap();
    function.rest(&agent, NAME).unwrap();
    agent
}

fn run(function: &TestFunction, arguments: &[&str]) -> HttpReply {
    let body = arguments.join("\n");
    client::request(function.local(), "POST", "/run", &body, LIMIT).unwrap()
}

#[track_caller]
fn output(function: &TestFunction, arguments: &[&str]) -> String {
    let reply = run(function, arguments);
    assert_eq!(reply.status, 200, "{arguments:?}: {}", reply.body);
    reply.body.trim().to_owned()
}

fn psql(function: &TestFunction, sql: &str) -> String {
    let program = client_program("psql");
    output(function, &[program.to_str().unwrap(), "-XAtqw", "-c", sql])
}

/// Of the first backend.
fn leased(agent: &RunningAgent) -> u64 {
    let pools: Value = serde_json::from_str(&agent.ask("GET", "/api/v1/backends").unwrap().body).unwrap();
    pools[0]["leased"].as_u64().unwrap()
}

fn wait_leased(agent: &RunningAgent, count: u64) {
    cli::eventually("leased as expected", LIMIT, || Ok((leased(agent) == count).then_some(()))).unwrap();
}

#[test]
fn psql_and_pgbench_work_unchanged_in_every_runtime() {
    if !ready() {
        return;
    }
    let postgres = PostgresSetup::default().tls().start().unwrap();
    for (runtime, tls) in [("oci", true), ("oci", false), ("process", true), ("docker", false)] {
        let function = function(runtime);
        let agent = serve(&function, &backend(&postgres, tls), AgentSetup::default());
        assert_eq!(leased(&agent), 0, "a parked container holds nothing");
        let who = psql(&function, "select current_user, current_database(), inet_server_port() is not null");
        assert_eq!(who, "app|orders|t", "{runtime}");
        let encrypted = psql(&function, "select ssl from pg_stat_ssl where pid = pg_backend_pid()");
        assert_eq!(encrypted, if tls { "t" } else { "f" }, "{runtime}");
        let pgbench = client_program("pgbench");
        let pgbench = pgbench.to_str().unwrap();
        output(&function, &[pgbench, "-i", "-q", "-s", "1"]);
        for mode in ["simple", "extended", "prepared"] {
            // Each client, or even each transaction, with a connection of its own.
            let said = output(&function, &[pgbench, "-S", "-n", "-M", mode, "-c", "4", "-t", "50"]);
            assert!(said.contains("number of transactions actually processed: 200/200"), "{said}");
            let said = output(&function, &[pgbench, "-S", "-C", "-n", "-M", mode, "-c", "2", "-t", "20"]);
            assert!(said.contains("number of transactions actually processed: 40/40"), "{said}");
        }
        wait_leased(&agent, 0);
        let wrong =
            run(&function, &[client_program("psql").to_str().unwrap(), "-w", "-U", "root", "-c", "select 1"]);
        assert!(wrong.status == 502 && wrong.body.contains("the agent logs in as"), "{}", wrong.body);
        assert!(agent.stop().unwrap().success());
    }
}

/// Each prints `ok` in the end.
const SCRIPTS: [(&str, &str); 3] = [
    (
        "psycopg2",
        "import psycopg2
c = psycopg2.connect(''); q = c.cursor()
q.execute('create temporary table t (i int, s text)')
q.executemany('insert into t values (%s, %s)', [(i, 'x' * i) for i in range(50)])
q.execute('select sum(i), max(length(s)) from t'); assert q.fetchone() == (1225, 49)
c.rollback(); c.close()
c = psycopg2.connect(options='-c search_path=pg_catalog'); q = c.cursor()
q.execute('show search_path'); assert q.fetchone() == ('pg_catalog',)
print('ok')",
    ),
    (
        "pg8000",
        "import os, pg8000
host = os.environ['PGHOST'] + '/.s.PGSQL.5432'
c = pg8000.connect(os.environ['PGUSER'], unix_sock=host, database=os.environ['PGDATABASE']); q = c.cursor()
q.execute('select %s::int + 1', (41,)); assert q.fetchone()[0] == 42
q.execute('select generate_series(1, 1000)'); assert len(q.fetchall()) == 1000
c.close(); print('ok')",
    ),
    (
        "asyncpg",
        "import asyncio, asyncpg
async def main():
    c = await asyncpg.connect()
    assert await c.fetchval('select $1::int + 1', 41) == 42
    async with c.transaction():
        await c.execute('create temporary table t (i int)')
        await c.copy_records_to_table('t', records=[(i,) for i in range(100)])
    assert await c.fetchval('select count(*) from t') == 100
    try:
        await asyncio.wait_for(c.execute('select pg_sleep(60)'), 0.2)
    except asyncio.TimeoutError:
        pass
    assert await c.fetchval('select 1') == 1
    await c.close()
    p = await asyncpg.create_pool(min_size=2, max_size=4)
    async with p.acquire() as c:
        assert await c.fetchval('select current_user') == 'app'
    await p.close()
asyncio.run(main()); print('ok')",
    ),
];

const REDIS_SCRIPT: &str = "import os, redis
r = redis.Redis.from_url(os.environ['REDIS_URL'], decode_responses=True)
assert r.execute_command('ACL WHOAMI') == 'app'
r.set('a', 'b'); assert r.get('a') == 'b'
p = r.pipeline(); [p.incr('n') for _ in range(100)]; assert p.execute()[-1] == 100
s = r.pubsub(); s.subscribe('c'); assert s.get_message(timeout=5)['type'] == 'subscribe'
r.publish('c', 'x'); assert s.get_message(timeout=5)['data'] == 'x'
assert r.client_info()['db'] == 3
print('ok')";

const PYMYSQL_SCRIPT: &str = "import os, pymysql
c = pymysql.connect(unix_socket=os.environ['MYSQL_UNIX_PORT'], user='app', database='orders'); q = c.cursor()
q.execute('create table t (i int, s text)')
q.executemany('insert into t values (%s, %s)', [(i, 'é' * i) for i in range(50)]); c.commit()
q.execute('select sum(i), max(char_length(s)) from t'); assert q.fetchone() == (1225, 49)
c.ping(); q.execute('drop table t'); c.close()
print('ok')";

/// The last one for PostgreSQL cancels a query: with a key that is not the server's.
#[test]
fn drivers_of_python_work_unchanged() {
    if !ready() {
        return;
    }
    let (postgres, redis) = (PostgresServer::on_loopback().unwrap(), RedisServer::on_loopback().unwrap());
    // Only here do programs see those of the node.
    let function = function("process");
    let cache = format!(
        "[[backend]]\nname = \"cache\"\nkind = \"redis\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = 3\n\
         password_file = {:?}\n",
        redis.address(),
        RedisServer::USER,
        redis.password_file().unwrap(),
    );
    let mariadb = MariadbServer::on_loopback().unwrap();
    let setup = AgentSetup::default().config(&backend(&postgres, false)).config(&cache);
    let setup = setup.config(&mysql(&mariadb));
    let agent = setup.config(&function.text(NAME, &["orders-db", "cache", "sales-db"])).start().unwrap();
    function.rest(&agent, NAME).unwrap();
    for (name, script) in SCRIPTS.into_iter().chain([("redis", REDIS_SCRIPT), ("pymysql", PYMYSQL_SCRIPT)]) {
        let script = script.replace('\n', "\\n").replace('\'', "\\'");
        let said = output(&function, &["/usr/bin/python3", "-c", &format!("exec('{script}')")]);
        assert_eq!(said, "ok", "{name}");
    }
    wait_leased(&agent, 0);
    for secret in [PostgresServer::PASSWORD, RedisServer::PASSWORD, MariadbServer::PASSWORD] {
        assert!(!agent.log().contains(secret));
    }
    assert!(agent.stop().unwrap().success());
}

#[test]
fn the_client_of_mariadb_works_unchanged() {
    if !ready() {
        return;
    }
    let mariadb = MariadbServer::on_loopback().unwrap();
    let mut function = function("oci");
    // Its own 3306: it has a network of its own, and nothing else in it.
    function.keys += "backend_ports = { sales-db = 3306 }\n";
    let setup = AgentSetup::default().config(&mysql(&mariadb));
    let agent = setup.config(&function.text(NAME, &["sales-db"])).start().unwrap();
    function.rest(&agent, NAME).unwrap();
    let ask = |sql: &str| output(&function, &[MARIADB, "--no-defaults", "-u", "app", "-BN", "-e", sql]);
    assert_eq!(ask("select current_user(), database()"), "app@%\torders");
    assert_eq!(ask("select repeat('x', 200000)").len(), 200_000);
    assert_eq!(ask("create table t (i int); insert into t values (1), (2); select sum(i) from t"), "3");
    let over_tcp = ["-h", "127.0.0.1", "-u", "app", "-BN", "-e", "select current_user()"];
    assert_eq!(output(&function, &[&[MARIADB, "--no-defaults"][..], &over_tcp].concat()), "app@%");
    assert!(std::net::TcpStream::connect("127.0.0.1:3306").is_err(), "not a port of the node");
    let denied = run(&function, &[MARIADB, "--no-defaults", "-u", "root", "-e", "select 1"]);
    assert!(denied.body.contains("log in as 'app'"), "{}", denied.body);
    assert!(!agent.log().contains(MariadbServer::PASSWORD));
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_client_cancels_its_own_query_and_all_ends_with_the_instance() {
    if !ready() {
        return;
    }
    let postgres = PostgresSetup::default().tls().start().unwrap();
    let function = function("process");
    let agent = serve(&function, &backend(&postgres, true), AgentSetup::default());
    let (psql, sleep) = (client_program("psql"), "select pg_sleep(60)");
    let psql = psql.to_str().unwrap();
    let said = run(&function, &["/usr/bin/timeout", "-s", "INT", "1", psql, "-Xw", "-c", sleep]);
    assert!(said.body.contains("canceling statement due to user request"), "{}", said.body);

    let address = function.local();
    let body = [psql, "-Xw", "-c", sleep].join("\n");
    let asked = std::thread::spawn(move || client::request(address, "POST", "/run", &body, LIMIT));
    let sleeping = "select count(*) from pg_stat_activity where query like '%pg_sleep%' and usename = 'app'";
    let sleeps = |count: &str| {
        cli::eventually("sleeping", LIMIT, || Ok((postgres.admin_sql(sleeping)? == count).then_some(())))
            .unwrap();
    };
    sleeps("1");
    function.cool(&agent, NAME).unwrap();
    wait_leased(&agent, 0);
    drop(asked.join());
    assert!(agent.stop().unwrap().success());
}

/// Connections end with the agent that makes them; the next one listens on the same sockets.
#[test]
fn an_instance_that_is_taken_over_finds_its_backends_again() {
    if !ready() {
        return;
    }
    let (postgres, manager) = (PostgresServer::on_loopback().unwrap(), Manager::new().unwrap());
    let mut function = function("oci");
    function.keys += "backend_ports = { orders-db = 5432 }\n";
    let first = serve(&function, &backend(&postgres, false), AgentSetup::default().manager(&manager));
    let over_tcp = || {
        let program = client_program("psql");
        output(&function, &[program.to_str().unwrap(), "-XAtw", "-h", "127.0.0.1", "-c", "select 1"])
    };
    assert_eq!((psql(&function, "select 1"), over_tcp()), ("1".to_owned(), "1".to_owned()));
    let next = first.kill().unwrap().start().unwrap();
    let taken = next.wait_state(NAME, "ready", LIMIT).unwrap();
    assert_eq!(taken["running"][0]["reason"], "adopted", "{taken}");
    assert_eq!((psql(&function, "select 1"), over_tcp()), ("1".to_owned(), "1".to_owned()));
    assert!(next.stop().unwrap().success());
}

/// What is to be seen of the agent in there: nothing but the sockets.
#[test]
fn the_function_sees_its_own_sockets_and_no_secret() {
    if !ready() {
        return;
    }
    let postgres = PostgresServer::on_loopback().unwrap();
    let function = function("process");
    let agent = serve(&function, &backend(&postgres, false), AgentSetup::default());
    assert_eq!(
        output(&function, &["/usr/bin/find", "/run/headstart"]),
        [
            "/run/headstart",
            "/run/headstart/backends",
            "/run/headstart/backends/orders-db",
            "/run/headstart/backends/orders-db/.s.PGSQL.5432",
        ]
        .join("\n")
    );
    let written = run(&function, &["/usr/bin/touch", "/run/headstart/backends/orders-db/x"]);
    assert_eq!(written.status, 502, "{}", written.body);
    let environment = output(&function, &["/usr/bin/env"]);
    assert!(environment.contains("PGHOST=/run/headstart/backends/orders-db"), "{environment}");
    assert!(environment.contains("PGUSER=app") && environment.contains("PGDATABASE=orders"), "{environment}");
    // Each connection that a client got has its line.
    psql(&function, "select 1");
    agent.wait_log("connection for a client of a socket", LIMIT).unwrap();
    assert!(
        !environment.contains(PostgresServer::PASSWORD) && !agent.log().contains(PostgresServer::PASSWORD)
    );
    assert!(agent.stop().unwrap().success());
}
