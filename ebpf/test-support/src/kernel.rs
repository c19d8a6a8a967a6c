//! Loads the programs and runs single packets through them with `BPF_PROG_TEST_RUN`; nothing is attached or
//! pinned, so everything is gone when the value is dropped.

use std::error::Error;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::{env, fs};

use aya::maps::lpm_trie::{Key as Prefix, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf, SockMap};
use aya::programs::{
    ProgramError, SchedClassifier, SkLookup, SocketFilter, TestRun as _, TestRunOptions, Xdp,
};
use aya::{Ebpf, EbpfLoader};
use headstart_ebpf::OBJECT;
use headstart_ebpf::auth::Key;
use headstart_ebpf::event::{self, Addr, SensorCounters, Stat, SynEvent};
use headstart_ebpf::maps::{
    self, FunctionEntry, KeySlot, OpenedKey, PacketFlow, PortKey, SETTINGS_SOURCES, Settings, SourceRule,
    source_prefix,
};

/// The kernel runs no XDP program on less than an Ethernet header.
pub const FRAME_MIN: usize = 14;
/// `XDP_PASS` and `XDP_DROP` of `enum xdp_action`, `TCX_NEXT` and `TCX_DROP` of `enum tcx_action_base`,
/// `include/uapi/linux/bpf.h`.
pub const XDP_PASS: u32 = 2;
pub const XDP_DROP: u32 = 1;
pub const TCX_NEXT: u32 = -1_i32 as u32;
pub const TCX_DROP: u32 = 2;

/// Where a packet is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tcx,
}

impl Hook {
    pub const ALL: [Self; 2] = [Self::Xdp, Self::Tcx];

    /// Whether the kernel runs a program on such a frame for a test: XDP wants an Ethernet header, tcx something
    /// after it, the whole IP header if the type says IP, and no more than fits into one page.
    pub fn takes(self, frame: &[u8]) -> bool {
        let after = match frame.get(12..14) {
            _ if self == Self::Xdp => 0,
            Some([0x08, 0x00]) => 20,
            Some([0x86, 0xdd]) => 40,
            _ => 1,
        };
        frame.len() >= FRAME_MIN + after && (self == Self::Xdp || frame.len() <= 3_500)
    }
}

/// Programs of this test's own, with their maps.
pub struct Kernel {
    pub ebpf: Ebpf,
    functions: HashMap<MapData, PortKey, FunctionEntry>,
    ports: Array<MapData, u64>,
    settings: Array<MapData, Settings>,
    keys: Array<MapData, KeySlot>,
    sources: LpmTrie<MapData, Addr, u32>,
    pub steered: HashMap<MapData, PacketFlow, u32>,
    pub opened: HashMap<MapData, OpenedKey, u64>,
    pub listeners: SockMap<MapData>,
    open: RingBuf<MapData>,
    authenticated: RingBuf<MapData>,
    stats: PerCpuArray<MapData, SensorCounters>,
}

/// What one run did.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub dropped: bool,
    /// Mean time of one run, in nanoseconds, by the kernel's measure.
    pub mean_ns: u128,
    /// How often each counter moved.
    pub counted: SensorCounters,
    /// Records of the open ring.
    pub open: Vec<SynEvent>,
    /// Records of the ring of authenticated clients.
    pub authenticated: Vec<SynEvent>,
}

/// SensorCounters that moved by one packet with outcome `stats`.
pub fn counted(stats: &[Stat]) -> SensorCounters {
    let mut counters = SensorCounters::default();
    counters[Stat::Packets as usize] = 1;
    for stat in stats {
        counters[*stat as usize] += 1;
    }
    counters
}

/// `run` without its times; its events must have had one.
pub fn untimed(mut run: Run) -> Run {
    run.mean_ns = 0;
    for event in run.open.iter_mut().chain(&mut run.authenticated) {
        assert!(event.timestamp_ns > 0, "an event without a timestamp");
        event.timestamp_ns = 0;
    }
    run
}

/// `HEADSTART_EBPF_OBJECT`, or the committed object.
fn object() -> Vec<u8> {
    let Some(path) = env::var_os("HEADSTART_EBPF_OBJECT").map(PathBuf::from) else { return OBJECT.to_vec() };
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn load() -> Result<Kernel, Box<dyn Error>> {
    let mut ebpf = EbpfLoader::new().load(&object())?;
    for name in [maps::PROGRAM_XDP, maps::PROGRAM_FLOOR] {
        let program: &mut Xdp = ebpf.program_mut(name).ok_or("no XDP program")?.try_into()?;
        program.load()?;
    }
    let program: &mut SchedClassifier =
        ebpf.program_mut(maps::PROGRAM_TCX).ok_or("no tcx program")?.try_into()?;
    program.load()?;
    let program: &mut SkLookup = ebpf.program_mut(maps::PROGRAM_LOOKUP).ok_or("no lookup")?.try_into()?;
    program.load()?;
    let program: &mut SocketFilter = ebpf.program_mut(maps::PROGRAM_GATE).ok_or("no gate")?.try_into()?;
    program.load()?;
    let mut take = |name| ebpf.take_map(name).unwrap_or_else(|| panic!("the object has no map {name}"));
    Ok(Kernel {
        functions: HashMap::try_from(take(maps::FUNCTIONS))?,
        ports: Array::try_from(take(maps::PORTS))?,
        settings: Array::try_from(take(maps::SETTINGS))?,
        keys: Array::try_from(take(maps::KEYS))?,
        sources: LpmTrie::try_from(take(maps::SOURCES))?,
        steered: HashMap::try_from(take(maps::STEERED))?,
        opened: HashMap::try_from(take(maps::OPENED))?,
        listeners: SockMap::try_from(take(maps::LISTENERS))?,
        open: RingBuf::try_from(take(maps::EVENTS_OPEN))?,
        authenticated: RingBuf::try_from(take(maps::EVENTS_AUTHENTICATED))?,
        stats: PerCpuArray::try_from(take(maps::STATS))?,
        ebpf,
    })
}

/// `run`'s value; `None`, with a word of explanation, for users other than root; under `CI=true` that is a
/// failure. The error says nothing: the verifier's refusal, too, is "permission denied".
pub fn privileged<T>(run: impl FnOnce() -> Result<T, Box<dyn Error>>) -> Option<T> {
    if !nix::unistd::geteuid().is_root() && env::var("CI").as_deref() != Ok("true") {
        // Not println!, which the test runner keeps to itself when a test passes.
        let _unwritable = writeln!(std::io::stderr(), "SKIPPED: needs root");
        return None;
    }
    match run() {
        Ok(value) => Some(value),
        Err(error) => panic!("cannot load the programs: {error:?}"),
    }
}

impl Kernel {
    /// See [`privileged`].
    pub fn open() -> Option<Self> {
        privileged(load)
    }

    /// Makes `key` belong to `function`.
    pub fn own(&mut self, key: PortKey, function: u32, flags: u32) {
        self.functions.insert(key, FunctionEntry { function, flags }, 0).expect("FUNCTIONS takes an entry");
        let (word, bit) = (u32::from(key.port() / 64), key.port() % 64);
        let bits = self.ports.get(&word, 0).expect("PORTS has every word");
        self.ports.set(word, bits | 1 << bit, 0).expect("PORTS takes a word");
    }

    /// Changes the settings; they are zero at first.
    pub fn set(&mut self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.settings.get(&0, 0).expect("SETTINGS has an element");
        change(&mut settings);
        self.settings.set(0, settings, 0).expect("SETTINGS takes an element");
    }

    /// Makes the key `number` known.
    pub fn know(&mut self, number: u8, words: Key) {
        let slot = KeySlot { words, present: 1 };
        self.keys.set(u32::from(number), slot, 0).expect("KEYS takes an element");
    }

    /// Says `what` of the sources in `address`/`bits`.
    pub fn say(&mut self, address: IpAddr, bits: u8, what: SourceRule) {
        let (bits, octets) = source_prefix(address, bits);
        self.sources.insert(&Prefix::new(bits, octets), what as u32, 0).expect("SOURCES takes a prefix");
        self.set(|settings| settings.flags |= SETTINGS_SOURCES);
    }

    /// The function that `flow` was steered to.
    pub fn steered(&self, flow: &PacketFlow) -> Option<u32> {
        self.steered.get(flow, 0).ok()
    }

    pub fn run(&mut self, hook: Hook, frame: &[u8]) -> Run {
        self.run_with(hook, TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() })
            .expect("the program runs")
    }

    pub fn run_with(&mut self, hook: Hook, options: TestRunOptions<'_>) -> Result<Run, ProgramError> {
        let before = self.counters();
        let (action, mean_ns) = self.time(hook, options)?;
        let dropped = match (hook, action) {
            (Hook::Xdp, XDP_PASS) | (Hook::Tcx, TCX_NEXT) => false,
            (Hook::Xdp, XDP_DROP) | (Hook::Tcx, TCX_DROP) => true,
            _ => panic!("{hook:?}: {action} is neither pass nor drop"),
        };
        let mut counted = self.counters();
        for (now, before) in counted.iter_mut().zip(before) {
            *now -= before;
        }
        let (open, authenticated) = self.take_events();
        Ok(Run { dropped, mean_ns, counted, open, authenticated })
    }

    /// Runs without looking at what it does: the program's answer, and the mean time in nanoseconds.
    pub fn time(&self, hook: Hook, options: TestRunOptions<'_>) -> Result<(u32, u128), ProgramError> {
        let result = match hook {
            Hook::Xdp => self.xdp(maps::PROGRAM_XDP).test_run(options)?,
            Hook::Tcx => {
                let program = self.ebpf.program(maps::PROGRAM_TCX).expect("loaded with this program");
                let program: &SchedClassifier = program.try_into().expect("a classifier");
                program.test_run(options)?
            }
        };
        Ok((result.return_value, result.duration.as_nanos()))
    }

    /// One of the XDP programs.
    pub fn xdp(&self, name: &str) -> &Xdp {
        let program = self.ebpf.program(name).expect("loaded with this program");
        program.try_into().expect("an XDP program")
    }

    /// Empties the rings: the open one, and that of authenticated clients.
    pub fn take_events(&mut self) -> (Vec<SynEvent>, Vec<SynEvent>) {
        (drain(&mut self.open), drain(&mut self.authenticated))
    }

    pub fn counters(&self) -> SensorCounters {
        event::total(self.stats.get(&0, 0).expect("STATS has an element").iter())
    }
}

/// Takes everything out of a ring.
fn drain(ring: &mut RingBuf<MapData>) -> Vec<SynEvent> {
    let mut events = Vec::new();
    while let Some(record) = ring.next() {
        events.push(SynEvent::from_bytes(&record).expect("a record of another length"));
    }
    events
}
