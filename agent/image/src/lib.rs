//! Container images: pulled from a registry, or read from a directory or an archive; checked; unpacked into a store.
//!
//! Only `headstart image` uses this crate, in a process of its own. The agent reads what
//! is in the store (`headstart_config::image`) and pulls nothing.
//!
//! - `registry`, `layout` and `archive` are where images come from (`manifest::Source`), `credentials` are for the first;
//! - `layer` uncompresses, `unpack` puts one layer on the other, `tree` makes files by names that nothing vouches for;
//! - [`Store`] has the images, and removes them again.
//!
//! Everything is bounded: bytes, files, layers, how deep directories nest, and how long a registry may take. Every digest is
//! checked before what it is of is used: manifest, configuration, layers as they were sent, layers uncompressed.

mod store;

mod manifest;

mod archive;
mod layout;
mod registry;

mod credentials;

mod layer;
mod tree;
mod unpack;

mod digest;
mod error;

pub use error::ImageError;
pub use store::{Collected, Step, Store, list};
