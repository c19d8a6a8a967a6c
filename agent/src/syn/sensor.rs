//! The kernel's table of functions, and its counters.

use std::collections::{BTreeMap, BTreeSet, HashMap as Known};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, SockMap};
use headstart_ebpf::event::{SensorCounters, Stat};
use headstart_ebpf::maps::{self, FUNCTION_WARM, FunctionEntry, LOBBY, OpenedKey, PacketFlow, PortKey};
use socket2::Socket;

use super::SynError;
use super::fill::Maps;
use super::table::{FunctionTable, Routes, named};
use crate::event::FunctionId;

/// The kernel's table of functions, and its counters.
pub struct Sensor {
    functions: HashMap<MapData, PortKey, FunctionEntry>,
    ports: Array<MapData, u64>,
    listeners: SockMap<MapData>,
    opened: HashMap<MapData, OpenedKey, u64>,
    steered: HashMap<MapData, PacketFlow, u32>,
    stats: PerCpuArray<MapData, SensorCounters>,
    /// Whether clients may have keys.
    keys: bool,
    /// Each function's entries, as for a cold function.
    entries: BTreeMap<FunctionId, Vec<(PortKey, FunctionEntry)>>,
    warm: BTreeSet<FunctionId>,
}

impl Sensor {
    /// Takes its maps, which may hold entries of an earlier agent, and gives the lobby to the socket lookup.
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

    /// Writes the addresses of functions, and removes all other entries, also those of an earlier agent. The programs run
    /// meanwhile, so each entry changes in one step.
    ///
    /// # Errors
    /// [`SynError::Map`] when the kernel refuses.
    pub fn update(&mut self, routes: &Routes) -> Result<(), SynError> {
        let table = FunctionTable::new(routes, self.keys);
        let before: Known<_, _> = self.functions.iter().flatten().collect();
        let mut after: Known<_, _> = table.entries().collect();
        self.warm.retain(|function| routes.contains_key(function));
        for entry in after.values_mut().filter(|entry| self.warm.contains(&entry.function)) {
            entry.flags |= FUNCTION_WARM;
        }
        self.forget(&renumbered(&before, &after));
        for (function, listener) in named(routes) {
            // An unused number may keep an old socket, because no entry has that number.
            self.listeners.set(function, listener.as_ref(), 0)?;
        }
        for (key, entry) in after.iter().filter(|(key, entry)| before.get(*key) != Some(*entry)) {
            self.functions.insert(key, entry, 0)?;
        }
        for (index, word) in (0..).zip(table.port_words()) {
            // Most words are already zero, and reading costs no more than writing.
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

    /// Removes knocks and steered connections of these numbers, which do not apply to their new functions.
    fn forget(&mut self, numbers: &BTreeSet<FunctionId>) {
        if numbers.is_empty() {
            return;
        }
        let opened: Vec<_> =
            self.opened.keys().flatten().filter(|key| numbers.contains(&key.function)).collect();
        let steered: Vec<_> =
            self.steered.iter().flatten().filter(|(_, function)| numbers.contains(function)).collect();
        // The kernel may have evicted an entry.
        for key in opened {
            let _ = self.opened.remove(&key);
        }
        for (flow, _) in steered {
            let _ = self.steered.remove(&flow);
        }
    }

    /// Writes whether a function has an instance; if so, its SYNs raise no event.
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

    /// The programs' counters since the maps were made.
    ///
    /// # Errors
    /// [`SynError::Map`] when the kernel refuses.
    pub fn counters(&self) -> Result<Vec<(Stat, u64)>, SynError> {
        let per_cpu = self.stats.get(&0, 0)?;
        let totals = headstart_ebpf::event::total(per_cpu.iter());
        Ok(Stat::ALL.into_iter().zip(totals).collect())
    }
}

/// The numbers whose addresses have changed.
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
