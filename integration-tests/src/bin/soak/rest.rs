//! What the agent uses while nothing happens.

use std::fmt::{Display, Formatter};
use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use headstart_integration_tests::lab::leaks::{LeakWatch, Snapshot, descriptors};
use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::usage;

use crate::stage::Stage;

/// What may be used at the end: so many times what was used after the warm-up.
const GROWTH: f64 = 1.05;

/// Lines of functions that a second may bring, and that one may bring at once (docs/operating.md).
const LINES_A_SECOND: u64 = 200;
const LINES_AT_ONCE: u64 = 1000;

/// A look at an agent whose functions are all cold.
pub(crate) struct Rest {
    /// Since the begin.
    pub(crate) at: Duration,
    resident: u64,
    descriptors: usize,
    threads: usize,
    log_bytes: usize,
    function_lines: u64,
    watch: LeakWatch,
    there: Snapshot,
}

impl Rest {
    pub(crate) fn look(stage: &Stage, at: Duration) -> Result<Self> {
        let agent = stage.agent.id();
        let watch = LeakWatch::all().process(agent).docker(&stage.docker, "label=headstart");
        let log = stage.agent.log();
        Ok(Self {
            at,
            resident: usage::resident_bytes(agent)?,
            descriptors: descriptors(agent)?.len(),
            threads: fs::read_dir(format!("/proc/{agent}/task"))?.count(),
            log_bytes: log.len(),
            function_lines: log.lines().filter(|line| line.contains(" INFO function: ")).count() as u64,
            there: watch.snapshot()?,
            watch,
        })
    }

    /// Compares what is used with an earlier look.
    pub(crate) fn judge(&self, earlier: &Self) -> Result<()> {
        println!("after {:?}: {earlier}\nafter {:?}: {self}", earlier.at, self.at);
        for (what, before, now) in [
            ("resident bytes", earlier.resident, self.resident),
            ("descriptors", earlier.descriptors as u64, self.descriptors as u64),
            ("threads", earlier.threads as u64, self.threads as u64),
        ] {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let ratio = now as f64 / before as f64;
            println!("{what}: {ratio:.3} times what it was");
            ensure!(ratio <= GROWTH, "{what}: {before} after {:?}, {now} after {:?}", earlier.at, self.at);
        }
        let leaked = self.watch.leaked_since(&earlier.there, LIMIT)?;
        ensure!(leaked.is_empty(), "left over: {leaked:?}");
        let lines = self.function_lines - earlier.function_lines;
        let bound = LINES_A_SECOND * (self.at - earlier.at).as_secs() + LINES_AT_ONCE;
        ensure!(lines <= bound, "{lines} lines of functions; {bound} are allowed");
        Ok(())
    }
}

impl Display for Rest {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{} min: {} KiB resident, {} descriptors, {} threads, log {} KiB with {} lines of functions",
            self.at.as_secs() / 60,
            self.resident / 1024,
            self.descriptors,
            self.threads,
            self.log_bytes / 1024,
            self.function_lines
        )
    }
}
