//! The programs of `src/kernel/bench.rs`: some change frames, and each of the others does one kind of work.

use std::path::Path;

use aya::maps::{Array, HashMap, MapData, ProgramArray, RingBuf};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use headstart_ebpf::maps::PROGRAM_FLOOR;
use headstart_ebpf_test_support::frames::{ACK, tcp_v4};
use headstart_ebpf_test_support::kernel::{Kernel, XDP_PASS};
use headstart_ebpf_test_support::proofs::{EPOCH, KEY};

use crate::{REPEAT, REPEAT_EVENTS, TAGGED};

/// A kind of work that the sensor does. Cases are compared with its cost on this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A look-up in a hash table, and a reading of the clock.
    LookUp,
    /// A SipHash of as many bytes as a tag covers.
    Hash,
    /// An atomic exchange in a random cache line of a large array.
    Recall,
    /// An entry written to an LRU table.
    Remember,
    /// A record written to a ring.
    Announce,
}

impl Work {
    pub(crate) const ALL: [Self; 5] =
        [Self::LookUp, Self::Hash, Self::Recall, Self::Remember, Self::Announce];

    /// The name of its program, and of its figure.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::LookUp => "look_up",
            Self::Hash => "hash",
            Self::Recall => "recall",
            Self::Remember => "remember",
            Self::Announce => "announce",
        }
    }

    /// How often one run of its program does it.
    const fn times(self) -> f64 {
        if matches!(self, Self::Hash) { 4.0 } else { 1.0 }
    }
}

/// The programs of `src/kernel/bench.rs`.
pub(crate) struct BenchPrograms {
    ebpf: Ebpf,
    next: ProgramArray<MapData>,
    tag: Array<MapData, TagParts>,
    ring: RingBuf<MapData>,
}

/// `BenchTag` of `src/kernel/bench.rs`: key, epoch, and function and port in one word.
type TagParts = [u64; 4];

impl BenchPrograms {
    pub(crate) fn load() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("prebuilt/headstart-bench.o");
        let mut ebpf = EbpfLoader::new().load_file(path).expect("the bench's programs");
        let names: Vec<_> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let program: &mut Xdp = ebpf.program_mut(&name).expect("in the object").try_into().expect("XDP");
            program.load().expect("accepted by the verifier");
        }
        let seen = ebpf.take_map("SEEN").expect("in the object");
        let mut seen: HashMap<_, [u32; 6], u64> = seen.try_into().expect("a hash table");
        seen.insert([1; 6], 1, 0).expect("there is room");
        let mut take = |name| ebpf.take_map(name).expect("in the object");
        Self {
            next: take("NEXT").try_into().expect("a program array"),
            tag: take("TAG").try_into().expect("an array"),
            ring: take("RING").try_into().expect("a ring"),
            ebpf,
        }
    }

    fn program(&self, name: &str) -> &Xdp {
        self.ebpf.program(name).expect("in the object").try_into().expect("XDP")
    }

    /// A program that changes frames and then goes on to `next`; its tags name the function `id`.
    pub(crate) fn vary(&mut self, name: &str, id: u32, next: &ProgramFd) -> &Xdp {
        self.next.set(0, next, 0).expect("a program of the same type");
        let what = u64::from(id) | u64::from(TAGGED) << 32;
        self.tag.set(0, [KEY[0], KEY[1], EPOCH, what], 0).expect("one element");
        self.program(name)
    }

    /// One round of `work`: its time and the time to subtract, in nanoseconds.
    pub(crate) fn round(&mut self, work: Work, kernel: &Kernel) -> (f64, f64) {
        let frame = tcp_v4(ACK, &[], &[]);
        // As many records as fit into the empty ring.
        let repeat = if work == Work::Announce { REPEAT_EVENTS } else { REPEAT };
        let floor = if work == Work::Recall { self.program("random") } else { kernel.xdp(PROGRAM_FLOOR) };
        let [ns, floor_ns] = [self.program(work.name()), floor].map(|program| {
            let options = TestRunOptions { data_in: Some(&frame), repeat, ..TestRunOptions::default() };
            let run = program.test_run(options).expect("the program runs");
            assert_eq!(run.return_value, XDP_PASS, "{}: the program did its work", work.name());
            run.duration.as_nanos() as f64 / work.times()
        });
        while self.ring.next().is_some() {}
        (ns, floor_ns)
    }
}
