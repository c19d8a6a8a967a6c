//! What only user space needs: the compiled program, and leave to copy the map types as plain bytes.

#![expect(unsafe_code, reason = "aya::Pod is an unsafe trait; each impl says why its type qualifies")]

use crate::event::{FunctionEntry, PortKey};

/// The XDP program as an ELF object with BTF, little-endian, aligned for aya's parser.
///
/// Built by `ebpf/build.sh --update`; `tests/prebuilt.rs` fails when it is older than its sources.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!("../prebuilt/headstart-ebpf.o");

// SAFETY: repr(C), only integers and byte arrays, padding is an explicit field, any bit pattern is valid.
unsafe impl aya::Pod for PortKey {}

// SAFETY: repr(C), two u32 without padding, any bit pattern is valid.
unsafe impl aya::Pod for FunctionEntry {}
