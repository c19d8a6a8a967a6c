//! The node's memory: when less is available than `memory_reserve`, idle instances give up theirs.

use std::cmp::Reverse;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Node;
use crate::decision::Relief;
use crate::event::{Event, FunctionId, InstanceId};
use crate::measure::now_ns;

/// Between two looks. What instances give up shows in the next one.
const LOOK: Duration = Duration::from_secs(1);

/// Instances that give up something after one look.
const AT_ONCE: usize = 4;

/// Looks at the memory that the kernel says is available.
#[derive(Debug)]
pub struct MemoryWatch {
    reserve: u64,
    looks: Interval,
    was_short: bool,
}

/// What a look shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryLook {
    Short,
    Recovered,
}

impl MemoryWatch {
    /// Less than this is short.
    #[must_use]
    pub fn new(reserve: u64) -> Self {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { reserve, looks, was_short: false }
    }

    /// The next look that shows something to do.
    pub(super) async fn next(&mut self) -> MemoryLook {
        loop {
            self.looks.tick().await;
            // A file of the kernel: to read it waits for nothing.
            let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
            let is_short = available(&meminfo).is_some_and(|available| available < self.reserve);
            match (is_short, std::mem::replace(&mut self.was_short, is_short)) {
                (true, _) => return MemoryLook::Short,
                (false, true) => return MemoryLook::Recovered,
                (false, false) => {}
            }
        }
    }
}

impl Node {
    /// Gives the node a memory to look after.
    pub fn watch_memory(&mut self, watch: Option<MemoryWatch>) {
        self.memory = watch;
    }

    pub(super) fn looked_at_memory(&mut self, look: MemoryLook) {
        for function in self.admission.pause_standby(look == MemoryLook::Short) {
            self.timers.push(Reverse((now_ns(), function)));
        }
        if look == MemoryLook::Short {
            self.relieve();
        }
    }

    /// Those that have been idle for the longest give up their memory; when none is left that can, they are stopped.
    fn relieve(&mut self) {
        let mut give = self.longest_idle(Relief::Hibernate);
        if give.is_empty() && !self.functions.values().any(|record| record.state.is_hibernating()) {
            give = self.longest_idle(Relief::Stop);
        }
        for (function, instance) in give {
            self.event(function, Event::Relieve(instance));
        }
    }

    fn longest_idle(&self, relief: Relief) -> Vec<(FunctionId, InstanceId)> {
        let of = |(function, record): (&FunctionId, &super::record::FunctionRecord)| {
            let function = *function;
            record.state.relief(relief).map(|(idle_ns, id)| (idle_ns, function, id)).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = self.functions.iter().flat_map(of).collect();
        all.sort_unstable();
        all.into_iter().take(AT_ONCE).map(|(_, function, instance)| (function, instance)).collect()
    }
}

/// `MemAvailable` (proc(5), `meminfo`), in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        assert_eq!(available("MemFree: 1 kB\nMemAvailable:   24000 kB\n"), Some(24_000 << 10));
        assert_eq!(available("MemFree: 1 kB\n"), None);
    }
}
