//! The programs that may be missing, with the consequences, and the errors.

use std::fmt;

use aya::maps::MapError;
use headstart_ebpf::maps::{PROGRAM_GATE, PROGRAM_LOOKUP, PROGRAM_TCX, PROGRAM_XDP};

use super::Mode;

/// The eBPF programs. Each is loaded by itself, so that the others work when the kernel refuses one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelProgram {
    /// Sees every frame of an interface, before the network stack.
    Xdp,
    /// Sees the frames of interfaces that refuse XDP.
    Tcx,
    /// Sees every new connection of the network namespace.
    Lookup,
    /// Drops SYNs of unannounced clients at the listeners of closed functions.
    Gate,
}

impl KernelProgram {
    /// All programs.
    pub const ALL: [Self; 4] = [Self::Xdp, Self::Tcx, Self::Lookup, Self::Gate];

    /// The name of the program in the object.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Xdp => PROGRAM_XDP,
            Self::Tcx => PROGRAM_TCX,
            Self::Lookup => PROGRAM_LOOKUP,
            Self::Gate => PROGRAM_GATE,
        }
    }

    /// The consequences of its absence.
    #[must_use]
    pub fn cost(self) -> &'static str {
        match self {
            Self::Xdp => {
                "interfaces are watched through tcx, after the kernel has allocated the packet; without that \
                 too, starts happen one round trip later and function IDs, keys and knocks are not read"
            }
            Self::Tcx => "an interface that refuses XDP, or has another XDP program, is not watched at all",
            Self::Lookup => {
                "connections over loopback, from containers of this host and after DNAT start their function \
                 one round trip later, functions cannot share a port, and sources in `ignore` wake functions \
                 when they connect"
            }
            Self::Gate => "functions with require_auth = \"connect\" are not served",
        }
    }

    /// The kernel version that it needs.
    fn needs(self) -> &'static str {
        match self {
            Self::Xdp => "Linux 5.18",
            Self::Tcx => "Linux 6.6",
            Self::Lookup => "Linux 5.9",
            Self::Gate => "Linux 5.8",
        }
    }
}

impl fmt::Display for KernelProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xdp => "XDP",
            Self::Tcx => "tcx",
            Self::Lookup => "sk_lookup",
            Self::Gate => "gate",
        })
    }
}

/// Why a sensor, or all sensors, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SynError {
    /// The maps cannot be made, so nothing can be loaded.
    #[error(
        "the kernel refused the maps of the eBPF programs ({0}): they need CAP_BPF, CAP_NET_ADMIN and \
         CAP_PERFMON (or root), and Linux 5.18 or newer with BTF"
    )]
    Load(String),
    /// One program cannot be loaded.
    #[error(
        "the kernel refused the {part} program ({why}): it needs {} or newer; without it, {}",
        .part.needs(), .part.cost()
    )]
    Program {
        /// The program.
        part: KernelProgram,
        /// The kernel's error.
        why: String,
    },
    /// The object lacks a map or program: agent and object do not match.
    #[error("the eBPF object has no {0}: rebuild it with ebpf/build.sh --update")]
    Object(&'static str),
    /// The interface does not exist.
    #[error("there is no interface {0}: `ip link` lists those that exist; it is watched when it appears")]
    NoInterface(String),
    /// The interface refuses every mode.
    #[error(
        "{interface} cannot be watched ({}): see what is attached there with `bpftool net`; its clients start \
         functions one round trip later",
        list(.refusals)
    )]
    Attach {
        /// The interface.
        interface: String,
        /// Each mode, and the kernel's error.
        refusals: Vec<(Mode, String)>,
    },
    /// The socket lookup cannot be attached to this network namespace.
    #[error("sk_lookup cannot be attached to the network namespace ({why}): {}", KernelProgram::Lookup.cost())]
    Lookup {
        /// The kernel's error.
        why: String,
    },
    /// A listener cannot be closed to unannounced clients.
    #[error("the listener cannot be closed to unannounced clients: {0}")]
    Gate(String),
    /// The listener has a filter that cannot be replaced.
    #[error(
        "the listener has the locked filter of an earlier agent, which reads other maps: restart the agent, which then opens \
         a new listener"
    )]
    GateLocked,
    /// A map operation failed.
    #[error("an eBPF map cannot be used: {0}")]
    Map(#[from] MapError),
    /// Another operation of the operating system failed.
    #[error("{what}: {error}")]
    Io {
        /// The failed operation.
        what: &'static str,
        /// The system's error.
        error: std::io::Error,
    },
}

fn list(refusals: &[(Mode, String)]) -> String {
    refusals.iter().map(|(mode, why)| format!("{mode}: {why}")).collect::<Vec<_>>().join("; ")
}

/// An error with its causes on one line. A verifier's log is long, so only its first and its last relevant line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = first_and_last(&error.to_string());
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = first_and_last(&cause.to_string());
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn first_and_last(text: &str) -> String {
    // Statistics that the verifier adds after its error.
    let is_statistic = |line: &&str| {
        line.is_empty()
            || ["processed ", "stack depth ", "verification time "].iter().any(|s| line.starts_with(s))
    };
    let mut lines = text.lines().map(str::trim).filter(|line| !is_statistic(line));
    let first = lines.next().unwrap_or_default();
    match lines.next_back() {
        Some(last) => format!("{first} ... {last}"),
        None => first.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_every_rung_and_what_to_do() {
        let error = SynError::Attach {
            interface: "eth0".into(),
            refusals: vec![(Mode::Native, "busy".into()), (Mode::Tcx, "no".into())],
        };
        let text = error.to_string();
        assert!(text.contains("native: busy; tcx: no") && text.contains("bpftool net"), "{text}");
    }

    #[test]
    fn a_verifiers_log_is_cut_to_its_first_and_last_line() {
        let log = "load failed\n0: r1 = 0\n1: exit\nR0 is not readable\nprocessed 2 insns\n";
        assert_eq!(first_and_last(log), "load failed ... R0 is not readable");
    }

    #[test]
    fn every_part_says_what_its_absence_costs() {
        for part in KernelProgram::ALL {
            let text = SynError::Program { part, why: "EPERM".into() }.to_string();
            assert!(text.contains(part.cost()) && text.contains("Linux "), "{text}");
        }
    }
}
