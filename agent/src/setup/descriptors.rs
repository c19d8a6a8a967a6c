//! How many descriptors a configuration needs.

use headstart_config::Config;
use nix::sys::resource::{Resource, getrlimit};

/// The agent itself, its kernel half, its log, and two containers that are being made.
const AGENT: u64 = 64;

/// The events of one data thread.
const PER_THREAD: u64 = 3;

/// The listener of a function, what watches it, its link to an interface, and the lock of its image.
const PER_FUNCTION: u64 = 5;

/// The control socket, the page of connections, the process, the output, and a latch while it is parked.
const PER_INSTANCE: u64 = 6;

/// What answers and requests take that are under way: those of clients that are turned away, and of the API.
const UNDER_WAY: u64 = 256 + 2 * 64;

/// How many descriptors a configuration needs, and how many the agent may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the configuration needs {least} descriptors, and {limit} are allowed: raise the limit (LimitNOFILE= in the unit, \
     ulimit -n), or configure fewer functions, prepared containers or ready connections"
)]
pub struct DescriptorNeeds {
    /// With one instance of each function beside those that are kept ready or prepared.
    pub least: u64,
    /// With all instances and all backend connections that are allowed.
    pub most: u64,
    /// The most that this process may have.
    pub limit: u64,
}

impl DescriptorNeeds {
    /// Of this configuration, for this process.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
        Self::within(config, limit)
    }

    fn within(config: &Config, limit: u64) -> Self {
        let many = |count: usize| count as u64;
        let fixed = AGENT
            + PER_THREAD * many(config.agent.data_threads)
            + PER_FUNCTION * many(config.functions.len());
        let (mut least, mut most) = (fixed, fixed + UNDER_WAY);
        for function in &config.functions {
            let prepared = many(function.prepared);
            least += PER_INSTANCE * (prepared + u64::from(function.min_ready.max(function.standby)) + 1);
            most += PER_INSTANCE * (prepared + u64::from(function.max_instances));
        }
        for front in &config.fronts {
            least += 2;
            // A client, and its connection to a function.
            most += 2 * u64::from(front.connections);
        }
        for backend in &config.backends {
            least += many(backend.pool.min_idle);
            // A connection that is relayed has two ends more.
            most += 3 * many(backend.pool.max);
        }
        Self { least, most, limit }
    }

    /// # Errors
    /// Itself, when the configuration cannot be served with that.
    pub fn check(self) -> Result<(), Self> {
        if self.limit < self.least {
            return Err(self);
        }
        if self.limit < self.most {
            let Self { most, limit, .. } = self;
            tracing::warn!(
                "with all instances and connections the agent needs {most} descriptors; {limit} are allowed"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(keys: &str, limit: u64) -> DescriptorNeeds {
        let text = format!(
            "[agent]\ndata_threads = 1\n[[function]]\nname = \"a\"\nlisten = \"127.0.0.1:1\"\nruntime = \"process\"\n\
             command = [\"/bin/true\"]\n{keys}"
        );
        let config = Config::parse("test", &text).unwrap();
        DescriptorNeeds::within(&config, limit)
    }

    #[test]
    fn what_is_prepared_or_kept_ready_counts_and_what_may_come_is_only_warned_of() {
        let few = needs("prepared = 0\nmax_instances = 1", 64);
        assert!(few.check().unwrap_err().to_string().contains("and 64 are allowed"));
        assert_eq!(needs("prepared = 0\nmax_instances = 1", few.least).check(), Ok(()));
        let more = needs("prepared = 10\nmin_ready = 2\nmax_instances = 16", 64);
        assert_eq!(more.least - few.least, 12 * PER_INSTANCE);
        assert!(more.most > more.least);
        let backend = "\n[[backend]]\nname = \"b\"\nkind = \"tcp\"\naddress = \"127.0.0.1:2\"\n\
                       pool = { min_idle = 20, max = 30 }";
        let pooled = needs(&format!("prepared = 0\nmax_instances = 1{backend}"), 64);
        assert_eq!((pooled.least - few.least, pooled.most - few.most), (20, 90));
    }
}
