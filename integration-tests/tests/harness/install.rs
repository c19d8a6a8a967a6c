//! The installer of what the tests need.

use headstart_integration_tests::{
    lab::privilege,
    lab::{self, ChildProcess},
};
use std::{os::unix::process::CommandExt, process::Command, time::Duration};

fn installer() -> Command {
    Command::new(lab::workspace().join("integration-tests/install.sh"))
}

#[test]
fn it_is_quiet_where_nothing_is_missing() {
    let tools = ["ip", "iptables", "runc", "dockerd", "docker", "cc", "/usr/lib/postgresql"];
    if !privilege::require_root("installing") || !privilege::require_tools(&tools) {
        return;
    }
    assert_eq!(lab::run(&mut installer()).unwrap(), "");
}

#[test]
fn a_user_is_told_what_is_needed_and_why() {
    if !privilege::require_root("becoming another user") {
        return;
    }
    let mut command = installer();
    command.uid(65534).gid(65534).env("HEADSTART_INSTALL_PRETEND_MISSING", "runc");
    let mut process = ChildProcess::spawn(&mut command).unwrap();
    let status = process.wait(Duration::from_secs(20)).unwrap();
    let log = process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("runc") && log.contains("root"), "{log}");
}
