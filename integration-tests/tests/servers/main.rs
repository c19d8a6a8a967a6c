//! Servers of others, unchanged, each as a function of `contract = "port"`. A row whose program is not installed is skipped.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod list;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::{
    AgentSetup, PostgresServer, RunningAgent, build_static, free_port, privilege, run_within, target_dir,
    unique, workspace,
};
use list::{Brings, JARS, NPM, SERVERS, Server};
use serde_json::Value;

const NAME: &str = "server";

/// What a server has to stop by itself, the default of `stop_grace`.
const GRACE: Duration = Duration::from_secs(10);

const FETCH_LIMIT: Duration = Duration::from_secs(300);

/// What npm has, fetched once for each list of versions.
fn fetched() -> PathBuf {
    let cache = target_dir().join("drivers/servers");
    let wanted = format!("{NPM:?}");
    if fs::read_to_string(cache.join("complete")).is_ok_and(|text| text == wanted) {
        return cache;
    }
    let _ = fs::remove_dir_all(&cache);
    fs::create_dir_all(&cache).unwrap();
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", "."]);
    run_within(FETCH_LIMIT, npm.args(NPM).current_dir(&cache)).unwrap();
    fs::write(cache.join("complete"), wanted).unwrap();
    cache
}

/// A directory that a process without privileges can read. Removed on drop.
struct Site(PathBuf);

impl Site {
    fn new(server: &Server, port: u16) -> Self {
        let site = Self(Path::new("/var/lib").join(unique("server")));
        fs::create_dir_all(&site.0).unwrap();
        for (name, text) in server.files {
            let text = text.replace("DIR", &site.0.display().to_string());
            fs::write(site.0.join(name), text.replace("8080", &port.to_string())).unwrap();
        }
        site.bring(server);
        site
    }

    fn bring(&self, server: &Server) {
        let mut command = match server.brings {
            Brings::Nothing => return,
            Brings::NodeModules => {
                let mut copy = Command::new("cp");
                copy.arg("-r").arg(fetched().join("node_modules")).arg(&self.0);
                copy
            }
            Brings::GoProgram => {
                let mut build = Command::new("/usr/bin/go");
                build.args(["build", "-o", "main", "main.go"]).current_dir(&self.0);
                // Debian's packages are sources of the time before modules.
                build.env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode");
                build.env("GOCACHE", target_dir().join("drivers/go"));
                build
            }
            Brings::JavaClasses => {
                let mut compile = Command::new("/usr/bin/javac");
                compile.args(["-cp", JARS]).current_dir(&self.0);
                compile.args(server.files.iter().map(|(name, _)| name));
                compile
            }
        };
        run_within(FETCH_LIMIT, &mut command).unwrap();
    }

    fn section(&self, server: &Server, port: u16) -> String {
        let here = self.0.display().to_string();
        let filled = |text: &str| text.replace("DIR", &here).replace("PORT", &port.to_string());
        let command: Vec<_> = server.command.iter().map(|word| filled(word)).collect();
        let mut keys = server.keys.replace("DIR", &here);
        if server.database {
            keys.push_str("\nbackends = [\"orders-db\"]\nbackend_sockets = true");
        }
        format!(
            "[[function]]\nname = \"{NAME}\"\nlisten = \"0.0.0.0:{port}\"\nruntime = \"process\"\n\
             contract = \"port\"\ncommand = {command:?}\n{keys}\n"
        )
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn at_rest(agent: &RunningAgent) {
    let rest = |function: &Value| {
        function["state"] == "cold" && function["prepared"] == 1 && function["removing"] == 0
    };
    agent.wait_function(NAME, "at rest", LIMIT, rest).unwrap();
}

/// The whole answer to a request that asks for no chunks and no further request.
fn get(port: u16) -> io::Result<String> {
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    client.set_read_timeout(Some(LIMIT))?;
    client.write_all(b"GET / HTTP/1.0\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut reply = String::new();
    client.read_to_string(&mut reply)?;
    Ok(reply)
}

fn backend(postgres: &PostgresServer) -> String {
    format!(
        "[[backend]]\nname = \"orders-db\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = \"{}\"\n\
         password_file = {:?}\npool = {{ min_idle = 2, max = 16 }}\n",
        postgres.address(),
        PostgresServer::USER,
        PostgresServer::DATABASE,
        postgres.password_file().unwrap(),
    )
}

/// Cold from the SYN, and warm, frozen and thawed, and cold again, without a network.
fn serves(server: &Server, postgres: &PostgresServer) {
    let port = free_port().unwrap().port();
    let site = Site::new(server, port);
    let init = build_static("headstart-init", "headstart-init").unwrap();
    let agent = AgentSetup::default().lookup(true).setting("init", &format!("{init:?}"));
    let text = backend(postgres) + &site.section(server, port);
    let agent = agent.config(&text).start().unwrap();
    at_rest(&agent);
    let answered = |when: &str| {
        let reply =
            get(port).unwrap_or_else(|error| panic!("{} {when}: {error}\n{}", server.name, agent.log()));
        let good = reply.starts_with("HTTP/1.") && reply.contains(" 200 ") && reply.ends_with("hello");
        assert!(good, "{} {when}: {reply}\n{}", server.name, agent.log());
    };
    answered("cold");
    answered("warm");
    let free = |function: &Value| function["running"][0]["open"] == 0;
    agent.wait_function(NAME, "free", LIMIT, free).unwrap();
    agent.operate(NAME, "freeze").unwrap();
    agent.wait_state(NAME, "frozen", LIMIT).unwrap();
    answered("thawed");
    let asked = Instant::now();
    agent.stop_function(NAME).unwrap();
    at_rest(&agent);
    assert!(asked.elapsed() < GRACE, "{} does not stop when it is asked", server.name);
    answered("cold again");
    let starts = agent.starts().unwrap();
    let starts = starts.as_array().unwrap();
    assert!(starts.len() == 2 && starts.iter().all(|start| start["trigger"] == "lookup"), "{starts:?}");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn servers_of_others_serve_unchanged() {
    if !privilege::require_root("namespaces") || !privilege::require_tools(&["/usr/lib/postgresql"]) {
        return;
    }
    let postgres = PostgresServer::on_loopback().unwrap();
    for server in &SERVERS {
        match server.needs.iter().find(|path| !Path::new(path).exists()) {
            None => {
                println!("{}", server.name);
                serves(server, &postgres);
            }
            Some(path) => println!("{}: skipped, there is no {path}", server.name),
        }
    }
}

#[test]
fn the_table_in_the_docs_has_every_server_of_the_test() {
    let text = fs::read_to_string(workspace().join("docs/servers.md")).unwrap();
    for server in &SERVERS {
        let row = format!("| {} | ", server.name);
        let line = text.lines().find_map(|line| line.strip_prefix(&row)).expect(server.name);
        assert_eq!(!line.starts_with('|'), server.database, "{}", server.name);
    }
}
