//! The socket lookup of this process's network namespace. A namespace can have several programs: a new agent's program
//! runs beside the old agent's until that is detached.

use std::fs::File;

use aya::Ebpf;
use aya::programs::SkLookup;
use aya::programs::links::FdLink;

use super::program;
use crate::syn::error::{KernelProgram, SynError, chain};

/// Attaches the program to the network namespace of this process.
pub(in crate::syn) fn attach(ebpf: &mut Ebpf) -> Result<FdLink, SynError> {
    let lookup: &mut SkLookup = program(ebpf, KernelProgram::Lookup)?;
    let namespace = File::open("/proc/self/ns/net")
        .map_err(|error| SynError::Lookup { why: format!("/proc/self/ns/net: {error}") })?;
    let id = lookup.attach(namespace).map_err(|error| SynError::Lookup { why: chain(&error) })?;
    let link = lookup.take_link(id).map_err(|error| SynError::Lookup { why: chain(&error) })?;
    Ok(link.into())
}
