//! Clients of others against programs with the shims: each must get the same as from the same program without an agent.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::env;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::{
    AgentSetup, ChildProcess, cli, free_port, privilege, run_within, target_dir, unique, workspace,
};

/// What all that one client does may take.
const CLIENT_LIMIT: Duration = Duration::from_secs(240);

/// The size of the largest body. `CLIENTS_MIB` is another one.
const BODY_MIB: &str = "64";

const GRPC: &str = "grpcio==1.85.3";

/// The programs, where a process without privileges can read them. Removed on drop.
struct Programs(PathBuf);

impl Programs {
    fn new() -> Self {
        let programs = Self(Path::new("/var/lib").join(unique("clients")));
        fs::create_dir_all(&programs.0).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_web"), programs.0.join("web")).unwrap();
        fs::copy(scripts().join("web.py"), programs.0.join("web.py")).unwrap();
        let module = workspace().join("runtime-shim/python/src/headstart");
        run_within(LIMIT, Command::new("cp").arg("-r").arg(module).arg(&programs.0)).unwrap();
        programs
    }

    fn words(&self, kind: &str) -> Vec<String> {
        let path = |name: &str| self.0.join(name).display().to_string();
        match kind {
            "rust" => vec![path("web")],
            kind => vec!["/usr/bin/python3".to_owned(), path("web.py"), kind.to_owned()],
        }
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn scripts() -> PathBuf {
    workspace().join("integration-tests/tests/clients")
}

/// Where the client of gRPC is, fetched once.
fn grpc() -> PathBuf {
    let cache = target_dir().join("drivers").join(GRPC);
    if !cache.join("complete").exists() {
        let _ = fs::remove_dir_all(&cache);
        let mut pip = Command::new("/usr/bin/python3");
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--target"]);
        run_within(CLIENT_LIMIT, pip.arg(&cache).arg(GRPC)).unwrap();
        fs::write(cache.join("complete"), "").unwrap();
    }
    cache
}

/// What each client says of the program at this port. Chromium takes 400 MB: it is one of them if `CHROMIUM` names it.
fn seen(port: u16, kind: &str) -> String {
    let mib = env::var("CLIENTS_MIB").unwrap_or_else(|_| BODY_MIB.to_owned());
    let port = port.to_string();
    let mut python = Command::new("/usr/bin/python3");
    python.arg(scripts().join("clients.py")).args([&port, &mib, kind]);
    python.env("PYTHONPATH", grpc());
    let mut node = Command::new("node");
    node.arg(scripts().join("clients.js")).args([&port, kind]);
    let mut clients = vec![python, node];
    if let Some(program) = env::var_os("CHROMIUM") {
        let mut chromium = Command::new("/usr/bin/python3");
        chromium.arg(scripts().join("chromium.py")).args([&port, BODY_MIB]).arg(program);
        clients.push(chromium);
    }
    let said = clients.iter_mut().map(|client| run_within(CLIENT_LIMIT, client).unwrap());
    said.collect::<Vec<_>>().join("\n")
}

#[test]
fn clients_get_the_same_as_without_an_agent() {
    let tools = ["/usr/bin/python3", "/usr/lib/python3/dist-packages/pip", "node", "curl", "h2load"];
    if !privilege::require_root("namespaces") || !privilege::require_tools(&tools) {
        return;
    }
    let programs = Programs::new();
    let directory = programs.0.display().to_string();
    for kind in ["rust", "wsgi", "asgi"] {
        let words = programs.words(kind);
        let function = free_port().unwrap();
        let agent = AgentSetup::default()
            .config(&format!(
                "[[function]]\nname = \"web\"\nlisten = \"{function}\"\nruntime = \"process\"\ncommand = {words:?}\n\
                 memory = \"256MiB\"\nenv = {{ PYTHONPATH = {directory:?}, PYTHONDONTWRITEBYTECODE = \"1\" }}\n"
            ))
            .start()
            .unwrap();
        let with = seen(function.port(), kind);
        assert!(agent.stop().unwrap().success());

        let address = free_port().unwrap();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env("HEADSTART_LISTEN", address.to_string());
        command.env("PYTHONPATH", &directory).env("PYTHONDONTWRITEBYTECODE", "1");
        let mut alone = ChildProcess::spawn(&mut command).unwrap();
        cli::eventually("it listens", LIMIT, || Ok(TcpStream::connect(address).ok())).unwrap();
        let without = seen(address.port(), kind);
        alone.stop(nix::sys::signal::Signal::SIGTERM, LIMIT).unwrap();

        let said: Vec<_> =
            with.lines().zip(without.lines()).filter(|(with, without)| with != without).collect();
        assert!(said.is_empty() && with.lines().count() == without.lines().count(), "{kind}: {said:#?}");
        println!("{kind}:\n{with}");
        // It is not that all fails.
        let both = ["100 Continue", "60 succeeded", "fetch 0,1,2"];
        let rust = ["one two", "hello200 0 1.1", "200 succeeded", "HTTP/2 200", "http2 0,1,2", "'OK'"];
        for said in both.iter().chain(rust.iter().filter(|_| kind == "rust")) {
            assert!(with.contains(said), "{kind}, {said}: {with}");
        }
    }
}
