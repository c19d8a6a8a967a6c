//! Keys of one audience: what a client proves to one node or group of nodes, it proves to no other.

use headstart_ebpf::auth::{Key, siphash24};

/// The longest name of an audience, in bytes.
pub const AUDIENCE_MAX: usize = 63;

/// Makes the second word of a block differ from that of every tag, whose highest byte is the kind of its packet.
const DERIVATION: u64 = 0xff << 56;

/// The key of `audience`; without one the key of the file itself.
///
/// It is a chain: each 8 bytes of the name make the next key out of two outputs of SipHash-2-4 under the one before.
#[must_use]
pub fn key_for(key: Key, audience: Option<&str>) -> Key {
    let name = audience.unwrap_or_default().as_bytes();
    (0..).zip(name.chunks(8)).fold(key, |key, (index, chunk)| {
        let mut block = [0; 8];
        block.iter_mut().zip(chunk).for_each(|(to, byte)| *to = *byte);
        let what = DERIVATION | (name.len() as u64) << 8;
        let half = |half: u64| siphash24(key, [u64::from_le_bytes(block), what | half, index]);
        [half(0), half(1)]
    })
}

/// Reads a name from the command line.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(text: &str) -> Result<String, &'static str> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = !text.is_empty() && text.len() <= AUDIENCE_MAX && text.bytes().all(known);
    good.then(|| text.to_owned())
        .ok_or("must be 1 to 63 of a-z, 0-9 and \"-\", as `audience` in the agent's [syn]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const KEY: Key = [1, 2];

    #[test]
    fn each_audience_has_keys_of_its_own() {
        assert_eq!(key_for(KEY, None), KEY);
        let long = "a".repeat(AUDIENCE_MAX);
        let names = ["a", "b", "aa", "aaaaaaaa", "aaaaaaaaa", "aaaaaaaab", &*long];
        let mut keys: BTreeSet<_> = names.iter().map(|name| key_for(KEY, Some(name))).collect();
        keys.insert(KEY);
        keys.insert(key_for([1, 3], Some("a")));
        assert_eq!(keys.len(), names.len() + 2);
    }

    #[test]
    fn names_on_the_command_line_are_those_of_the_configuration() {
        assert_eq!(parse("node-1").as_deref(), Ok("node-1"));
        for bad in ["", "Node", "a.b", &"a".repeat(AUDIENCE_MAX + 1)] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
