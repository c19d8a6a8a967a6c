//! Loading and attaching the XDP program, and telling it which ports are whose.

use std::fmt;
use std::net::SocketAddr;

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{ProgramError, Xdp, XdpMode};
use headstart_ebpf::event::{
    Counters, FUNCTION_WARM, FunctionEntry, MAP_EVENTS, MAP_FUNCTIONS, MAP_STATS, PROGRAM, PortKey, Stat,
};

use super::ring::Ring;
use crate::event::FunctionId;

/// How the program runs on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel allocates anything.
    Native,
    /// In the network stack: works on every interface, costs a little more.
    Generic,
}

impl Mode {
    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why there is no sensor.
#[derive(Debug, thiserror::Error)]
pub enum SynError {
    /// The program cannot be loaded at all.
    #[error(
        "the kernel refused the eBPF program ({0}): it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or root), \
         and Linux 5.18 or newer with BTF"
    )]
    Load(String),
    /// The object has no such part: agent and object do not belong together.
    #[error("the eBPF object has no {0}: rebuild it with ebpf/build.sh --update")]
    Object(&'static str),
    /// The interface is not there.
    #[error("there is no interface {0}: `ip link` lists those that exist")]
    NoInterface(String),
    /// Neither rung of the ladder holds.
    #[error("XDP cannot be attached to {interface}: native: {native}; generic: {generic}")]
    Attach {
        /// The interface.
        interface: String,
        /// What the driver said.
        native: String,
        /// What the network stack said.
        generic: String,
    },
    /// A map operation failed.
    #[error("an eBPF map cannot be used: {0}")]
    Map(#[from] MapError),
}

/// An interface with the program on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub interface: String,
    /// The mode that the kernel accepted.
    pub mode: Mode,
}

/// The loaded program. Dropping it detaches everywhere.
pub struct Sensor {
    ebpf: Ebpf,
    functions: HashMap<MapData, PortKey, FunctionEntry>,
    stats: PerCpuArray<MapData, Counters>,
}

impl Sensor {
    /// Loads the program and its maps; nothing is attached yet. Also returns the ring to read.
    ///
    /// # Errors
    /// [`SynError::Load`] where the kernel or the privileges are missing.
    pub fn load(object: &[u8]) -> Result<(Self, Ring), SynError> {
        let mut ebpf = Ebpf::load(object).map_err(|error| SynError::Load(chain(&error)))?;
        let program: &mut Xdp = program(&mut ebpf)?;
        program.load().map_err(|error| SynError::Load(chain(&error)))?;
        let mut take = |name| ebpf.take_map(name).ok_or(SynError::Object(name));
        let functions = HashMap::try_from(take(MAP_FUNCTIONS)?)?;
        let stats = PerCpuArray::try_from(take(MAP_STATS)?)?;
        let ring = RingBuf::try_from(take(MAP_EVENTS)?)?;
        Ok((Self { ebpf, functions, stats }, ring))
    }

    /// Attaches to one interface: native when the driver can, else generic.
    ///
    /// # Errors
    /// [`SynError::NoInterface`], or [`SynError::Attach`] with both refusals.
    pub fn attach(&mut self, interface: &str) -> Result<Attached, SynError> {
        let program: &mut Xdp = program(&mut self.ebpf)?;
        let mut refused = Vec::new();
        for (mode, flag) in [(Mode::Native, XdpMode::Driver), (Mode::Generic, XdpMode::Skb)] {
            match program.attach(interface, flag) {
                Ok(_) => return Ok(Attached { interface: interface.to_owned(), mode }),
                Err(ProgramError::UnknownInterface { name }) => return Err(SynError::NoInterface(name)),
                Err(error) => refused.push(chain(&error)),
            }
        }
        let generic = refused.pop().unwrap_or_default();
        let native = refused.pop().unwrap_or_default();
        Err(SynError::Attach { interface: interface.to_owned(), native, generic })
    }

    /// Says whose a listener is, and whether its SYNs are news.
    ///
    /// # Errors
    /// [`SynError::Map`] when the map is full.
    pub fn set(&mut self, listen: SocketAddr, function: FunctionId, warm: bool) -> Result<(), SynError> {
        let entry = FunctionEntry { function, flags: if warm { FUNCTION_WARM } else { 0 } };
        Ok(self.functions.insert(PortKey::listener(listen), entry, 0)?)
    }

    /// What the program has counted since it was loaded.
    ///
    /// # Errors
    /// [`SynError::Map`] when the kernel does not give it.
    pub fn counters(&self) -> Result<Vec<(Stat, u64)>, SynError> {
        let per_cpu = self.stats.get(&0, 0)?;
        let totals = headstart_ebpf::event::total(per_cpu.iter());
        Ok(Stat::ALL.into_iter().zip(totals).collect())
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, SynError> {
    ebpf.program_mut(PROGRAM).and_then(|program| program.try_into().ok()).ok_or(SynError::Object(PROGRAM))
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
