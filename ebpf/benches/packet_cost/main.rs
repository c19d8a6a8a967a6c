//! What the XDP program costs per packet: `cargo bench -p headstart-ebpf --bench packet_cost` (root).
//!
//! The kernel runs a program on a frame again and again (`BPF_PROG_TEST_RUN`) and reports the mean. Its own
//! loop costs some 20 ns: that floor is measured with a program that does nothing, and subtracted. Where every
//! packet must be another one, a small program (`src/bench.rs`) changes the frame before each run; the floor
//! is then that program followed by nothing. All cases take turns, round by round.
//!
//! Machines differ, in what a map costs above all. So there is a reference (in `src/bench.rs` too), and the ratio to its
//! best round is what SPECIFICATION.md bounds and `make bench` judges.
//!
//! Prints a table and writes `target/bench/xdp_ns.json`.

#[path = "../../tests/common"]
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
mod common {
    pub(crate) mod frames;
    pub(crate) mod kernel;
    pub(crate) mod proofs;
}
mod report;

use std::path::Path;

use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use common::frames::*;
use common::kernel::{Kernel, XDP_PASS};
use common::proofs::{CLOSED, EPOCH, KEY, KNOCK_PORT, SHARED, knock, syn_to, tagged_syn};
use headstart_ebpf::event::Stat;
use headstart_ebpf::maps::{
    FUNCTION_AUTH_WAKE, FUNCTION_OPTION, FUNCTION_WARM, PROGRAM_FLOOR, PROGRAM_XDP, PortKey,
};
use report::Figure;

const ROUNDS: usize = 40;
/// Rounds before the first that counts: caches warm, the replay cache and the sketch full.
const WARM_UP: usize = 20;
/// Of `src/bench.rs`.
const REFERENCE: &str = "reference";
const REPEAT: u32 = 100_000;
/// Fits into the empty ring.
const REPEAT_EVENTS: u32 = 4_000;
const TAGGED: u16 = SHARED + 1;
const WARM: u16 = SHARED + 2;
const UNOWNED: u16 = SHARED + 3;
const HOUR_NS: u64 = 3_600_000_000_000;

struct Case {
    name: &'static str,
    frame: Vec<u8>,
    /// The program of `src/bench.rs` that changes the frame before each run.
    vary: Option<&'static str>,
    /// The function that tags name.
    id: u32,
    repeat: u32,
    /// As what each packet must have been counted; several when it depends on the packet.
    counts: &'static [Stat],
    /// On the node whose budgets are used up.
    in_flood: bool,
}

fn cases() -> Vec<Case> {
    let case = |name, frame, repeat, counts| Case {
        name,
        frame,
        vary: None,
        id: 0,
        repeat,
        counts,
        in_flood: false,
    };
    let varied = |case: Case, program| Case { vary: Some(program), ..case };
    let tagged = || tagged_syn(TAGGED, 1, KEY, 1, EPOCH, 0);
    let port = |port| syn_to(port, 1, &[&LINUX]);
    vec![
        case("non_syn", tcp_v4(ACK, &[], &[]), REPEAT, &[Stat::NotSyn]),
        case("udp", udp_to(53), REPEAT, &[Stat::NotSyn]),
        case("syn_unowned", port(UNOWNED), REPEAT, &[Stat::Unowned]),
        case("syn_warm", port(WARM), REPEAT, &[Stat::Warm]),
        case("syn_cold_to_ring", port(SHARED), REPEAT_EVENTS, &[Stat::Event]),
        case("syn_tagged_retransmit", tagged(), REPEAT_EVENTS, &[Stat::Authenticated]),
        varied(case("syn_authenticated", tagged(), REPEAT_EVENTS, &[Stat::Authenticated]), "vary_tag"),
        varied(
            Case {
                in_flood: true,
                ..case(
                    "flood_random_sources",
                    port(SHARED),
                    REPEAT,
                    &[Stat::SourceBudget, Stat::FunctionBudget, Stat::Event],
                )
            },
            "vary_source",
        ),
        varied(
            Case { id: CLOSED, ..case("knock", knock(KEY, EPOCH, CLOSED, 1), REPEAT_EVENTS, &[Stat::Knock]) },
            "vary_knock",
        ),
    ]
}

/// The options of a Linux client.
const LINUX: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];

fn udp_to(port: u16) -> Vec<u8> {
    common::proofs::udp_v4(port, b"a question to a name server")
}

/// Programs and maps that are in use on a node with keys and budgets.
fn node(in_flood: bool) -> Option<Kernel> {
    let mut kernel = Kernel::open()?;
    kernel.own(PortKey::any(SHARED), 1, 0);
    kernel.own(PortKey::any(TAGGED), 2, FUNCTION_OPTION | FUNCTION_AUTH_WAKE);
    kernel.own(PortKey::any(WARM), 3, FUNCTION_WARM);
    kernel.own(PortKey::id(CLOSED), 2, FUNCTION_OPTION | FUNCTION_AUTH_WAKE);
    kernel.know(1, KEY);
    kernel.set(|settings| {
        (settings.epoch, settings.knock_port, settings.opened_ns) = (EPOCH, KNOCK_PORT, HOUR_NS);
        settings.seed = 0x5eed;
        if in_flood {
            // 20 starts a second of one source, 50 of a function, 500 of the node.
            settings.source_limit = 20;
            (settings.function_interval_ns, settings.function_burst_ns) = (20_000_000, 1_000_000_000);
            (settings.global_interval_ns, settings.global_burst_ns) = (2_000_000, 1_000_000_000);
        } else {
            // Checked like any other, and never used up.
            settings.source_limit = u32::from(u16::MAX);
            (settings.function_interval_ns, settings.function_burst_ns) = (1, HOUR_NS);
            (settings.global_interval_ns, settings.global_burst_ns) = (1, HOUR_NS);
        }
    });
    Some(kernel)
}

/// The programs that change frames.
struct Varier {
    ebpf: Ebpf,
    next: ProgramArray<MapData>,
    tag: Array<MapData, Tag>,
}

/// `Tag` of `src/bench.rs`: key, epoch, and function and port in one word.
type Tag = [u64; 4];

impl Varier {
    fn load() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("prebuilt/headstart-bench.o");
        let mut ebpf = EbpfLoader::new().load_file(path).expect("the bench's programs");
        for name in [REFERENCE, "vary_source", "vary_tag", "vary_knock"] {
            let program: &mut Xdp = ebpf.program_mut(name).expect("in the object").try_into().expect("XDP");
            program.load().expect("accepted by the verifier");
        }
        let seen = ebpf.take_map("SEEN").expect("in the object");
        let mut seen: HashMap<_, [u32; 6], u64> = seen.try_into().expect("a hash table");
        seen.insert([1; 6], 1, 0).expect("there is room");
        let next = ebpf.take_map("NEXT").expect("in the object").try_into().expect("a program array");
        let tag = ebpf.take_map("TAG").expect("in the object").try_into().expect("an array");
        Self { ebpf, next, tag }
    }

    /// One round of the reference, which does not look at frames: its time and the floor's, in nanoseconds.
    fn reference(&mut self, kernel: &Kernel) -> (f64, f64) {
        let frame = tcp_v4(ACK, &[], &[]);
        let options =
            || TestRunOptions { data_in: Some(&frame), repeat: REPEAT, ..TestRunOptions::default() };
        let reference: &Xdp = self.ebpf.program(REFERENCE).expect("in the object").try_into().expect("XDP");
        let [ns, floor_ns] = [reference, kernel.xdp(PROGRAM_FLOOR)]
            .map(|program| program.test_run(options()).expect("the program runs"))
            .map(|result| {
                assert_eq!(result.return_value, XDP_PASS, "it did what it is there for");
                result.duration.as_nanos() as f64
            });
        (ns, floor_ns)
    }

    /// A program that changes frames and then goes on to `next`; tags name the function `id`.
    fn program(&mut self, name: &str, id: u32, next: &ProgramFd) -> &Xdp {
        self.next.set(0, next, 0).expect("a program of the same type");
        let what = u64::from(id) | u64::from(TAGGED) << 32;
        self.tag.set(0, [KEY[0], KEY[1], EPOCH, what], 0).expect("one element");
        self.ebpf.program(name).expect("in the object").try_into().expect("XDP")
    }
}

impl Case {
    fn options(&self) -> TestRunOptions<'_> {
        TestRunOptions { data_in: Some(&self.frame), repeat: self.repeat, ..TestRunOptions::default() }
    }

    /// Mean nanoseconds per packet of `program`, one of the XDP programs.
    fn time(&self, kernel: &Kernel, varier: &mut Varier, program: &str) -> f64 {
        let program = kernel.xdp(program);
        let result = match self.vary {
            None => program.test_run(self.options()),
            Some(vary) => {
                let next = program.fd().expect("loaded");
                varier.program(vary, self.id, next).test_run(self.options())
            }
        };
        result.expect("the program runs").duration.as_nanos() as f64
    }

    /// One round: the sensor's time and the floor's, in nanoseconds per packet.
    fn round(&self, kernel: &mut Kernel, varier: &mut Varier) -> (f64, f64) {
        let before = kernel.counters();
        let ns = self.time(kernel, varier, PROGRAM_XDP);
        let after = kernel.counters();
        let counted: u64 =
            self.counts.iter().map(|stat| after[*stat as usize] - before[*stat as usize]).sum();
        let packets = u64::from(self.repeat);
        assert_eq!(counted, packets, "{}: of {packets} packets, {counted} are what is measured", self.name);
        kernel.take_events();
        (ns, self.time(kernel, varier, PROGRAM_FLOOR))
    }
}

fn main() {
    let (Some(mut quiet), Some(mut flooded)) = (node(false), node(true)) else { return };
    let mut varier = Varier::load();
    let cases = cases();
    let (mut rounds, mut reference) = (vec![Vec::new(); cases.len()], Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        for (case, rounds) in cases.iter().zip(&mut rounds) {
            let kernel = if case.in_flood { &mut flooded } else { &mut quiet };
            let measured = case.round(kernel, &mut varier);
            if round >= WARM_UP {
                rounds.push(measured);
            }
        }
        let measured = varier.reference(&quiet);
        if round >= WARM_UP {
            reference.push(measured);
        }
    }
    let floor = Figure::of_floor(&rounds[0]);
    let reference = Figure::new(REFERENCE, &reference);
    let figures: Vec<_> =
        cases.iter().zip(rounds).map(|(case, rounds)| Figure::new(case.name, &rounds)).collect();
    report::print(&figures, &reference);
    report::write(&figures, &reference, &floor);
}
