//! Headstart's kernel half, and what user space shares with it.
//!
//! In path order: [`packet`] recognises a TCP SYN in a raw frame, [`option`] finds the function it names and
//! [`auth`] whether a key vouches for it, [`replay`] that it does so once, [`knock`] is the same in a UDP
//! packet; [`sketch`] and [`gate`] bound what strangers can cause; [`event`] is what the kernel tells user
//! space, [`maps`] the contract between the two; [`client`] is what `headstart tag` shares with its program.
//! All is `no_std`, free of dependencies and of `unsafe`, and compiled twice from the same source: into the
//! kernel programs (`main.rs`, `tag.rs`) and into the host, where it is tested and fuzzed.
//!
//! Features: `user` adds [`aya::Pod`](https://docs.rs/aya/0.14.0/aya/trait.Pod.html) for the map types and
//! the compiled programs themselves; `kernel` is for `build.sh` only.

#![no_std]

pub mod auth;
pub mod client;
pub mod event;
pub mod gate;
pub mod knock;
pub mod maps;
pub mod option;
pub mod packet;
pub mod replay;
pub mod sketch;

#[cfg(feature = "user")]
mod user;
#[cfg(feature = "user")]
pub use user::{OBJECT, TAG_OBJECT};
