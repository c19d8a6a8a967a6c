//! tcx at the ingress of one interface.

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};

use super::program;
use crate::syn::error::{KernelProgram, chain};

/// Attaches the program before all others, so that it also sees SYNs that another program drops or redirects.
pub(in crate::syn) fn attach(ebpf: &mut Ebpf, interface: &str) -> Result<FdLink, String> {
    let tcx: &mut SchedClassifier = program(ebpf, KernelProgram::Tcx).map_err(|error| error.to_string())?;
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id =
        tcx.attach_with_options(interface, TcAttachType::Ingress, first).map_err(|error| chain(&error))?;
    let link = tcx.take_link(id).map_err(|error| chain(&error))?;
    FdLink::try_from(link).map_err(|error| chain(&error))
}

/// Replaces the program of an earlier agent's link; fails when the link's interface is gone.
pub(in crate::syn) fn adopt(ebpf: &mut Ebpf, link: FdLink) -> Result<FdLink, String> {
    let tcx: &mut SchedClassifier = program(ebpf, KernelProgram::Tcx).map_err(|error| error.to_string())?;
    let link = SchedClassifierLink::try_from(link).map_err(|error| chain(&error))?;
    let id = tcx.attach_to_link(link).map_err(|error| chain(&error))?;
    let link = tcx.take_link(id).map_err(|error| chain(&error))?;
    FdLink::try_from(link).map_err(|error| chain(&error))
}
