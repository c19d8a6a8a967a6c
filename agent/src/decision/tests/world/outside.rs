//! What comes from outside: clients, operators, and mistakes of the network.

use super::*;

impl World {
    /// Everything that comes from outside.
    pub(super) fn schedule(&mut self) {
        self.at(SECOND, WorldEvent::Event(Event::Configured));
        let (clients, burst) = (self.rng.below(40), self.rng.percent(50));
        let start_ns = SECOND + self.rng.below(HORIZON_NS / 2);
        for number in 0..clients {
            let syn_ns =
                if burst { start_ns + self.rng.ms(3) } else { SECOND + self.rng.below(HORIZON_NS - SECOND) };
            let rtt_ns = self.rng.ms(80);
            let client = ClientId::try_from(number).unwrap();
            self.announce(client, syn_ns, rtt_ns);
            if !self.rng.percent(5) {
                self.at(syn_ns + rtt_ns, WorldEvent::Connect(client));
            }
        }
        for _ in 0..self.rng.below(4) {
            let at_ns = SECOND + self.rng.below(HORIZON_NS);
            let wake = Event::Demand(Demand::local(Trigger::Api, at_ns));
            let replace = self.rng.percent(50);
            let policy = random_policy(&mut self.rng);
            let policy = if self.faults.outage_ns.is_some() { patient(policy) } else { policy };
            let changed = Event::Changed { policy, replace };
            let relieve = Event::Relieve(1 + self.rng.below(6));
            let event = self.rng.one(&[wake, Event::Freeze, relieve, Event::Stop, Event::Timer, changed]);
            self.at(at_ns, WorldEvent::Event(event));
        }
        if self.rng.percent(10) {
            let at_ns = SECOND + self.rng.below(HORIZON_NS);
            self.at(at_ns, WorldEvent::Event(Event::Removed));
        }
        if self.rng.percent(20) && self.faults.outage_ns.is_none() {
            let (at_ns, by) = (self.rng.below(HORIZON_NS), self.rng.below(60 * SECOND));
            // The moment would be as long as the jump.
            self.gap_ns = 0;
            self.at(at_ns, WorldEvent::Jump(by));
        }
    }

    /// The SYN of a client, as the sensors report it.
    pub(super) fn announce(&mut self, client: ClientId, syn_ns: u64, rtt_ns: u64) {
        let address = format!("198.51.100.7:{client}").parse().unwrap();
        let syn = Demand {
            trigger: Trigger::Syn,
            standing: if self.rng.percent(50) { Standing::Key } else { Standing::Open },
            client: Some(ClientIdentity { address, isn: 1 + u32::from(client) }),
            alias: None,
            at_ns: syn_ns,
            seen_ns: syn_ns,
        };
        let again = self.rng.percent(self.faults.syn_again);
        let lookup =
            Demand { trigger: Trigger::Lookup, client: Some(ClientIdentity { address, isn: 0 }), ..syn };
        for report in [Some(syn), again.then_some(syn), again.then_some(lookup)].into_iter().flatten() {
            if !self.rng.percent(self.faults.syn_lost) {
                let late_ns =
                    if self.rng.percent(20) { self.rng.below(3 * rtt_ns + MS) } else { self.rng.ms(1) };
                self.at(syn_ns + late_ns, WorldEvent::Event(Event::Demand(report)));
            }
        }
    }
}

/// Clients wait for longer than any outage, and there is always room for them.
pub(super) fn patient(policy: Policy) -> Policy {
    let max_instances = policy.max_instances.max(1);
    Policy { concurrency: None, max_instances, queue_timeout: Duration::from_secs(9), ..policy }
}

pub(super) fn random_policy(rng: &mut Rng) -> Policy {
    let after = |rng: &mut Rng, unit: u64| Some(Duration::from_nanos(1 + rng.ms(unit)));
    let freeze_after = if rng.percent(50) { after(rng, 2_000) } else { None };
    let hibernate_after = if rng.percent(50) { after(rng, 3_000) } else { None };
    let stop_after = if rng.percent(70) { after(rng, 5_000) } else { None };
    Policy {
        prepared: u32::try_from(rng.below(4)).unwrap(),
        concurrency: rng.one(&[None, Some(1), Some(1), Some(2), Some(5)]),
        min_ready: u32::try_from(rng.one(&[0, 0, 0, 1, 2])).unwrap(),
        // Only those that are frozen are kept: the configuration is refused otherwise.
        standby: u32::try_from(rng.one(&[0, 0, 1, 3])).unwrap() * u32::from(freeze_after.is_some()),
        max_instances: u32::try_from(rng.one(&[0, 1, 2, 3, 6, 6, 6, 20])).unwrap(),
        queue_timeout: Duration::from_millis(100 + rng.below(5_000)),
        freeze_after,
        hibernate_after,
        stop_after,
        init_timeout: Duration::from_millis(500 + rng.below(1_000)),
        start_attempts: 3,
        cooldown: Duration::from_secs(3),
        retry_max: Duration::from_secs(1),
        unused_after: UNUSED_AFTER,
        starts: PLENTY,
    }
}
