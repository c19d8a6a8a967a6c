//! What the tests of the client's commands share: keys, the program, a network namespace.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::{env, panic, thread};

use headstart_ebpf::auth::Key;
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

/// Key number 2 of [`key_file`], and its line.
pub(crate) const KEY: Key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
const LINES: &str = "1 ffffffffffffffffffffffffffffffff\n2 000102030405060708090a0b0c0d0e0f\n";

/// A directory with the file `keys` in it.
pub(crate) fn key_file() -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    write_keys(&dir.path().join("keys"), LINES, 0o600);
    dir
}

pub(crate) fn write_keys(path: &Path, lines: &str, mode: u32) {
    let mut file: File =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).expect("a new file");
    file.write_all(lines.as_bytes()).expect("a file to write to");
}

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_headstart");

/// Runs its arguments with no signal ignored, whatever those who run the tests ignore (nohup, a job in the background).
pub(crate) fn nothing_ignored() -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal");
    command
}

/// The program under test with these arguments, which blanks separate.
pub(crate) fn headstart(arguments: &str) -> Command {
    let mut command = nothing_ignored();
    command.arg(PROGRAM).args(arguments.split_whitespace());
    command
}

/// Its exit code and what it said to standard error, on one line.
pub(crate) fn said(output: &Output) -> (i32, String) {
    let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    (output.status.code().unwrap_or(-1), text)
}

/// True for root; otherwise says that the test is skipped, which fails under `CI=true`.
pub(crate) fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(env::var("CI").as_deref() != Ok("true"), "CI may not skip: needs root");
        eprintln!("SKIPPED: needs root, for network namespaces");
    }
    root
}

/// Runs `work` on a thread in a network namespace of its own, which ends with the last thing in it.
pub(crate) fn in_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        work()
    };
    thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| panic::resume_unwind(panic))
}
