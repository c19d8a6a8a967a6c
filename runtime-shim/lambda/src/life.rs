//! The life of an instance: the handler starts, serves, is replaced when it must be, and stops.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use headstart::Function;
use nix::sys::signal::{Signal, raise};
use tokio::time::{Instant, sleep_until, timeout};

use crate::desk::{Desk, Dismissal};
use crate::handler::{Handler, HandlerExit, Reaper};
use crate::{Orders, url};

/// A handler that is about to ask for its next event does so within this time.
const QUIET_WAIT: Duration = Duration::from_secs(1);

/// The exit code of shells for a command that cannot be run.
const NOT_RUN: u8 = 126;

/// What is said of a handler that does not start.
const NOT_ASKED: &str =
    "the handler has not asked for its first event: its program must be a client of the Lambda Runtime API";

/// Invocations at a time when nothing is configured, as on Lambda.
const PLACES: u32 = 1;

/// Why the function ends.
#[derive(Debug)]
pub(crate) enum LifeError {
    /// The shim cannot serve.
    Shim(headstart::Error),
    /// The handler cannot start, and says why.
    Init(String),
    /// It does not ask for an event in time.
    InitTimeout,
    /// Something of this process failed.
    Io(std::io::Error),
}

impl fmt::Display for LifeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shim(error) => error.fmt(f),
            Self::Init(error) => write!(f, "the handler cannot start: {error}"),
            Self::InitTimeout => f.write_str(NOT_ASKED),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LifeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Shim(error) => error.source(),
            Self::Init(_) | Self::InitTimeout | Self::Io(_) => None,
        }
    }
}

/// A line in the function's log.
pub(crate) fn say(text: &str) {
    eprintln!("headstart-lambda: {}", text.replace('\n', " "));
}

/// Runs the function to its end. Returns an exit code if the handler has left one before it was ready.
pub(crate) async fn run(function: Function, orders: Orders) -> Result<Option<u8>, LifeError> {
    let places = usize::try_from(function.concurrency().unwrap_or(PLACES)).unwrap_or(usize::MAX);
    let desk = Desk::new(places, orders.timeout);
    let reaper = Reaper::start().map_err(LifeError::Io)?;
    let mut keeping = std::pin::pin!(keep(&orders, &desk, &reaper));
    let _stopped = Starting(&desk);
    tokio::select! {
        biased;
        end = &mut keeping => return end,
        () = desk.asked() => {}
    }
    let frozen = Arc::clone(&desk);
    function.on_freeze(move || {
        let desk = Arc::clone(&frozen);
        async move {
            let quiet = timeout(QUIET_WAIT, desk.quiet()).await;
            quiet.map_err(|_| "the handler is at work".into())
        }
    });
    let mut serving = std::pin::pin!(function.serve(url::router(&desk, function.name())));
    tokio::select! {
        served = &mut serving => {
            desk.close();
            let kept = keeping.await;
            served.map_err(LifeError::Shim)?;
            kept
        }
        end = &mut keeping => {
            // Clients get their answers, and no new ones are accepted.
            desk.close();
            let stopped = raise(Signal::SIGTERM);
            serving.await.map_err(LifeError::Shim)?;
            stopped.map_err(|error| LifeError::Io(error.into()))?;
            end
        }
    }
}

/// If the function is stopped before its handler has asked for an event, the log says what it lacks.
struct Starting<'a>(&'a Desk);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if self.0.is_starting() {
            say(NOT_ASKED);
        }
    }
}

/// Why a handler has gone.
enum End {
    Exited(HandlerExit),
    Dismissed(Dismissal),
    InitTimeout,
}

/// Starts the handler, and starts it anew when it has gone and is wanted. Returns when one cannot start, or when the function
/// ends.
async fn keep(orders: &Orders, desk: &Arc<Desk>, reaper: &Reaper) -> Result<Option<u8>, LifeError> {
    while !desk.is_closed() {
        desk.starts();
        let mut handler = match Handler::start(&orders.command, desk, reaper).await {
            Ok(handler) => handler,
            Err(error) => {
                say(&error.to_string());
                desk.ended();
                return Ok(Some(NOT_RUN));
            }
        };
        let end = watch(&handler, orders, desk).await;
        let starting = desk.is_starting();
        if matches!(end, End::Dismissed(Dismissal::Closed)) {
            handler.stop().await;
            return Ok(None);
        }
        handler.kill().await;
        desk.ended();
        match end {
            // Its own last line tells more.
            End::Exited(exit) if starting => return Ok(Some(exit.code().max(1))),
            End::Exited(exit) => say(&format!("the handler has ended: {exit}")),
            End::Dismissed(Dismissal::InitError(error)) => return Err(LifeError::Init(error)),
            End::Dismissed(Dismissal::Condemned(why)) => say(&format!("the handler is ended: {why}")),
            End::Dismissed(Dismissal::Closed) => {}
            End::InitTimeout => return Err(LifeError::InitTimeout),
        }
        desk.wanted().await;
    }
    Ok(None)
}

/// Watches a handler until it has gone, or must go.
async fn watch(handler: &Handler<'_>, orders: &Orders, desk: &Desk) -> End {
    let init_by = Instant::now() + orders.init_timeout;
    loop {
        let changed = desk.changed();
        let by = if desk.is_starting() { Some(init_by) } else { desk.next_deadline() };
        tokio::select! {
            biased;
            dismissed = desk.dismissed() => return End::Dismissed(dismissed),
            exit = handler.exited() => return End::Exited(exit),
            () = changed => {}
            () = until(by) => {
                if desk.is_starting() {
                    return End::InitTimeout;
                }
                desk.expire();
            }
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
