//! What the tests stand on: a root file system, a state directory, a runtime.

mod daemon;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use headstart_config::{Agent, DockerNetwork, NOBODY, Runtime};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, accept, connect, socket};
use tempfile::TempDir;

use super::super::*;
use super::SOON;
use crate::start::driver::Driver;

/// A program that is executable by its mode only.
const UNFIT: &str = "unfit";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Oci,
    /// The same with crun in the place of runc.
    Crun,
    /// The same two with a user namespace.
    Namespaced,
    NamespacedCrun,
    Process,
    Docker,
}

impl Kind {
    fn is_namespaced(self) -> bool {
        matches!(self, Self::Namespaced | Self::NamespacedCrun)
    }

    fn has_crun(self) -> bool {
        matches!(self, Self::Crun | Self::NamespacedCrun)
    }

    /// Who its functions are.
    pub(super) fn user(self) -> u32 {
        if self.is_namespaced() { 100_001 } else { 65_534 }
    }

    /// Without a root file system of its own.
    pub(super) fn is_plain(self) -> bool {
        self == Self::Process
    }
}

/// One test's own directory and function.
pub(super) struct Bed {
    pub(super) kind: Kind,
    directory: TempDir,
    /// Instances of this test; names are unique on the node, where cgroups are shared.
    prefix: String,
    next: AtomicU32,
    /// What its function sees of the node.
    pub(super) mounts: Vec<Mount>,
    pub(super) secrets: Vec<Secret>,
    /// What it may write into its root file system.
    pub(super) writable: Option<u64>,
}

/// What a container could leave on the node: cgroups, mounts, descriptors, files, zombies.
#[derive(Debug)]
pub(super) struct Traces {
    counts: BTreeMap<&'static str, usize>,
}

impl Traces {
    /// Whether there is more of anything. Less is no leak: an idle connection was closed, for instance.
    pub(super) fn exceed(&self, before: &Self) -> bool {
        self.counts.iter().any(|(kind, count)| Some(count) > before.counts.get(kind))
    }
}

/// A bed for this kind, or `None` after a word about what is missing. Under CI
/// nothing may be missing.
pub(super) async fn lay(kind: Kind) -> Option<Bed> {
    let lacks = if !nix::unistd::geteuid().is_root() {
        Some("root")
    } else if find("busybox").is_none() {
        Some("busybox (apt install busybox-static)")
    } else if matches!(kind, Kind::Oci | Kind::Namespaced) && find("runc").is_none() {
        Some("runc (apt install runc)")
    } else if kind.has_crun() && find("crun").is_none() {
        Some("crun (apt install crun)")
    } else if kind == Kind::Docker && (find("dockerd").is_none() || find("docker").is_none()) {
        Some("docker (apt install docker.io)")
    } else {
        None
    };
    if let Some(what) = lacks {
        assert!(std::env::var_os("CI").is_none(), "this test needs {what}");
        println!("SKIPPED: needs {what}");
        return None;
    }
    become_subreaper().unwrap();
    let _already = tracing_subscriber::fmt().with_test_writer().try_init();
    static BEDS: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("t{}x{}", std::process::id(), BEDS.fetch_add(1, Ordering::Relaxed));
    // Not in /tmp, which a process of its own mounts does not see.
    let directory = tempfile::tempdir_in("/var/lib").unwrap();
    let bed = Bed {
        kind,
        directory,
        prefix,
        next: AtomicU32::new(0),
        mounts: Vec::new(),
        secrets: Vec::new(),
        writable: None,
    };
    fs::set_permissions(bed.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    make_rootfs(&bed.rootfs());
    if kind == Kind::Docker {
        daemon::import(&bed.rootfs()).await;
    }
    Some(bed)
}

/// Where a program of the node is.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| path.exists())
}

fn make_rootfs(rootfs: &Path) {
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::copy(find("busybox").unwrap(), rootfs.join("bin/busybox")).unwrap();
    for applet in [
        "cat", "echo", "grep", "head", "ls", "mkdir", "mount", "sh", "sleep", "tail", "touch", "true",
        "unshare", "wc",
    ] {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    fs::write(rootfs.join(UNFIT), b"\x01\x02 no program").unwrap();
    fs::set_permissions(rootfs.join(UNFIT), fs::Permissions::from_mode(0o755)).unwrap();
}

/// The process of a container with exactly this command line. Others on the machine may have the same.
pub(super) fn pid_of(command: &str, container: &PreparedContainer) -> Option<i32> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (line.trim() == command && container.process.owns(pid)).then_some(pid)
    })
}

impl Bed {
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(super) fn function(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub(super) fn inherits(&self) -> bool {
        self.kind != Kind::Docker
    }

    pub(super) fn runtime(&self, command: &[&str]) -> Arc<dyn FunctionRuntime> {
        self.runtime_for("f", command)
    }

    pub(super) fn runtime_for(&self, function: &str, command: &[&str]) -> Arc<dyn FunctionRuntime> {
        let spec = ContainerSpec {
            function: self.function(function),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            env: vec![("GREETING".to_owned(), "hello world".to_owned())],
            memory_bytes: 64 * 1024 * 1024,
            swaps: false,
            pids: 32,
            shares: Shares::default(),
            user: self.kind.user(),
            group: self.kind.user(),
            namespace_root: self.kind.is_namespaced().then_some(self.kind.user() - 1),
            mounts: self.mounts.clone(),
            secrets: self.secrets.clone(),
            backends: false,
            init: Init { file: "/nowhere/init".into(), contract: Vec::new() },
            adapter: None,
            workdir: "/".into(),
        };
        let configured = match self.kind {
            Kind::Oci | Kind::Crun | Kind::Namespaced | Kind::NamespacedCrun => {
                Runtime::Oci { rootfs: self.rootfs(), image: None, writable: self.writable }
            }
            Kind::Process => Runtime::Process,
            Kind::Docker => Runtime::Docker {
                image: daemon::IMAGE.to_owned(),
                network: DockerNetwork::None,
                user: NOBODY.to_owned(),
            },
        };
        driver(self.kind, &self.agent()).runtime(&configured, &spec).unwrap()
    }

    /// `[agent]` of this test.
    pub(super) fn agent(&self) -> Agent {
        let docker_socket =
            if self.kind == Kind::Docker { daemon::socket() } else { "/no/docker.sock".into() };
        let runc = find("runc").unwrap_or_default();
        Agent { state_dir: self.state_dir(), runc, docker_socket, ..Agent::default() }
    }

    /// What the next agent would find.
    pub(super) async fn survivors(&self) -> Survivors {
        Drivers::new(&self.agent()).survivors().await
    }

    pub(super) fn instance(&self) -> String {
        format!("{}-{:016x}", self.function("f"), self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) async fn prepare(&self, script: &str) -> PreparedContainer {
        self.runtime(&["/bin/sh", "-c", script]).prepare(&self.instance()).await.unwrap()
    }

    /// Runs a script to its end and removes its container.
    pub(super) async fn run(&self, script: &str) -> Exit {
        let parked = self.prepare(script).await;
        parked.process.release().await.unwrap();
        let exit = self.eventually_ends(&parked, false).await;
        parked.process.remove().await.unwrap();
        exit
    }

    /// The error of a command that cannot run, wherever it shows.
    pub(super) async fn fails(&self, command: &[&str]) -> StartError {
        match self.runtime(command).prepare(&self.instance()).await {
            Err(error) => error,
            Ok(parked) => {
                let error = parked.process.release().await.unwrap_err();
                parked.process.remove().await.unwrap();
                error
            }
        }
    }

    /// As the function would name it.
    pub(super) fn unfit_program(&self) -> String {
        let path = if self.kind.is_plain() { self.rootfs().join(UNFIT) } else { Path::new("/").join(UNFIT) };
        path.to_str().unwrap().to_owned()
    }

    /// Connects as the function would, and is accepted by the agent's end.
    pub(super) async fn connects(&self, listener: &OwnedFd, parked: &PreparedContainer) {
        let path = self.state_dir().join("docker").join(self.first_instance()).join("control.sock");
        let pid = self.eventually(|| pid_of("sleep 60", parked)).await;
        let seen = format!("/proc/{pid}/root{}", headstart_wire::CONTROL_PATH);
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(Path::new(&seen)), inode(&path), "the socket of this instance");
        let flags = SockFlag::SOCK_CLOEXEC;
        let function = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        connect(function.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        self.eventually(|| accept(listener.as_raw_fd()).ok()).await;
    }

    fn first_instance(&self) -> String {
        format!("{}-{:016x}", self.function("f"), 0)
    }

    /// Waits for the end, asking for it again and again if `ask` says so: a program
    /// that has only just exec'd may not have its handler yet.
    pub(super) async fn eventually_ends(&self, parked: &PreparedContainer, ask: bool) -> Exit {
        let ends = async {
            loop {
                if ask {
                    parked.process.terminate().await;
                }
                let pause = Duration::from_millis(50);
                if let Ok(exit) = tokio::time::timeout(pause, parked.process.exited()).await {
                    return exit;
                }
            }
        };
        tokio::time::timeout(SOON, ends).await.expect("the function ends")
    }

    /// Waits until a condition gives a value.
    pub(super) async fn eventually<T>(&self, mut condition: impl FnMut() -> Option<T>) -> T {
        let met = async {
            loop {
                if let Some(value) = condition() {
                    return value;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(SOON, met).await.expect("the condition is met")
    }

    /// All processes of an instance.
    pub(super) fn processes(&self, process: &dyn Process) -> Vec<i32> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| process.owns(*pid)).collect()
    }

    /// Processor time that an instance's processes have used, in clock ticks (fields 14 and 15, proc_pid_stat(5)).
    pub(super) fn ticks(&self, process: &dyn Process) -> u64 {
        let used = |pid: i32| {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name, which may hold anything, ends at the last parenthesis.
            let fields = text.rsplit_once(')')?.1.split_whitespace();
            Some(fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum::<u64>())
        };
        self.processes(process).into_iter().filter_map(used).sum()
    }

    /// Kills the parked container from outside.
    pub(super) async fn kill_parked(&self) {
        for pid in cgroup_pids(&self.function("f")) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
    }

    pub(super) fn traces(&self) -> Traces {
        let count = |directory: &str| fs::read_dir(directory).map_or(0, Iterator::count);
        // Others of the machine mount and unmount beside this.
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = [Some(self.directory.path().to_owned()), daemon::directory()];
        let own = |line: &str| own.iter().flatten().any(|path| line.contains(&*path.to_string_lossy()));
        // The daemon is a child of this process, and its orphans come here when they like.
        let children = if self.kind == Kind::Docker { 0 } else { children() };
        let counts = [
            ("children", children),
            ("cgroups", cgroup_directories(&self.function("f")).len()),
            ("descriptors", count("/proc/self/fd")),
            ("mounts", table.lines().filter(|line| own(line)).count()),
            ("files", files_under(&self.state_dir(), &self.function("f"))),
        ];
        Traces { counts: counts.into() }
    }

    /// Nothing of this test is left on the node.
    pub(super) fn assert_no_trace(&self) {
        assert_eq!(cgroup_directories(&self.prefix), Vec::<PathBuf>::new());
        assert_eq!(files_under(&self.state_dir(), &self.prefix), 0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*self.directory.path().to_string_lossy()), "{mounts}");
    }
}

impl Drop for Bed {
    /// A test that failed halfway leaves no process behind.
    fn drop(&mut self) {
        for pid in cgroup_pids(&self.prefix) {
            let _gone =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Children of this process, zombies too.
fn children() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.map(|list| list.split_whitespace().count()).sum()
}

/// The driver of this kind.
pub(super) fn driver(kind: Kind, agent: &Agent) -> Box<dyn Driver> {
    match kind {
        Kind::Oci | Kind::Crun | Kind::Namespaced | Kind::NamespacedCrun => {
            let crun = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/start/tests/crun.sh");
            let runc = if kind.has_crun() { crun } else { agent.runc.clone() };
            oci::driver(&Agent { runc, user_namespaces: kind.is_namespaced(), ..agent.clone() })
        }
        Kind::Process => process::driver_with(helper(), agent),
        Kind::Docker => docker::driver(agent),
    }
}

/// How this test program is called to park a process: as one test of it.
fn helper() -> process::ParkHelper {
    let args = ["--exact", "start::tests::bed::park_entry", "--nocapture", "--test-threads=1"];
    process::ParkHelper { program: std::env::current_exe().unwrap(), args: args.map(Into::into).into() }
}

/// Not a test: where the helper begins. The markers are filters that fit no test.
#[test]
fn park_entry() {
    if std::env::args().any(|arg| arg.starts_with("__park")) {
        let _code = process::park::park_main();
        std::process::exit(0);
    }
}

/// Directories of instances whose name starts so, in every hierarchy.
fn cgroup_directories(prefix: &str) -> Vec<PathBuf> {
    let below = |path: PathBuf| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let top = PathBuf::from("/sys/fs/cgroup");
    below(top.clone())
        .into_iter()
        .chain([top])
        .flat_map(|hierarchy| below(hierarchy.join("headstart")))
        .flat_map(below)
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect()
}

fn cgroup_pids(prefix: &str) -> Vec<i32> {
    let mut pids: Vec<i32> = cgroup_directories(prefix)
        .iter()
        .filter_map(|directory| fs::read_to_string(directory.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Entries one or two levels down whose name starts so.
fn files_under(directory: &Path, prefix: &str) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let below = entries.flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten());
    below.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count()
}
