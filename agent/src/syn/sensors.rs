//! The eBPF programs, one file each, with the same functions: load, attach, and take over an earlier agent's link.

pub(super) mod gate;
pub(super) mod lookup;
pub(super) mod tcx;
pub(super) mod xdp;

use std::fmt;

use aya::Ebpf;
use aya::programs::{Program, ProgramError};

use super::error::{KernelProgram, SynError, chain};

/// How a sensor is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// XDP in the driver, before the kernel allocates anything.
    Native,
    /// XDP in the network stack: works on every interface, costs a little more.
    Generic,
    /// At the ingress of traffic control, when the XDP slot is occupied or the interface refuses XDP.
    Tcx,
    /// In the socket lookup of the network namespace.
    Lookup,
}

impl Mode {
    /// The modes to try on an interface, best first.
    pub const LADDER: [Self; 3] = [Self::Native, Self::Generic, Self::Tcx];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tcx => "tcx",
            Self::Lookup => "lookup",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Loads one program, after the maps.
pub(super) fn load(ebpf: &mut Ebpf, part: KernelProgram) -> Result<(), SynError> {
    let loaded = match part {
        KernelProgram::Xdp => program::<aya::programs::Xdp>(ebpf, part)?.load(),
        KernelProgram::Tcx => program::<aya::programs::SchedClassifier>(ebpf, part)?.load(),
        KernelProgram::Lookup => program::<aya::programs::SkLookup>(ebpf, part)?.load(),
        KernelProgram::Gate => program::<aya::programs::SocketFilter>(ebpf, part)?.load(),
    };
    loaded.map_err(|error| SynError::Program { part, why: chain(&error) })
}

fn program<'a, P>(ebpf: &'a mut Ebpf, part: KernelProgram) -> Result<&'a mut P, SynError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let name = part.program();
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(SynError::Object(name))
}
