//! The agent itself: what it pins, who may follow it, and what it leaves.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bed::{self, ip, pin_dir, pinned, shown};

const PROGRAM: &str = env!("CARGO_BIN_EXE_headstart");

/// A running agent, which has said that it is up.
struct Agent(Child, BufReader<ChildStderr>);

impl Agent {
    fn run(config: &Path, flags: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["run", "--config"])
            .arg(config)
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut agent = Self(child, stderr);
        agent.until("headstart is up");
        agent
    }

    /// Reads the log up to a line with this text.
    fn until(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(self.1.read_line(&mut line).unwrap(), 0, "the agent ended before {text:?}");
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    fn end(mut self, signal: Signal) {
        self.signal(signal);
        // Until its end: an agent that cannot write its log would not end.
        std::io::copy(&mut self.1, &mut std::io::sink()).unwrap();
        self.0.wait().unwrap();
    }
}

/// Runs a command of the program to its end.
fn headstart(words: &[&str], config: &Path) -> Output {
    Command::new(PROGRAM).args(words).arg("--config").arg(config).output().unwrap()
}

/// A configuration for an agent with its files in `dir`; `admin` is its port.
fn write(dir: &Path, name: &str, admin: u16) -> std::path::PathBuf {
    let keys = dir.join("keys");
    std::fs::write(&keys, format!("1 {}\n", "ab".repeat(16))).unwrap();
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let state = dir.join(name);
    let text = format!(
        "[agent]\ninterfaces = [\"near0\"]\nadmin = \"127.0.0.1:{admin}\"\nstate_dir = {state:?}\n\
         [syn]\nkey_file = {keys:?}\npin_dir = {pins:?}\nignore = [\"10.1.0.0/16\"]\n\
         [[function]]\nname = \"open\"\nlisten = \"0.0.0.0:8081\"\nruntime = \"process\"\ncommand = [\"/bin/cat\"]\n\
         prepared = 0\n\
         [[function]]\nname = \"named\"\nid = 7\nlisten = \"0.0.0.0:8081\"\nruntime = \"process\"\n\
         command = [\"/bin/cat\"]\nprepared = 0\n\
         [[function]]\nname = \"closed\"\nlisten = \"0.0.0.0:8082\"\nruntime = \"process\"\n\
         command = [\"/bin/cat\"]\nprepared = 0\nrequire_auth = \"connect\"\n",
        pins = pin_dir(),
    );
    let file = dir.join(format!("{name}.toml"));
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn a_killed_agent_leaves_its_sensors_and_the_next_takes_them_over() {
    bed::run("agent::a_killed_agent_leaves_its_sensors_and_the_next_takes_them_over", || async {
        ip("link add near0 type veth peer name far0");
        let dir = tempfile::tempdir().unwrap();
        let config = write(dir.path(), "first", 9464);
        Agent::run(&config, &[]).end(Signal::SIGKILL);
        let links = pinned("links");
        assert_eq!(links.len(), 2, "{links:?}");
        let before = shown("near0");
        assert!(before.contains("xdp"), "{before}");

        let mut agent = Agent::run(&config, &[]);
        assert_eq!(pinned("links"), links);
        assert_ne!(shown("near0"), before, "the new agent's program is behind the link");
        agent.signal(Signal::SIGHUP);
        agent.until("the key file is read again");
        std::fs::write(dir.path().join("keys"), "garbage\n").unwrap();
        agent.signal(Signal::SIGHUP);
        agent.until("the keys stay as they were");

        let second = headstart(&["run"], &write(dir.path(), "second", 9465));
        let text = String::from_utf8(second.stderr).unwrap();
        assert!(second.status.code() == Some(1) && text.contains("pin_dir"), "{text}");
        let uninstall = headstart(&["uninstall"], &config);
        assert_eq!(uninstall.status.code(), Some(1), "an agent runs");
        agent.end(Signal::SIGTERM);
        assert_eq!(pinned("links"), links, "a clean end keeps them too");
        let uninstall = headstart(&["uninstall"], &config);
        assert!(uninstall.status.success(), "{}", String::from_utf8_lossy(&uninstall.stderr));
        assert!(!pin_dir().exists() && !dir.path().join("first").exists());
        bed::bare("near0").await;
    });
}

#[test]
fn an_agent_that_keeps_nothing_leaves_nothing_even_when_killed() {
    bed::run("agent::an_agent_that_keeps_nothing_leaves_nothing_even_when_killed", || async {
        ip("link add near0 type veth peer name far0");
        let dir = tempfile::tempdir().unwrap();
        let config = write(dir.path(), "first", 9464);
        Agent::run(&config, &[]).end(Signal::SIGKILL);
        assert!(shown("near0").contains("xdp"));

        Agent::run(&config, &["--unpin"]).end(Signal::SIGKILL);
        bed::bare("near0").await;
        assert!(pinned("links").is_empty() && !pinned("").iter().any(|name| name.starts_with("maps-")));

        Agent::run(&config, &["--unpin"]).end(Signal::SIGTERM);
        assert!(!pin_dir().exists());
    });
}
