//! `syn`: the kernel half, attached and read.
//!
//! ```text
//! interface ──native──> XDP ──refused──> generic ──refused──> (accept queue only)
//!                        └──ring──> reader ──> event
//! ```
//!
//! Only an accelerator: without it, or with an event lost, a function starts
//! when its connection is completed instead of begun.

mod interfaces;
mod ring;
mod xdp;

pub use interfaces::uplinks;
pub use ring::{Ring, read};
pub use xdp::{Attached, Mode, Sensor, SynError};
