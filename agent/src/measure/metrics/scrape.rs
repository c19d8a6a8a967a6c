//! Values that are read when `/metrics` is asked for, not counted as they happen.

pub use crate::measure::kernel::syn_counters;

use super::{
    HIBERNATED, INSTANCES, POOL, POOL_DISCARDS, POOL_FALLBACKS, SYN_BUDGET, SYN_SENSOR, counter, float, gauge,
};

/// Connections of a backend in a state.
pub fn pool(backend: &str, state: &'static str, connections: usize) {
    gauge!(POOL, "backend" => backend.to_owned(), "state" => state).set(float(connections));
}

/// Connections of a backend that were thrown away so far.
pub fn pool_discards(backend: &str, reason: &'static str, total: u64) {
    counter!(POOL_DISCARDS, "backend" => backend.to_owned(), "reason" => reason).absolute(total);
}

/// Leases of a backend that no idle connection could serve so far.
pub fn pool_fallbacks(backend: &str, reason: &'static str, total: u64) {
    counter!(POOL_FALLBACKS, "backend" => backend.to_owned(), "reason" => reason).absolute(total);
}

/// Instances of a function in a state.
pub fn instances(function: &str, state: &'static str, instances: usize) {
    gauge!(INSTANCES, "function" => function.to_owned(), "state" => state).set(float(instances));
}

/// Memory of a function's hibernated instances, in bytes.
pub fn hibernated(function: &str, kind: &'static str, bytes: u64) {
    gauge!(HIBERNATED, "function" => function.to_owned(), "kind" => kind).set(super::size(bytes));
}

/// Starts per second that SYNs without a key may cause: of a function, or on the node.
pub fn budget(function: Option<&str>, rate: u32) {
    let gauge = match function {
        Some(function) => gauge!(SYN_BUDGET, "scope" => "function", "function" => function.to_owned()),
        None => gauge!(SYN_BUDGET, "scope" => "global"),
    };
    gauge.set(f64::from(rate));
}

/// The same for sources that the operator allows.
pub fn allowed_budget(rate: u32) {
    gauge!(SYN_BUDGET, "scope" => "allow").set(f64::from(rate));
}

/// Whether a sensor works in this mode on an interface.
pub fn syn_sensor(interface: &str, mode: &'static str, on: bool) {
    let value = if on { 1.0 } else { 0.0 };
    gauge!(SYN_SENSOR, "interface" => interface.to_owned(), "mode" => mode).set(value);
}
