//! The signals that end `headstart tag`, or that it forwards to its command.

use std::future::poll_fn;
use std::task::Poll;
use std::{fs, io};

use nix::sys::signal::Signal;
use tokio::signal::unix::{self, SignalKind};

/// The signals that ask a program to end.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Receives the signals, so that they do not kill this process before it has cleaned up.
pub(super) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Signals that this process inherited as ignored (from nohup(1), or a shell that runs it in the background) stay
    /// ignored, also in its child.
    pub(super) fn listen() -> io::Result<Self> {
        let ignored = ignored(&fs::read_to_string("/proc/self/status")?);
        let received = ENDING.into_iter().filter(|signal| ignored & bit(*signal) == 0);
        let listen = |signal| Ok((signal, unix::signal(SignalKind::from_raw(signal as i32))?));
        received.map(listen).collect::<io::Result<_>>().map(Self)
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            let received = |(name, signal): &mut (Signal, unix::Signal)| {
                signal.poll_recv(context).is_ready().then_some(*name)
            };
            self.0.iter_mut().find_map(received).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// `SigIgn` of proc_pid_status(5).
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Whether the child, which is in the same process group, has received `signal` too: a terminal sends Ctrl-C and Ctrl-\
/// to the whole foreground group. A forwarded second signal would make some programs stop at once.
pub(super) fn child_has_it(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGQUIT)
        && fs::read_to_string("/proc/self/stat").is_ok_and(|stat| in_foreground(&stat))
}

/// From proc_pid_stat(5): `pid (name) state ppid pgrp session tty_nr tpgid ...`; the name may contain any character.
fn in_foreground(stat: &str) -> bool {
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    matches!(fields[..], [_, _, group, _, terminal, foreground, ..] if terminal != "0" && group == foreground)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_foreground_is_where_the_terminals_group_is_ours() {
        assert!(in_foreground("7 (headstart) S 1 7 1 34816 7 4194304 1"));
        assert!(in_foreground("7 (a) b (c)) S 1 7 1 34816 7 4194304 1"));
        assert!(!in_foreground("7 (headstart) S 1 7 1 34816 9 4194304 1"), "in the background");
        assert!(!in_foreground("7 (headstart) S 1 7 1 0 -1 4194304 1"), "no terminal");
        assert!(!in_foreground("7 (headstart) S 1 0 1 0 0 4194304 1"), "no terminal");
        assert!(!in_foreground(""));
    }

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = "Name:\theadstart\nSigIgn:\t0000000000001001\nSigCgt:\tffffffffffffffff\n";
        assert_eq!(ignored(status), bit(Signal::SIGHUP) | bit(Signal::SIGPIPE));
        assert_eq!(ignored("Name:\theadstart\n"), 0);
    }
}
