//! `serve`: where clients' connections come in.
//!
//! The agent binds each function's port once and keeps it; instances get a
//! descriptor of the same socket and accept by themselves. While no instance
//! accepts, early connections wait in the kernel's accept queue (listen(2)), so
//! the first request cannot be lost, and a readable listener is demand: this is
//! the sensor that needs no eBPF. Clients that no instance will serve in time are
//! answered by the agent. At a front the agent accepts by itself, and connects to the
//! listener of the function that the client names.

mod binding;

mod count;

mod doorbell;

pub mod front;

mod listener;

mod queue;

mod sockets;

pub(crate) mod overload;

pub(crate) use count::{ConnectionCounter, CountedInstance, CountedListener};

pub use binding::{BindingError, BindingKeys, BindingOwner, Bindings, BoundListener, ports_are_free};
pub use doorbell::Doorbell;
pub use listener::{ListenError, adopt, hidden, is_free, listen, listen_behind};
pub use queue::{QueueEvent, QueueWatch, is_listening};
