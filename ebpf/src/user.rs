//! What only user space needs: the compiled programs, and `Pod` for the map types.

#![expect(unsafe_code, reason = "aya::Pod is an unsafe trait; each impl says why its type qualifies")]

use crate::client::ClientTag;
use crate::maps::{FunctionEntry, KeySlot, OpenedKey, PacketFlow, PortKey, Settings};

/// The programs of a node as an ELF object with BTF, little-endian, aligned for aya's parser.
///
/// `ebpf/build.sh --update` builds it; `tests/prebuilt.rs` fails when it is older than its sources.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!("../prebuilt/headstart-ebpf.o");

/// The `sock_ops` program of clients (`src/kernel/tag.rs`), built and checked like [`OBJECT`].
pub const TAG_OBJECT: &[u8] = aya::include_bytes_aligned!("../prebuilt/headstart-tag.o");

/// The programs on the agent's own sockets (`src/kernel/guard.rs`), built and checked like [`OBJECT`].
pub const GUARD_OBJECT: &[u8] = aya::include_bytes_aligned!("../prebuilt/headstart-guard.o");

// SAFETY: repr(C), only integers and byte arrays, padding is an explicit field, any bit pattern is valid.
unsafe impl aya::Pod for PortKey {}

// SAFETY: repr(C), two u32 without padding, any bit pattern is valid.
unsafe impl aya::Pod for FunctionEntry {}

// SAFETY: repr(C), only integers, padding is an explicit field, any bit pattern is valid.
unsafe impl aya::Pod for Settings {}

// SAFETY: repr(C), three u64, any bit pattern is valid.
unsafe impl aya::Pod for KeySlot {}

// SAFETY: repr(C), two u64 and two u32 without padding, any bit pattern is valid.
unsafe impl aya::Pod for ClientTag {}

// SAFETY: repr(C), only integers, padding is an explicit field, any bit pattern is valid.
unsafe impl aya::Pod for PacketFlow {}

// SAFETY: repr(C), only integers, padding is an explicit field, any bit pattern is valid.
unsafe impl aya::Pod for OpenedKey {}
