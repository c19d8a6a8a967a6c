//! The code that Headstart's kernel programs and user space share.
//!
//! In the order in which a packet meets them: [`packet`] recognises a TCP SYN in a raw frame; [`option`] reads the
//! function ID from it; [`auth`] computes the tag that proves a key; [`replay`] remembers which connection used a
//! tag; [`knock`] is the same request in a UDP packet; [`sketch`] and [`rate_limit`] bound what clients without a
//! key can cause; [`event`] is the record that the kernel sends to user space; [`maps`] is the contract between
//! the two; [`client`] is the contract between `headstart tag` and its program; [`guard`] that of the programs on the
//! agent's own sockets.
//!
//! The library is `no_std`, without dependencies and without `unsafe`. It is compiled twice from the same source:
//! into the kernel programs (`src/kernel/`), and for the host, where tests and fuzz targets run it.
//!
//! Features: `user` adds [`aya::Pod`](https://docs.rs/aya/0.14.0/aya/trait.Pod.html) for the map types, and the
//! compiled programs; only `build.sh` enables `kernel`.

#![no_std]

pub mod auth;
pub mod client;
pub mod event;
pub mod guard;
pub mod knock;
pub mod maps;
pub mod option;
pub mod packet;
pub mod rate_limit;
pub mod replay;
pub mod sketch;

#[cfg(feature = "user")]
mod user;
#[cfg(feature = "user")]
pub use user::{GUARD_OBJECT, OBJECT, TAG_OBJECT};
