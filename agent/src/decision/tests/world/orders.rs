//! What the function orders is carried out, and checked on the way.

use super::*;

impl World {
    pub(super) fn load(&mut self) -> FunctionLoad {
        for (client, seen_ns) in &mut self.queue {
            seen_ns.get_or_insert(self.now_ns);
            self.arrived.insert(*client);
        }
        let alive = |one: &FakeInstance| !matches!(one.stage, Stage::Preparing | Stage::Parked);
        let instances: Vec<_> =
            self.instances.iter().filter(|(_, one)| alive(one)).map(|(id, one)| (*id, one.seen)).collect();
        let accepted = self.accepted + instances.iter().map(|(_, seen)| seen.accepted).sum::<u64>();
        FunctionLoad { queued: u32::try_from(self.queue.len()).unwrap(), accepted, instances }
    }

    /// An event reaches the function; what it orders is carried out, and all is checked.
    pub(super) fn tell(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Changed { policy, .. } => self.policy = policy,
            Event::Removed => self.removed = true,
            Event::Demand(Demand { trigger: Trigger::Api, .. }) => self.requested = true,
            Event::Timer => {
                let now_ns = self.now_ns;
                self.timers.retain(|at_ns| *at_ns > now_ns);
            }
            _ => {}
        }
        let load = self.load();
        let actions = self.function.on(event, &load, self.now_ns, &mut self.node);
        if let Event::Demand(Demand { client: Some(client), .. }) = event {
            self.announced.insert(client.address.port());
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
                    rests |= moves && reason == DecisionReason::Idle && !paused;
                }
                // This thaw is needed even if others have room: the instance has a connection.
                Action::Thaw(id, _) if why.last() == Some(&(id, DecisionReason::Busy)) => {}
                Action::Release(id, Demand { trigger: Trigger::Provision, .. }) if self.is_standby(id) => {
                    self.is_ahead(id)?;
                }
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
            return Err(format!("{id} stays frozen while it has a connection"));
        }
        self.every_client_is_looked_after()
    }

    pub(super) fn carry_out(
        &mut self,
        action: Action,
        why: &[(InstanceId, DecisionReason)],
        load: &FunctionLoad,
    ) -> Result<(), String> {
        let is = |id: &InstanceId, reason| {
            why.iter().rev().find(|(moved, _)| moved == id).map(|(_, why)| *why) == Some(reason)
        };
        let idle = |id: &InstanceId| is(id, DecisionReason::Idle);
        let busy = |id: &InstanceId| load.of(*id).open != Some(0);
        match action {
            Action::Prepare(id) => {
                if self.instances.insert(id, FakeInstance::new()).is_some() {
                    return Err("made twice".into());
                }
                self.is_wanted()?;
                self.soon(300, WorldEvent::Made(id));
            }
            Action::Release(id, _) => self.release(id)?,
            Action::Freeze(id) => {
                if idle(&id) && busy(&id) {
                    return Err(format!("{id} is frozen while it is busy"));
                }
                self.soon(10, WorldEvent::Quieten(id));
            }
            Action::Hibernate(id) => {
                if self.instances.get(&id).is_none_or(|one| one.stage != Stage::Paused) || busy(&id) {
                    return Err(format!("{id} is hibernated and is not frozen, or is busy"));
                }
                self.soon(100, WorldEvent::PagedOut(id));
            }
            Action::Thaw(id, _) => {
                if self.instances.get(&id).is_some_and(|one| one.stage != Stage::Paused) {
                    return Err(format!("{id} is thawed and was not frozen"));
                }
                if self.goes_wrong(self.faults.start) {
                    let end = self.bad_end(&[InstanceEnd::Crashed]);
                    self.soon(50, WorldEvent::Ends(id, end));
                } else {
                    self.soon(5, WorldEvent::Thawed(id));
                }
            }
            Action::Stop(id) => {
                if idle(&id) && busy(&id) {
                    return Err(format!("{id} is stopped as idle while it is busy"));
                }
                let hangs = self.instances.get(&id).is_some_and(|one| one.hangs);
                if is(&id, DecisionReason::Hung) && !hangs {
                    return Err(format!("{id} is stopped as hung and accepts what it has room for"));
                }
                if let Some(one) = self.instances.get_mut(&id) {
                    let waits = self.faults.outside && matches!(one.stage, Stage::Starting | Stage::Paused);
                    one.stage = Stage::Leaving;
                    let end = if waits { InstanceEnd::NoBackend } else { InstanceEnd::Asked };
                    self.soon(1_000, WorldEvent::Ends(id, end));
                }
            }
            Action::Discard(id) => match self.instances.remove(&id) {
                Some(FakeInstance { stage: Stage::Parked, .. }) => {}
                _ => return Err(format!("{id} is discarded and is not parked")),
            },
            Action::Answer(count, reason) => self.answer(count, reason)?,
            Action::WatchQueue(watch) => self.queue_watch = watch,
            Action::Timer(at_ns) => {
                self.timers.push(at_ns);
                let late_ns = self.rng.ms(2);
                self.at(at_ns + late_ns, WorldEvent::Event(Event::Timer));
            }
            // There is no other function.
            Action::Turn(_) => return Err("it was given the turn of another function".into()),
            Action::Suppress(..) | Action::Spent | Action::Unused | Action::Warm(_) | Action::Moved(..) => {}
        }
        Ok(())
    }

    pub(super) fn release(&mut self, id: InstanceId) -> Result<(), String> {
        let alive = self.instances.values().filter(|one| one.is_alive()).count();
        if alive >= self.policy.max_instances as usize {
            return Err(format!("{id} is released beside {alive}, more than allowed"));
        }
        match self.instances.get_mut(&id) {
            Some(one) if one.stage == Stage::Parked => one.stage = Stage::Starting,
            _ => return Err(format!("{id} is released and is not parked")),
        }
        let out = self.is_out();
        if out || self.goes_wrong(self.faults.start) {
            if out || self.rng.percent(70) {
                let end = self.bad_end(&[
                    InstanceEnd::Crashed,
                    InstanceEnd::OutOfMemory,
                    InstanceEnd::Exited,
                    InstanceEnd::NotStarted(FailureCause::Node),
                    InstanceEnd::NoBackend,
                ]);
                self.soon(200, WorldEvent::Ends(id, end));
            }
        } else {
            self.soon(200, WorldEvent::Begun(id));
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, count: u32, reason: DecisionReason) -> Result<(), String> {
        if self.faults.outside && reason == DecisionReason::Cooldown {
            return Err("a cool-down though the function never failed".into());
        }
        if self.faults.outage_ns.is_some() && !self.removed {
            return Err(format!("a client is lost in a short outage: {reason:?}"));
        }
        // As long as a connection is not counted that left the queue, one that came after it is taken for it.
        let exact = self.instances.values().all(|one| one.uncounted == 0);
        for _ in 0..count {
            let Some((client, seen_ns)) = self.queue.pop_front() else {
                return Err("answers a client that is not there".into());
            };
            let waited_ns = self.now_ns - seen_ns.unwrap_or(self.now_ns);
            if reason == DecisionReason::QueueTimeout && exact && waited_ns < nanos(self.policy.queue_timeout)
            {
                return Err(format!("{client} is answered too soon"));
            }
            self.accepted += 1;
        }
        Ok(())
    }
}
