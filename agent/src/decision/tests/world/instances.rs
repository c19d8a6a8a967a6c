//! The pretended node: containers, instances and their connections.

use super::*;

impl World {
    pub(super) fn happens(&mut self, thing: WorldEvent) -> Result<(), String> {
        match thing {
            WorldEvent::Event(event) => self.tell(event)?,
            WorldEvent::Jump(by) => self.now_ns += by,
            WorldEvent::Connect(client) => {
                self.queue.push_back((client, None));
                let within_ms = if self.queue_watch == QueueWatchRate::Immediate { 5 } else { 255 };
                let demand = Demand::local(Trigger::Accept, self.now_ns);
                self.soon(within_ms, WorldEvent::Event(Event::Demand(demand)));
            }
            WorldEvent::Accept(id) => {
                let Some(client) = self.accepts(id) else { return Ok(()) };
                if self.gap_ns == 0 {
                    self.happens(WorldEvent::Counted(id, client))?;
                } else {
                    self.soon(2, WorldEvent::Counted(id, client));
                }
            }
            WorldEvent::Counted(id, client) => {
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
                self.soon(stay_ms, WorldEvent::Leave(id, client));
            }
            WorldEvent::Leave(id, client) => {
                let now_ns = self.now_ns;
                if let Some(one) = self.instances.get_mut(&id)
                    && one.open.remove(&client)
                {
                    one.count(now_ns);
                }
            }
            WorldEvent::Made(id) => {
                if self.is_out() || self.goes_wrong(self.faults.prepare) {
                    self.instances.remove(&id);
                    let function = !self.faults.outside && self.rng.percent(50);
                    let cause = if function { FailureCause::Function } else { FailureCause::Node };
                    self.tell(Event::PrepareFailed { instance: id, cause })?;
                } else {
                    self.instances.get_mut(&id).ok_or("made what was never ordered")?.stage = Stage::Parked;
                    self.tell(Event::Parked(id))?;
                }
            }
            WorldEvent::Begun(id) => {
                let hangs = self.goes_wrong(self.faults.hang);
                if let Some(one) = self.instances.get_mut(&id).filter(|one| one.stage == Stage::Starting) {
                    (one.stage, one.hangs) = (Stage::Accepting, hangs);
                    self.soon(3, WorldEvent::Event(Event::Ready(id)));
                    if self.goes_wrong(self.faults.crash) {
                        let end = self.bad_end(&[InstanceEnd::Crashed]);
                        self.soon(3_000, WorldEvent::Ends(id, end));
                    }
                }
            }
            WorldEvent::Quieten(id) => self.quieten(id),
            WorldEvent::PagedOut(id) => {
                if self.goes_wrong(self.faults.hibernate) {
                    self.tell(Event::NotHibernated(id))?;
                } else {
                    self.tell(Event::Hibernated(id))?;
                }
            }
            WorldEvent::Thawed(id) => {
                if let Some(one) = self.instances.get_mut(&id).filter(|one| one.stage == Stage::Paused) {
                    one.stage = Stage::Accepting;
                    self.soon(3, WorldEvent::Event(Event::Ready(id)));
                }
            }
            WorldEvent::Ends(id, end) => {
                if let Some(one) = self.instances.remove(&id) {
                    // Its connections are cut off. They count as accepted.
                    self.accepted += one.seen.accepted;
                    self.tell(Event::Gone { instance: id, end })?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn accepts(&mut self, id: InstanceId) -> Option<ClientId> {
        let places = self.policy.concurrency.unwrap_or(u32::MAX);
        let one = self.instances.get_mut(&id)?;
        one.accepts_soon = false;
        let room = one.stage == Stage::Accepting && !one.hangs && one.taken() < places;
        let (client, _) = room.then(|| self.queue.pop_front())??;
        one.uncounted += 1;
        Some(client)
    }

    /// Instances with room look at a queue that is not empty. One that hangs would look for ever, and see nothing.
    pub(super) fn look_at_the_queue(&mut self) {
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
            self.soon(3, WorldEvent::Accept(id));
        }
    }

    pub(super) fn quieten(&mut self, id: InstanceId) {
        let fails = self.goes_wrong(self.faults.freeze);
        let Some(one) = self.instances.get_mut(&id).filter(|one| one.stage == Stage::Accepting) else {
            return;
        };
        let busy = one.taken() > 0;
        // A client connected after the check of its places and before the freeze.
        let overtaken = fails && !one.open.is_empty();
        if (busy || fails) && !overtaken {
            self.soon(5, WorldEvent::Event(Event::NotFrozen { instance: id, busy }));
        } else {
            one.stage = Stage::Paused;
            self.soon(20, WorldEvent::Event(Event::Frozen(id)));
        }
    }
}
