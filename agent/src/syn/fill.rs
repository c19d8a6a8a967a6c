//! Writing the kernel's maps, also those that an earlier agent left full.

use std::collections::HashMap as Known;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, SockMap};
use headstart_config::Syn;
use headstart_ebpf::event::Addr;
use headstart_ebpf::maps::{self, Flow, FunctionEntry, LOBBY, OpenedKey, PortKey, Source, source_prefix};
use socket2::Socket;

use super::SynError;
use super::table::{Route, Table, named};

/// Takes maps out of a loaded object.
pub(super) struct Maps<'a>(pub(super) &'a mut aya::Ebpf);

impl Maps<'_> {
    pub(super) fn take<M>(&mut self, name: &'static str) -> Result<M, SynError>
    where
        M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
    {
        let map = self.0.take_map(name).ok_or(SynError::Object(name))?;
        Ok(M::try_from(map)?)
    }

    /// Writes which function is where, and forgets the functions of an earlier agent. While an earlier agent's
    /// programs still run, each entry goes from old to new in one step.
    pub(super) fn functions(
        &mut self,
        table: &Table,
    ) -> Result<HashMap<MapData, PortKey, FunctionEntry>, SynError> {
        let mut functions: HashMap<_, PortKey, FunctionEntry> = self.take(maps::FUNCTIONS)?;
        let before: Known<_, _> = functions.iter().flatten().collect();
        let after: Known<_, _> = table.entries().collect();
        if !before.is_empty() && !same_numbers(&before, &after) {
            // They speak of functions by numbers that mean others now.
            empty::<OpenedKey, u64>(self.take(maps::OPENED)?)?;
            empty::<Flow, u32>(self.take(maps::STEERED)?)?;
        }
        for (key, entry) in &after {
            functions.insert(key, entry, 0)?;
        }
        self.ports(table)?;
        for key in before.keys().filter(|key| !after.contains_key(key)) {
            functions.remove(key)?;
        }
        Ok(functions)
    }

    fn ports(&mut self, table: &Table) -> Result<(), SynError> {
        let mut ports: Array<_, u64> = self.take(maps::PORTS)?;
        for (index, word) in (0..).zip(table.port_words()) {
            // Most are zero already, and reading is as cheap as writing.
            if ports.get(&index, 0)? != word {
                ports.set(index, word, 0)?;
            }
        }
        Ok(())
    }

    /// Writes what the operator said of sources.
    pub(super) fn sources(&mut self, config: &Syn) -> Result<(), SynError> {
        let mut sources: LpmTrie<_, Addr, u32> = self.take(maps::SOURCES)?;
        let wanted = wanted_sources(config);
        let before: Vec<_> = sources.keys().flatten().collect();
        for ((prefix, address), value) in &wanted {
            sources.insert(&Key::new(*prefix, *address), value, 0)?;
        }
        for key in before {
            if !wanted.contains_key(&(key.prefix_len(), key.data())) {
                sources.remove(&key)?;
            }
        }
        Ok(())
    }

    /// Writes the sockets to which the socket lookup gives connections. Numbers that no entry names any more
    /// may keep an old socket: nothing leads to it.
    pub(super) fn listeners(&mut self, routes: &[Route], lobby: Option<&Socket>) -> Result<(), SynError> {
        let mut listeners: SockMap<_> = self.take(maps::LISTENERS)?;
        for (function, listener) in named(routes) {
            listeners.set(function, listener.as_ref(), 0)?;
        }
        if let Some(lobby) = lobby {
            listeners.set(LOBBY, lobby, 0)?;
        }
        Ok(())
    }
}

/// Whether every key has the number that it had.
fn same_numbers(before: &Known<PortKey, FunctionEntry>, after: &Known<PortKey, FunctionEntry>) -> bool {
    before.len() == after.len()
        && after.iter().all(|(key, entry)| before.get(key).is_some_and(|old| old.function == entry.function))
}

fn wanted_sources(config: &Syn) -> Known<(u32, Addr), u32> {
    let allow = config.allow.iter().map(|cidr| (cidr, Source::Allow));
    let ignore = config.ignore.iter().map(|cidr| (cidr, Source::Ignore));
    allow
        .chain(ignore)
        .map(|(cidr, source)| (source_prefix(cidr.address, cidr.bits), source as u32))
        .collect()
}

fn empty<K: Pod, V: Pod>(mut map: HashMap<MapData, K, V>) -> Result<(), SynError> {
    let keys: Vec<_> = map.keys().flatten().collect();
    for key in keys {
        // The least recently used goes by itself: it may be gone already.
        let _ = map.remove(&key);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use headstart_config::Config;

    #[test]
    fn numbers_are_the_same_only_when_every_place_keeps_its_own() {
        let entry = |function| FunctionEntry { function, flags: 0 };
        let table = |ports: &[(u16, u32)]| -> Known<_, _> {
            ports.iter().map(|(port, function)| (PortKey::any(*port), entry(*function))).collect()
        };
        let before = table(&[(1, 0), (2, 1)]);
        assert!(same_numbers(&before, &table(&[(2, 1), (1, 0)])));
        assert!(!same_numbers(&before, &table(&[(2, 0), (1, 1)])));
        assert!(!same_numbers(&before, &table(&[(1, 0)])));
        assert!(!same_numbers(&before, &table(&[(1, 0), (3, 1)])));
    }

    #[test]
    fn sources_are_prefixes_of_mapped_addresses() {
        let text = "[syn]\nallow = [\"10.0.0.0/8\"]\nignore = [\"2001:db8::/32\"]\n";
        let sources = wanted_sources(&Config::parse("test.toml", text).unwrap().syn);
        let [v4, v6] = ["::ffff:10.0.0.0", "2001:db8::"]
            .map(|text| text.parse::<std::net::Ipv6Addr>().unwrap().octets());
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[&(104, v4)], Source::Allow as u32);
        assert_eq!(sources[&(32, v6)], Source::Ignore as u32);
    }
}
