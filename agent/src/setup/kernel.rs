//! The kernel half: its pins, its programs, and what else the kernel is asked for before privileges are dropped.

use std::sync::Arc;

use headstart_config::{Config, Interfaces};
use headstart_wire::ktls;

use crate::guard::Guard;
use crate::node::Service;
use crate::start;
use crate::syn::{self, Kernel, PinError, Pins, Routes, RunningSensors};

/// Locks the directory where programs and maps outlive the agent; `None` where nothing can be pinned.
///
/// # Errors
/// [`syn::PinError::Locked`] when another agent runs there.
pub fn pins(config: &Config, keep: bool) -> Result<Option<Arc<Pins>>, PinError> {
    match Pins::open(&config.syn.pin_dir, keep) {
        Ok(pins) => Ok(Some(Arc::new(pins))),
        Err(error @ PinError::Locked(_)) => Err(error),
        Err(error) => {
            tracing::warn!("while the agent restarts, nothing is watched and no socket is held: {error}");
            Ok(None)
        }
    }
}

/// Holds the sockets that functions get to the addresses they have.
#[must_use]
pub(crate) fn guard(config: &Config, pins: Option<&Pins>) -> Option<Guard> {
    let guard = Guard::attach(&start::cgroup_of_agent(&config.agent), pins);
    guard.inspect_err(|error| tracing::warn!("{error}")).ok()
}

/// Loads the kernel half, and attaches the socket lookup, on which shared ports depend. Otherwise says why there
/// is none.
///
/// # Errors
/// Why nothing is watched: functions then start when their first connection is complete.
pub fn kernel(config: &Config, pins: Option<Arc<Pins>>) -> Result<Kernel, String> {
    if !is_watching(config) {
        tracing::info!(
            "nothing is watched: functions start when their first connection is complete, not at its SYN"
        );
        if let Some(pins) = pins {
            pins.forget_sensors();
        }
        return Err("nothing is watched: [agent] interfaces is empty and [syn] lookup is false".into());
    }
    let mut kernel = Kernel::load(headstart_ebpf::OBJECT, pins).map_err(|error| {
        tracing::error!("no early starts: {error}");
        error.to_string()
    })?;
    for error in kernel.refused().values() {
        tracing::warn!("{error}");
    }
    if config.syn.lookup
        && !kernel.refused().contains_key(&syn::KernelProgram::Lookup)
        && let Err(error) = kernel.attach_lookup()
    {
        tracing::warn!("{error}");
    }
    Ok(kernel)
}

fn is_watching(config: &Config) -> bool {
    config.syn.lookup || config.agent.interfaces != Interfaces::Named(Vec::new())
}

/// Tells the kernel half of the functions and attaches it to interfaces.
#[must_use]
pub fn watch(
    config: &Config,
    kernel: Result<Kernel, String>,
    services: &[Service],
    fronts: Routes,
) -> Option<RunningSensors> {
    let routes = (0..).zip(services).map(|(number, service)| (number, service.route()));
    let routes = routes.chain(fronts).collect();
    if config.agent.interfaces == Interfaces::Named(Vec::new())
        && services.iter().any(|service| service.steered)
    {
        tracing::warn!(
            "no interface is watched, so the agent does not see which function of a shared port clients name"
        );
    }
    match kernel.ok()?.watch(&routes, &config.syn, &config.agent.interfaces) {
        Ok(sensing) => Some(sensing),
        Err(error) => {
            tracing::error!("no early starts: {error}");
            None
        }
    }
}

/// Whether the kernel goes on with TLS sessions that are handed over: it loads what it needs for that while we may still
/// ask it to.
pub fn kernel_tls(config: &Config) {
    if config.functions.iter().any(|function| function.tls_hand_over) {
        match ktls::load() {
            true => tracing::info!("TLS sessions that are handed over go on in the kernel"),
            false => tracing::info!(
                "TLS sessions that are handed over go on in the functions: the kernel has no kTLS (modprobe tls)"
            ),
        }
    }
}
