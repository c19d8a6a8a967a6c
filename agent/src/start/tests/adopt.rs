//! What is promised of running instances that the next agent takes over. The agent before dies as far as
//! one can in its own process: it forgets them.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::event::Trigger;

/// An instance that an earlier agent released, and the runtime of the next.
async fn left(bed: &Bed, script: &str) -> (String, Arc<dyn FunctionRuntime>) {
    let runtime = bed.runtime(&["/bin/sh", "-c", script]);
    let instance = bed.instance();
    let parked = runtime.prepare(&instance).await.unwrap();
    parked.process.release().await.unwrap();
    bed.eventually(|| (bed.ticks(&*parked.process) > 0).then_some(())).await;
    (instance, bed.runtime(&["/bin/sh", "-c", script]))
}

const BUSY: &str = "trap 'exit 5' TERM; while :; do :; done";

fn note(function: String) -> Note {
    let backends = vec!["db".to_owned(), "db".to_owned()];
    Note { function, fingerprint: "f00".to_owned(), trigger: Trigger::Syn, ready_ns: 7, backends }
}

pub(super) async fn the_running_are_taken_over(bed: Bed) {
    let (instance, runtime) = left(&bed, BUSY).await;
    let process = runtime.adopt(&instance).await.unwrap();
    assert_eq!(process.release().await.unwrap_err().reason(), "already_released");
    let pids = bed.processes(&*process);
    assert!(!pids.is_empty() && !process.owns(std::process::id() as i32));
    assert!(process.directory().ends_with(&instance) && process.directory().is_dir());
    // As good as one of its own.
    process.freeze().await.unwrap();
    process.thaw().await.unwrap();
    assert!(process.exited().now_or_never().is_none());
    process.terminate().await;
    let exit = tokio::time::timeout(SOON, process.exited()).await.expect("it ends");
    assert!(exit == Exit::default() || exit.code == Some(5), "{exit}");
    process.remove().await.unwrap();
    bed.assert_no_trace();
    assert_eq!(runtime.adopt(&instance).await.err().expect("gone").reason(), "adopt");

    let (instance, runtime) = left(&bed, "trap '' TERM; sleep 60 & while :; do :; done").await;
    let process = runtime.adopt(&instance).await.unwrap();
    process.remove().await.unwrap();
    tokio::time::timeout(SOON, process.exited()).await.expect("it ended");
    process.remove().await.unwrap();
    bed.assert_no_trace();
}

pub(super) async fn the_frozen_are_taken_over(bed: Bed) {
    let (instance, runtime) = left(&bed, BUSY).await;
    runtime.adopt(&instance).await.unwrap().freeze().await.unwrap();
    let process = runtime.adopt(&instance).await.unwrap();
    let before = bed.ticks(&*process);
    process.thaw().await.unwrap();
    bed.eventually(|| (bed.ticks(&*process) > before).then_some(())).await;
    process.freeze().await.unwrap();
    let process = runtime.adopt(&instance).await.unwrap();
    process.terminate().await;
    tokio::time::timeout(SOON, process.exited()).await.expect("it ends");
    process.remove().await.unwrap();
    bed.assert_no_trace();
}

pub(super) async fn others_are_not_taken_over(bed: Bed) {
    let runtime = bed.runtime(&["/bin/sh", "-c", BUSY]);
    let refused = async |instance: &str| runtime.adopt(instance).await.err().expect("refused").reason();
    // Never there; of another function; parked; ended.
    let (instance, parked) = (bed.instance(), bed.instance());
    assert_eq!(refused(&instance).await, "adopt");
    assert_eq!(refused("other-1").await, "instance_name");
    let waits = runtime.prepare(&parked).await.unwrap();
    assert_eq!(refused(&parked).await, "adopt");
    waits.process.remove().await.unwrap();
    let ends = bed.runtime(&["/bin/sh", "-c", "exit 0"]).prepare(&instance).await.unwrap();
    ends.process.release().await.unwrap();
    ends.process.exited().await;
    assert_eq!(refused(&instance).await, "adopt");
    ends.process.remove().await.unwrap();
    bed.assert_no_trace();
}

pub(super) async fn what_is_kept_is_let_alone(bed: Bed) {
    let (kept, runtime) = left(&bed, BUSY).await;
    let (other, _) = left(&bed, BUSY).await;
    let parked = bed.prepare("exit 0").await;
    let written = note(bed.function("f"));
    for process in [&*runtime.adopt(&kept).await.unwrap(), &*parked.process] {
        // The second time over the first.
        written.write(process.directory()).unwrap();
        written.write(process.directory()).unwrap();
        let entries = std::fs::read_dir(process.directory()).unwrap();
        let notes = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().contains("note"));
        let modes: Vec<_> =
            notes.map(|entry| entry.metadata().unwrap().permissions().mode() & 0o777).collect();
        assert_eq!(modes, [0o600]);
    }
    let mut survivors = bed.survivors().await;
    let mut names = survivors.running_names();
    names.sort_unstable();
    assert_eq!(names, [kept.clone(), other.clone()]);
    // The parked one's does not count.
    assert_eq!(survivors.notes(), [(kept.clone(), written)]);
    survivors.keep(&kept);
    assert_eq!((survivors.running(), survivors.notes().len()), (1, 0));
    let process = runtime.adopt(&kept).await.unwrap();
    survivors.end(SOON).await;
    assert!(process.exited().now_or_never().is_none());
    assert_eq!(runtime.adopt(&other).await.err().expect("gone").reason(), "adopt");
    process.remove().await.unwrap();
    bed.assert_no_trace();
}

#[test]
fn a_note_that_is_absent_or_strange_is_none() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(Note::read(directory.path()), None);
    let written = note("f".to_owned());
    written.write(directory.path()).unwrap();
    assert_eq!(Note::read(directory.path()), Some(written.clone()));
    let text = std::fs::read_to_string(directory.path().join("note.json")).unwrap();
    for strange in
        ["", "{}", &text[..text.len() - 1], &text.replace("syn", "sin"), &text.replace("ready", "x")]
    {
        std::fs::write(directory.path().join("note.json"), strange).unwrap();
        assert_eq!(Note::read(directory.path()), None, "{strange}");
    }
    assert_eq!(
        written.write(&directory.path().join("gone")).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
}
