//! The hidden mode of the agent's program: becomes a parked process.
//!
//! A process cannot move itself into a PID namespace, so there are two. The
//! *outer* enters the cgroup, makes the namespaces, starts the *inner* and ends;
//! the inner, process 1 of its namespace, then belongs to the agent (its
//! subreaper). It mounts its own `/proc`, `/tmp` and `/run`, gives up every
//! privilege, filters its system calls and waits. Both speak on standard input, which is the release socket:
//!
//! ```text
//! agent                                outer          inner
//!   | -- order (one JSON line) ------------------------> |
//!   | <------------- pid N -------------- |              |
//!   | <------------- parked, missing, or failed TEXT --- |
//!   | -- GO -------------------------------------------> |
//!   | <--- end-of-file (exec'd), or not-executed ERRNO - |
//! ```
//!
//! Everything here runs before any thread of the agent exists.

mod loopback;

use std::env;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use headstart_config::SECRETS_PATH;
use headstart_wire::{BACKENDS_PATH, CONTROL_FD};
use nix::fcntl::{OFlag, open as open_path};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{
    AccessFlags, Gid, Uid, access, chdir, dup2_stdin, setgroups, sethostname, setresgid, setresuid, setsid,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use crate::privilege;
use crate::start::{DEFAULT_PATH, INIT_PATH, OPEN_FILES, TMP_BYTES, oom_score_adj, seccomp};

/// Arguments that select this mode: for the agent, and for the outer helper.
pub(super) const OUTER: &str = "__park";
const INNER: &str = "__park-inner";

/// The byte that releases a parked process.
pub(super) const GO: u8 = b'!';

/// Longest order, in bytes: arguments and environment have 1 MiB at most, of which a byte may become six.
const ORDER_BYTES: usize = 8 * 1024 * 1024;

/// Directories that a function has for itself, their modes, and whether programs can be there.
const OWN: [(&str, &str, bool); 4] =
    [("/tmp", "1777", true), ("/var/tmp", "1777", true), ("/dev/shm", "1777", false), ("/run", "755", false)];

/// What to run.
#[derive(Serialize, Deserialize)]
pub(super) struct ParkOrder {
    pub(super) command: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    /// The directory in which the program starts.
    pub(super) workdir: PathBuf,
    /// User and group.
    pub(super) user: u32,
    /// What it sees of the node beside that.
    pub(super) mounts: Vec<ParkMount>,
    /// The directory that the function sees at [`BACKENDS_PATH`].
    pub(super) backends: Option<PathBuf>,
    /// The directory that the function sees at [`SECRETS_PATH`].
    pub(super) secrets: Option<PathBuf>,
    /// The file that the function sees at [`INIT_PATH`].
    pub(super) init: Option<PathBuf>,
}

/// A file or a directory that the function sees.
#[derive(Serialize, Deserialize)]
pub(super) struct ParkMount {
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    pub(super) read_only: bool,
}

/// What the helpers say, one line each.
#[derive(Debug)]
pub(super) enum ParkReport {
    /// The inner helper's process number, in the agent's namespace.
    Pid(i32),
    /// It waits.
    Parked,
    /// The command does not exist.
    Missing,
    /// A step of the set-up failed.
    Failed(String),
    /// execve(2) failed with this error number.
    NotExecuted(i32),
}

impl ParkReport {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "pid" => rest.parse().ok().map(Self::Pid),
            "parked" => Some(Self::Parked),
            "missing" => Some(Self::Missing),
            "failed" => Some(Self::Failed(rest.to_owned())),
            "not-executed" => rest.parse().ok().map(Self::NotExecuted),
            _ => None,
        }
    }

    fn send(&self, mut release: &UnixStream) {
        let line = match self {
            Self::Pid(pid) => format!("pid {pid}\n"),
            Self::Parked => "parked\n".to_owned(),
            Self::Missing => "missing\n".to_owned(),
            Self::Failed(text) => format!("failed {}\n", text.replace('\n', " ")),
            Self::NotExecuted(errno) => format!("not-executed {errno}\n"),
        };
        // An agent that no longer listens has no use for it.
        let _unheard = release.write_all(line.as_bytes());
    }
}

/// Whether the program was called to park a process: then `main` does nothing
/// but call [`park_main`].
#[must_use]
pub fn is_park_invocation(args: impl IntoIterator<Item = OsString>) -> bool {
    args.into_iter().nth(1).is_some_and(|arg| arg == OUTER || arg == INNER)
}

/// The hidden mode. Returns only when the function could not be run, or was discarded.
#[must_use]
pub fn park_main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    let Ok(release) = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) else {
        return ExitCode::FAILURE;
    };
    let Some(at) = args.iter().position(|arg| arg == OUTER || arg == INNER) else {
        return ExitCode::FAILURE;
    };
    let (before, after) = (&args[..at], &args[at + 1..]);
    let done = match after {
        [instance, join_files @ ..] if args[at] == OUTER => outer(before, instance, join_files, &release),
        [instance] => inner(instance, &release),
        _ => Err(ParkError::Arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ParkReport::Failed(error.to_string()).send(&release);
            ExitCode::FAILURE
        }
    }
}

/// Why no process is parked. The agent gets it as text.
#[derive(Debug, thiserror::Error)]
enum ParkError {
    #[error("{step}: {detail}")]
    Step { step: &'static str, detail: String },
    #[error("{step}: {detail}")]
    Mount { step: String, detail: String },
    #[error("called with the wrong arguments")]
    Arguments,
    #[error("the order ended early, or is too long")]
    Order,
}

/// Names the step of a failed call.
fn at<E: std::fmt::Display>(step: &'static str) -> impl Fn(E) -> ParkError {
    move |error| ParkError::Step { step, detail: error.to_string() }
}

fn outer(
    before: &[OsString],
    instance: &OsString,
    join_files: &[OsString],
    release: &UnixStream,
) -> Result<(), ParkError> {
    for file in join_files {
        fs::write(file, "0").map_err(at("entering the cgroup"))?;
    }
    let namespaces = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWPID;
    unshare(namespaces).map_err(at("making namespaces"))?;
    // A kernel without cgroup namespaces shows the function more, but can run it.
    let _shown = unshare(CloneFlags::CLONE_NEWCGROUP);
    loopback::set_up().map_err(at("setting the loopback interface up"))?;
    let inner = Command::new("/proc/self/exe")
        .args(before)
        .arg(INNER)
        .arg(instance)
        .spawn()
        .map_err(at("starting the inner helper"))?;
    ParkReport::Pid(i32::try_from(inner.id()).unwrap_or(0)).send(release);
    Ok(())
}

fn inner(instance: &OsString, release: &UnixStream) -> Result<(), ParkError> {
    let order = read_order(release)?;
    // They may be below what is covered.
    let backends = order.backends.as_deref().map(open).transpose();
    let backends = backends.map_err(at("opening the backends' directory"))?;
    let secrets = order.secrets.as_deref().map(open).transpose().map_err(at("opening the secrets"))?;
    let init = order.init.as_deref().map(open).transpose().map_err(at("opening the init"))?;
    let own = order.mounts.iter().map(|mount| {
        let step = format!("mounting {}", mount.source.display());
        let failed = |error: io::Error| ParkError::Mount { step: step.clone(), detail: error.to_string() };
        open(&mount.source).map(|source| (source, mount)).map_err(failed)
    });
    let own = own.collect::<Result<Vec<_>, _>>()?;
    mounts().map_err(at("mounting"))?;
    if let Some(backends) = backends {
        let target = Path::new(BACKENDS_PATH);
        show(&backends, target, MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC)
            .map_err(at("mounting the backends' sockets"))?;
    }
    if let Some(secrets) = secrets {
        let target = Path::new(SECRETS_PATH);
        show(&secrets, target, MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC)
            .map_err(at("mounting the secrets"))?;
        // They are in this place only.
        umount2(Path::new(&of(&secrets)), MntFlags::MNT_DETACH).map_err(at("hiding the secrets"))?;
    }
    if let Some(init) = init {
        show(&init, Path::new(INIT_PATH), MsFlags::MS_RDONLY).map_err(at("mounting the init"))?;
    }
    for (source, mount) in own {
        let flags = if mount.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        show(&source, &mount.target, flags).map_err(|error| ParkError::Mount {
            step: format!("mounting {} at {}", mount.source.display(), mount.target.display()),
            detail: error.to_string(),
        })?;
    }
    sethostname(crate::start::name::host(&instance.to_string_lossy())).map_err(at("naming the host"))?;
    chdir("/").map_err(at("entering the root directory"))?;
    // A terminal's Ctrl-C is for the agent, which ends its functions; and the session has one priority to set.
    setsid().map_err(at("beginning a session"))?;
    limit(Resource::Nofile, OPEN_FILES).map_err(at("limiting open files"))?;
    limit(Resource::Core, 0).map_err(at("limiting core files"))?;
    fs::write("/proc/self/oom_score_adj", oom_score_adj().to_string())
        .map_err(at("setting its OOM score"))?;
    let null = File::open("/dev/null").map_err(at("opening /dev/null"))?;
    dup2_stdin(&null).map_err(at("replacing standard input"))?;
    // The process that started the agent may have left descriptors open that were never meant for a function.
    close_fds::set_fds_cloexec(CONTROL_FD + 1, &[]);
    drop_privileges(order.user)?;
    // With the function's rights.
    chdir(&order.workdir)
        .map_err(at("entering `workdir`, which the user of the function must be allowed to"))?;

    let Some(program) = find(&order) else {
        ParkReport::Missing.send(release);
        return Ok(());
    };
    let text = |string: &str| CString::new(string).map_err(at("reading the order"));
    let args = order.command.iter().map(|arg| text(arg)).collect::<Result<Vec<_>, _>>()?;
    let env = order
        .env
        .iter()
        .map(|(name, value)| text(&format!("{name}={value}")))
        .collect::<Result<Vec<_>, _>>()?;
    let path = CString::new(program.as_os_str().as_bytes()).map_err(at("reading the order"))?;
    seccomp::install().map_err(at("filtering system calls"))?;
    ParkReport::Parked.send(release);

    let mut byte = [0];
    let mut socket = release;
    match socket.read(&mut byte) {
        Ok(1) if byte == [GO] => {}
        // The agent is gone, or discards this process.
        _ => return Ok(()),
    }
    let Err(errno) = nix::unistd::execve(&path, &args, &env);
    ParkReport::NotExecuted(errno as i32).send(release);
    Ok(())
}

fn limit(resource: Resource, value: u64) -> rustix::io::Result<()> {
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
}

fn read_order(mut release: &UnixStream) -> Result<ParkOrder, ParkError> {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    // The agent says nothing more until it has heard from us, so nothing after the line is lost.
    while line.last() != Some(&b'\n') {
        let length = release.read(&mut chunk).map_err(at("reading the order"))?;
        if length == 0 || line.len() + length > ORDER_BYTES {
            return Err(ParkError::Order);
        }
        line.extend_from_slice(&chunk[..length]);
    }
    serde_json::from_slice(&line).map_err(at("reading the order"))
}

/// Its own `/proc` (for the PID namespace), and directories which no other instance sees: those for temporary files, and
/// `/run`, where the node's services have their sockets.
fn mounts() -> nix::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), "/proc", Some("proc"), plain | MsFlags::MS_NOEXEC, none)?;
    for (place, mode, may_execute) in OWN {
        let flags = if may_execute { plain } else { plain | MsFlags::MS_NOEXEC };
        if Path::new(place).is_dir() {
            let options = format!("mode={mode},size={TMP_BYTES}");
            mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some(options.as_str()))?;
        }
    }
    Ok(())
}

/// Opens a file of any kind, only to mount it.
fn open(path: &Path) -> io::Result<File> {
    Ok(open_path(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// The path of what is open.
fn of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Binds a file or a directory to `target`. Where the function has a directory of its own, the target is made.
fn show(source: &File, target: &Path, flags: MsFlags) -> io::Result<()> {
    let own = OWN.iter().map(|(place, _, _)| *place).chain(["/var/run"]);
    if own.into_iter().any(|place| target.starts_with(place)) {
        match target.parent() {
            _ if source.metadata()?.is_dir() => fs::create_dir_all(target)?,
            Some(above) => fs::create_dir_all(above).and_then(|()| File::create(target).map(drop))?,
            None => {}
        }
    }
    let (none, flags) = (None::<&str>, flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
    mount(Some(of(source).as_str()), target, none, MsFlags::MS_BIND, none)?;
    mount(none, target, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, none)?;
    Ok(())
}

/// Gives up groups, user, every capability, and the way to get any back.
fn drop_privileges(user: u32) -> Result<(), ParkError> {
    privilege::bound(CapabilitySet::empty()).map_err(at("dropping a capability"))?;
    setgroups(&[]).map_err(at("dropping groups"))?;
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(user));
    setresgid(group, group, group).map_err(at("changing the group"))?;
    setresuid(user, user, user).map_err(at("changing the user"))?;
    rustix::thread::clear_ambient_capability_set().map_err(at("dropping ambient capabilities"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(at("dropping capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(at("forbidding new privileges"))
}

/// The program, looked for as execvp(3) would in the function's own `PATH`, with the function's rights.
fn find(order: &ParkOrder) -> Option<PathBuf> {
    let name = order.command.first().filter(|name| !name.is_empty())?;
    let fits = |path: &PathBuf| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.exists());
    }
    let path = order.env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, path)| path);
    path.split(':').map(|directory| Path::new(directory).join(name)).find(fits)
}
