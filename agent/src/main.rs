//! `headstart`: the command line of the agent.

use std::process::ExitCode;

use headstart_agent::{cli, start};

fn main() -> ExitCode {
    // A parked process is this program too: it must not become an agent.
    if start::process::park::is_park_invocation(std::env::args_os()) {
        return start::process::park::park_main();
    }
    cli::main()
}
