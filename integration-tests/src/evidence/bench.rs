//! What the parts of `make bench` have in common. Each is a program of its own: it takes its turns in a random order,
//! says how far it is, and leaves `target/bench/NAME.json`, marked partial unless it came to its end.
//!
//! All times are of `CLOCK_MONOTONIC`, which processes, containers and BPF programs share.

pub mod querying;
mod samples;

use std::collections::BTreeMap;
use std::fs;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use serde_json::json;

pub use samples::Samples;

use crate::evidence::interrupt::Interrupt;
use crate::evidence::report::Figure;
use crate::lab::{self, LabLease};

/// How often progress is printed where standard error is not a terminal.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// The command line of a part of the bench.
#[derive(Debug, Parser)]
#[command(about = "A part of `make bench`: it writes target/bench/NAME.json")]
pub struct PartArguments {
    /// Fewer rounds and cases: all parts together take less than five minutes
    #[arg(long)]
    quick: bool,
    /// Repeats the order of an earlier run, which has printed it
    #[arg(long)]
    seed: Option<u64>,
}

/// One part of the bench, while it runs.
#[derive(Debug)]
pub struct Run {
    /// Whether this is a quick run.
    pub quick: bool,
    /// What was measured so far.
    pub samples: Samples,
    name: &'static str,
    notes: BTreeMap<String, String>,
    figures: Vec<Figure>,
    seed: u64,
    random: StdRng,
    interrupt: Interrupt,
    progress: Progress,
    _lease: LabLease,
}

/// Runs a part: `body` measures. What it has measured is written however it ends.
pub fn main(name: &'static str, body: impl FnOnce(&mut Run) -> Result<()>) -> ExitCode {
    run(name, &PartArguments::parse(), body)
}

/// The same for a part with arguments of its own, which has read the common ones.
pub fn run(
    name: &'static str,
    arguments: &PartArguments,
    body: impl FnOnce(&mut Run) -> Result<()>,
) -> ExitCode {
    match Run::new(name, arguments).and_then(|run| run.finish(body)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Run {
    fn new(name: &'static str, arguments: &PartArguments) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "it needs root: it makes network namespaces, attaches an XDP program and starts containers. Run \
             `sudo make bench`; it touches nothing outside of namespaces of its own and loopback, and cleans up"
        );
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        // Small enough to be typed.
        let seed = arguments.seed.unwrap_or(now.as_millis() as u64 % 1_000_000);
        println!("{name}: the order is that of --seed {seed}");
        Ok(Self {
            quick: arguments.quick,
            samples: Samples::default(),
            name,
            notes: BTreeMap::new(),
            figures: Vec::new(),
            seed,
            random: StdRng::seed_from_u64(seed),
            interrupt: Interrupt::new()?,
            progress: Progress::default(),
            _lease: LabLease::take()?,
        })
    }

    fn finish(mut self, body: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let ended = body(&mut self);
        let file = self.save(ended.is_err())?;
        println!("\n{}: the figures are in {}", self.name, file.display());
        // Ctrl-C reaches agents and servers too, and whatever was under way then fails.
        ensure!(!self.interrupt.came(), "interrupted: what it has measured is kept, and marked partial");
        ended
    }

    /// A number of rounds, samples or cases: `full`, or `quick` in a quick run.
    pub fn many(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// The cases `full`, or `quick` in a quick run.
    pub fn of<T: Copy>(&self, full: &[T], quick: &[T]) -> Vec<T> {
        if self.quick { quick.to_vec() } else { full.to_vec() }
    }

    /// Numbers below `count` in a random order: whose turn it is.
    pub fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut self.random);
        order
    }

    /// Adds this many steps to those that are expected.
    pub fn expect(&mut self, steps: usize) {
        self.progress.all += steps;
    }

    /// One of the announced steps is about to be taken; an error after Ctrl-C or SIGTERM.
    pub fn step(&mut self, what: &str) -> Result<()> {
        self.interrupt.check()?;
        self.progress.step(self.name, what);
        Ok(())
    }

    /// Takes a figure whose samples are complete.
    pub fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// Notes something beside the figures: a version, or why something is missing.
    pub fn note(&mut self, what: &str, text: &str) {
        println!("{what}: {text}");
        self.notes.insert(what.to_owned(), text.to_owned());
    }

    fn save(&self, partial: bool) -> Result<PathBuf> {
        let directory = lab::target_dir().join("bench");
        fs::create_dir_all(&directory)?;
        let file = directory.join(format!("{}.json", self.name));
        let figures = [self.samples.figures()?, self.figures.clone()].concat();
        let figures: Vec<_> = figures.iter().map(Figure::value).collect();
        let part = json!({ "figures": figures, "partial": partial, "quick": self.quick, "seed": self.seed, "notes": self.notes });
        fs::write(&file, serde_json::to_string_pretty(&part)? + "\n")
            .with_context(|| format!("writing {}", file.display()))?;
        Ok(file)
    }
}

/// How far it is.
#[derive(Debug, Default)]
struct Progress {
    done: usize,
    all: usize,
    began: Option<Instant>,
    told: Option<Instant>,
}

impl Progress {
    fn step(&mut self, name: &str, what: &str) {
        let began = *self.began.get_or_insert_with(Instant::now);
        let terminal = std::io::stderr().is_terminal();
        if terminal || self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            let line = line(self.done, self.all, began.elapsed());
            if terminal {
                eprint!("\r\x1b[K{name} {line} {what}");
            } else {
                eprintln!("{name} {line} {what}");
            }
        }
        self.done += 1;
    }
}

/// A bar, and the time that is left if it goes on like this.
fn line(done: usize, all: usize, elapsed: Duration) -> String {
    const WIDTH: usize = 24;
    let all = all.max(done).max(1);
    let full = done * WIDTH / all;
    let left = match u32::try_from(done) {
        Ok(done @ 1..) => {
            let left = elapsed * u32::try_from(all).unwrap_or(u32::MAX) / done - elapsed;
            format!("{}:{:02} left", left.as_secs() / 60, left.as_secs() % 60)
        }
        _ => "begins".to_owned(),
    };
    format!("[{}{}] {done}/{all}, {left}:", "#".repeat(full), ".".repeat(WIDTH - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_in_proportion() {
        let line = |done, seconds| line(done, 8, Duration::from_secs(seconds));
        assert_eq!(line(0, 0), "[........................] 0/8, begins:");
        assert_eq!(line(2, 50), "[######..................] 2/8, 2:30 left:");
        assert_eq!(line(8, 50), "[########################] 8/8, 0:00 left:");
        // More steps than were announced.
        assert!(line(9, 50).contains("9/9, 0:00 left"));
    }
}
