//! What the tests and benches of `headstart-ebpf` share.
//!
//! [`frames`] builds frames; [`rows`] and [`proofs`] are tables of packets with their outcome, and [`mutate`] changes
//! them at random. [`kernel`] runs packets through the programs in the running kernel; [`model`] says from the library
//! alone what the programs must do; [`agreement`] compares the two.

#![expect(missing_docs, reason = "only this workspace's tests use it, and names and types say it")]
#![expect(clippy::missing_panics_doc, reason = "a failed expectation is how a test fails")]

pub mod agreement;
pub mod frames;
pub mod kernel;
pub mod model;
pub mod mutate;
pub mod proofs;
pub mod rows;
