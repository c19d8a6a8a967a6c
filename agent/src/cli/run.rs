//! `headstart run`: the agent itself.

use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::arguments::ConfigArgs;
use crate::agent::{Agent, AgentOptions};
use crate::log;
use crate::manager::ServiceManager;

/// `headstart run`.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Leave nothing in the kernel when the agent ends, however it ends. Functions that clients ask for before the next
    /// agent runs start when it does, one round trip later.
    #[arg(long)]
    unpin: bool,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the agent cannot start, or ends otherwise.
pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    serve(&args.config, args.unpin)
}

/// As [`run`].
///
/// # Errors
/// As [`run`].
pub(super) fn serve(file: &ConfigArgs, unpin: bool) -> anyhow::Result<ExitCode> {
    headstart_wire::share_heaps();
    // Both before anything is opened: what the service manager kept may be many descriptors.
    let raised = raise_open_files();
    let manager = ServiceManager::from_environment();
    let config = match file.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let log = log::init(config.agent.log);
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
    // One thread: a start passes through several tasks, and waking another thread costs more than any of them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let writer = log.clone();
    let options = AgentOptions { file: file.config.clone(), unpin };
    let ended = runtime.block_on(async {
        match Agent::build(options, config, manager).await? {
            Some(agent) => agent.run(writer).await,
            None => Ok(()),
        }
    });
    // A thread that waits for a name server, or for a client, must not keep the agent from ending.
    runtime.shutdown_background();
    log.flush();
    ended.map(|()| ExitCode::SUCCESS)
}

/// Listeners, control sockets and pooled connections are all descriptors: take as many as are allowed.
fn raise_open_files() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}
