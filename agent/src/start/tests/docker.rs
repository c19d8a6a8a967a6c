//! What is promised of containers of a daemon only.

use std::process::Command;

use super::*;

/// What `docker` prints of the containers of this bed.
fn docker(bed: &Bed, arguments: &[&str]) -> String {
    let socket = format!("unix://{}", bed.agent().docker_socket.display());
    let output = Command::new("docker").arg("-H").arg(socket).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn containers(bed: &Bed) -> String {
    docker(bed, &["ps", "-aq", "--filter", &format!("label=headstart.function={}", bed.function("f"))])
}

/// The state directory is on a tmpfs, and does not outlive a reboot.
pub(super) async fn is_found_without_its_directory(bed: Bed) {
    let _parked = bed.prepare("sleep 60").await;
    std::fs::remove_dir_all(bed.state_dir()).unwrap();
    assert!(!containers(&bed).is_empty());
    assert_eq!(bed.survivors().await.end(Duration::ZERO).await, Vec::<String>::new());
    assert_eq!(containers(&bed), "");
}

/// A frozen container could not answer.
pub(super) async fn is_not_checked_for_health(bed: Bed) {
    let parked = bed.prepare("sleep 60").await;
    let test = docker(&bed, &["inspect", "--format", "{{json .Config.Healthcheck.Test}}", &containers(&bed)]);
    assert_eq!(test, "[\"NONE\"]");
    parked.process.remove().await.unwrap();
}
