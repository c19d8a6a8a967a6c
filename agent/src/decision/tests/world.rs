//! A pretended node around one function: its clients, instances and clock act in any order.
//!
//! SYNs get lost, are sent again, are reported late or twice. Instances fail, crash, hang and refuse to be frozen;
//! every answer takes its time, and sometimes the clock jumps. After each event the invariants are checked.

mod instances;
mod invariants;
mod orders;
mod outside;
mod rng;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use super::*;
use crate::event::ClientIdentity;
use outside::{patient, random_policy};
use rng::Rng;

/// After this time nothing fails, and no client comes.
const HORIZON_NS: u64 = 20 * SECOND;

/// Long enough for the last client to leave and for all instances to come to rest.
const END_NS: u64 = HORIZON_NS + 400 * SECOND;

/// What is accepted is counted a moment later; a client that comes within this moment may be taken for that one, until
/// the next look at the queue.
const GAP_NS: u64 = 20 * MS;

type ClientId = u16;

/// What will happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorldEvent {
    /// An event reaches the function.
    Event(Event),
    /// A client's connection is complete.
    Connect(ClientId),
    /// An instance looks at the queue.
    Accept(InstanceId),
    /// What it took out is counted.
    Counted(InstanceId, ClientId),
    /// A client has got all it wanted.
    Leave(InstanceId, ClientId),
    /// A container is made, or not.
    Made(InstanceId),
    /// A released one has begun.
    Begun(InstanceId),
    /// It is asked whether it can be frozen.
    Quieten(InstanceId),
    /// Its memory is in swap, or cannot be written there.
    PagedOut(InstanceId),
    /// It runs again.
    Thawed(InstanceId),
    /// It ends.
    Ends(InstanceId, InstanceEnd),
    /// The clock jumps by so much.
    Jump(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Preparing,
    Parked,
    Starting,
    Accepting,
    /// It does not accept: it is frozen, or is being frozen.
    Paused,
    /// It no longer accepts, and will be gone.
    Leaving,
}

struct FakeInstance {
    stage: Stage,
    hangs: bool,
    accepts_soon: bool,
    open: BTreeSet<ClientId>,
    uncounted: u32,
    seen: InstanceLoad,
}

/// How often things go wrong, in percent.
struct Faults {
    syn_lost: u64,
    syn_again: u64,
    prepare: u64,
    start: u64,
    hang: u64,
    crash: u64,
    freeze: u64,
    hibernate: u64,
    /// What goes wrong is the failure of a backend or of the node.
    outside: bool,
    /// Between these times nothing can be made or started. Then nothing else goes wrong.
    outage_ns: Option<(u64, u64)>,
}

pub(super) struct World {
    rng: Rng,
    now_ns: u64,
    number: u64,
    things: BinaryHeap<Reverse<(u64, u64, usize)>>,
    kinds: Vec<WorldEvent>,
    policy: Policy,
    function: FunctionState,
    node: Admission,
    faults: Faults,
    instances: BTreeMap<InstanceId, FakeInstance>,
    /// The clients that wait, with the time when the function could first see them.
    queue: VecDeque<(ClientId, Option<u64>)>,
    /// What was accepted by instances that are gone, and by the agent.
    accepted: u64,
    queue_watch: QueueWatchRate,
    timers: Vec<u64>,
    /// Clients whose SYN was reported.
    announced: BTreeSet<ClientId>,
    /// Clients whose connection could be seen.
    arrived: BTreeSet<ClientId>,
    requested: bool,
    /// The function was removed from the configuration.
    removed: bool,
    /// See [`GAP_NS`].
    gap_ns: u64,
    trace: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng(seed);
        let mut policy = random_policy(&mut rng);
        let calm = rng.percent(30);
        let mut chance = |most: u64| if calm { 0 } else { rng.below(most) };
        let faults = Faults {
            syn_lost: chance(80),
            syn_again: chance(60),
            prepare: chance(30),
            start: chance(40),
            hang: chance(20),
            crash: chance(10),
            freeze: chance(50),
            hibernate: chance(50),
            outside: false,
            outage_ns: None,
        };
        let faults = match rng.below(6) {
            0 | 1 => Faults { hang: 0, outside: true, ..faults },
            2 => {
                let start_ns = SECOND + rng.below(HORIZON_NS / 2);
                policy = patient(policy);
                let outage_ns = Some((start_ns, start_ns + rng.below(2 * SECOND)));
                Faults { prepare: 0, start: 0, hang: 0, crash: 0, outside: true, outage_ns, ..faults }
            }
            _ => faults,
        };
        let mut world = Self {
            rng,
            now_ns: SECOND,
            number: 0,
            things: BinaryHeap::new(),
            kinds: Vec::new(),
            function: FunctionState::new(0, policy),
            policy,
            node: Admission::new(PLENTY, PLENTY, UNUSED_AFTER),
            faults,
            instances: BTreeMap::new(),
            queue: VecDeque::new(),
            accepted: 0,
            queue_watch: QueueWatchRate::Off,
            timers: Vec::new(),
            announced: BTreeSet::new(),
            arrived: BTreeSet::new(),
            requested: false,
            removed: false,
            gap_ns: GAP_NS,
            trace: trace.then(Vec::new),
        };
        world.schedule();
        world
    }

    fn at(&mut self, at_ns: u64, thing: WorldEvent) {
        self.things.push(Reverse((at_ns, self.number, self.kinds.len())));
        self.number += 1;
        self.kinds.push(thing);
    }

    fn soon(&mut self, within_ms: u64, thing: WorldEvent) {
        let at_ns = self.now_ns + self.rng.ms(within_ms);
        self.at(at_ns, thing);
    }

    /// Whether what is being made or started now fails for a reason outside the function.
    fn is_out(&self) -> bool {
        self.faults.outage_ns.is_some_and(|(from_ns, to_ns)| (from_ns..to_ns).contains(&self.now_ns))
    }

    /// How something ends that fails, unless it is one of `others`.
    fn bad_end(&mut self, others: &[InstanceEnd]) -> InstanceEnd {
        let outside = [InstanceEnd::NoBackend, InstanceEnd::NotStarted(FailureCause::Node)];
        self.rng.one(if self.faults.outside { &outside } else { others })
    }

    fn goes_wrong(&mut self, chance: u64) -> bool {
        self.now_ns < HORIZON_NS && self.rng.percent(chance)
    }

    /// What happened, up to what went wrong.
    pub(super) fn traced(mut self) -> String {
        let _ = self.steps();
        let trace = self.trace.unwrap_or_default();
        trace[trace.len().saturating_sub(80)..].join("\n")
    }

    pub(super) fn run(mut self) -> Result<(), String> {
        let outcome = self.steps();
        if let Some(trace) = &self.trace {
            println!("{}", trace.join("\n"));
        }
        outcome
    }

    fn steps(&mut self) -> Result<(), String> {
        while let Some(Reverse((at_ns, _, kind))) = self.things.pop() {
            if at_ns > END_NS {
                break;
            }
            self.now_ns = self.now_ns.max(at_ns);
            let thing = self.kinds[kind];
            self.note(|| format!("{thing:?}"));
            self.happens(thing)?;
            self.look_at_the_queue();
        }
        self.at_rest()
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let at = Duration::from_nanos(self.now_ns);
            trace.push(format!("{at:>12.3?} {}", text()));
        }
    }
}

impl FakeInstance {
    fn new() -> Self {
        let seen = InstanceLoad { open: Some(0), ..InstanceLoad::default() };
        let open = BTreeSet::new();
        Self { stage: Stage::Preparing, hangs: false, accepts_soon: false, open, uncounted: 0, seen }
    }

    fn is_alive(&self) -> bool {
        !matches!(self.stage, Stage::Preparing | Stage::Parked)
    }

    fn taken(&self) -> u32 {
        u32::try_from(self.open.len()).unwrap() + self.uncounted
    }

    fn count(&mut self, now_ns: u64) {
        self.seen.open = Some(u32::try_from(self.open.len()).unwrap());
        self.seen.changed_ns = now_ns;
    }
}
