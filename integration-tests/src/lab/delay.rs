//! A round-trip time on a namespace's links, where the kernel has no netem: every packet in and out
//! waits half of it in a queue. Good for handshakes and small answers, not for bulk.

use super::{command::run, netns::Namespace, nfqueue::Queue};
use anyhow::{Context, Result};
use std::{
    collections::VecDeque,
    io::{PipeReader, PipeWriter},
    os::fd::AsFd,
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Every namespace has queues of its own, so the number may be the same in each.
const QUEUE: u16 = 0;

/// The lead that makes up for waking this thread and reinjecting the packet, once per direction.
const LEAD: Duration = Duration::from_micros(60);

/// A round-trip time on everything that enters or leaves a namespace, loopback excepted. Removed
/// on drop, after the packets it still holds went through.
#[derive(Debug)]
pub struct Delay {
    namespace: Namespace,
    round_trip: Duration,
    stop: Option<PipeWriter>,
    holder: Option<JoinHandle<Result<()>>>,
}

impl Delay {
    /// Delays `namespace`, one at a time, by `round_trip` in all: half on the way out, half in.
    pub fn new(namespace: &Namespace, round_trip: Duration) -> Result<Self> {
        let (stopped, stop) = std::io::pipe()?;
        let queue = namespace.enter(|| Queue::open(QUEUE))??;
        let hold = (round_trip / 2).saturating_sub(LEAD);
        let holder = thread::Builder::new().name("delay".into()).spawn(move || {
            make_punctual();
            hold_packets(&queue, hold, &stopped)
        })?;
        let delay = Self { namespace: namespace.clone(), round_trip, stop: Some(stop), holder: Some(holder) };
        delay.rules("-A")?;
        Ok(delay)
    }

    /// The round-trip time it adds.
    pub fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// The bypass lets packets pass when the queue has no owner, so nothing here can black-hole.
    fn rules(&self, action: &str) -> Result<()> {
        for (chain, side) in [("OUTPUT", "-o"), ("INPUT", "-i")] {
            let rule =
                format!("-w 10 {action} {chain} ! {side} lo -j NFQUEUE --queue-num {QUEUE} --queue-bypass");
            self.namespace.run(Command::new("iptables").args(rule.split(' ')))?;
        }
        Ok(())
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        if let Err(error) = self.rules("-D") {
            eprintln!("{error:#}");
        }
        drop(self.stop.take());
        match self.holder.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => eprintln!("the delay failed: {error:#}"),
            Some(Err(_)) => eprintln!("the delay panicked"),
            _ => {}
        }
    }
}

/// How far away a namespace is, which can change.
#[derive(Debug)]
pub struct Distance {
    namespace: Namespace,
    delay: Option<Delay>,
}

impl Distance {
    /// That of a namespace without delay.
    pub fn of(namespace: &Namespace) -> Self {
        Self { namespace: namespace.clone(), delay: None }
    }

    /// Makes it `round_trip`; zero adds nothing.
    pub fn set(&mut self, round_trip: Duration) -> Result<()> {
        if self.delay.as_ref().map_or(Duration::ZERO, Delay::round_trip) != round_trip {
            // A namespace has one at a time.
            drop(self.delay.take());
            self.delay =
                (!round_trip.is_zero()).then(|| Delay::new(&self.namespace, round_trip)).transpose()?;
        }
        Ok(())
    }
}

/// Timers fire up to 50 us late by default, and two processors have other work to do. This thread
/// hardly uses any: it may go before everything else. Best effort: without it, packets wait longer.
fn make_punctual() {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let _ = nix::sys::prctl::set_timerslack(1);
    let _ = run(Command::new("chrt").args(["--fifo", "--reset-on-fork", "--pid", "50", &thread]));
}

/// Lets each packet pass `hold` after it arrived, until the other end of `stopped` is closed and
/// none is left. All wait equally long, so the first to come is the first to go.
fn hold_packets(queue: &Queue, hold: Duration, stopped: &PipeReader) -> Result<()> {
    let mut held: VecDeque<(Instant, u32)> = VecDeque::new();
    let mut running = true;
    while running || !held.is_empty() {
        while let Some(id) = queue.receive().context("receiving a packet")? {
            held.push_back((Instant::now() + hold, id));
        }
        while let Some((due, id)) = held.front().copied() {
            if due > Instant::now() {
                break;
            }
            queue.accept(id).context("releasing a packet")?;
            held.pop_front();
        }
        let limit = held.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        if running {
            running = !queue.wait(Some(stopped.as_fd()), limit)?;
        } else if limit.is_some() {
            queue.wait(None, limit)?;
        }
    }
    Ok(())
}
