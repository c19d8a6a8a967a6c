//! The budgets of open events, which clients without a key cause, and the rings.

use aya_ebpf::btf_maps::RingBuf;
use headstart_ebpf::event::{AUTHENTICATED, EventKind, Stat, SynEvent};
use headstart_ebpf::maps::{EVENTS_BYTES, GATE_ALLOWED, GATE_OPEN, Settings};
use headstart_ebpf::packet::Syn;
use headstart_ebpf::rate_limit;
use headstart_ebpf::sketch::mix;

use crate::tables::{EVENTS_AUTH, EVENTS_OPEN, FUNCTION_GATES, GLOBAL_GATE, SKETCH};

/// Charges one open event of `syn`'s source for `function` to all budgets.
///
/// # Errors
/// The budget that is used up. A limit or interval of 0 means no budget, so that events reach an agent that has not
/// written the settings yet.
#[inline(always)]
pub(crate) fn spend(syn: &Syn, function: u32, now_ns: u64, settings: &Settings) -> Result<(), Stat> {
    if settings.source_limit != 0
        && let Some(sketch) = SKETCH.get_ptr_mut(0)
    {
        // One of the two words is zero, so `^` keeps the other.
        let [high, low] = syn.src.network().words();
        // SAFETY: the array's element is this CPU's own, and programs that see packets do not nest on a CPU.
        let sketch = unsafe { &mut *sketch };
        if !sketch.pass(mix(high ^ low, settings.seed), now_ns, settings.source_limit) {
            return Err(Stat::SourceBudget);
        }
    }
    let of_function = (settings.function_interval_ns != 0).then(|| FUNCTION_GATES.get_ptr_mut(function));
    let of_node = (settings.global_interval_ns != 0).then(|| GLOBAL_GATE.get_ptr_mut(GATE_OPEN));
    let mut function_due = None;
    if let Some(Some(due)) = of_function {
        let (interval_ns, burst_ns) = (settings.function_interval_ns, settings.function_burst_ns);
        // SAFETY: one word; CPUs may overwrite each other's update, see `rate_limit`.
        let next = unsafe { rate_limit::pass(*due, now_ns, interval_ns, burst_ns) };
        function_due = Some((due, next.ok_or(Stat::FunctionBudget)?));
    }
    if let Some(Some(due)) = of_node {
        let (interval_ns, burst_ns) = (settings.global_interval_ns, settings.global_burst_ns);
        // SAFETY: as above.
        unsafe { *due = rate_limit::pass(*due, now_ns, interval_ns, burst_ns).ok_or(Stat::GlobalBudget)? };
    }
    if let Some((due, next)) = function_due {
        // SAFETY: as above.
        unsafe { *due = next };
    }
    Ok(())
}

/// Charges one event of a source that the operator allows: these have a gate together, as wide as that of all others.
#[inline(always)]
pub(crate) fn spend_allowed(now_ns: u64, settings: &Settings) -> Result<(), Stat> {
    if settings.global_interval_ns == 0 {
        return Ok(());
    }
    let Some(due) = GLOBAL_GATE.get_ptr_mut(GATE_ALLOWED) else { return Ok(()) };
    let (interval_ns, burst_ns) = (settings.global_interval_ns, settings.global_burst_ns);
    // SAFETY: one word; CPUs may overwrite each other's update, see `rate_limit`.
    unsafe { *due = rate_limit::pass(*due, now_ns, interval_ns, burst_ns).ok_or(Stat::GlobalBudget)? };
    Ok(())
}

/// Writes an open event; false when the ring is full.
#[inline(always)]
pub(crate) fn announce(syn: &Syn, function: u32, kind: EventKind, now_ns: u64) -> bool {
    write(&EVENTS_OPEN, SynEvent::new(syn, function, kind, 0, now_ns))
}

/// Writes an authenticated event; false when the ring is full.
#[inline(always)]
pub(crate) fn announce_authenticated(syn: &Syn, function: u32, kind: EventKind, now_ns: u64) -> bool {
    write(&EVENTS_AUTH, SynEvent::new(syn, function, kind, AUTHENTICATED, now_ns))
}

#[inline(always)]
fn write(ring: &RingBuf<SynEvent, EVENTS_BYTES>, event: SynEvent) -> bool {
    let Some(mut record) = ring.reserve(0) else { return false };
    record.write(event);
    record.submit(0);
    true
}
