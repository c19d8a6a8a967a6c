//! A rate limit in one word: the generic cell rate algorithm (ITU-T I.371, virtual scheduling).
//!
//! The word is the time at which the next event would be due if events came at exactly the allowed rate. Two CPUs
//! that pass an event at the same moment may count as one: the limit protects user space and need not be exact.

/// The new word when an event at `now_ns` passes; `None` when the event exceeds the rate. In the long run one
/// event passes per `interval_ns`; `burst_ns / interval_ns + 1` events pass at once. All times are nanoseconds.
#[inline(always)]
pub fn pass(due_ns: u64, now_ns: u64, interval_ns: u64, burst_ns: u64) -> Option<u64> {
    if due_ns > now_ns.saturating_add(burst_ns) {
        return None;
    }
    Some(due_ns.max(now_ns).saturating_add(interval_ns))
}
