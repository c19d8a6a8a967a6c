//! The programs in the running kernel: tables of packets and more of the same noise, on both hooks; and real
//! connections where a program needs them.

#![expect(clippy::unwrap_used, reason = "the helpers of a test are as much a test as it is")]

mod functions;
mod listener;
mod lookup;
mod namespace;
mod packets;
mod proofs;
mod rings;
mod traffic;

const FUNCTION: u32 = 7;
