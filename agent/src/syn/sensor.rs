//! What the kernel knows of functions, and what it has counted.

use std::collections::{BTreeMap, BTreeSet, HashMap as Known};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, SockMap};
use headstart_ebpf::event::{SensorCounters, Stat};
use headstart_ebpf::maps::{self, FUNCTION_WARM, FunctionEntry, LOBBY, OpenedKey, PacketFlow, PortKey};
use socket2::Socket;

use super::SynError;
use super::fill::Maps;
use super::table::{Routes, Table, named};
use crate::event::FunctionId;

/// The kernel's table of functions, and its counters.
pub struct Sensor {
    functions: HashMap<MapData, PortKey, FunctionEntry>,
    ports: Array<MapData, u64>,
    listeners: SockMap<MapData>,
    opened: HashMap<MapData, OpenedKey, u64>,
    steered: HashMap<MapData, PacketFlow, u32>,
    stats: PerCpuArray<MapData, SensorCounters>,
    /// Clients may have keys.
    keys: bool,
    /// Each function's entries, cold.
    entries: BTreeMap<FunctionId, Vec<(PortKey, FunctionEntry)>>,
    warm: BTreeSet<FunctionId>,
}

impl Sensor {
    /// Takes its maps, which may be an earlier agent's, and tells the socket lookup of the lobby.
    pub(super) fn new(maps: &mut Maps<'_>, keys: bool, lobby: Option<&Socket>) -> Result<Self, SynError> {
        let mut listeners: SockMap<_> = maps.take(maps::LISTENERS)?;
        if let Some(lobby) = lobby {
            listeners.set(LOBBY, lobby, 0)?;
        }
        Ok(Self {
            functions: maps.take(maps::FUNCTIONS)?,
            ports: maps.take(maps::PORTS)?,
            listeners,
            opened: maps.take(maps::OPENED)?,
            steered: maps.take(maps::STEERED)?,
            stats: maps.take(maps::STATS)?,
            keys,
            entries: BTreeMap::new(),
            warm: BTreeSet::new(),
        })
    }

    /// Says which function is where, and forgets the others, also those of an earlier agent. The programs run
    /// meanwhile: each entry goes from old to new in one step.
    ///
    /// # Errors
    /// [`SynError::Map`] when the kernel refuses.
    pub fn update(&mut self, routes: &Routes) -> Result<(), SynError> {
        let table = Table::new(routes, self.keys);
        let before: Known<_, _> = self.functions.iter().flatten().collect();
        let mut after: Known<_, _> = table.entries().collect();
        self.warm.retain(|function| routes.contains_key(function));
        for entry in after.values_mut().filter(|entry| self.warm.contains(&entry.function)) {
            entry.flags |= FUNCTION_WARM;
        }
        self.forget(&renumbered(&before, &after));
        for (function, listener) in named(routes) {
            // A number that nothing names any more may keep an old socket: nothing leads to it.
            self.listeners.set(function, listener.as_ref(), 0)?;
        }
        for (key, entry) in after.iter().filter(|(key, entry)| before.get(*key) != Some(*entry)) {
            self.functions.insert(key, entry, 0)?;
        }
        for (index, word) in (0..).zip(table.port_words()) {
            // Most are zero already, and reading is as cheap as writing.
            if self.ports.get(&index, 0)? != word {
                self.ports.set(index, word, 0)?;
            }
        }
        for key in before.keys().filter(|key| !after.contains_key(key)) {
            self.functions.remove(key)?;
        }
        self.entries = table.functions;
        Ok(())
    }

    /// What clients have proved to these numbers, and named them for, does not hold for their new owners.
    fn forget(&mut self, numbers: &BTreeSet<FunctionId>) {
        if numbers.is_empty() {
            return;
        }
        let opened: Vec<_> =
            self.opened.keys().flatten().filter(|key| numbers.contains(&key.function)).collect();
        let steered: Vec<_> =
            self.steered.iter().flatten().filter(|(_, function)| numbers.contains(function)).collect();
        // The least recently used goes by itself: it may be gone already.
        for key in opened {
            let _ = self.opened.remove(&key);
        }
        for (flow, _) in steered {
            let _ = self.steered.remove(&flow);
        }
    }

    /// Says whether a function has an instance: its SYNs are no news then.
    ///
    /// # Errors
    /// [`SynError::Map`] when the kernel refuses.
    pub fn warm(&mut self, function: FunctionId, warm: bool) -> Result<(), SynError> {
        let Some(entries) = self.entries.get(&function) else { return Ok(()) };
        if warm {
            self.warm.insert(function);
        } else {
            self.warm.remove(&function);
        }
        for (key, cold) in entries {
            let flags = cold.flags | if warm { FUNCTION_WARM } else { 0 };
            self.functions.insert(key, FunctionEntry { flags, ..*cold }, 0)?;
        }
        Ok(())
    }

    /// What the programs have counted since the maps were made.
    ///
    /// # Errors
    /// [`SynError::Map`] when the kernel does not give it.
    pub fn counters(&self) -> Result<Vec<(Stat, u64)>, SynError> {
        let per_cpu = self.stats.get(&0, 0)?;
        let totals = headstart_ebpf::event::total(per_cpu.iter());
        Ok(Stat::ALL.into_iter().zip(totals).collect())
    }
}

/// The numbers under which something else is reached than before.
fn renumbered(
    before: &Known<PortKey, FunctionEntry>,
    after: &Known<PortKey, FunctionEntry>,
) -> BTreeSet<FunctionId> {
    let missing = |from: &Known<PortKey, FunctionEntry>, to: &Known<PortKey, FunctionEntry>| {
        let moved = |key: &PortKey, entry: &FunctionEntry| {
            to.get(key).is_none_or(|other| other.function != entry.function)
        };
        let moved = from.iter().filter(|(key, entry)| moved(key, entry)).map(|(_, entry)| entry.function);
        moved.collect::<BTreeSet<_>>()
    };
    &missing(before, after) | &missing(after, before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_same_only_while_every_place_of_it_is() {
        let table = |ports: &[(u16, u32)]| -> Known<_, _> {
            let entry = |function| FunctionEntry { function, flags: 0 };
            ports.iter().map(|(port, function)| (PortKey::any(*port), entry(*function))).collect()
        };
        let before = table(&[(1, 0), (2, 1), (3, 1)]);
        for (after, numbers) in [
            (vec![(3, 1), (2, 1), (1, 0)], vec![]),
            (vec![(1, 0), (2, 1)], vec![1]),
            (vec![(1, 0), (2, 1), (3, 1), (4, 2)], vec![2]),
            (vec![(1, 1), (2, 1), (3, 1)], vec![0, 1]),
            (vec![(4, 0), (2, 1), (3, 1)], vec![0]),
        ] {
            let found = renumbered(&before, &table(&after));
            assert_eq!(found.into_iter().collect::<Vec<_>>(), numbers, "{after:?}");
        }
    }
}
