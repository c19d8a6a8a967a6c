//! Loads the program and runs single frames through it with `BPF_PROG_TEST_RUN`; nothing is attached or
//! pinned, so everything is gone when the value is dropped.

use std::error::Error;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::{env, fs};

use aya::maps::{HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{ProgramError, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use headstart_ebpf::event::{self, Counters, FunctionEntry, PortKey, Stat, SynEvent};

/// The kernel runs no XDP program on less than an Ethernet header.
pub(crate) const FRAME_MIN: usize = 14;
/// `XDP_PASS` of `enum xdp_action`, `include/uapi/linux/bpf.h`.
pub(crate) const XDP_PASS: u32 = 2;

/// A program of this test's own, with its maps.
pub(crate) struct Kernel {
    ebpf: Ebpf,
    functions: HashMap<MapData, PortKey, FunctionEntry>,
    events: RingBuf<MapData>,
    stats: PerCpuArray<MapData, Counters>,
}

/// What one run did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) action: u32,
    /// Mean time of one run, in nanoseconds, by the kernel's measure.
    pub(crate) mean_ns: u128,
    /// How often each counter moved.
    pub(crate) counted: Counters,
    pub(crate) events: Vec<SynEvent>,
}

/// Counters that moved by one packet with outcome `stat`.
pub(crate) fn counted(stat: Stat, times: u64) -> Counters {
    let mut counters = Counters::default();
    counters[Stat::Packets as usize] = times;
    counters[stat as usize] = times;
    counters
}

/// `HEADSTART_EBPF_OBJECT`, or the committed object.
fn object() -> Vec<u8> {
    let path = env::var_os("HEADSTART_EBPF_OBJECT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("prebuilt/headstart-ebpf.o"),
        PathBuf::from,
    );
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn is_permission(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn load() -> Result<Kernel, Box<dyn Error>> {
    let mut ebpf = EbpfLoader::new().load(&object())?;
    let mut take = |name| ebpf.take_map(name).unwrap_or_else(|| panic!("the object has no map {name}"));
    let functions = HashMap::try_from(take(event::MAP_FUNCTIONS))?;
    let events = RingBuf::try_from(take(event::MAP_EVENTS))?;
    let stats = PerCpuArray::try_from(take(event::MAP_STATS))?;
    let mut kernel = Kernel { ebpf, functions, events, stats };
    let program: &mut Xdp = kernel.ebpf.program_mut(event::PROGRAM).ok_or("no program")?.try_into()?;
    program.load()?;
    Ok(kernel)
}

impl Kernel {
    /// `None`, with a word of explanation, where this user may not load programs; under `CI=true` that is
    /// a failure.
    pub(crate) fn open() -> Option<Self> {
        match load() {
            Ok(kernel) => Some(kernel),
            Err(error) if is_permission(&*error) && env::var("CI").as_deref() != Ok("true") => {
                // Not println!, which the test runner keeps to itself when a test passes.
                let _unwritable = writeln!(std::io::stderr(), "SKIPPED: needs root/CAP_BPF ({error})");
                None
            }
            Err(error) => panic!("cannot load the XDP program: {error:?}"),
        }
    }

    /// Makes `key` belong to `function`.
    pub(crate) fn own(&mut self, key: PortKey, function: u32, flags: u32) {
        self.functions.insert(key, FunctionEntry { function, flags }, 0).expect("FUNCTIONS takes an entry");
    }

    pub(crate) fn run(&mut self, frame: &[u8]) -> Run {
        self.run_with(TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() })
            .expect("the program runs")
    }

    pub(crate) fn run_with(&mut self, options: TestRunOptions<'_>) -> Result<Run, ProgramError> {
        let before = self.counters();
        let program = self.ebpf.program(event::PROGRAM).expect("loaded with this program");
        let program: &Xdp = program.try_into().expect("an XDP program");
        let result = program.test_run(options)?;
        let mut counted = self.counters();
        for (now, before) in counted.iter_mut().zip(before) {
            *now -= before;
        }
        Ok(Run {
            action: result.return_value,
            mean_ns: result.duration.as_nanos(),
            counted,
            events: self.drain(),
        })
    }

    fn counters(&self) -> Counters {
        event::total(self.stats.get(&0, 0).expect("STATS has an element").iter())
    }

    fn drain(&mut self) -> Vec<SynEvent> {
        let mut events = Vec::new();
        while let Some(record) = self.events.next() {
            events.push(SynEvent::from_bytes(&record).expect("a record of another length"));
        }
        events
    }
}
