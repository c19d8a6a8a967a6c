//! Headstart's kernel half, and what user space shares with it.
//!
//! In path order: [`packet`] recognises a TCP SYN in a raw frame, [`event`] is what the kernel tells user
//! space about it. Both are `no_std`, free of dependencies and of `unsafe`, and are compiled twice from the
//! same source: into the XDP program (`main.rs`) and into the host, where they are tested and fuzzed.
//!
//! Features: `user` adds [`aya::Pod`](https://docs.rs/aya/0.14.0/aya/trait.Pod.html) for the map types and
//! the compiled program itself; `kernel` is for `build.sh` only.

#![no_std]

pub mod event;
pub mod packet;

#[cfg(feature = "user")]
mod user;
#[cfg(feature = "user")]
pub use user::OBJECT;
