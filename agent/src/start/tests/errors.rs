//! What goes wrong before there is a container.

use super::bed::{self, Kind};
use super::*;

fn spec() -> ContainerSpec {
    ContainerSpec {
        function: "f".to_owned(),
        command: vec!["/bin/true".to_owned()],
        env: Vec::new(),
        memory_bytes: 64 * 1024 * 1024,
        pids: 32,
        backends: false,
    }
}

fn none() -> String {
    "none".to_owned()
}

async fn reason(runtime: &dyn Runtime) -> (&'static str, String) {
    let error = runtime.prepare("f-1").await.err().expect("cannot be prepared");
    (error.reason(), error.to_string())
}

#[tokio::test]
async fn a_missing_rootfs_is_named() {
    let state = tempfile::tempdir().unwrap();
    let runtime = oci::Oci::new(spec(), "/no/rootfs".into(), "/no/runc".into(), state.path());
    let (reason, text) = reason(&runtime).await;
    assert_eq!(reason, "rootfs_missing");
    assert!(text.contains("/no/rootfs"), "{text}");
}

#[tokio::test]
async fn a_missing_runtime_is_named() {
    let state = tempfile::tempdir().unwrap();
    let runtime = oci::Oci::new(spec(), state.path().into(), "/no/runc".into(), state.path());
    let (reason, text) = reason(&runtime).await;
    assert_eq!(reason, "runtime_missing");
    assert!(text.contains("/no/runc") && text.contains("apt install"), "{text}");
    assert_eq!(std::fs::read_dir(state.path().join("oci")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_daemon_that_is_down_is_named() {
    let state = tempfile::tempdir().unwrap();
    let socket = state.path().join("none.sock");
    let runtime = docker::Docker::new(spec(), "orders:1".to_owned(), none(), socket.clone(), state.path());
    let (reason, text) = reason(&runtime).await;
    assert_eq!(reason, "daemon_unreachable");
    assert!(text.contains(&*socket.to_string_lossy()), "{text}");
    // It is only asked for what an earlier agent has left.
    assert_eq!(docker::survivors(state.path(), &socket).await.unwrap().len(), 0);
    std::fs::create_dir_all(state.path().join("docker/f-1")).unwrap();
    let error = docker::survivors(state.path(), &socket).await.err().expect("unreachable");
    assert_eq!(error.reason(), "daemon_unreachable");
}

/// A unix socket's path has at most 107 bytes, a state directory may have more.
#[tokio::test]
async fn a_long_state_directory_is_no_fault() {
    let state = tempfile::tempdir().unwrap();
    let deep = state.path().join("d".repeat(200));
    let runtime = docker::Docker::new(spec(), "orders:1".to_owned(), none(), "/no.sock".into(), &deep);
    // It gets as far as asking the daemon.
    assert_eq!(reason(&runtime).await.0, "daemon_unreachable");
}

#[tokio::test]
async fn a_missing_image_is_named() {
    let Some(bed) = bed::lay(Kind::Docker).await else { return };
    let runtime = docker::Docker::new(spec(), "no-such:1".to_owned(), none(), bed.daemon(), &bed.state_dir());
    let (reason, text) = reason(&runtime).await;
    assert_eq!(reason, "image_missing");
    assert!(text.contains("no-such:1"), "{text}");
}

/// The parked container of a daemon is not a process: others can only remove it.
#[tokio::test]
async fn removal_by_others_is_told() {
    let Some(bed) = bed::lay(Kind::Docker).await else { return };
    let parked = bed.prepare("exit 0").await;
    bed.survivors().await.end(Duration::ZERO).await;
    assert_eq!(parked.process.exited().await.signal, Some(9));
    assert_eq!(parked.process.release().await.unwrap_err().reason(), "died");
    parked.process.remove().await.unwrap();
}
