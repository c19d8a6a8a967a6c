//! The same promises, asked of every runtime.

mod adopt;
mod bed;
mod docker;
mod errors;
mod files;
mod freeze;
mod measure;
mod parts;
mod writable;

use std::os::fd::AsRawFd as _;
use std::time::Duration;

use futures_util::FutureExt as _;
use headstart_config::Agent;
use nix::sys::socket::{MsgFlags, recv};
use rustix::thread::CapabilitySet;

use super::*;
use crate::privilege;
use adopt::*;
use bed::Bed;
use docker::*;
use files::*;
use freeze::*;
use writable::*;

/// Far above what any step here takes, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Set where one test runs alone in its process.
const ALONE: &str = "HEADSTART_TEST_ALONE";

/// Runs a test of this kind in a process of its own: descriptors and children
/// are counted per process, and tests beside it come and go with theirs.
async fn alone(kind: bed::Kind, promise: &str) {
    alone_as(&format!("start::tests::on_{}::{promise}", format!("{kind:?}").to_lowercase())).await;
}

async fn alone_as(test: &str) {
    let mut copy = tokio::process::Command::new(std::env::current_exe().unwrap());
    copy.args(["--exact", test, "--test-threads=1"]).env(ALONE, "1");
    let output = copy.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// One `#[tokio::test]` per promise and runtime.
macro_rules! every_runtime {
    ($($kind:ident $variant:ident: $($promise:ident)*;)*) => {$(
        mod $kind {
            use super::bed::Kind;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    let Some(bed) = super::bed::lay(Kind::$variant).await else { return };
                    super::$promise(bed).await;
                }
            )*
        }
    )*};
}

every_runtime! {
    on_oci Oci: sees_what_is_mounted has_its_secrets parked_runs_nothing released_runs_and_reports_its_code control_reaches_the_function
        terminate_asks remove_insists is_alone_and_powerless opens_its_output_anew root_is_read_only forks_are_limited
        memory_is_limited missing_command_is_named unfit_command_is_named death_while_parked_is_told
        runs_only_once owns_its_processes_only nothing_is_left
        frozen_stands_still_until_it_is_thawed the_frozen_can_be_removed the_frozen_hear_that_they_shall_stop
        the_dead_are_not_frozen frozen_survivors_may_finish_too
        the_running_are_taken_over the_frozen_are_taken_over others_are_not_taken_over what_is_kept_is_let_alone
        survivors_may_finish_and_the_parked_go room_is_made_as_needed_only strange_names_are_refused
        is_prepared_in_the_background_and_runs_in_the_foreground
        root_is_written_to the_functions_own_stays_its_own the_written_are_taken_over what_cannot_be_written_to_is_named;
    on_crun Crun: root_is_written_to;
    on_namespaced Namespaced: sees_what_is_mounted volumes_keep_the_limits_of_their_mounts has_its_secrets released_runs_and_reports_its_code
        control_reaches_the_function terminate_asks remove_insists is_alone_and_powerless opens_its_output_anew root_is_read_only
        memory_is_limited missing_command_is_named unfit_command_is_named death_while_parked_is_told
        owns_its_processes_only nothing_is_left frozen_stands_still_until_it_is_thawed the_frozen_are_taken_over
        survivors_may_finish_and_the_parked_go root_is_written_to the_functions_own_stays_its_own;
    on_namespaced_crun NamespacedCrun: root_is_written_to sees_what_is_mounted has_its_secrets is_alone_and_powerless opens_its_output_anew
        the_running_are_taken_over;
    on_process Process: io_uring_is_refused sees_what_is_mounted has_its_secrets parked_runs_nothing released_runs_and_reports_its_code control_reaches_the_function
        terminate_asks remove_insists is_alone_and_powerless opens_its_output_anew forks_are_limited
        memory_is_limited missing_command_is_named unfit_command_is_named death_while_parked_is_told
        runs_only_once owns_its_processes_only nothing_is_left
        frozen_stands_still_until_it_is_thawed the_frozen_can_be_removed the_frozen_hear_that_they_shall_stop
        the_dead_are_not_frozen frozen_survivors_may_finish_too
        the_running_are_taken_over the_frozen_are_taken_over others_are_not_taken_over what_is_kept_is_let_alone
        survivors_may_finish_and_the_parked_go room_is_made_as_needed_only strange_names_are_refused
        is_prepared_in_the_background_and_runs_in_the_foreground;
    on_docker Docker: sees_what_is_mounted parked_runs_nothing released_runs_and_reports_its_code control_reaches_the_function
        terminate_asks remove_insists is_alone_and_powerless opens_its_output_anew root_is_read_only forks_are_limited
        memory_is_limited missing_command_is_named
        runs_only_once owns_its_processes_only nothing_is_left
        frozen_stands_still_until_it_is_thawed the_frozen_can_be_removed the_frozen_hear_that_they_shall_stop
        the_dead_are_not_frozen frozen_survivors_may_finish_too
        the_running_are_taken_over the_frozen_are_taken_over others_are_not_taken_over what_is_kept_is_let_alone
        survivors_may_finish_and_the_parked_go room_is_made_as_needed_only strange_names_are_refused
        is_found_without_its_directory is_not_checked_for_health;
}

async fn parked_runs_nothing(bed: Bed) {
    let parked = bed.prepare("sleep 63").await;
    assert_eq!(bed::pid_of("/bin/sh -c sleep 63", &parked).or(bed::pid_of("sleep 63", &parked)), None);
    assert!(parked.process.exited().now_or_never().is_none());
    parked.process.remove().await.unwrap();
}

async fn released_runs_and_reports_its_code(bed: Bed) {
    for code in [0, 3] {
        let parked = bed.prepare(&format!("exit {code}")).await;
        let before_ns = headstart_wire::monotonic_ns().unwrap();
        let exec_ns = parked.process.release().await.unwrap();
        assert!(exec_ns >= before_ns && exec_ns <= headstart_wire::monotonic_ns().unwrap());
        // Two tasks may wait for the same end.
        let (one, two) = tokio::join!(parked.process.exited(), parked.process.exited());
        assert_eq!(one, Exit { code: Some(code), signal: None, oom: false });
        assert_eq!(one, two);
        parked.process.remove().await.unwrap();
    }
}

async fn is_prepared_in_the_background_and_runs_in_the_foreground(bed: Bed) {
    let own = rustix::process::getpriority_process(None).unwrap();
    // The nice value is field 19 (proc_pid_stat(5)); the shell's own name holds no blank.
    let parked = bed
        .prepare(&format!("read -r line </proc/self/stat; set -- $line; [ ${{19}} = {own} ] && exit 7"))
        .await;
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pid = pids.find(|pid| parked.process.owns(*pid)).expect("a parked process");
    let prepared = rustix::process::getpriority_process(rustix::process::Pid::from_raw(pid)).unwrap();
    assert_eq!(prepared, (own + 10).min(19));
    parked.process.release().await.unwrap();
    assert_eq!(parked.process.exited().await.code, Some(7));
    parked.process.remove().await.unwrap();
}

async fn control_reaches_the_function(bed: Bed) {
    let script = if bed.inherits() {
        "[ \"$HEADSTART_CONTROL_FD\" = 3 ] && echo hello >&3; ls /proc/self/fd/5 && exit 4; sleep 60"
    } else {
        "[ -S /run/headstart/control.sock ] || exit 3; sleep 60"
    };
    let parked = bed.prepare(script).await;
    parked.process.release().await.unwrap();
    match &parked.control {
        ControlEnd::Connected(channel) => {
            let mut packet = [0u8; 64];
            let length =
                bed.eventually(|| recv(channel.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).ok()).await;
            assert_eq!(&packet[..length], b"hello\n");
        }
        ControlEnd::Listening(listener) => bed.connects(listener, &parked).await,
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), parked.process.exited()).await.is_err());
    parked.process.remove().await.unwrap();
}

async fn terminate_asks(bed: Bed) {
    let parked = bed.prepare("trap 'exit 5' TERM; while :; do sleep 0.02; done").await;
    parked.process.release().await.unwrap();
    let exit = bed.eventually_ends(&parked, true).await;
    assert_eq!(exit.code, Some(5), "{exit}");
    parked.process.terminate().await;
    parked.process.remove().await.unwrap();
}

async fn remove_insists(bed: Bed) {
    let parked = bed.prepare("trap '' TERM; sleep 66 & while :; do sleep 0.02; done").await;
    parked.process.release().await.unwrap();
    // From then on it ignores the signal.
    bed.eventually(|| bed::pid_of("sleep 66", &parked)).await;
    parked.process.terminate().await;
    assert!(tokio::time::timeout(Duration::from_millis(100), parked.process.exited()).await.is_err());
    parked.process.remove().await.unwrap();
    assert_eq!(parked.process.exited().await.signal, Some(9));
    parked.process.remove().await.unwrap();
    bed.assert_no_trace();
}

async fn is_alone_and_powerless(bed: Bed) {
    // Without a filter an unprivileged user may make user namespaces, the way to many old holes.
    let user = bed.kind.user();
    let filter = "grep -q '^Seccomp:.2' /proc/self/status || exit 11; unshare -U true 2>/dev/null && exit 12";
    let script = format!(
        "[ $(grep -c : /proc/net/dev) = 1 ] || exit 2
        for set in Inh Prm Eff Bnd Amb; do
            grep -q \"^Cap$set:.0000000000000000\" /proc/self/status || exit 3
        done
        grep -q '^NoNewPrivs:.1' /proc/self/status || exit 4; {filter}
        grep -q '^Uid:.{user}' /proc/self/status || exit 13
        [ $$ = 1 ] || exit 5
        mount -t tmpfs none /tmp 2>/dev/null && exit 6
        [ $(ls /proc/self/fd | wc -l) -le 5 ] || exit 7
        echo x > /tmp/x || exit 8
        [ \"$GREETING\" = 'hello world' ] || exit 9
        [ -n \"$PATH\" ] || exit 10
        exit 0"
    );
    assert_eq!(bed.run(&script).await.code, Some(0));
}

/// As `error_log /dev/stderr` does, in the images of many servers.
async fn opens_its_output_anew(bed: Bed) {
    let exit =
        bed.run("echo a >> /proc/self/fd/1 || exit 1; echo b >> /proc/self/fd/2 || exit 2; exit 9").await;
    assert_eq!(exit.code, Some(9));
}

async fn root_is_read_only(bed: Bed) {
    assert_eq!(
        bed.run("touch /bin/new 2>/dev/null && exit 1; touch /new 2>/dev/null && exit 1; exit 0").await.code,
        Some(0)
    );
}

async fn forks_are_limited(bed: Bed) {
    // A shell that cannot fork ends with an error; one that can would start 200.
    let exit = bed.run("i=0; while [ $i -lt 200 ]; do sleep 60 & i=$((i+1)); done; exit 0").await;
    assert_ne!(exit.code, Some(0), "no limit on processes");
    bed.assert_no_trace();
}

async fn memory_is_limited(bed: Bed) {
    // tail keeps the last line, and /dev/zero has only one: it needs all the memory there is.
    let exit = bed.run("tail /dev/zero").await;
    assert!(exit.oom, "{exit:?}");
    assert_eq!(exit.to_string(), "out of memory");
}

async fn missing_command_is_named(bed: Bed) {
    let error = bed.fails(&["/no/such/program"]).await;
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    assert_eq!(error.reason(), "command_missing", "{error}");
    bed.assert_no_trace();
}

async fn unfit_command_is_named(bed: Bed) {
    let error = bed.fails(&[&bed.unfit_program()]).await;
    assert_eq!(error.reason(), "exec", "{error}");
    assert!(error.to_string().to_lowercase().contains("exec format error"), "{error}");
    bed.assert_no_trace();
}

async fn death_while_parked_is_told(bed: Bed) {
    let parked = bed.prepare("exit 0").await;
    bed.kill_parked().await;
    let exit = tokio::time::timeout(SOON, parked.process.exited()).await.unwrap();
    assert_eq!(exit.signal, Some(9));
    let error = parked.process.release().await.unwrap_err();
    assert_eq!(error.reason(), "died", "{error}");
    parked.process.remove().await.unwrap();
    bed.assert_no_trace();
}

async fn runs_only_once(bed: Bed) {
    let parked = bed.prepare("sleep 60").await;
    parked.process.release().await.unwrap();
    assert_eq!(parked.process.release().await.unwrap_err().reason(), "already_released");
    parked.process.remove().await.unwrap();
}

async fn owns_its_processes_only(bed: Bed) {
    let parked = bed.prepare("sleep 61 & sleep 62").await;
    parked.process.release().await.unwrap();
    let pid = bed.eventually(|| bed::pid_of("sleep 61", &parked)).await;
    assert!(!parked.process.owns(std::process::id() as i32));
    parked.process.remove().await.unwrap();
    assert!(!parked.process.owns(pid));
}

async fn nothing_is_left(bed: Bed) {
    if std::env::var_os(ALONE).is_none() {
        return alone(bed.kind(), "nothing_is_left").await;
    }
    bed.run("exit 0").await;
    let before = bed.traces();
    for _ in 0..20 {
        bed.prepare("exit 0").await.process.remove().await.unwrap();
    }
    // Tasks that wait for a container close their descriptors a moment after its end.
    let mut after = bed.traces();
    let deadline = tokio::time::Instant::now() + SOON;
    while after.exceed(&before) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
        after = bed.traces();
    }
    assert!(!after.exceed(&before), "{before:?}, then {after:?}");
    bed.assert_no_trace();
}

/// A function that ends when it is asked to, and that has begun when its `sleep` runs.
const POLITE: &str = "trap 'exit 5' TERM; sleep 65 & while :; do sleep 0.02; done";

async fn survivors_may_finish_and_the_parked_go(bed: Bed) {
    let parked = bed.prepare("sleep 60").await;
    let running = bed.prepare(POLITE).await;
    running.process.release().await.unwrap();
    bed.eventually(|| bed::pid_of("sleep 65", &running)).await;
    // Of a function that ignores it, and is no longer configured.
    let other = bed.runtime_for("f-more", &["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.02; done"]);
    let stubborn = other.prepare(&format!("{}-1", bed.function("f-more"))).await.unwrap();
    stubborn.process.release().await.unwrap();

    let survivors = bed.survivors().await;
    assert_eq!(survivors.running(), 2);
    // What is made from here on is this agent's own.
    let own = bed.prepare("sleep 60").await;
    survivors.end(Duration::from_secs(2)).await;
    let ended = async |survivor: PreparedContainer| {
        tokio::time::timeout(SOON, survivor.process.exited()).await.expect("it ended")
    };
    assert_eq!(ended(running).await.code, Some(5));
    assert_eq!(ended(stubborn).await.signal, Some(9));
    assert_ne!(ended(parked).await.code, Some(0));
    own.process.release().await.unwrap();
    own.process.remove().await.unwrap();
    bed.assert_no_trace();
    assert_eq!(bed.survivors().await.running(), 0);
}

async fn room_is_made_as_needed_only(bed: Bed) {
    let _parked = bed.prepare("sleep 60").await;
    let running = bed.prepare(POLITE).await;
    running.process.release().await.unwrap();
    bed.eventually(|| bed::pid_of("sleep 65", &running)).await;
    let asked = std::cell::Cell::new(0);
    let enough_at = |last| {
        asked.set(0);
        let asked = &asked;
        move || asked.replace(asked.get() + 1) == last
    };
    let mut survivors = bed.survivors().await;
    survivors.make_room(SOON, enough_at(0)).await;
    // The parked one was enough.
    survivors.make_room(SOON, enough_at(1)).await;
    assert_eq!(survivors.running(), 1);
    assert!(running.process.exited().now_or_never().is_none());
    // One more: it is asked, and waited for.
    survivors.make_room(SOON, enough_at(1)).await;
    assert_eq!(tokio::time::timeout(SOON, running.process.exited()).await.unwrap().code, Some(5));
    bed.assert_no_trace();
    // There is nothing left to end: that is the end too.
    survivors.make_room(SOON, || false).await;
}

#[test]
fn kept_privileges_suffice_for_oci() {
    kept_privileges_suffice(bed::Kind::Oci, "start::tests::kept_privileges_suffice_for_oci");
}

/// The promises that its own ways could break.
#[test]
fn kept_privileges_suffice_for_crun() {
    kept_privileges_suffice(bed::Kind::Crun, "start::tests::kept_privileges_suffice_for_crun");
}

#[test]
fn kept_privileges_suffice_for_user_namespaces() {
    kept_privileges_suffice(
        bed::Kind::Namespaced,
        "start::tests::kept_privileges_suffice_for_user_namespaces",
    );
}

#[test]
fn kept_privileges_suffice_for_process() {
    kept_privileges_suffice(bed::Kind::Process, "start::tests::kept_privileges_suffice_for_process");
}

/// Again what needs most, in a process that has given up all that the agent does.
fn kept_privileges_suffice(kind: bed::Kind, test: &str) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all();
    if std::env::var_os(ALONE).is_none() {
        return runtime.build().unwrap().block_on(alone_as(test));
    }
    // The test runner's own thread keeps what it has, and that is reported. Those that begin now do not.
    let needed = bed::driver(kind, &Agent::default()).capabilities();
    let dropped = privilege::drop_all_but(needed | CapabilitySet::CHOWN);
    assert!(matches!(dropped, Ok(_) | Err(privilege::PrivilegeError::Threads(1))), "{dropped:?}");
    let with_secrets = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    with_secrets.unwrap().block_on(async {
        if let Some(bed) = bed::lay(kind).await {
            has_its_secrets(bed).await;
        }
    });
    let dropped = privilege::drop_all_but(needed);
    assert!(matches!(dropped, Ok(_) | Err(privilege::PrivilegeError::Threads(1))), "{dropped:?}");
    runtime.build().unwrap().block_on(async {
        let Some(bed) = bed::lay(kind).await else { return };
        released_runs_and_reports_its_code(bed).await;
        is_alone_and_powerless(bed::lay(kind).await.unwrap()).await;
        if !bed::lay(kind).await.unwrap().kind.is_plain() {
            root_is_written_to(bed::lay(kind).await.unwrap()).await;
        }
        terminate_asks(bed::lay(kind).await.unwrap()).await;
        memory_is_limited(bed::lay(kind).await.unwrap()).await;
        owns_its_processes_only(bed::lay(kind).await.unwrap()).await;
        the_running_are_taken_over(bed::lay(kind).await.unwrap()).await;
        frozen_stands_still_until_it_is_thawed(bed::lay(kind).await.unwrap()).await;
        the_frozen_hear_that_they_shall_stop(bed::lay(kind).await.unwrap()).await;
        survivors_may_finish_and_the_parked_go(bed::lay(kind).await.unwrap()).await;
    });
}

/// io_uring_setup(2) with arguments that the kernel would find wrong (`EFAULT`).
async fn io_uring_is_refused(bed: Bed) {
    let script = "import ctypes, sys; libc = ctypes.CDLL(None, use_errno=True); libc.syscall(425, 1, 0); \
                  sys.exit(100 + ctypes.get_errno())";
    let python = ["/usr/bin/python3", "-c", script];
    let parked = bed.runtime(&python).prepare(&bed.instance()).await.unwrap();
    parked.process.release().await.unwrap();
    assert_eq!(parked.process.exited().await.code, Some(100 + nix::errno::Errno::EPERM as i32));
    parked.process.remove().await.unwrap();
}

async fn strange_names_are_refused(bed: Bed) {
    let runtime = bed.runtime(&["/bin/true"]);
    let function = bed.function("f");
    let long = format!("{function}-{}", "0".repeat(96));
    for name in
        ["", "../x-1", &format!("{function}-a-1"), &format!("{function}-"), &format!("{function}-/"), &long]
    {
        let error = runtime.prepare(name).await.err().expect("refused");
        assert_eq!(error.reason(), "instance_name", "{name:?}: {error}");
    }
}
