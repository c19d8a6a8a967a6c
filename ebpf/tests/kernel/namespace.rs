//! A network namespace of a test's own, with nothing but its loopback.

use std::fs::File;
use std::process::Command;

use aya::programs::SkLookup;
use headstart_ebpf::maps::PROGRAM_LOOKUP;
use nix::sched::{CloneFlags, unshare};

use headstart_ebpf_test_support::kernel::Kernel;

/// An address that is the namespace's own and not of the loopback network, which sensors on interfaces refuse.
pub(crate) const ADDRESS: &str = "192.0.2.1";

/// Runs `test` in a new namespace, which goes with its thread; not where this user may not load programs.
pub(crate) fn alone(test: impl FnOnce(Kernel) + Send + 'static) {
    let Some(kernel) = Kernel::open() else { return };
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a namespace");
        ip(&["link", "set", "lo", "up"]);
        ip(&["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
        test(kernel);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {}: {status}", arguments.join(" "));
}

/// Attaches the socket lookup to this thread's namespace.
pub(crate) fn attach_lookup(kernel: &mut Kernel) {
    let namespace = File::open("/proc/thread-self/ns/net").expect("this thread's namespace");
    let program: &mut SkLookup = kernel.ebpf.program_mut(PROGRAM_LOOKUP).unwrap().try_into().unwrap();
    program.attach(namespace).expect("the first lookup of the namespace");
}
