//! `syn`: attaches the eBPF programs, and reads their events.
//!
//! ```text
//! interface ── XDP native ──refused──> XDP generic ──refused──> tcx ──refused──> (accept queue only)
//! namespace ── sk_lookup: loopback, containers of this host, ports after DNAT, shared ports, the lobby
//! listener  ── gate: drops SYNs of unannounced clients to closed functions
//!      └── rings (authenticated, open) ──> reader ──> event
//! ```
//!
//! It only makes starts earlier: without it, or if an event is lost, a function starts when its connection is complete
//! instead of at the SYN. Functions that need it, for a gate or a shared port, are unavailable without it.
//!
//! Owners: [`Sensor`] belongs to the node, which reports warm functions; [`Background`] follows interfaces and the
//! clock; [`KeyStore`] is written at an operator's request; [`Pins`] is kept until the agent ends.

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

pub(crate) use error::chain;
pub use error::{KernelProgram, SynError};
pub use interfaces::automatic;
pub use kernel::{Background, Kernel, ListenerSupport, RunningSensors, SensorTasks};
pub use keys::{KeyStore, ReloadError};
pub use ladder::{AttachedSensor, Ladder};
pub(crate) use pins::NamedLinks;
pub use pins::{PinError, Pins, is_pinned};
pub use ring::{BURST_MAX, Reader, Ring, RingRecord, Rings, read};
pub use sensor::Sensor;
pub use sensors::Mode;
pub use settings::Clock;
pub use table::{Route, Routes};
