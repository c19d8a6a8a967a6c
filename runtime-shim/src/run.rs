//! The usual entry point: the attachment, a runtime, the function, the exit code.

use std::process::ExitCode;

use tokio::runtime::Builder;

use crate::attach::Attachment;
use crate::{Error, Function, now_ns, report};

/// Runs a function to its end; return the result from `main`.
///
/// It receives the agent's lease first; then `main` runs on a current-thread tokio
/// runtime, which is the fastest to build. (For a
/// multi-threaded one, use `#[tokio::main]` with [`attach`](crate::attach).)
///
/// SIGTERM before the function serves ends it at once, with success; afterwards it
/// ends the serving call, see [`Function::stopping`].
///
/// # Errors
/// An error of the attachment or of `main` becomes one line on standard error,
/// with its causes, and exit code 1.
///
/// ```no_run
/// # use std::process::ExitCode;
/// fn main() -> ExitCode {
///     headstart::run(async |function| {
///         function.serve_connections(|_connection| async { /* speak */ }).await
///     })
/// }
/// ```
pub fn run<M, E>(main: M) -> ExitCode
where
    M: AsyncFnOnce(Function) -> Result<(), E>,
    E: Into<Box<dyn std::error::Error>>,
{
    let entered_ns = now_ns();
    match enter(entered_ns, main) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::line(&report::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn enter<M, E>(entered_ns: u64, main: M) -> Result<(), Box<dyn std::error::Error>>
where
    M: AsyncFnOnce(Function) -> Result<(), E>,
    E: Into<Box<dyn std::error::Error>>,
{
    let attachment = Attachment::make(entered_ns)?;
    let runtime = Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    let result = runtime.block_on(async {
        let function = Function::new(attachment)?;
        function.handle_sigterm()?;
        tokio::select! {
            biased;
            () = function.stopped_before_serving() => Ok(()),
            result = main(function.clone()) => result.map_err(Into::into),
        }
    });
    // A task on the blocking pool (a name lookup) must not delay the exit.
    runtime.shutdown_background();
    result
}
