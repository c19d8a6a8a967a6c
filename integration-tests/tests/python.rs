//! Functions in Python: the module's own tests, and the example against a real agent and database.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::{
    self, AgentSetup, Manager, PostgresSetup, cli, client, free_port, privilege, run_within, unique,
};
use serde_json::Value;

/// Servers that accept by themselves, at versions that are written down here.
const SERVERS: [&str; 5] =
    ["uvicorn==0.54.0", "websockets==17.4", "hypercorn==0.18.0", "waitress==3.0.2", "h2==4.4.1"];

#[test]
fn the_module_passes_its_own_tests() {
    if !privilege::require_tools(&["python3", "/usr/lib/python3/dist-packages/pip"]) {
        return;
    }
    let servers = lab::target_dir().join("python").join(SERVERS.join("-"));
    if !servers.exists() {
        let new = servers.with_extension("new");
        let mut pip = Command::new("/usr/bin/python3");
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--target"]);
        run_within(Duration::from_secs(300), pip.arg(&new).args(SERVERS)).unwrap();
        fs::rename(new, &servers).unwrap();
    }
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "unittest", "discover", "-s", "tests"]).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("PYTHONPATH", servers).env("ALL_SERVERS", "1");
    command.current_dir(lab::workspace().join("runtime-shim/python"));
    println!("{}", run_within(Duration::from_secs(120), &mut command).unwrap());
}

/// The example and the module, where a process without privileges and with a `/tmp` of its own can read them. Removed on
/// drop.
struct InstalledShim(PathBuf);

impl InstalledShim {
    fn new() -> Self {
        let installed = Self(Path::new("/var/lib").join(unique("python")));
        let package = installed.0.join("headstart");
        fs::create_dir_all(&package).unwrap();
        let (from, example) =
            (lab::workspace().join("runtime-shim/python/src/headstart"), "examples/python-orders/orders.py");
        for file in
            fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
        {
            fs::copy(&file, package.join(file.file_name().unwrap())).unwrap();
        }
        fs::copy(lab::workspace().join(example), installed.0.join("orders.py")).unwrap();
        installed
    }
}

impl Drop for InstalledShim {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_example_lives_like_any_process() {
    if ready() {
        let installed = InstalledShim::new();
        let directory = installed.0.display();
        lives(&format!(
            "runtime = \"process\"\ncommand = [\"/usr/bin/python3\", \"{directory}/orders.py\"]\n\
             env = {{ PYTHONPATH = \"{directory}\" }}\n"
        ));
    }
}

#[test]
fn the_example_lives_like_any_container() {
    if ready() {
        let (rootfs, script) = (
            lab::target_dir().join("python-orders"),
            lab::workspace().join("examples/python-orders/rootfs.sh"),
        );
        let mut make = Command::new("sh");
        run_within(Duration::from_secs(300), make.arg(script).arg(&rootfs)).unwrap();
        lives(&format!(
            "runtime = \"oci\"\nrootfs = {rootfs:?}\ncommand = [\"/usr/bin/python3\", \"/app/orders.py\"]\n"
        ));
    }
}

/// Applications that answer every client with what they call themselves.
const APPLICATIONS: [(&str, &str); 2] = [
    (
        "wsgi",
        "import headstart\n\
         def app(environ, start_response):\n    \
             start_response('200 OK', [])\n    \
             return [b'wsgi']\n\
         headstart.run(lambda function: function.serve_wsgi(app))\n",
    ),
    (
        "asgi",
        "import headstart\n\
         async def app(scope, receive, send):\n    \
             await send({'type': 'http.response.start', 'status': 200})\n    \
             await send({'type': 'http.response.body', 'body': b'asgi'})\n\
         headstart.run(lambda function: function.serve_asgi(app))\n",
    ),
];

#[test]
fn a_burst_is_answered_and_the_instance_lives() {
    if !privilege::require_root("namespaces") || !privilege::require_tools(&["python3"]) {
        return;
    }
    let installed = InstalledShim::new();
    let directory = installed.0.display();
    let mut setup = AgentSetup::default();
    let addresses = APPLICATIONS.map(|(name, program)| {
        fs::write(installed.0.join(format!("{name}.py")), program).unwrap();
        let address = free_port().unwrap();
        setup = std::mem::take(&mut setup).config(&format!(
            "[[function]]\nname = \"{name}\"\nlisten = \"{address}\"\nruntime = \"process\"\n\
             command = [\"/usr/bin/python3\", \"{directory}/{name}.py\"]\n\
             env = {{ PYTHONPATH = \"{directory}\" }}\n"
        ));
        address
    });
    let agent = setup.start().unwrap();
    for (address, (name, _)) in addresses.into_iter().zip(APPLICATIONS) {
        let clients = (0..200).map(|_| thread::spawn(move || client::get(address, "/", LIMIT)));
        for client in clients.collect::<Vec<_>>() {
            let reply = client.join().unwrap().unwrap();
            assert_eq!((reply.status, reply.body.as_str()), (200, name), "{}", agent.log());
        }
    }
    assert_eq!(agent.starts().unwrap().as_array().unwrap().len(), 2, "{}", agent.log());
}

/// The next agent thaws it, and asks for the next freeze before the instance has said that it runs.
#[test]
fn a_frozen_instance_that_thaws_slowly_is_taken_over() {
    if !privilege::require_root("namespaces") || !privilege::require_tools(&["python3"]) {
        return;
    }
    let (installed, manager, address) = (InstalledShim::new(), Manager::new().unwrap(), free_port().unwrap());
    let directory = installed.0.display();
    let program = "import headstart, time\n\
         def app(environ, start_response):\n    \
             start_response('200 OK', [])\n    \
             return [b'here']\n\
         def main(function):\n    \
             function.on_thaw(lambda: time.sleep(0.2))\n    \
             function.serve_wsgi(app)\n\
         headstart.run(main)\n";
    fs::write(installed.0.join("slow.py"), program).unwrap();
    let function = format!(
        "[[function]]\nname = \"slow\"\nlisten = \"{address}\"\nruntime = \"process\"\nfreeze_after = \"10ms\"\n\
         command = [\"/usr/bin/python3\", \"{directory}/slow.py\"]\nenv = {{ PYTHONPATH = \"{directory}\" }}\n"
    );
    let agent = AgentSetup::default().manager(&manager).config(&function).start().unwrap();
    assert_eq!(client::get(address, "/", LIMIT).unwrap().body, "here");
    agent.wait_state("slow", "frozen", LIMIT).unwrap();
    let agent = agent.kill().unwrap().start().unwrap();
    agent.wait_state("slow", "frozen", LIMIT).unwrap();
    assert_eq!(client::get(address, "/", LIMIT).unwrap().body, "here");
    assert!(agent.stop().unwrap().success());
}

fn ready() -> bool {
    let tools = ["runc", "python3", "/usr/lib/postgresql"];
    privilege::require_root("namespaces and PostgreSQL") && privilege::require_tools(&tools)
}

/// Cold, frozen while the database restarts, thawed, stopped.
fn lives(how: &str) {
    let mut postgres = PostgresSetup::default().tls().start().unwrap();
    let address = free_port().unwrap();
    let backend = format!(
        "[[backend]]\nname = \"orders-db\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = \"{}\"\n\
         password_file = {:?}\ntls = {{ ca_file = {:?} }}\npool = {{ min_idle = 1, max = 8, backoff_max = \"100ms\" }}\n",
        postgres.address(),
        lab::PostgresServer::USER,
        lab::PostgresServer::DATABASE,
        postgres.password_file().unwrap(),
        postgres.ca_file(),
    );
    let function = format!(
        "[[function]]\nname = \"orders\"\nlisten = \"{address}\"\n{how}\
         backends = [\"orders-db\"]\nbackend_sockets = true\nfreeze_after = \"200ms\"\nmemory = \"256MiB\"\n"
    );
    let agent = AgentSetup::default().config(&backend).config(&function).start().unwrap();
    let parked = |function: &Value| function["prepared"] == 1;
    agent.wait_function("orders", "parked", LIMIT, parked).unwrap();
    let get = |path: &str| {
        let reply = client::get(address, path, LIMIT).unwrap();
        (reply.status, serde_json::from_str::<Value>(&reply.body).unwrap_or_default())
    };
    let (status, first) = get("/");
    assert_eq!((status, &first["answer"]), (200, &42.into()), "{first}\n{}", agent.log());
    let again = get("/").1;
    assert_eq!(again["backend_pid"], first["backend_pid"], "an instance keeps its session");
    assert_eq!(get("/nowhere").0, 404);
    for _ in 0..2 {
        agent.wait_state("orders", "frozen", LIMIT).unwrap();
        postgres.restart().unwrap();
        cli::eventually("the pool has connections again", LIMIT, || {
            let pools: Value = serde_json::from_str(&agent.ask("GET", "/api/v1/backends")?.body)?;
            Ok((pools[0]["idle"].as_u64() >= Some(1)).then_some(()))
        })
        .unwrap();
        let (status, thawed) = get("/");
        assert_eq!(status, 200, "{thawed}\n{}", agent.log());
    }
    let starts = agent.starts().unwrap();
    assert_eq!(starts.as_array().unwrap().len(), 1, "it was the same instance: {starts}");
    println!("the cold start: {}", starts[0]);
    agent.stop_function("orders").unwrap();
    agent
        .wait_function("orders", "cold again", LIMIT, |f| f["state"] == "cold" && f["prepared"] == 1)
        .unwrap();
    assert!(agent.stop().unwrap().success());
}
