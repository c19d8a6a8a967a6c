//! The signals that end `headstart tag`, or its command.

use std::future::poll_fn;
use std::task::Poll;
use std::{fs, io};

use nix::sys::signal::Signal;
use tokio::signal::unix::{self, SignalKind};

/// What asks a program to end.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Received from now on instead of killing this process, which has to clean up.
pub(super) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Those that this process was told to ignore (by nohup(1), or a shell that runs it in the background)
    /// stay ignored, also by its child.
    pub(super) fn listen() -> io::Result<Self> {
        let ignored = ignored(&fs::read_to_string("/proc/self/status")?);
        let heeded = ENDING.into_iter().filter(|signal| ignored & bit(*signal) == 0);
        let listen = |signal| Ok((signal, unix::signal(SignalKind::from_raw(signal as i32))?));
        heeded.map(listen).collect::<io::Result<_>>().map(Self)
    }

    /// The next one.
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

/// Whether our child, which is in our process group, has received `signal` as well: in the foreground of a
/// terminal, Ctrl-C and Ctrl-\ go to the whole group. Twice would be once too often for programs that take a
/// second Ctrl-C for "at once".
pub(super) fn child_has_it(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGQUIT)
        && fs::read_to_string("/proc/self/stat").is_ok_and(|stat| in_foreground(&stat))
}

/// By proc_pid_stat(5): `pid (name) state ppid pgrp session tty_nr tpgid ...`; the name may hold anything.
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
