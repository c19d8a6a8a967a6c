//! The library of functions that [Headstart] starts.
//!
//! Headstart starts a function's container when the client's SYN arrives, and
//! gives it two things at launch: its **listening socket**, in whose queue the
//! first client already waits, and **backend connections** that the agent has
//! opened and logged in before. The function does not bind, connect or
//! authenticate; it needs no network and no passwords.
//!
//! # A whole function
//!
#![cfg_attr(all(feature = "http", feature = "postgres"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "http", feature = "postgres")), doc = "```ignore")]
//! use std::process::ExitCode;
//!
//! use axum::{Router, extract::State, routing::get};
//! use headstart::PostgresSession;
//!
//! fn main() -> ExitCode {
//!     headstart::run(async |function| {
//!         // A session that the agent logged in: no connect, no TLS, no password.
//!         let db = function.backend("orders-db").session().await?;
//!         let app = Router::new().route("/", get(count)).with_state(db);
//!         // Reports "ready" to the agent, serves, and on SIGTERM finishes the requests in flight.
//!         function.serve(app).await
//!     })
//! }
//!
//! async fn count(State(db): State<PostgresSession>) -> String {
//!     let Ok(client) = db.client().await else { return "no database".into() };
//!     match client.query_one("select count(*) from orders", &[]).await {
//!         Ok(row) => row.get::<_, i64>(0).to_string(),
//!         Err(error) => error.to_string(),
//!     }
//! }
//! ```
//!
//! # Without an agent
//!
//! The same binary runs on a laptop, or in a container that Headstart did not
//! start: it listens on `HEADSTART_LISTEN` (`"127.0.0.1:8080"`) or on `PORT`,
//! and connects to its backends directly, by `HEADSTART_BACKEND_ORDERS_DB_URL`
//! or [`Backend::or_url`]. It also connects directly to a single backend for which
//! the agent has no connection. Each such [`Fallback`] is one line on standard
//! error and an entry of [`Function::fallbacks`].
//!
//! # Frozen instances
//!
//! The agent may freeze an idle instance: it keeps its memory and uses no processor time. The agent asks first, and the
//! instance refuses while a client is connected. After a thaw a `PostgresSession` checks its own connection; for
//! everything else there are [`Function::on_freeze`] and [`Function::on_thaw`].
//!
//! # Features
//!
//! - `http` (default): `Function::serve` for an axum `Router`, HTTP/1.1.
//! - `http2`: the same with HTTP/2, for clients that begin with it, as in gRPC.
//! - `postgres`: `Backend::session`, which replaces a dead `tokio_postgres::Client`; `Backend::postgres`, which does not.
//! - `tls`: for functions with `tls_hand_over = true`. The function continues TLS sessions that the agent began. Where the
//!   kernel encrypts them, the feature handles a server that changes its keys.
//!
//! Without them there are [`Function::serve_connections`] for any protocol
//! over TCP, [`Function::listener`] for a server of your own,
//! [`Backend::tcp`], [`Backend::stream`] and [`Backend::socket`].
//!
//! # Limits
//!
//! Every wait ends: see [`Limits`] and [`LEASE_WAIT`].
//!
//! [Headstart]: https://github.com/headstart-rs/headstart

mod attach;
mod control;
mod run;

mod agent;
mod backend;
mod fallback;
mod function;

mod connection;
mod freeze;
mod places;
mod serve;
mod stop;
mod stream;

#[cfg(feature = "http")]
mod http;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "tls")]
mod tls;

#[cfg(test)]
mod testing;

mod error;
mod report;

pub use attach::{LEASE_WAIT, attach};
pub use backend::{Backend, Injected};
pub use connection::Connection;
pub use error::Error;
pub use fallback::{Fallback, Reason};
pub use freeze::HookError;
pub use function::{Function, Limits};
pub use headstart_wire::Session;
pub use places::Open;
#[cfg(feature = "postgres")]
pub use postgres::PostgresSession;
pub use run::run;
pub use stream::BackendStream;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use tls::fuzzing;

/// Now, in nanoseconds of `CLOCK_MONOTONIC`: the clock of [`Function::served`].
#[must_use]
pub fn now_ns() -> u64 {
    // The kernel has had this clock since 2.6. To the agent, zero means "unknown".
    headstart_wire::monotonic_ns().unwrap_or(0)
}
