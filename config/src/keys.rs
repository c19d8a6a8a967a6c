//! The keys of clients: a client with a key may wake functions that are closed to unannounced clients.
//!
//! A key file is text with one key a line, `NUMBER HEX`: a number from 1 to 15, which requests carry, and 128
//! bits as 32 hexadecimal digits. Blank lines, and what follows `#`, are ignored.
//!
//! ```text
//! # head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'
//! 1 7f3c51a09be4d2286c0f95e1a4b83d72
//! ```
//!
//! To replace a key without a gap: add the new one under a free number everywhere, on agents first; then switch
//! the clients to the new number; then remove the old line. Agents accept both in the meantime. A running agent
//! reads the file again on SIGHUP.
//!
//! The file must belong to root or to the user who reads it, and other users may neither read nor write it. No message and no
//! `Debug` shows a key, or a part of one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::private::read_private;

mod error;
pub use error::{KeyError, LineFault};

/// The highest number of a key: requests carry it in four bits, and 0 means "no key".
pub const MAX_NUMBER: u8 = 15;

/// The largest key file that is read, in bytes.
pub const MAX_BYTES: u64 = 64 * 1024;

/// The keys of a file by number. `Debug` shows the numbers only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys(BTreeMap<u8, [u64; 2]>);

impl Keys {
    /// Reads the key file at `path`. A file without keys is no error.
    ///
    /// # Errors
    /// The first thing that is wrong with the file, and what to do about it.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        let text = read_private(path, "a line `NUMBER HEX` per key", MAX_BYTES)?;
        Self::parse(&text).map_err(|(line, fault)| KeyError::Line { path: path.to_owned(), line, fault })
    }

    /// The keys, as (number, words), by number. The words are the key's 16 bytes in little-endian order, as
    /// SipHash takes them.
    pub fn iter(&self) -> impl Iterator<Item = (u8, [u64; 2])> {
        self.0.iter().map(|(number, key)| (*number, *key))
    }

    /// The key with this number.
    pub fn get(&self, number: u8) -> Option<[u64; 2]> {
        self.0.get(&number).copied()
    }

    /// The key with the highest number, for clients that were not told which to use.
    pub fn newest(&self) -> Option<(u8, [u64; 2])> {
        self.0.last_key_value().map(|(number, key)| (*number, *key))
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Or the number of the first wrong line, and what is wrong with it.
    fn parse(text: &[u8]) -> Result<Self, (usize, LineFault)> {
        let mut keys = Self::default();
        // Lines of the numbers so far.
        let mut lines: BTreeMap<u8, usize> = BTreeMap::new();
        for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let fault = |fault| (at + 1, fault);
            let Some((number, key)) = parse_line(line).map_err(fault)? else { continue };
            if let Some(first) = lines.insert(number, at + 1) {
                return Err(fault(LineFault::NumberTwice { first }));
            }
            if let Some((other, _)) = keys.iter().find(|(_, other)| *other == key) {
                return Err(fault(LineFault::KeyTwice { first: lines[&other] }));
            }
            keys.0.insert(number, key);
        }
        Ok(keys)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The key on a line, if there is one.
fn parse_line(line: &[u8]) -> Result<Option<(u8, [u64; 2])>, LineFault> {
    let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let Some(number) = words.next() else { return Ok(None) };
    let (Some(key), None) = (words.next(), words.next()) else { return Err(LineFault::Form) };
    let number = decimal(number).filter(|n| (1..=MAX_NUMBER).contains(n)).ok_or(LineFault::Number)?;
    let key = hex(key).ok_or(LineFault::Digits)?;
    if key == 0 {
        return Err(LineFault::Zero);
    }
    // Sixteen bytes, the first digits first, are two little-endian words.
    let key = key.swap_bytes();
    Ok(Some((number, [key as u64, (key >> 64) as u64])))
}

fn decimal(word: &[u8]) -> Option<u8> {
    let plain = word.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(word).ok().filter(|_| plain)?.parse().ok()
}

/// The value of exactly 32 hexadecimal digits.
fn hex(word: &[u8]) -> Option<u128> {
    let plain = word.len() == 32 && word.iter().all(u8::is_ascii_hexdigit);
    u128::from_str_radix(std::str::from_utf8(word).ok().filter(|_| plain)?, 16).ok()
}

#[cfg(test)]
mod tests;
