//! `headstart tag`: adds the function's ID to the SYNs of unmodified programs.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

use clap::{ArgGroup, Args};
use headstart_ebpf::client::{ClientTag, TAGS_MAX};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::signals::{self, Signals};
use super::tagger::Tagger;
use super::{ClientError, Destination, cgroup, key};

/// Who sends what to whom.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("whose").required(true).args(["cgroup", "command"])))]
pub struct TagArgs {
    /// Tags what the processes of this cgroup v2 (and below it) send, until SIGTERM or Ctrl-C.
    #[arg(long, value_name = "DIRECTORY")]
    cgroup: Option<PathBuf>,
    /// The function's ID; 0, with a key, for the port's default function.
    #[arg(long, value_name = "ID")]
    function: u32,
    /// Which connections; every address of a host name, resolved once. 0.0.0.0 is any address.
    #[arg(long, value_name = "HOST:PORT")]
    to: Destination,
    /// Proves that this client may start the function: lines of NUMBER HEX, readable by their owner only.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Which key of the file [default: the highest number].
    #[arg(long, value_name = "NUMBER", requires = "key_file", value_parser = clap::value_parser!(u8).range(1..=15))]
    key: Option<u8>,
    /// The `audience` of the node's configuration, if it has one.
    #[arg(long, value_name = "NAME", requires = "key_file", value_parser = crate::audience::parse)]
    audience: Option<String>,
    /// Runs a command in a cgroup of its own instead; its exit code becomes ours.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Attaches, waits for a signal or the command, detaches.
///
/// # Errors
/// See [`ClientError`]; nothing is left attached or created.
pub fn tag(args: &TagArgs) -> Result<ExitCode, ClientError> {
    let tag = client_tag(args)?;
    let to = args.to.resolve()?;
    if to.len() > TAGS_MAX {
        return Err(ClientError::TooManyAddresses {
            to: args.to.clone(),
            addresses: to.len(),
            max: TAGS_MAX,
        });
    }
    let system = |what| move |error| ClientError::System { what, error };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(system("cannot start the runtime"))?.block_on(async {
        // First, because a SIGTERM without a handler would leave the cgroup behind.
        let signals = Signals::listen().map_err(system("signals cannot be received"))?;
        match &args.cgroup {
            Some(path) => hold(Tagger::attach(path, &to, tag)?, signals, args).await,
            None => run(&args.command, &to, tag, signals).await,
        }
    })
}

fn client_tag(args: &TagArgs) -> Result<ClientTag, ClientError> {
    let function = args.function;
    let Some(file) = &args.key_file else {
        let open = ClientTag { key: [0; 2], function, number: 0 };
        return if function == 0 { Err(ClientError::NothingToSay) } else { Ok(open) };
    };
    let (number, key) = key(file, args.key, args.audience.as_deref())?;
    Ok(ClientTag { key, function, number: number.into() })
}

/// Tags until a signal comes.
async fn hold(mut tagger: Tagger, mut signals: Signals, args: &TagArgs) -> Result<ExitCode, ClientError> {
    let (function, to) = (args.function, &args.to);
    // A closed standard output is no error.
    let _unread = writeln!(io::stdout(), "tagging SYNs to {to} for function {function}; Ctrl-C ends it");
    loop {
        tokio::select! {
            _ = signals.next() => return Ok(ExitCode::SUCCESS),
            refreshed = tagger.refresh() => refreshed?,
        }
    }
}

/// Tags the SYNs of one command until it ends; processes that it leaves behind are no longer tagged.
async fn run(
    command: &[OsString],
    to: &[SocketAddr],
    tag: ClientTag,
    mut signals: Signals,
) -> Result<ExitCode, ClientError> {
    // They drop in reverse order: first the program detaches, then the cgroup is removed.
    let cgroup = cgroup::CommandCgroup::new()?;
    let mut tagger = Tagger::attach(cgroup.path(), to, tag)?;
    let mut child = cgroup.inside(|| spawn(command))??;
    loop {
        tokio::select! {
            status = child.wait() => {
                return status.map(exit_code).map_err(|error| ClientError::System {
                    what: "cannot wait for the command",
                    error,
                });
            }
            signal = signals.next() => {
                if let Some(pid) = child.id().filter(|_| !signals::child_has_it(signal)) {
                    // This fails only when the command has just ended.
                    let _ended = kill(Pid::from_raw(pid.cast_signed()), signal);
                }
            }
            refreshed = tagger.refresh() => refreshed?,
        }
    }
}

fn spawn(command: &[OsString]) -> Result<Child, ClientError> {
    let (program, arguments) =
        command.split_first().map_or((OsString::new(), &[][..]), |(p, a)| (p.clone(), a));
    let spawned = Command::new(&program).args(arguments).kill_on_drop(true).spawn();
    spawned.map_err(|error| ClientError::Execute { command: program.display().to_string(), error })
}

/// The exit code that a shell reports: the command's code, or 128 and the signal that killed it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
