//! The Runtime API of AWS Lambda for a handler that knows nothing of Headstart: the first process of an instance with
//! `contract = "lambda"`.
//!
//! ```text
//! headstart-lambda TIMEOUT_MS INIT_TIMEOUT_MS -- PROGRAM [ARGUMENT]...
//!
//! client --HTTP--> url --event--> desk <--GET next------- client library of the handler, a child process
//!        <--HTTP--     <--answer--     <--POST response--
//! ```
//!
//! To the agent it is a function that links the shim: it has the listening socket, counts its connections and answers when it
//! is to be frozen. It serves the Runtime API on loopback of the instance and starts the program, which asks there for its
//! next event. The instance is ready when the program asks for the first time.
//!
//! It runs as the function's user with the function's rights. What it does for the handler, the handler could do itself.

mod answer;
mod api;
mod desk;
mod event;
mod extension;
mod handler;
mod life;
mod stream;
mod url;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

/// The most bytes of an event, and of an answer that is not streamed: 6 MiB and 100 bytes, as on Lambda ("Lambda quotas" in its
/// developer guide, and what its Runtime API says in its error).
const PAYLOAD_MAX: usize = 6_291_556;

/// What is to be run.
#[derive(Debug, PartialEq, Eq)]
struct Orders {
    /// How long one invocation may take.
    timeout: Duration,
    /// How long the handler may take until it asks for its first event.
    init_timeout: Duration,
    /// Program and arguments.
    command: Vec<OsString>,
}

/// The exit code of shells for a command that is used wrongly.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let Some(orders) = parse(env::args_os().skip(1).collect()) else {
        eprintln!("usage: headstart-lambda TIMEOUT_MS INIT_TIMEOUT_MS -- PROGRAM [ARGUMENT]...");
        return ExitCode::from(USAGE);
    };
    let mut code = None;
    let ran = headstart::run(async |function| {
        code = life::run(function, orders).await?;
        Ok::<_, life::LifeError>(())
    });
    code.map_or(ran, ExitCode::from)
}

fn parse(arguments: Vec<OsString>) -> Option<Orders> {
    let mut words = arguments.into_iter();
    let mut ms = || words.next()?.to_str()?.parse().ok().map(Duration::from_millis);
    let (timeout, init_timeout) = (ms()?, ms()?);
    let command: Vec<_> = words.collect();
    match command.split_first() {
        Some((dashes, command)) if dashes == "--" && !command.is_empty() => {
            Some(Orders { timeout, init_timeout, command: command.to_vec() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_say_times_and_a_command() {
        let parsed = |line: &str| parse(line.split(' ').map(OsString::from).collect());
        let orders = parsed("3000 10000 -- /python3 -m --").unwrap();
        assert_eq!((orders.timeout.as_secs(), orders.init_timeout.as_secs()), (3, 10));
        assert_eq!(orders.command, ["/python3", "-m", "--"]);
        for wrong in ["", "3000", "3000 -- /app", "3000 10000 --", "3000 10000 /app", "x 10000 -- /app"] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
    }
}
