//! The contract between the program that writes the option into a client's SYNs (`kernel/tag.rs`) and
//! `headstart tag`, which loads it.
//!
//! The layout rules of [`crate::event`] apply. Nothing is pinned: program and maps live as long as the process.

use core::mem::size_of;

use crate::auth::{Key, epoch};
use crate::option::FunctionOption;

/// The `sock_ops` program.
pub const PROGRAM: &str = "headstart_tag";
/// Hash: [`crate::maps::PortKey`] of a destination (an exact address, or any) -> [`ClientTag`].
pub const TAGS: &str = "TAGS";
/// Array with one `u64`: Unix time minus `CLOCK_BOOTTIME`, in nanoseconds, modulo 2^64.
pub const CLOCK: &str = "CLOCK";

/// Most entries of [`TAGS`].
pub const TAGS_MAX: usize = 256;

const NANOSECONDS: u64 = 1_000_000_000;

/// Value of [`TAGS`]: what SYNs to one destination carry. No `Debug`, because it holds a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ClientTag {
    /// The key; zero when there is none.
    pub key: Key,
    /// The function's ID; 0 for the port's default function.
    pub function: u32,
    /// The key's number, 1 to 15; 0 for an option without a tag.
    pub number: u32,
}

const _: () = assert!(size_of::<ClientTag>() == 24 && align_of::<ClientTag>() == 8);

impl ClientTag {
    /// The option for a SYN to `port` with sequence number `isn`. `boot_ns` is `CLOCK_BOOTTIME`, `offset_ns` the
    /// value of [`CLOCK`], both in nanoseconds.
    #[inline(always)]
    pub fn option(&self, boot_ns: u64, offset_ns: u64, port: u16, isn: u32) -> FunctionOption {
        if self.number == 0 {
            return FunctionOption::open(self.function);
        }
        let now = epoch(boot_ns.wrapping_add(offset_ns) / NANOSECONDS);
        FunctionOption::tagged(self.key, self.number as u8, now, self.function, port, isn)
    }
}
