//! A pretended node around one function: clients, instances and a clock that obey no order.
//!
//! SYNs get lost, are sent again, are told of late or twice. Instances fail, crash, hang and refuse to be frozen;
//! every answer takes its time, and sometimes the clock jumps. After each event the invariants are checked.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use super::*;
use crate::event::Client;

/// After this time nothing goes wrong any more, and nobody comes.
const HORIZON_NS: u64 = 20 * SECOND;

/// Long enough for the last to go and for all to rest.
const END_NS: u64 = HORIZON_NS + 400 * SECOND;

/// `SplitMix64` (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn ms(&mut self, end: u64) -> u64 {
        self.below(end * MS)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// What is accepted is counted a moment later; a client that comes within this moment may be taken for that one, until
/// the next look at the queue.
const GAP_NS: u64 = 20 * MS;

type ClientId = u16;

/// What will happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thing {
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
    /// It is told that it is to be frozen.
    Quieten(InstanceId),
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
    /// It does not accept: it is frozen, or as good as.
    Paused,
    /// It accepts nobody any more, and will be gone.
    Leaving,
}

struct One {
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
}

pub(super) struct World {
    rng: Rng,
    now_ns: u64,
    number: u64,
    things: BinaryHeap<Reverse<(u64, u64, usize)>>,
    kinds: Vec<Thing>,
    policy: Policy,
    function: FunctionState,
    node: Admission,
    faults: Faults,
    instances: BTreeMap<InstanceId, One>,
    /// Who waits, with the time when the function could first know.
    queue: VecDeque<(ClientId, Option<u64>)>,
    /// What was accepted by instances that are gone, and by the agent.
    accepted: u64,
    watch: QueueWatchRate,
    timers: Vec<u64>,
    /// Clients whose SYN was told.
    told: BTreeSet<ClientId>,
    /// Clients whose connection could be seen.
    arrived: BTreeSet<ClientId>,
    woken: bool,
    /// The function is not configured any more.
    removed: bool,
    /// See [`GAP_NS`].
    gap_ns: u64,
    trace: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng(seed);
        let policy = random_policy(&mut rng);
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
        };
        let mut world = Self {
            rng,
            now_ns: SECOND,
            number: 0,
            things: BinaryHeap::new(),
            kinds: Vec::new(),
            function: FunctionState::new(0, policy),
            policy,
            node: Admission::new(PLENTY, UNUSED_AFTER),
            faults,
            instances: BTreeMap::new(),
            queue: VecDeque::new(),
            accepted: 0,
            watch: QueueWatchRate::Off,
            timers: Vec::new(),
            told: BTreeSet::new(),
            arrived: BTreeSet::new(),
            woken: false,
            removed: false,
            gap_ns: GAP_NS,
            trace: trace.then(Vec::new),
        };
        world.schedule();
        world
    }

    /// Everything that comes from outside.
    fn schedule(&mut self) {
        self.at(SECOND, Thing::Event(Event::Configured));
        let (clients, burst) = (self.rng.below(40), self.rng.percent(50));
        let start_ns = SECOND + self.rng.below(HORIZON_NS / 2);
        for number in 0..clients {
            let syn_ns =
                if burst { start_ns + self.rng.ms(3) } else { SECOND + self.rng.below(HORIZON_NS - SECOND) };
            let rtt_ns = self.rng.ms(80);
            let client = ClientId::try_from(number).unwrap();
            self.announce(client, syn_ns, rtt_ns);
            if !self.rng.percent(5) {
                self.at(syn_ns + rtt_ns, Thing::Connect(client));
            }
        }
        for _ in 0..self.rng.below(4) {
            let at_ns = SECOND + self.rng.below(HORIZON_NS);
            let wake = Event::Demand(Demand::local(Trigger::Api, at_ns));
            let replace = self.rng.percent(50);
            let changed = Event::Changed { policy: random_policy(&mut self.rng), replace };
            let event =
                self.rng.one(&[wake, Event::Freeze, Event::Freeze, Event::Stop, Event::Timer, changed]);
            self.at(at_ns, Thing::Event(event));
        }
        if self.rng.percent(10) {
            let at_ns = SECOND + self.rng.below(HORIZON_NS);
            self.at(at_ns, Thing::Event(Event::Removed));
        }
        if self.rng.percent(20) {
            let (at_ns, by) = (self.rng.below(HORIZON_NS), self.rng.below(60 * SECOND));
            // The moment would be as long as the jump.
            self.gap_ns = 0;
            self.at(at_ns, Thing::Jump(by));
        }
    }

    /// The SYN of a client as the sensors tell of it.
    fn announce(&mut self, client: ClientId, syn_ns: u64, rtt_ns: u64) {
        let address = format!("198.51.100.7:{client}").parse().unwrap();
        let syn = Demand {
            trigger: Trigger::Syn,
            trusted: self.rng.percent(50),
            client: Some(Client { address, isn: 1 + u32::from(client) }),
            at_ns: syn_ns,
            seen_ns: syn_ns,
        };
        let again = self.rng.percent(self.faults.syn_again);
        let lookup = Demand { trigger: Trigger::Lookup, client: Some(Client { address, isn: 0 }), ..syn };
        for told in [Some(syn), again.then_some(syn), again.then_some(lookup)].into_iter().flatten() {
            if !self.rng.percent(self.faults.syn_lost) {
                let late_ns =
                    if self.rng.percent(20) { self.rng.below(3 * rtt_ns + MS) } else { self.rng.ms(1) };
                self.at(syn_ns + late_ns, Thing::Event(Event::Demand(told)));
            }
        }
    }

    fn at(&mut self, at_ns: u64, thing: Thing) {
        self.things.push(Reverse((at_ns, self.number, self.kinds.len())));
        self.number += 1;
        self.kinds.push(thing);
    }

    fn soon(&mut self, within_ms: u64, thing: Thing) {
        let at_ns = self.now_ns + self.rng.ms(within_ms);
        self.at(at_ns, thing);
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

    fn happens(&mut self, thing: Thing) -> Result<(), String> {
        match thing {
            Thing::Event(event) => self.tell(event)?,
            Thing::Jump(by) => self.now_ns += by,
            Thing::Connect(client) => {
                self.queue.push_back((client, None));
                let within_ms = if self.watch == QueueWatchRate::Immediate { 5 } else { 255 };
                let demand = Demand::local(Trigger::Accept, self.now_ns);
                self.soon(within_ms, Thing::Event(Event::Demand(demand)));
            }
            Thing::Accept(id) => {
                let Some(client) = self.accepts(id) else { return Ok(()) };
                if self.gap_ns == 0 {
                    self.happens(Thing::Counted(id, client))?;
                } else {
                    self.soon(2, Thing::Counted(id, client));
                }
            }
            Thing::Counted(id, client) => {
                self.arrived.insert(client);
                let now_ns = self.now_ns;
                match self.instances.get_mut(&id) {
                    Some(one) => {
                        one.uncounted -= 1;
                        one.seen.accepted += 1;
                        one.open.insert(client);
                        one.count(now_ns);
                    }
                    None => self.accepted += 1,
                }
                // The longest is past every idle time and every deadline of a policy.
                let stay_ms = self.rng.one(&[5, 500, 500, 8_000]);
                self.soon(stay_ms, Thing::Leave(id, client));
            }
            Thing::Leave(id, client) => {
                let now_ns = self.now_ns;
                if let Some(one) = self.instances.get_mut(&id)
                    && one.open.remove(&client)
                {
                    one.count(now_ns);
                }
            }
            Thing::Made(id) => {
                if self.goes_wrong(self.faults.prepare) {
                    self.instances.remove(&id);
                    self.tell(Event::PrepareFailed(id))?;
                } else {
                    self.instances.get_mut(&id).ok_or("made what was never ordered")?.stage = Stage::Parked;
                    self.tell(Event::Parked(id))?;
                }
            }
            Thing::Begun(id) => {
                let hangs = self.goes_wrong(self.faults.hang);
                if let Some(one) = self.instances.get_mut(&id).filter(|one| one.stage == Stage::Starting) {
                    (one.stage, one.hangs) = (Stage::Accepting, hangs);
                    self.soon(3, Thing::Event(Event::Ready(id)));
                    if self.goes_wrong(self.faults.crash) {
                        self.soon(3_000, Thing::Ends(id, InstanceEnd::Crashed));
                    }
                }
            }
            Thing::Quieten(id) => self.quieten(id),
            Thing::Thawed(id) => {
                if let Some(one) = self.instances.get_mut(&id).filter(|one| one.stage == Stage::Paused) {
                    one.stage = Stage::Accepting;
                    self.soon(3, Thing::Event(Event::Ready(id)));
                }
            }
            Thing::Ends(id, end) => {
                if let Some(one) = self.instances.remove(&id) {
                    // Whoever was connected is not served any more, and was accepted.
                    self.accepted += one.seen.accepted;
                    self.tell(Event::Gone { instance: id, end })?;
                }
            }
        }
        Ok(())
    }

    fn accepts(&mut self, id: InstanceId) -> Option<ClientId> {
        let places = self.policy.concurrency.unwrap_or(u32::MAX);
        let one = self.instances.get_mut(&id)?;
        one.accepts_soon = false;
        let room = one.stage == Stage::Accepting && !one.hangs && one.taken() < places;
        let (client, _) = room.then(|| self.queue.pop_front())??;
        one.uncounted += 1;
        Some(client)
    }

    /// Instances with room look at a queue that is not empty. One that hangs would look for ever, and see nothing.
    fn look_at_the_queue(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        let places = self.policy.concurrency.unwrap_or(u32::MAX);
        let mut looking = Vec::new();
        for (id, one) in &mut self.instances {
            let looks = one.stage == Stage::Accepting && !one.hangs && !one.accepts_soon;
            if looks && one.taken() < places {
                one.accepts_soon = true;
                looking.push(*id);
            }
        }
        for id in looking {
            self.soon(3, Thing::Accept(id));
        }
    }

    fn quieten(&mut self, id: InstanceId) {
        let fails = self.goes_wrong(self.faults.freeze);
        let Some(one) = self.instances.get_mut(&id).filter(|one| one.stage == Stage::Accepting) else {
            return;
        };
        let busy = one.taken() > 0;
        // Somebody was connected between the look at its places and the freezer.
        let overtaken = fails && !one.open.is_empty();
        if (busy || fails) && !overtaken {
            self.soon(5, Thing::Event(Event::NotFrozen { instance: id, busy }));
        } else {
            one.stage = Stage::Paused;
            self.soon(20, Thing::Event(Event::Frozen(id)));
        }
    }

    fn load(&mut self) -> Load {
        for (client, seen_ns) in &mut self.queue {
            seen_ns.get_or_insert(self.now_ns);
            self.arrived.insert(*client);
        }
        let alive = |one: &One| !matches!(one.stage, Stage::Preparing | Stage::Parked);
        let instances: Vec<_> =
            self.instances.iter().filter(|(_, one)| alive(one)).map(|(id, one)| (*id, one.seen)).collect();
        let accepted = self.accepted + instances.iter().map(|(_, seen)| seen.accepted).sum::<u64>();
        Load { queued: u32::try_from(self.queue.len()).unwrap(), accepted, instances }
    }

    /// An event reaches the function; what it orders is carried out, and all is checked.
    fn tell(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Changed { policy, .. } => self.policy = policy,
            Event::Removed => self.removed = true,
            Event::Demand(Demand { trigger: Trigger::Api, .. }) => self.woken = true,
            Event::Timer => {
                let now_ns = self.now_ns;
                self.timers.retain(|at_ns| *at_ns > now_ns);
            }
            _ => {}
        }
        let load = self.load();
        let actions = self.function.on(event, &load, self.now_ns, &mut self.node);
        if let Event::Demand(Demand { client: Some(client), .. }) = event {
            self.told.insert(client.address.port());
        }
        self.note(|| format!("  {load:?}\n               -> {actions:?}"));
        let mut why = Vec::new();
        let (mut started, mut rests, mut answered) = (false, false, 0);
        for action in actions {
            match action {
                Action::Moved(id, state, reason) => {
                    why.push((id, reason));
                    let paused = self.instances.get(&id).is_some_and(|one| one.stage == Stage::Paused);
                    let moves =
                        matches!(state, Some(InstanceState::Freezing | InstanceState::Stopping { .. }));
                    rests |= moves && reason == Reason::Idle && !paused;
                }
                // That one is needed whatever the others have room for: somebody is connected to it.
                Action::Thaw(id, _) if why.last() == Some(&(id, Reason::Busy)) => {}
                Action::Release(..) | Action::Thaw(..) => started = true,
                Action::Answer(count, _) => answered += count,
                _ => {}
            }
            self.carry_out(action, &why, &load)?;
        }
        if started && self.removed {
            return Err("something starts for a function that was removed".into());
        }
        if started {
            self.is_needed(&load)?;
        }
        if rests {
            self.is_spare(&load, answered)?;
        }
        if let Event::Frozen(id) = event
            && load.of(id).open.is_some_and(|open| open > 0)
            && self.function.instances().any(|(known, one)| known == id && one.state == InstanceState::Frozen)
        {
            return Err(format!("{id} stays frozen while somebody is connected"));
        }
        self.nobody_is_forgotten()
    }

    fn carry_out(&mut self, action: Action, why: &[(InstanceId, Reason)], load: &Load) -> Result<(), String> {
        let is = |id: &InstanceId, reason| {
            why.iter().rev().find(|(moved, _)| moved == id).map(|(_, why)| *why) == Some(reason)
        };
        let idle = |id: &InstanceId| is(id, Reason::Idle);
        let busy = |id: &InstanceId| load.of(*id).open != Some(0);
        match action {
            Action::Prepare(id) => {
                if self.instances.insert(id, One::new()).is_some() {
                    return Err("made twice".into());
                }
                self.is_wanted()?;
                self.soon(300, Thing::Made(id));
            }
            Action::Release(id, _) => self.release(id)?,
            Action::Freeze(id) => {
                if idle(&id) && busy(&id) {
                    return Err(format!("{id} is frozen while it is busy"));
                }
                self.soon(10, Thing::Quieten(id));
            }
            Action::Thaw(id, _) => {
                if self.instances.get(&id).is_some_and(|one| one.stage != Stage::Paused) {
                    return Err(format!("{id} is thawed and was not frozen"));
                }
                if self.goes_wrong(self.faults.start) {
                    self.soon(50, Thing::Ends(id, InstanceEnd::Crashed));
                } else {
                    self.soon(5, Thing::Thawed(id));
                }
            }
            Action::Stop(id) => {
                if idle(&id) && busy(&id) {
                    return Err(format!("{id} is stopped as idle while it is busy"));
                }
                let hangs = self.instances.get(&id).is_some_and(|one| one.hangs);
                if is(&id, Reason::Hung) && !hangs {
                    return Err(format!("{id} is stopped as hung and takes whoever it has room for"));
                }
                if let Some(one) = self.instances.get_mut(&id) {
                    one.stage = Stage::Leaving;
                    self.soon(1_000, Thing::Ends(id, InstanceEnd::Asked));
                }
            }
            Action::Discard(id) => match self.instances.remove(&id) {
                Some(One { stage: Stage::Parked, .. }) => {}
                _ => return Err(format!("{id} is discarded and is not parked")),
            },
            Action::Answer(count, reason) => self.answer(count, reason)?,
            Action::WatchQueue(watch) => self.watch = watch,
            Action::Timer(at_ns) => {
                self.timers.push(at_ns);
                let late_ns = self.rng.ms(2);
                self.at(at_ns + late_ns, Thing::Event(Event::Timer));
            }
            Action::Suppress(..) | Action::Spent | Action::Unused | Action::Warm(_) | Action::Moved(..) => {}
        }
        Ok(())
    }

    fn release(&mut self, id: InstanceId) -> Result<(), String> {
        let alive = self.instances.values().filter(|one| one.is_alive()).count();
        if alive >= self.policy.max_instances as usize {
            return Err(format!("{id} is let go beside {alive}, more than allowed"));
        }
        match self.instances.get_mut(&id) {
            Some(one) if one.stage == Stage::Parked => one.stage = Stage::Starting,
            _ => return Err(format!("{id} is let go and is not parked")),
        }
        if self.goes_wrong(self.faults.start) {
            if self.rng.percent(70) {
                let end = self.rng.one(&[
                    InstanceEnd::Crashed,
                    InstanceEnd::OutOfMemory,
                    InstanceEnd::Exited,
                    InstanceEnd::NotStarted,
                ]);
                self.soon(200, Thing::Ends(id, end));
            }
        } else {
            self.soon(200, Thing::Begun(id));
        }
        Ok(())
    }

    fn answer(&mut self, count: u32, reason: Reason) -> Result<(), String> {
        for _ in 0..count {
            let Some((client, seen_ns)) = self.queue.pop_front() else {
                return Err("answers somebody who is not there".into());
            };
            let waited_ns = self.now_ns - seen_ns.unwrap_or(self.now_ns);
            if reason == Reason::QueueTimeout && waited_ns + self.gap_ns < nanos(self.policy.queue_timeout) {
                return Err(format!("{client} is answered too soon"));
            }
            self.accepted += 1;
        }
        Ok(())
    }

    /// No more instances than the demand needs were started.
    fn is_needed(&mut self, load: &Load) -> Result<(), String> {
        let has_room: Vec<_> =
            self.function.instances().filter(|(_, one)| coming(one.state)).map(|(id, _)| id).collect();
        let open: u64 = has_room.iter().map(|id| u64::from(load.of(*id).open.unwrap_or(0))).sum();
        // Also those who were told of long ago: they may be expected until now, if somebody else has kept their promise,
        // and another then that one's.
        let expected = self.told.iter().filter(|client| !self.arrived.contains(*client));
        // Accepted a moment ago, and in neither count: there they are all the same.
        let uncounted: u64 = self.instances.values().map(|one| u64::from(one.uncounted)).sum();
        let units = open + uncounted + u64::from(load.queued) + expected.count() as u64;
        let needed = self.policy.instances_for(units.max(u64::from(self.woken)));
        self.woken = false;
        if has_room.len() > needed as usize {
            return Err(format!("{} instances for {units} units of demand", has_room.len()));
        }
        Ok(())
    }

    /// Those that are left have room for everybody who is seen. Promises are left out: which of them stand only the
    /// decision knows.
    fn is_spare(&self, load: &Load, answered: u32) -> Result<(), String> {
        let left: Vec<_> =
            self.function.instances().filter(|(_, one)| coming(one.state)).map(|(id, _)| id).collect();
        let open: u64 = left.iter().map(|id| u64::from(load.of(*id).open.unwrap_or(0))).sum();
        let units = open + u64::from(load.queued - answered);
        if left.len() < self.policy.instances_for(units) as usize {
            return Err(format!("only {} instances are left for {units} units of demand", left.len()));
        }
        Ok(())
    }

    /// No more containers are made than may be let go, or are kept.
    fn is_wanted(&self) -> Result<(), String> {
        let fresh =
            |state| matches!(state, InstanceState::Parked | InstanceState::Preparing { stale: false });
        let count = self.function.instances().filter(|(_, one)| fresh(one.state)).count();
        if count > self.policy.max_instances.max(self.policy.prepared) as usize {
            return Err(format!("{count} containers are parked or made"));
        }
        Ok(())
    }

    /// Everybody in the queue is known, is not overdue, and will be looked at in time.
    fn nobody_is_forgotten(&self) -> Result<(), String> {
        for (client, seen_ns) in &self.queue {
            let Some(seen_ns) = seen_ns else { continue };
            let due_ns = seen_ns + nanos(self.policy.queue_timeout) + self.gap_ns;
            if due_ns <= self.now_ns {
                return Err(format!("client {client} was neither served nor answered in time"));
            }
            if !self.timers.iter().any(|at_ns| *at_ns <= due_ns) {
                return Err(format!("nobody will look at client {client} in time"));
            }
        }
        Ok(())
    }

    fn at_rest(&self) -> Result<(), String> {
        if !self.queue.is_empty() {
            return Err(format!("{} clients wait for ever", self.queue.len()));
        }
        if self.removed {
            let left = self.function.instances().count();
            return if left == 0 {
                Ok(())
            } else {
                Err(format!("{left} instances of a removed function are left"))
            };
        }
        let count = |wanted: fn(InstanceState) -> bool| {
            self.function.instances().filter(|(_, one)| wanted(one.state)).count()
        };
        let Policy { min_ready, max_instances, prepared, freeze_after, stop_after, .. } = self.policy;
        let ready = min_ready.min(max_instances) as usize;
        let restless =
            count(|state| state.is_alive() && !matches!(state, InstanceState::Ready | InstanceState::Frozen));
        if restless > 0 || count(|state| state == InstanceState::Ready) < ready {
            return Err("something is still under way at the end".into());
        }
        if (freeze_after.is_some() || stop_after.is_some())
            && count(|state| state == InstanceState::Ready) > ready
        {
            return Err("an idle instance does not rest".into());
        }
        if stop_after.is_some() && count(InstanceState::is_alive) > ready {
            return Err("an idle instance is not stopped".into());
        }
        let parked = if max_instances == 0 { 0 } else { prepared as usize };
        if self.function.parked() != parked || self.function.preparing() > 0 {
            return Err(format!("{} containers are parked, not {parked}", self.function.parked()));
        }
        Ok(())
    }
}

/// The decision has a word for that too; a mistake in it is to be seen here.
fn coming(state: InstanceState) -> bool {
    matches!(state, InstanceState::Starting { .. } | InstanceState::Ready | InstanceState::Thawing { .. })
}

impl One {
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

fn random_policy(rng: &mut Rng) -> Policy {
    let after = |rng: &mut Rng, unit: u64| Some(Duration::from_nanos(1 + rng.ms(unit)));
    let freeze_after = if rng.percent(50) { after(rng, 2_000) } else { None };
    let stop_after = if rng.percent(70) { after(rng, 5_000) } else { None };
    Policy {
        prepared: u32::try_from(rng.below(4)).unwrap(),
        concurrency: rng.one(&[None, Some(1), Some(1), Some(2), Some(5)]),
        min_ready: u32::try_from(rng.one(&[0, 0, 0, 1, 2])).unwrap(),
        max_instances: u32::try_from(rng.one(&[0, 1, 2, 3, 6, 6, 6, 20])).unwrap(),
        queue_timeout: Duration::from_millis(100 + rng.below(5_000)),
        freeze_after,
        stop_after,
        init_timeout: Duration::from_millis(500 + rng.below(1_000)),
        start_attempts: 3,
        cooldown: Duration::from_secs(3),
        retry_max: Duration::from_secs(1),
        unused_after: UNUSED_AFTER,
        starts: PLENTY,
    }
}
