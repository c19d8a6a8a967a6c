//! How long preparing and releasing take: `cargo test measure -- --ignored --nocapture`.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Instant;

use headstart_statistics::{median_interval, percentile};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};

use super::bed::{self, Bed, Kind};
use super::{ControlEnd, PreparedContainer};

const ROUNDS: usize = 30;

/// Instances are thawed more often: it is much quicker, and the slowest matter.
const THAWS: usize = 200;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn since_ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

async fn measure(bed: Bed) {
    let mut columns = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let parked = bed.prepare("exit 0").await;
        columns[0].push(since_ms(start));
        let start_ns = headstart_wire::monotonic_ns().unwrap();
        let start = Instant::now();
        let exec_ns = parked.process.release().await.unwrap();
        columns[1].push((exec_ns - start_ns) as f64 / 1e6);
        parked.process.exited().await;
        columns[2].push(since_ms(start));
        let start = Instant::now();
        parked.process.remove().await.unwrap();
        columns[3].push(since_ms(start));
    }
    let [prepare, exec, exit, remove] = columns.map(median);
    println!(
        "{:?}: prepare {prepare:.2} ms, exec {exec:.3} ms, exit {exit:.2} ms, remove {remove:.2} ms",
        bed.kind
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, promises nothing"]
async fn measure_runtimes() {
    for kind in [Kind::Oci, Kind::Process, Kind::Docker] {
        if let Some(bed) = bed::lay(kind).await {
            measure(bed).await;
        }
    }
}

/// From the decision to the end of a program that ends at once, by turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, promises nothing"]
async fn measure_releasing() {
    let Some(bed) = bed::lay(Kind::Oci).await else { return };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let parked = bed.prepare("exit 0").await;
        let start = Instant::now();
        parked.process.release().await.unwrap();
        parked.process.exited().await;
        ours.push(since_ms(start));
        parked.process.remove().await.unwrap();

        let instance = bed.instance();
        let parked = bed.runtime(&["/bin/sh", "-c", "exit 0"]).prepare(&instance).await.unwrap();
        let start = Instant::now();
        let mut command = tokio::process::Command::new(bed::find("runc").unwrap());
        command.arg("--root").arg(bed.state_dir().join("runc")).args(["start", &instance]);
        let mut child = command.spawn().unwrap();
        parked.process.exited().await;
        theirs.push(since_ms(start));
        child.wait().await.unwrap();
        parked.process.remove().await.unwrap();
    }
    println!(
        "to the end of the program: FIFO {:.2} ms, start command {:.2} ms",
        median(ours),
        median(theirs)
    );
}

/// Until an instance that echoes on its control socket has answered, from its thaw on if it is frozen first.
async fn answers_ms(parked: &PreparedContainer, frozen: bool) -> f64 {
    let ControlEnd::Connected(channel) = &parked.control else { panic!("it inherits its end") };
    let socket = channel.as_raw_fd();
    if frozen {
        parked.process.freeze().await.unwrap();
    }
    let start = Instant::now();
    send(socket, b"hello", MsgFlags::empty()).unwrap();
    if frozen {
        parked.process.thaw().await.unwrap();
    }
    let mut watched = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut watched, PollTimeout::from(5_000u16)), Ok(1));
    let elapsed = since_ms(start);
    assert_eq!(recv(socket, &mut [0; 8], MsgFlags::empty()), Ok(5));
    elapsed
}

/// From the thaw to the first thing that the instance does, and the same of one that was not frozen, by turns.
#[tokio::test]
#[ignore = "measures, promises nothing"]
async fn measure_thawing() {
    for kind in [Kind::Oci, Kind::Process] {
        let Some(bed) = bed::lay(kind).await else { return };
        let parked = bed.prepare("exec cat <&3 >&3").await;
        parked.process.release().await.unwrap();
        answers_ms(&parked, false).await;
        let (mut awake, mut thawed, mut frozen) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..THAWS {
            awake.push(answers_ms(&parked, false).await);
            thawed.push(answers_ms(&parked, true).await);
            let start = Instant::now();
            parked.process.freeze().await.unwrap();
            frozen.push(since_ms(start));
            parked.process.thaw().await.unwrap();
        }
        parked.process.remove().await.unwrap();
        let figures = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            format!("{:.3} ms, p99 {:.3} ms", values[THAWS / 2], values[THAWS * 99 / 100])
        };
        println!("{kind:?}: answer when awake {}", figures(awake));
        println!("{kind:?}: thaw and answer {}", figures(thawed));
        println!("{kind:?}: freeze {}", figures(frozen));
    }
}

/// Preparing and releasing with a user namespace and without, by turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, promises nothing"]
async fn measure_user_namespaces() {
    let Some(mut bed) = bed::lay(Kind::Oci).await else { return };
    let mut ratios = [Vec::new(), Vec::new(), Vec::new()];
    let mut plain = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..10 * ROUNDS {
        let mut both = [[0.0; 3]; 2];
        for turn in 0..2 {
            let namespaced = (round + turn) % 2;
            bed.kind = [Kind::Oci, Kind::Namespaced][namespaced];
            let start = Instant::now();
            let parked = bed.prepare("echo hello >&3; sleep 60").await;
            both[namespaced][0] = since_ms(start);
            let ControlEnd::Connected(channel) = &parked.control else { panic!("it inherits its end") };
            let start = Instant::now();
            let (released, ()) = tokio::join!(parked.process.release(), async {
                let mut watched = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
                tokio::task::block_in_place(|| poll(&mut watched, PollTimeout::from(5_000u16)).unwrap());
                both[namespaced][1] = since_ms(start);
            });
            released.unwrap();
            let start = Instant::now();
            parked.process.remove().await.unwrap();
            both[namespaced][2] = since_ms(start);
        }
        for column in 0..3 {
            plain[column].push(both[0][column]);
            ratios[column].push(both[1][column] / both[0][column]);
        }
    }
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    for (name, (plain, ratios)) in ["prepare", "hello", "remove"].iter().zip(plain.into_iter().zip(ratios)) {
        let (plain, ratios) = (sorted(plain), sorted(ratios));
        let (low, high) = median_interval(&ratios);
        println!(
            "{name}: {:.2} ms without, {:.3} times that with one ({low:.3} to {high:.3})",
            percentile(&plain, 50.0),
            percentile(&ratios, 50.0)
        );
    }
}

/// Preparing, releasing and removing with a writable root and without, by turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, promises nothing"]
async fn measure_writable_roots() {
    let Some(mut bed) = bed::lay(Kind::Oci).await else { return };
    let mut columns = [[const { Vec::new() }; 3], [const { Vec::new() }; 3]];
    for round in 0..4 * ROUNDS {
        for turn in 0..2 {
            let writable = (round + turn) % 2;
            bed.writable = [None, Some(64 << 20)][writable];
            let runtime = bed.runtime(&["/bin/sh", "-c", "exit 0"]);
            // The first makes what all have.
            runtime.prepare(&bed.instance()).await.unwrap().process.remove().await.unwrap();
            let start = Instant::now();
            let parked = runtime.prepare(&bed.instance()).await.unwrap();
            columns[writable][0].push(since_ms(start));
            let start_ns = headstart_wire::monotonic_ns().unwrap();
            let exec_ns = parked.process.release().await.unwrap();
            columns[writable][1].push((exec_ns - start_ns) as f64 / 1e6);
            let start = Instant::now();
            parked.process.remove().await.unwrap();
            columns[writable][2].push(since_ms(start));
        }
    }
    let [plain, writable] = columns;
    for (name, (plain, writable)) in ["prepare", "exec", "remove"].iter().zip(plain.into_iter().zip(writable))
    {
        let more = plain.iter().zip(&writable).map(|(plain, writable)| writable - plain).collect();
        println!("{name}: {:.2} ms read-only, {:+.2} ms writable", median(plain), median(more));
    }
}
