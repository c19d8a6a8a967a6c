//! `pool`: how many connections are kept to a backend, and for how long.

use std::time::Duration;

use super::Protocol;
use crate::table::{Table, Value};

/// The limits of one backend's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Ready connections to keep at all times, 0 to `max`. Default 4, or `max` where that is less.
    pub min_idle: usize,
    /// `size`: `"auto"` keeps more than `min_idle` ready while more are asked for. Default `"fixed"`: `false`.
    pub follow_demand: bool,
    /// The most connections, ready, leased and begun together; 1 to 10000. Default 64.
    pub max: usize,
    /// The most connections of all backends with the same address together, when this one begins another; 1 to 100000.
    /// Default `None`.
    pub server_max: Option<u32>,
    /// The most connections that one function may have of these, 1 to `max`. Default `None`: all.
    pub max_per_function: Option<usize>,
    /// `on_release`: `"recycle"` cleans connections that clients of a socket close, and keeps them for clients of the same
    /// function; not with `tcp` and `tls`. Default `"discard"`: `false`.
    pub recycle: bool,
    /// How old a recycled connection may get, 1 m to 24 h. Default 1 h.
    pub max_age: Duration,
    /// Age at which an unused connection is replaced, 1 s to 24 h. Default 10 m.
    pub ttl: Duration,
    /// Deadline of connecting and logging in together, 10 ms to 5 m. Default 5 s.
    pub connect_timeout: Duration,
    /// How long the server's host may acknowledge nothing, neither data nor keep-alive probes, until a connection ends;
    /// 6 s to 24 h. Default 1 m.
    pub peer_timeout: Duration,
    /// How long a lease waits for a connection when all `max` are taken, 0 to 5 m. Default 1 s.
    pub wait: Duration,
    /// Ceiling of the back-off between failed attempts to connect, 100 ms to 1 h. Default 30 s.
    pub backoff_max: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            min_idle: 4,
            follow_demand: false,
            server_max: None,
            max_per_function: None,
            recycle: false,
            max_age: Duration::from_hours(1),
            max: 64,
            ttl: Duration::from_mins(10),
            connect_timeout: Duration::from_secs(5),
            peer_timeout: Duration::from_mins(1),
            wait: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
        }
    }
}

impl Pool {
    pub(super) fn read(mut table: Table<'_>, protocol: Option<&Protocol>) -> Self {
        let (ms, secs, mins, hours) =
            (Duration::from_millis, Duration::from_secs, Duration::from_mins, Duration::from_hours);
        let default = Self::default();
        let max = table.or("max", default.max, |v| v.integer(1..=10_000));
        let pool = Self {
            min_idle: table.or("min_idle", default.min_idle.min(max), |v| at_most(&v, 0, max)),
            follow_demand: table
                .or("size", default.follow_demand, |v| v.choice(&[("fixed", false), ("auto", true)])),
            max,
            server_max: table.or("server_max", None, |v| server_max(&v, max)),
            max_per_function: table.or("max_per_function", None, |v| at_most(&v, 1, max).map(Some)),
            recycle: table.or("on_release", default.recycle, |v| {
                let recycle = v.choice(&[("discard", false), ("recycle", true)])?;
                match protocol.filter(|_| recycle).and_then(|protocol| protocol.keys().why_not_recycled()) {
                    Some(why) => v.fail(why),
                    None => Some(recycle),
                }
            }),
            max_age: table.or("max_age", default.max_age, |v| v.duration(mins(1)..=hours(24))),
            ttl: table.or("ttl", default.ttl, |v| v.duration(secs(1)..=hours(24))),
            connect_timeout: table
                .or("connect_timeout", default.connect_timeout, |v| v.duration(ms(10)..=mins(5))),
            peer_timeout: table.or("peer_timeout", default.peer_timeout, |v| v.duration(secs(6)..=hours(24))),
            wait: table.or("wait", default.wait, |v| v.duration(ms(0)..=mins(5))),
            backoff_max: table.or("backoff_max", default.backoff_max, |v| v.duration(ms(100)..=hours(1))),
        };
        table.finish();
        pool
    }
}

fn at_most(value: &Value<'_>, min: usize, max: usize) -> Option<usize> {
    let number = value.integer(min..=10_000)?;
    if number <= max { Some(number) } else { value.fail(format!("must be at most max, which is {max}")) }
}

/// Less than the pool's own limit would be a mistake about one of the two.
fn server_max(value: &Value<'_>, max: usize) -> Option<Option<u32>> {
    let server_max = value.integer(1..=100_000_u32)?;
    if usize::try_from(server_max).is_ok_and(|limit| limit < max) {
        return value.fail(format!("must not be less than max, which is {max}"));
    }
    Some(Some(server_max))
}
