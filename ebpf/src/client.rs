//! The client's side: the contract between the program that writes the option into SYNs (`tag.rs`) and
//! `headstart tag`, which loads it.
//!
//! Same layout rules as [`crate::event`]. Nothing here is pinned: program and maps live as long as the process.

use core::mem::size_of;

use crate::auth::{Key, epoch};
use crate::option::FunctionOption;

/// The `sock_ops` program.
pub const PROGRAM: &str = "headstart_tag";
/// Hash: [`crate::maps::PortKey`] of a destination, exact or any address -> [`Tag`].
pub const TAGS: &str = "TAGS";
/// Array with one `u64`: what makes `CLOCK_BOOTTIME` Unix time, in nanoseconds. Wraps: it may be "negative".
pub const CLOCK: &str = "CLOCK";

/// Most entries of [`TAGS`].
pub const TAGS_MAX: usize = 256;

const NANOSECONDS: u64 = 1_000_000_000;

/// Value of [`TAGS`]: what the SYNs to one destination carry. No `Debug`: it holds a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Tag {
    /// The key; zero where there is none.
    pub key: Key,
    /// The function's ID; 0 for the port's default function.
    pub function: u32,
    /// The key's number, 1 to 15; 0 for an option without a tag.
    pub number: u32,
}

const _: () = assert!(size_of::<Tag>() == 24 && align_of::<Tag>() == 8);

impl Tag {
    /// The option for a SYN to `port` with sequence number `isn`, at `boot_ns` of `CLOCK_BOOTTIME` with
    /// [`CLOCK`] at `offset_ns`.
    #[inline(always)]
    pub fn option(&self, boot_ns: u64, offset_ns: u64, port: u16, isn: u32) -> FunctionOption {
        if self.number == 0 {
            return FunctionOption::open(self.function);
        }
        let now = epoch(boot_ns.wrapping_add(offset_ns) / NANOSECONDS);
        FunctionOption::tagged(self.key, self.number as u8, now, self.function, port, isn)
    }
}
