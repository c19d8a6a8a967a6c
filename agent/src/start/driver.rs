//! One driver per runtime: the rest of the agent asks these, and never a runtime by its name.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use headstart_config::{Agent, Function, Problem, Runtime};
use rustix::thread::CapabilitySet;

use super::cgroup::Cgroups;
use super::survivors::{Survivor, Survivors};
use super::{BoxFuture, ContainerSpec, DRIVERS, FunctionRuntime, StartError};

/// What makes the containers of one runtime on this node. It knows `[agent]`, and no function.
pub(super) trait Driver: Send + Sync {
    /// The word in the configuration, and the label in logs and metrics.
    fn name(&self) -> &'static str;

    /// Looks for what the host must have; an empty list if this runtime needs only the agent.
    fn checks(&self) -> Vec<HostCheck>;

    /// The capabilities that its containers need of the agent, as long as it runs.
    fn capabilities(&self) -> CapabilitySet;

    /// Makes containers of one function. `None` when the function has another runtime.
    fn runtime(&self, configured: &Runtime, spec: &ContainerSpec) -> Option<Arc<dyn FunctionRuntime>>;

    /// The containers of earlier agents, also those of functions that are no longer configured. Changes nothing.
    fn survivors(&self) -> BoxFuture<'_, Result<Vec<Box<dyn Survivor>>, StartError>>;
}

/// Makes a runtime's driver for a node with this `[agent]` section.
pub(super) type MakeDriver = fn(&Agent) -> Box<dyn Driver>;

/// Whether this host has what a runtime needs.
pub struct HostCheck {
    /// What was looked for, in a word.
    pub what: &'static str,
    /// The key in `[agent]` that says where it is.
    pub key: &'static str,
    /// What was found.
    pub found: Result<String, Lack>,
}

/// Something that a host does not have: what that costs, and what to do.
#[derive(Debug)]
pub struct Lack(String);

impl From<&str> for Lack {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Lack {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The configuration names a runtime that this agent has no driver for.
#[derive(Debug, thiserror::Error)]
#[error("this agent has no driver for runtime = \"{0}\": this is a fault of the agent")]
pub struct NoDriver(&'static str);

/// A driver for each runtime, made once.
pub struct Drivers {
    all: Vec<Box<dyn Driver>>,
    cgroups: Cgroups,
}

impl Drivers {
    /// Those of a node with this `[agent]` section.
    #[must_use]
    pub fn new(agent: &Agent) -> Self {
        Self { all: DRIVERS.iter().map(|driver| driver(agent)).collect(), cgroups: Cgroups::new(agent) }
    }

    /// What the host must have for any runtime.
    #[must_use]
    pub fn checks(&self) -> Vec<HostCheck> {
        self.all.iter().flat_map(|driver| driver.checks()).collect()
    }

    /// What the host lacks for the runtimes of these functions, each with its key in `[agent]`.
    #[must_use]
    pub fn problems(&self, agent: &Agent, functions: &[Function]) -> Vec<Problem> {
        let problem = |check: HostCheck| {
            let lack = check.found.err()?;
            Some(agent.origin.problem(check.key, lack.to_string()))
        };
        let cgroups =
            self.check_cgroups().err().map(|lack| agent.origin.problem("cgroup_parent", lack.to_string()));
        self.of(functions).flat_map(|driver| driver.checks()).filter_map(problem).chain(cgroups).collect()
    }

    /// The capabilities that the containers of these functions need.
    #[must_use]
    pub fn capabilities(&self, functions: &[Function]) -> CapabilitySet {
        let of_drivers =
            self.of(functions).fold(CapabilitySet::empty(), |all, driver| all | driver.capabilities());
        // A secret belongs to the function's user.
        let secrets = functions.iter().any(|function| !function.secrets.is_empty());
        if secrets { of_drivers | CapabilitySet::CHOWN } else { of_drivers }
    }

    /// Makes containers of a function that is configured so.
    ///
    /// # Errors
    /// When no driver knows the function's runtime.
    pub fn runtime(
        &self,
        configured: &Runtime,
        spec: &ContainerSpec,
    ) -> Result<Arc<dyn FunctionRuntime>, NoDriver> {
        let made = self.all.iter().find_map(|driver| driver.runtime(configured, spec));
        made.ok_or(NoDriver(configured.as_str()))
    }

    /// Looks for what earlier agents left. What a driver cannot find is logged.
    pub async fn survivors(&self) -> Survivors {
        let mut found: Vec<Box<dyn Survivor>> = Vec::new();
        let mut unknown = Vec::new();
        for driver in &self.all {
            match driver.survivors().await {
                Ok(survivors) => found.extend(survivors),
                Err(error) => {
                    tracing::warn!(
                        runtime = driver.name(),
                        "what an earlier agent left cannot be found, and stays: {error}"
                    );
                    unknown.push(format!("{}: {error}", driver.name()));
                }
            }
        }
        let known: BTreeSet<_> = found.iter().map(|survivor| survivor.instance().to_owned()).collect();
        found.extend(self.cgroups.orphans(|instance| known.contains(instance)));
        Survivors::new(found, unknown)
    }

    /// Checks that what the containers of all runtimes share is there.
    ///
    /// # Errors
    /// When the configured parent of their cgroups does not exist.
    pub fn check_cgroups(&self) -> Result<(), Lack> {
        self.cgroups.check()
    }

    /// Those that these functions use.
    fn of<'a>(&'a self, functions: &'a [Function]) -> impl Iterator<Item = &'a dyn Driver> {
        let used = |driver: &dyn Driver| functions.iter().any(|f| f.runtime.as_str() == driver.name());
        self.all.iter().map(|driver| &**driver).filter(move |driver| used(*driver))
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.all.iter().map(|driver| driver.name()).collect()
    }
}
