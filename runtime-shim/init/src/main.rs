//! The first process of an instance whose program knows nothing of Headstart.
//!
//! ```text
//! headstart-init port 8080 -- PROGRAM [ARGUMENT]...
//! headstart-init listen-fds -- PROGRAM [ARGUMENT]...
//! headstart-init headstart -- PROGRAM [ARGUMENT]...
//! ```
//!
//! The first two may have `stop SIGNAL` before the dashes: what the program gets when this process gets SIGTERM.
//!
//! It starts when the container is prepared, holds the control socket of the instance, and makes the program's process, which
//! waits. The lease is the release: the process execs the program. From then on it speaks the protocol of `headstart-wire` for
//! the program. `port`: the program binds and listens as it always does, and gets the agent's listening socket for that
//! ([`place`]). `listen-fds`: the program finds the socket as descriptor 3, as systemd passes it (sd_listen_fds(3)).
//! `headstart`: the program speaks the protocol itself and takes the place of the init, in a container that had to be started
//! before its release.
//!
//! It runs as the function's user with the function's rights. What it does for the program, the program could do itself.

mod control;
mod filter;
mod memory;
mod notify;
mod place;
mod program;
mod supervise;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU16;
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use nix::sys::signal::Signal;

/// How the program gets the listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contract {
    /// It binds this port.
    Port(NonZeroU16),
    /// It inherits the socket.
    ListenFds,
    /// It speaks the protocol itself, and inherits the control socket.
    Headstart,
}

/// Why the program does not run.
#[derive(Debug)]
struct InitError(String);

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names the step of a failed call.
fn at<E: fmt::Display>(step: &'static str) -> impl Fn(E) -> InitError {
    move |error| InitError(format!("{step}: {error}"))
}

/// The exit code of shells for a command that cannot be run.
const NOT_RUN: u8 = 126;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let ended =
        parse(&arguments).and_then(|(contract, stop, command)| supervise::run(contract, stop, command));
    let code = ended.unwrap_or_else(|error| {
        eprintln!("headstart-init: {error}");
        NOT_RUN
    });
    ExitCode::from(code)
}

fn parse(arguments: &[OsString]) -> Result<(Contract, Signal, &[OsString]), InitError> {
    let usage = || {
        InitError(
            "usage: headstart-init (port NUMBER | listen-fds | headstart) [stop SIGNAL] -- PROGRAM [ARGUMENT]..."
                .to_owned(),
        )
    };
    let (contract, rest) = match arguments {
        [word, number, rest @ ..] if word == "port" => {
            let number = number.to_str().and_then(|text| text.parse().ok()).ok_or_else(usage)?;
            (Contract::Port(number), rest)
        }
        [word, rest @ ..] if word == "listen-fds" => (Contract::ListenFds, rest),
        [word, rest @ ..] if word == "headstart" => (Contract::Headstart, rest),
        _ => return Err(usage()),
    };
    let (stop, rest) = match rest {
        [word, signal, rest @ ..] if word == "stop" => {
            (signal.to_str().and_then(|name| name.parse().ok()).ok_or_else(usage)?, rest)
        }
        _ => (Signal::SIGTERM, rest),
    };
    match rest {
        [dashes, command @ ..] if dashes == "--" && !command.is_empty() => {
            if command.iter().any(|word| word.as_bytes().contains(&0)) {
                return Err(usage());
            }
            Ok((contract, stop, command))
        }
        _ => Err(usage()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<(Contract, Signal, usize)> {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        parse(&arguments).ok().map(|(contract, stop, command)| (contract, stop, command.len()))
    }

    #[test]
    fn arguments_name_a_contract_and_a_command() {
        let port = NonZeroU16::new(8080).unwrap();
        let term = Signal::SIGTERM;
        assert_eq!(parsed("port 8080 -- /app --flag --"), Some((Contract::Port(port), term, 3)));
        assert_eq!(
            parsed("port 8080 stop SIGQUIT -- /app"),
            Some((Contract::Port(port), Signal::SIGQUIT, 1))
        );
        assert_eq!(parsed("listen-fds -- /app"), Some((Contract::ListenFds, term, 1)));
        assert_eq!(parsed("headstart -- /app x"), Some((Contract::Headstart, term, 2)));
        for wrong in [
            "",
            "port",
            "port 0 -- /app",
            "port 65536 -- /app",
            "port 80 /app",
            "port 80 stop -- /app",
            "port 80 stop SIGNONE -- /app",
            "listen-fds --",
            "other -- /app",
        ] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
    }
}
