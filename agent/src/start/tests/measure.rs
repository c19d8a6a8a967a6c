//! How long preparing and letting go take: `cargo test measure -- --ignored --nocapture`.

use std::time::Instant;

use super::bed::{self, Bed, Kind};

const ROUNDS: usize = 30;

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
async fn measure_letting_go() {
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
