//! Takes the maps of a loaded object, which may hold entries of an earlier agent, and writes the sources.

use std::collections::HashMap;

use aya::maps::LpmTrie;
use aya::maps::lpm_trie::Key;
use headstart_config::Syn;
use headstart_ebpf::event::Addr;
use headstart_ebpf::maps::{self, SourceRule, source_prefix};

use super::SynError;

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

    /// Writes the operator's rules for sources.
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
}

fn wanted_sources(config: &Syn) -> HashMap<(u32, Addr), u32> {
    let allow = config.allow.iter().map(|cidr| (cidr, SourceRule::Allow));
    let ignore = config.ignore.iter().map(|cidr| (cidr, SourceRule::Ignore));
    allow
        .chain(ignore)
        .map(|(cidr, source)| (source_prefix(cidr.address, cidr.bits), source as u32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use headstart_config::Config;

    #[test]
    fn sources_are_prefixes_of_mapped_addresses() {
        let text = "[syn]\nallow = [\"10.0.0.0/8\"]\nignore = [\"2001:db8::/32\"]\n";
        let sources = wanted_sources(&Config::parse("test.toml", text).unwrap().syn);
        let [v4, v6] = ["::ffff:10.0.0.0", "2001:db8::"]
            .map(|text| text.parse::<std::net::Ipv6Addr>().unwrap().octets());
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[&(104, v4)], SourceRule::Allow as u32);
        assert_eq!(sources[&(32, v6)], SourceRule::Ignore as u32);
    }
}
