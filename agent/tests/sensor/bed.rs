//! A network namespace with a BPF file system of its own for each test: the test runs itself again inside.

use std::env;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use headstart_agent::syn::{AttachedSensor, Kernel, Mode, Pins, Route, Routes, RunningSensors};
use headstart_config::{Config, Interfaces, RequireAuth};
use nix::sched::{CloneFlags, setns};
use tokio::sync::watch;

const INSIDE: &str = "HEADSTART_TEST_INSIDE";

const LIMIT: Duration = Duration::from_secs(20);

/// Runs `body` in namespaces of its own, which are gone when it ends. Needs root: without it the test is
/// skipped, except under CI.
pub(crate) fn run<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    if env::var(INSIDE).as_deref() == Ok(test) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(body());
    }
    if !nix::unistd::geteuid().is_root() {
        assert!(env::var("CI").as_deref() != Ok("true"), "{test} must run as root under CI");
        eprintln!("{test}: skipped, needs root");
        return;
    }
    let prepare = "mount -t sysfs sysfs /sys && mount -t bpf bpf /sys/fs/bpf && ip link set lo up && exec \"$0\" \"$@\"";
    let status = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", prepare])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, test)
        .status()
        .expect("unshare(1) is there");
    assert!(status.success(), "{test} failed in its namespaces");
}

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("ip(8) is there");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What `ip` says of an interface.
pub(crate) fn shown(interface: &str) -> String {
    let output = Command::new("ip").args(["-d", "link", "show", interface]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until the interface has no program: the kernel releases a link that is no longer pinned a moment
/// later, in a task of its own (`bpf_link_put`).
pub(crate) async fn bare(interface: &str) {
    let looks = async {
        while shown(interface).contains("xdp") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let bare = tokio::time::timeout(LIMIT, looks).await;
    assert!(bare.is_ok(), "{}", shown(interface));
}

/// The pin directory of these tests: inside, the mount is their own.
pub(crate) fn pin_dir() -> &'static Path {
    Path::new("/sys/fs/bpf/headstart")
}

pub(crate) fn pins(keep: bool) -> Option<Arc<Pins>> {
    Some(Arc::new(Pins::open(pin_dir(), keep).unwrap()))
}

/// The names in a directory of the pin directory.
pub(crate) fn pinned(dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(pin_dir().join(dir)).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The path of a pinned map.
pub(crate) fn map(name: &str) -> PathBuf {
    let layouts = pinned("");
    let dir = layouts.iter().find(|name| name.starts_with("maps-")).expect("maps are pinned");
    pin_dir().join(dir).join(name)
}

pub(crate) fn config(syn: &str) -> Config {
    Config::parse("test.toml", &format!("[syn]\n{syn}\n")).unwrap()
}

pub(crate) fn named(names: &[&str]) -> Interfaces {
    Interfaces::Named(names.iter().map(|name| (*name).to_owned()).collect())
}

/// A listener that the test accepts from.
pub(crate) fn listener(address: &str) -> (Arc<OwnedFd>, TcpListener) {
    let listener = TcpListener::bind(address).unwrap();
    (Arc::new(listener.try_clone().unwrap().into()), listener)
}

/// A route to a function without an ID.
pub(crate) fn route(listen: SocketAddr, listener: &Arc<OwnedFd>) -> Route {
    Route { listen, id: None, auth: RequireAuth::No, steered: false, listener: Arc::clone(listener) }
}

/// A function's number is its place.
pub(crate) fn numbered(routes: &[Route]) -> Routes {
    (0..).zip(routes.iter().cloned()).collect()
}

/// Loads and attaches, with the socket lookup if `lookup`.
pub(crate) fn start(
    pins: Option<Arc<Pins>>,
    routes: &[Route],
    config: &Config,
    interfaces: &Interfaces,
    lookup: bool,
) -> RunningSensors {
    let mut kernel = Kernel::load(headstart_ebpf::OBJECT, pins).unwrap();
    assert!(kernel.refused().is_empty(), "{:?}", kernel.refused());
    if lookup {
        kernel.attach_lookup().unwrap();
    }
    kernel.watch(&numbered(routes), &config.syn, interfaces).unwrap()
}

/// Waits until the sensor on this interface is in this mode, or off.
pub(crate) async fn until(
    attached: &mut watch::Receiver<Vec<AttachedSensor>>,
    interface: &str,
    mode: Mode,
    on: bool,
) {
    let row = AttachedSensor { interface: interface.to_owned(), mode, on };
    let found = attached.wait_for(|rows| rows.contains(&row));
    let found = tokio::time::timeout(LIMIT, found).await;
    assert!(matches!(found, Ok(Ok(_))), "{row:?} never came");
}

/// Another machine on a link: `near0` is our end, 10.99.0.1, the other end is 10.99.0.2.
pub(crate) struct Neighbour(Child);

impl Neighbour {
    pub(crate) fn new() -> Self {
        ip("link add near0 type veth peer name far0");
        // Lives in its namespace until its standard input is closed, at the latest when this process ends.
        let script = "echo; read -r until_moved && ip address add 10.99.0.2/24 dev far0 && ip link set far0 up && echo && cat";
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut String::new()).unwrap();
        ip(&format!("link set far0 netns {}", child.id()));
        ip("address add 10.99.0.1/24 dev near0");
        ip("link set near0 up");
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        assert_eq!(said.read_line(&mut String::new()).unwrap(), 1, "the other end is up");
        Self(child)
    }

    /// Connects from over there; the client's address.
    pub(crate) fn connect(&self, to: SocketAddr) -> SocketAddr {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        let client = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            TcpStream::connect(to).unwrap().local_addr().unwrap()
        });
        client.join().unwrap()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
