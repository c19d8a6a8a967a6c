//! XDP on one interface: native or generic.

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{Xdp, XdpMode};

use super::program;
use crate::syn::error::{KernelProgram, chain};

/// Attaches the program to the interface with this index.
pub(in crate::syn) fn attach(ebpf: &mut Ebpf, index: u32, mode: XdpMode) -> Result<FdLink, String> {
    let xdp: &mut Xdp = program(ebpf, KernelProgram::Xdp).map_err(|error| error.to_string())?;
    let id = xdp.attach_to_if_index(index, mode).map_err(|error| chain(&error))?;
    let link = xdp.take_link(id).map_err(|error| chain(&error))?;
    FdLink::try_from(link).map_err(|error| chain(&error))
}

/// Replaces the program of an earlier agent's link; fails when the link's interface is gone.
pub(in crate::syn) fn adopt(ebpf: &mut Ebpf, link: FdLink) -> Result<FdLink, String> {
    let xdp: &mut Xdp = program(ebpf, KernelProgram::Xdp).map_err(|error| error.to_string())?;
    let link = XdpLink::try_from(link).map_err(|error| chain(&error))?;
    let id = xdp.attach_to_link(link).map_err(|error| chain(&error))?;
    let link = xdp.take_link(id).map_err(|error| chain(&error))?;
    FdLink::try_from(link).map_err(|error| chain(&error))
}
