//! `syn`: the kernel half, attached and read.
//!
//! ```text
//! interface ── XDP native ──refused──> XDP generic ──refused──> tcx ──refused──> (accept queue only)
//! namespace ── sk_lookup: loopback, containers of this host, ports after DNAT, shared ports, the lobby
//! listener  ── gate: keeps unauthenticated clients from functions that are closed to them
//!      └── rings (authenticated, open) ──> reader ──> event
//! ```
//!
//! Only an accelerator: without it, or with an event lost, a function starts when its connection is completed
//! instead of begun. What it must have, a gate or a shared port, makes a function unavailable without it.
//!
//! Owners: [`Sensor`] belongs to the node, which says who is warm; [`Background`] follows interfaces and the
//! clock; [`KeyStore`] is written when an operator asks; [`Pins`] is held to the agent's end.

mod error;
mod fill;
mod interfaces;
mod kernel;
mod keys;
mod ladder;
mod lobby;
mod pins;
mod ring;
mod sensor;
mod sensors;
mod settings;
mod table;

pub use error::{Part, SynError};
pub use interfaces::uplinks;
pub use kernel::{Background, Kernel, ListenerSupport, Sensing, Watching};
pub use keys::{KeyStore, ReloadError};
pub use ladder::{Attached, Ladder};
pub use pins::{PinError, Pins, is_pinned};
pub use ring::{BURST_MAX, Reader, Ring, Rings, Seen, read};
pub use sensor::Sensor;
pub use sensors::Mode;
pub use settings::Clock;
pub use table::{Route, Routes};
