//! The cost of the XDP program per packet: `cargo bench -p headstart-ebpf --bench packet_cost` (root).
//!
//! The kernel runs a program on a frame many times (`BPF_PROG_TEST_RUN`) and reports the mean in whole nanoseconds. Its
//! own loop costs some 20 ns; a program that does nothing measures that floor, and this bench subtracts it. Where each
//! packet must differ, a small program (`src/kernel/bench.rs`) changes the frame before each run; the floor is then
//! that program followed by nothing. All cases take turns, round by round.
//!
//! Processors differ in what each kind of work costs. So each case is compared with the work that it has to do, measured
//! alone in the same run ([`Work`]): what looks up with look-ups, what computes with SipHash. A pair of cases that differ
//! only in the verification of a tag is compared with one SipHash. SPECIFICATION.md bounds the ratio of the best rounds,
//! since other load of a machine only adds; `make bench` judges it.
//!
//! Prints a table and writes `target/bench/xdp_ns.json`. `HEADSTART_ROUNDS` sets another number of rounds.

mod programs;
mod report;

use aya::programs::{TestRun as _, TestRunOptions};
use headstart_ebpf::event::Stat;
use headstart_ebpf::knock::Knock;
use headstart_ebpf::maps::{
    FUNCTION_AUTH_WAKE, FUNCTION_OPTION, FUNCTION_WARM, PROGRAM_FLOOR, PROGRAM_XDP, PortKey,
};
use headstart_ebpf::option::FunctionOption;
use headstart_ebpf_test_support::frames::*;
use headstart_ebpf_test_support::kernel::Kernel;
use headstart_ebpf_test_support::proofs::{
    CLOSED, EPOCH, KEY, KNOCK_PORT, SHARED, WRONG_KEY, knock, syn_to, tagged_syn, udp_v4,
};
use programs::{BenchPrograms, Work};
use report::{CaseFigure, Row};

const ROUNDS: usize = 40;
/// Rounds before the first that counts: they warm caches, and fill the memory of tags and the sketch.
const WARM_UP: usize = 20;
const REPEAT: u32 = 100_000;
/// As many events as fit into the empty ring.
const REPEAT_EVENTS: u32 = 4_000;
const TAGGED: u16 = SHARED + 1;
const WARM: u16 = SHARED + 2;
const UNOWNED: u16 = SHARED + 3;
const TAGGED_WARM: u16 = SHARED + 4;
/// Cases in pairs that differ in the verification of a tag only.
const OPTION_WARM: &str = "syn_option_warm";
const TAG_WARM: &str = "syn_tag_warm";
const KNOCK_UNKNOWN_KEY: &str = "knock_unknown_key";
const KNOCK_WRONG_TAG: &str = "knock_wrong_tag";
const HOUR_NS: u64 = 3_600_000_000_000;

struct Case {
    name: &'static str,
    frame: Vec<u8>,
    /// The program of `src/kernel/bench.rs` that changes the frame before each run.
    vary: Option<&'static str>,
    /// The function that tags name.
    id: u32,
    repeat: u32,
    /// The counters of these packets; several where it depends on the packet.
    counts: &'static [Stat],
    /// Whether the node's budgets are used up.
    in_flood: bool,
    /// The work whose cost the case is compared with.
    work: &'static [Work],
}

impl Case {
    const fn new(name: &'static str, frame: Vec<u8>, counts: &'static [Stat]) -> Self {
        let work = &[Work::LookUp];
        Self { name, frame, vary: None, id: 0, repeat: REPEAT, counts, in_flood: false, work }
    }

    /// Each packet writes an event.
    fn with_event(self) -> Self {
        Self { repeat: REPEAT_EVENTS, ..self }
    }

    fn varied(self, program: &'static str) -> Self {
        Self { vary: Some(program), ..self }
    }

    fn compared_with(self, work: &'static [Work]) -> Self {
        Self { work, ..self }
    }
}

fn cases() -> Vec<Case> {
    use Stat::{
        Authenticated, Event, FunctionBudget, Knock, KnockInvalid, NotSyn, SourceBudget, Unowned, Warm,
    };
    use Work::{Announce, Hash, LookUp, Recall, Remember};
    let tagged = |port| tagged_syn(port, 1, KEY, 1, EPOCH, 0);
    let port = |port| syn_to(port, 1, &[&LINUX]);
    let option = FunctionOption::open(0).encode();
    let flood = Case::new("flood_random_sources", port(SHARED), &[SourceBudget, FunctionBudget, Event]);
    let of_closed = |case: Case| Case { id: CLOSED, ..case };
    vec![
        Case::new("non_syn", tcp_v4(ACK, &[], &[]), &[NotSyn]),
        Case::new("udp", udp_v4(53, b"a question to a name server"), &[NotSyn]),
        Case::new("syn_unowned", port(UNOWNED), &[Unowned]),
        Case::new("syn_warm", port(WARM), &[Warm]),
        Case::new("syn_cold_to_ring", port(SHARED), &[Event]).with_event(),
        Case::new("syn_tagged_retransmit", tagged(TAGGED), &[Authenticated])
            .with_event()
            .compared_with(&[LookUp, LookUp, Hash, Announce]),
        Case::new("syn_authenticated", tagged(TAGGED), &[Authenticated])
            .with_event()
            .varied("vary_tag")
            .compared_with(&[LookUp, LookUp, Hash, Recall, Announce]),
        Case { in_flood: true, ..flood }.varied("vary_source"),
        of_closed(Case::new("knock", knock(KEY, EPOCH, CLOSED, 1), &[Knock]))
            .with_event()
            .varied("vary_knock")
            .compared_with(&[LookUp, Hash, Recall, Remember, Announce]),
        Case::new(OPTION_WARM, syn_to(TAGGED_WARM, 1, &[&option]), &[Warm]),
        Case::new(TAG_WARM, tagged(TAGGED_WARM), &[Warm]),
        Case::new(KNOCK_UNKNOWN_KEY, knock_with(2, 1), &[KnockInvalid]),
        Case::new(KNOCK_WRONG_TAG, knock_with(1, 1), &[KnockInvalid]),
    ]
}

/// A knock with a wrong tag, of the key `number`.
fn knock_with(number: u8, nonce: u64) -> Vec<u8> {
    udp_v4(KNOCK_PORT, &Knock::new(WRONG_KEY, number, EPOCH, CLOSED, nonce).encode())
}

/// The options of a Linux client.
const LINUX: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];

/// The programs with the maps of a node that has keys and budgets.
fn node(in_flood: bool) -> Option<Kernel> {
    let mut kernel = Kernel::open()?;
    kernel.own(PortKey::any(SHARED), 1, 0);
    kernel.own(PortKey::any(TAGGED), 2, FUNCTION_OPTION | FUNCTION_AUTH_WAKE);
    kernel.own(PortKey::any(WARM), 3, FUNCTION_WARM);
    kernel.own(PortKey::any(TAGGED_WARM), 4, FUNCTION_OPTION | FUNCTION_WARM);
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
            // Budgets that the program checks, and that are never used up.
            settings.source_limit = u32::from(u16::MAX);
            (settings.function_interval_ns, settings.function_burst_ns) = (1, HOUR_NS);
            (settings.global_interval_ns, settings.global_burst_ns) = (1, HOUR_NS);
        }
    });
    Some(kernel)
}

impl Case {
    fn options(&self) -> TestRunOptions<'_> {
        TestRunOptions { data_in: Some(&self.frame), repeat: self.repeat, ..TestRunOptions::default() }
    }

    /// Mean nanoseconds per packet of `program`, one of the XDP programs.
    fn time(&self, kernel: &Kernel, programs: &mut BenchPrograms, program: &str) -> f64 {
        let program = kernel.xdp(program);
        let result = match self.vary {
            None => program.test_run(self.options()),
            Some(vary) => {
                let next = program.fd().expect("loaded");
                programs.vary(vary, self.id, next).test_run(self.options())
            }
        };
        result.expect("the program runs").duration.as_nanos() as f64
    }

    /// One round: the sensor's time and the floor's, in nanoseconds per packet.
    fn round(&self, kernel: &mut Kernel, programs: &mut BenchPrograms) -> (f64, f64) {
        let before = kernel.counters();
        let ns = self.time(kernel, programs, PROGRAM_XDP);
        let after = kernel.counters();
        let counted: u64 =
            self.counts.iter().map(|stat| after[*stat as usize] - before[*stat as usize]).sum();
        let packets = u64::from(self.repeat);
        assert_eq!(counted, packets, "{}: of {packets} packets, {counted} are what is measured", self.name);
        kernel.take_events();
        (ns, self.time(kernel, programs, PROGRAM_FLOOR))
    }
}

/// Two cases, of which `case` costs more than `than` by one verification of a tag.
struct Pair {
    name: &'static str,
    case: &'static str,
    than: &'static str,
}

const PAIRS: [Pair; 2] = [
    Pair { name: "syn_tag", case: TAG_WARM, than: OPTION_WARM },
    Pair { name: "knock_tag", case: KNOCK_WRONG_TAG, than: KNOCK_UNKNOWN_KEY },
];

fn main() {
    let (Some(mut quiet), Some(mut flooded)) = (node(false), node(true)) else { return };
    let mut programs = BenchPrograms::load();
    let cases = cases();
    let counted = match std::env::var("HEADSTART_ROUNDS") {
        Ok(number) => number.parse().expect("HEADSTART_ROUNDS is a number"),
        Err(_) => ROUNDS,
    };
    let mut rounds = vec![Vec::new(); cases.len()];
    let mut work_rounds = Work::ALL.map(|_| Vec::new());
    for round in 0..WARM_UP + counted {
        let counts = round >= WARM_UP;
        for (case, rounds) in cases.iter().zip(&mut rounds) {
            let kernel = if case.in_flood { &mut flooded } else { &mut quiet };
            let measured = case.round(kernel, &mut programs);
            rounds.extend(counts.then_some(measured));
        }
        for (work, rounds) in Work::ALL.into_iter().zip(&mut work_rounds) {
            let measured = programs.round(work, &quiet);
            rounds.extend(counts.then_some(measured));
        }
    }
    let of_work: Vec<_> = Work::ALL
        .iter()
        .zip(&work_rounds)
        .map(|(work, rounds)| CaseFigure::new(work.name(), rounds))
        .collect();
    let best = |work: &Work| of_work[*work as usize].min();
    let mut rows = Vec::new();
    for (case, rounds) in cases.iter().zip(&rounds) {
        rows.push(Row {
            figure: CaseFigure::new(case.name, rounds),
            one_ns: case.work.iter().map(best).sum(),
        });
    }
    for pair in &PAIRS {
        let of = |name| &rounds[cases.iter().position(|case| case.name == name).expect("a case")];
        let both = of(pair.case).iter().zip(of(pair.than));
        let rounds: Vec<_> = both.map(|((ns, _), (than_ns, _))| (*ns, *than_ns)).collect();
        rows.push(Row { figure: CaseFigure::new(pair.name, &rounds), one_ns: best(&Work::Hash) });
    }
    let floor = CaseFigure::of_floor(&rounds[0]);
    report::print(&rows, &of_work);
    report::write(&rows, &of_work, &floor);
}
