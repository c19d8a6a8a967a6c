//! On directories that stand in for hierarchies; the real ones are in the tests of the runtimes.

use std::path::Path;

use super::*;

const INSTANCE: &str = "headstart/run:headstart/f-1";

/// A cgroup of this version in which a test plays the kernel.
fn stand_in(mount: &Path, unified: bool) -> Cgroup {
    let cgroup = Cgroup { mount: mount.to_owned(), path: INSTANCE.into() };
    let own = if unified {
        fs::write(mount.join("cgroup.controllers"), "memory pids").unwrap();
        mount.join(INSTANCE)
    } else {
        mount.join(HIERARCHY).join(INSTANCE)
    };
    fs::create_dir_all(&own).unwrap();
    fs::write(cgroup.order_file(), if unified { "0" } else { "THAWED" }).unwrap();
    if unified {
        fs::write(own.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
    }
    cgroup
}

fn ordered(cgroup: &Cgroup) -> String {
    fs::read_to_string(cgroup.order_file()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn v2_is_frozen_when_its_events_say_so() {
    let mount = tempfile::tempdir().unwrap();
    let cgroup = stand_in(mount.path(), true);
    let kernel = async {
        while ordered(&cgroup) != "1" {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(LOOK_INTERVAL * 5).await;
        fs::write(cgroup.controller("").join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        Instant::now()
    };
    let frozen = async { cgroup.freeze().await.map(|()| Instant::now()) };
    let (frozen, said) = tokio::join!(frozen, kernel);
    assert!(frozen.unwrap() >= said);
    assert_eq!(ordered(&cgroup), "1");
    cgroup.thaw().unwrap();
    assert_eq!(ordered(&cgroup), "0");
    cgroup.thaw().unwrap();
}

/// The stand-in of v1 says at once what was written to it.
#[tokio::test(start_paused = true)]
async fn v1_is_frozen_when_its_state_says_so() {
    let mount = tempfile::tempdir().unwrap();
    let cgroup = stand_in(mount.path(), false);
    cgroup.freeze().await.unwrap();
    assert_eq!(ordered(&cgroup), "FROZEN");
    cgroup.thaw().unwrap();
    assert_eq!(ordered(&cgroup), "THAWED");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_stop_in_time_runs_again() {
    let mount = tempfile::tempdir().unwrap();
    let cgroup = stand_in(mount.path(), true);
    let begun = Instant::now();
    let error = cgroup.freeze().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    assert!(begun.elapsed() >= FREEZE_TIMEOUT && begun.elapsed() < FREEZE_TIMEOUT * 2);
    assert_eq!(ordered(&cgroup), "0");
}

#[tokio::test(start_paused = true)]
async fn a_freeze_that_nobody_waits_for_is_undone() {
    let mount = tempfile::tempdir().unwrap();
    let cgroup = stand_in(mount.path(), true);
    let given_up = tokio::time::timeout(LOOK_INTERVAL * 3, cgroup.freeze()).await;
    assert!(given_up.is_err());
    assert_eq!(ordered(&cgroup), "0");
}

#[tokio::test(start_paused = true)]
async fn a_thaw_meanwhile_wins() {
    let mount = tempfile::tempdir().unwrap();
    let cgroup = stand_in(mount.path(), true);
    let thaw = async {
        while ordered(&cgroup) != "1" {
            tokio::task::yield_now().await;
        }
        cgroup.thaw().unwrap();
    };
    let (frozen, ()) = tokio::join!(cgroup.freeze(), thaw);
    assert!(frozen.unwrap_err().to_string().contains("thawed"));
    assert_eq!(ordered(&cgroup), "0");
}

#[tokio::test]
async fn without_a_freezer_the_error_says_what_to_do() {
    let mount = tempfile::tempdir().unwrap();
    for unified in [true, false] {
        let cgroup = stand_in(mount.path(), unified);
        fs::remove_file(cgroup.order_file()).unwrap();
        let error = cgroup.freeze().await.unwrap_err().to_string();
        assert!(error.contains("mount the cgroup freezer"), "{error}");
        cgroup.thaw().unwrap();
        let _only_in_v2 = fs::remove_file(mount.path().join("cgroup.controllers"));
    }
}
