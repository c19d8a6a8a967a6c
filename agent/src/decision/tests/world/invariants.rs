//! What must hold after each event, and in the end.

use super::*;

impl World {
    /// No more instances than the demand needs were started.
    pub(super) fn is_needed(&mut self, load: &FunctionLoad) -> Result<(), String> {
        // Those that are started ahead and have had no client have a rule of their own.
        let counts = |id, one: &Instance| coming(one.state) && (!one.is_standby || load.of(id).accepted > 0);
        let has_room: Vec<_> =
            self.function.instances().filter(|(id, one)| counts(*id, one)).map(|(id, _)| id).collect();
        let open: u64 = has_room.iter().map(|id| u64::from(load.of(*id).open.unwrap_or(0))).sum();
        // Also clients that were announced long ago: the connection of one client may have counted as that of another,
        // which then is still expected.
        let expected = self.announced.iter().filter(|client| !self.arrived.contains(*client));
        // Accepted a moment ago and not counted yet, but demand all the same.
        let uncounted: u64 = self.instances.values().map(|one| u64::from(one.uncounted)).sum();
        let units = open + uncounted + u64::from(load.queued) + expected.count() as u64;
        let needed = self.policy.instances_for(units.max(u64::from(self.requested)));
        self.requested = false;
        if has_room.len() > needed as usize {
            return Err(format!("{} instances for {units} units of demand", has_room.len()));
        }
        Ok(())
    }

    pub(super) fn is_standby(&self, id: InstanceId) -> bool {
        self.function.instances().any(|(known, one)| known == id && one.is_standby)
    }

    /// One is started ahead only while too few are initialised, and alone.
    pub(super) fn is_ahead(&self, id: InstanceId) -> Result<(), String> {
        let others = |wanted: fn(&Instance) -> bool| {
            self.function.instances().filter(|(known, one)| *known != id && wanted(one)).count()
        };
        let current = others(|one| {
            one.state.is_alive() && !one.is_outdated && !matches!(one.state, InstanceState::Stopping { .. })
        });
        if current >= self.policy.standby as usize || self.removed {
            return Err(format!("{id} is started ahead beside {current} others"));
        }
        if others(|one| one.state.is_alive()) >= self.policy.max_instances as usize {
            return Err(format!("{id} is started ahead above the ceiling"));
        }
        if others(|one| matches!(one.state, InstanceState::Starting { .. })) > 0 {
            return Err(format!("{id} is started ahead beside a start"));
        }
        Ok(())
    }

    /// The instances that remain have room for every connection that is seen. Expected connections are left out: only the
    /// decision knows which of them are still expected.
    pub(super) fn is_spare(&self, load: &FunctionLoad, answered: u32) -> Result<(), String> {
        let left: Vec<_> =
            self.function.instances().filter(|(_, one)| coming(one.state)).map(|(id, _)| id).collect();
        let open: u64 = left.iter().map(|id| u64::from(load.of(*id).open.unwrap_or(0))).sum();
        let units = open + u64::from(load.queued - answered);
        if left.len() < self.policy.instances_for(units) as usize {
            return Err(format!("only {} instances are left for {units} units of demand", left.len()));
        }
        Ok(())
    }

    /// No more containers are made than may be released, or are kept parked.
    pub(super) fn is_wanted(&self) -> Result<(), String> {
        let fresh =
            |state| matches!(state, InstanceState::Parked | InstanceState::Preparing { stale: false });
        let count = self.function.instances().filter(|(_, one)| fresh(one.state)).count();
        if count > self.policy.max_instances.max(self.policy.prepared) as usize {
            return Err(format!("{count} containers are parked or made"));
        }
        Ok(())
    }

    /// Every client in the queue is known, is not overdue, and a timer will expire in time for it.
    pub(super) fn every_client_is_looked_after(&self) -> Result<(), String> {
        for (client, seen_ns) in &self.queue {
            let Some(seen_ns) = seen_ns else { continue };
            let due_ns = seen_ns + nanos(self.policy.queue_timeout) + self.gap_ns;
            if due_ns <= self.now_ns {
                return Err(format!("client {client} was neither served nor answered in time"));
            }
            if !self.timers.iter().any(|at_ns| *at_ns <= due_ns) {
                return Err(format!("no timer checks on client {client} in time"));
            }
        }
        Ok(())
    }

    pub(super) fn at_rest(&self) -> Result<(), String> {
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
        let Policy {
            min_ready,
            standby,
            max_instances,
            prepared,
            freeze_after,
            hibernate_after,
            stop_after,
            ..
        } = self.policy;
        let ready = min_ready.min(max_instances) as usize;
        let restless = count(|state| state.is_alive() && !state.is_asleep() && state != InstanceState::Ready)
            + count(|state| state == InstanceState::Hibernating);
        if restless > 0 || count(|state| state == InstanceState::Ready) < ready {
            return Err("something is still under way at the end".into());
        }
        if (freeze_after.is_some() || stop_after.is_some())
            && count(|state| state == InstanceState::Ready) > ready
        {
            return Err("an idle instance does not rest".into());
        }
        let stays = |one: &Instance| one.state == InstanceState::Frozen && !one.stays_frozen;
        if hibernate_after.is_some() && self.function.instances().any(|(_, one)| stays(one)) {
            return Err("a frozen instance is not hibernated".into());
        }
        let kept = standby.min(max_instances) as usize;
        if stop_after.is_some() && count(InstanceState::is_alive) > ready.max(kept) {
            return Err("an idle instance is not stopped".into());
        }
        if count(InstanceState::is_alive) < kept {
            return Err("too few instances are initialised ahead".into());
        }
        if self.function.instances().any(|(_, one)| one.is_outdated) {
            return Err("an instance of an earlier configuration is left".into());
        }
        let parked = if max_instances == 0 { 0 } else { prepared as usize };
        if self.function.parked() != parked || self.function.preparing() > 0 {
            return Err(format!("{} containers are parked, not {parked}", self.function.parked()));
        }
        Ok(())
    }
}

/// The decision has a function for this too. This one is separate, so that the test finds a mistake in that.
fn coming(state: InstanceState) -> bool {
    matches!(state, InstanceState::Starting { .. } | InstanceState::Ready | InstanceState::Thawing { .. })
}
