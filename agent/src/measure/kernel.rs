//! What the kernel half counts, as metrics.

use headstart_ebpf::event::Stat;
use metrics::counter;

use super::metrics::{
    GATE_REFUSED, KNOCKS, SYN_AUTH_FAILURES, SYN_LOOKUPS, SYN_LOST, SYN_PACKETS, SYN_SUPPRESSED,
};

/// A metric, the name of its label, and the label.
type MetricSeries = (&'static str, &'static str, &'static str);

/// Shows every counter of the kernel half before it counts, and also when there is no kernel half.
pub(super) fn declare() {
    for stat in Stat::ALL {
        add(stat, |counter| counter.increment(0));
    }
}

/// Takes the totals that the kernel half has counted since its maps were made. The maps may be older than this agent:
/// the counters go on where they were.
pub fn syn_counters(counters: &[(Stat, u64)]) {
    for (stat, total) in counters {
        add(*stat, |counter| counter.absolute(*total));
    }
}

fn add(stat: Stat, update: impl Fn(metrics::Counter)) {
    for (metric, label, value) in series(stat) {
        update(counter!(*metric, *label => *value));
    }
    if stat == Stat::GateRefused {
        update(counter!(GATE_REFUSED));
    }
}

/// The series in which a counter shows. Each outcome of a packet on an interface is one of [`SYN_PACKETS`], and some
/// outcomes also count in a metric that operators watch.
fn series(stat: Stat) -> &'static [MetricSeries] {
    const PACKET: (&str, &str) = (SYN_PACKETS, "kind");
    const KNOCK: (&str, &str) = (KNOCKS, "outcome");
    const SUPPRESSED: (&str, &str) = (SYN_SUPPRESSED, "reason");
    const LOST: (&str, &str) = (SYN_LOST, "reason");
    const LOOKUP: (&str, &str) = (SYN_LOOKUPS, "kind");
    const FAILURE: (&str, &str) = (SYN_AUTH_FAILURES, "reason");
    const fn of((metric, label): (&'static str, &'static str), value: &'static str) -> MetricSeries {
        (metric, label, value)
    }
    match stat {
        // The sum of those with a kind; and what has a metric without labels.
        Stat::Packets | Stat::GateRefused => &[],
        Stat::Malformed => const { &[of(PACKET, "malformed")] },
        Stat::NotSyn => const { &[of(PACKET, "not_syn")] },
        Stat::Unowned => const { &[of(PACKET, "unowned")] },
        Stat::Warm => const { &[of(PACKET, "warm")] },
        Stat::Authenticated => const { &[of(PACKET, "authenticated")] },
        Stat::Event => const { &[of(PACKET, "event")] },
        Stat::AuthenticatedRingFull => {
            const { &[of(PACKET, "authenticated_ring_full"), of(LOST, "authenticated_ring_full")] }
        }
        Stat::RingFull => const { &[of(PACKET, "ring_full"), of(LOST, "ring_full")] },
        Stat::Ignored => const { &[of(PACKET, "ignored"), of(SUPPRESSED, "ignored")] },
        Stat::Unauthenticated => {
            const { &[of(PACKET, "unauthenticated"), of(SUPPRESSED, "unauthenticated")] }
        }
        Stat::Refused => const { &[of(PACKET, "refused"), of(SUPPRESSED, "refused")] },
        Stat::SourceBudget => const { &[of(PACKET, "source_budget"), of(SUPPRESSED, "source_budget")] },
        Stat::FunctionBudget => const { &[of(PACKET, "function_budget"), of(SUPPRESSED, "function_budget")] },
        Stat::GlobalBudget => const { &[of(PACKET, "global_budget"), of(SUPPRESSED, "global_budget")] },
        Stat::Knock => const { &[of(PACKET, "knock"), of(KNOCK, "valid")] },
        Stat::KnockInvalid => const { &[of(PACKET, "knock_invalid"), of(KNOCK, "invalid")] },
        Stat::KnockReplayed => const { &[of(PACKET, "knock_replayed"), of(KNOCK, "replayed")] },
        Stat::BadTag => const { &[of(FAILURE, "bad_tag")] },
        Stat::UnknownKey => const { &[of(FAILURE, "unknown_key")] },
        Stat::BadEpoch => const { &[of(FAILURE, "bad_epoch")] },
        Stat::Replayed => const { &[of(FAILURE, "replayed")] },
        Stat::BadOption => const { &[of(FAILURE, "bad_option")] },
        Stat::Steered => const { &[of(LOOKUP, "steered")] },
        Stat::Lobby => const { &[of(LOOKUP, "lobby")] },
        Stat::LookupEvent => const { &[of(LOOKUP, "event")] },
        Stat::LookupBudget => const { &[of(LOOKUP, "budget"), of(SUPPRESSED, "lookup_budget")] },
        Stat::LookupRingFull => const { &[of(LOOKUP, "ring_full"), of(LOST, "lookup_ring_full")] },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_counts_once_by_what_became_of_it_and_no_two_counters_share_a_series() {
        let mut all: Vec<MetricSeries> = Vec::new();
        for (number, stat) in Stat::ALL.into_iter().enumerate() {
            let own = series(stat);
            let packets = own.iter().filter(|(metric, ..)| *metric == SYN_PACKETS).count();
            let is_outcome = (Stat::Malformed as usize..=Stat::KnockReplayed as usize).contains(&number);
            assert_eq!(packets, usize::from(is_outcome), "{stat:?}");
            assert_eq!(own.is_empty(), matches!(stat, Stat::Packets | Stat::GateRefused), "{stat:?}");
            all.extend(own);
        }
        let before = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), before);
    }
}
