use std::process::Command;

use headstart_config::Config;

use super::*;
use crate::start::Drivers;

/// Set where a test runs alone in its process, which it makes powerless.
const ALONE: &str = "HEADSTART_TEST_ALONE";

fn config(interfaces: &str, more: &str) -> Config {
    let text = format!("[agent]\ninterfaces = {interfaces}\n[syn]\nlookup = false\n{more}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("headstart.toml");
    fs::write(&file, text).unwrap();
    Config::load(&file).unwrap()
}

fn function(runtime: &str) -> String {
    format!("[[function]]\nname = \"{}\"\nlisten = \"127.0.0.1:{}\"\n{runtime}\n", "f", 8081)
}

const OCI: &str = "runtime = \"oci\"\nrootfs = \"/rootfs\"\ncommand = [\"/f\"]";
const DOCKER: &str = "runtime = \"docker\"\nimage = \"f:1\"";
const PROCESS: &str = "runtime = \"process\"\ncommand = [\"/f\"]";

/// What its functions need, and the agent itself.
fn needed(config: &Config) -> CapabilitySet {
    Drivers::new(&config.agent).capabilities(&config.functions) | needs_on((6, 6), config, false)
}

#[test]
fn each_runtime_keeps_its_own() {
    // The limit of open files is this machine's own.
    let kept = |runtime: &str| {
        let mut kept = names(needed(&config("[]", &function(runtime))));
        kept.retain(|name| *name != "SYS_RESOURCE");
        kept
    };
    let process = ["SYS_ADMIN", "SETUID", "SETGID", "SETPCAP", "KILL", "SYS_PTRACE", "SYS_NICE"];
    assert_eq!(kept(PROCESS), [&process[..], &["DAC_OVERRIDE", "NET_ADMIN"]].concat());
    assert_eq!(kept(OCI), [&process[..], &["CHOWN", "FOWNER", "DAC_OVERRIDE", "NET_ADMIN"]].concat());
    assert_eq!(names(needed(&config("[\"eth7\"]", ""))), [""; 0]);
}

#[test]
fn an_older_kernel_and_what_is_left_need_more() {
    let (sensor, none) = (config("[\"eth7\"]", ""), config("[]", ""));
    let on = |release, config| names(needs_on(release, config, false));
    assert_eq!(on((6, 5), &sensor), ["NET_ADMIN"]);
    assert_eq!(on((5, 18), &sensor), ["NET_ADMIN", "BPF"]);
    assert_eq!(on((5, 18), &none), [""; 0]);
    assert_eq!(names(needs_on((6, 6), &none, true)), ["KILL"]);
}

#[test]
fn a_place_of_another_user_needs_more() {
    let directory = tempfile::tempdir().unwrap();
    let docker = function(DOCKER);
    let at = |path: &Path| {
        let text = docker.clone();
        let agent = format!("docker_socket = {:?}\n", path.join("docker.sock"));
        let config = config(&format!("[]\n{agent}"), &text);
        names(needed(&config))
    };
    if !nix::unistd::geteuid().is_root() {
        assert_eq!(at(directory.path()), ["DAC_OVERRIDE"], "everything here is mine");
        return;
    }
    assert_eq!(at(directory.path()), [""; 0]);
    std::os::unix::fs::chown(directory.path(), Some(65534), None).unwrap();
    assert_eq!(at(directory.path()), ["DAC_OVERRIDE"]);
}

#[test]
fn what_loads_and_listens_is_never_kept() {
    let mut kept = FOREIGN | SURVIVORS | OLD_TC | CapabilitySet::SYS_RESOURCE;
    for runtime in [OCI, DOCKER, PROCESS] {
        kept |= needed(&config("[]", &function(runtime)));
    }
    for never in [
        CapabilitySet::BPF,
        CapabilitySet::PERFMON,
        CapabilitySet::SYS_MODULE,
        CapabilitySet::SYS_RAWIO,
        CapabilitySet::SYS_TIME,
        CapabilitySet::SYS_BOOT,
        CapabilitySet::NET_RAW,
        CapabilitySet::NET_BIND_SERVICE,
        CapabilitySet::MAC_ADMIN,
        CapabilitySet::MAC_OVERRIDE,
        CapabilitySet::SYSLOG,
        CapabilitySet::LINUX_IMMUTABLE,
        CapabilitySet::IPC_LOCK,
        CapabilitySet::MKNOD,
        CapabilitySet::SYS_CHROOT,
    ] {
        assert!(!kept.contains(never), "{never:?}");
    }
    assert_eq!(OLD_BPF, CapabilitySet::BPF);
    let nameless = kept - NAMES.iter().fold(CapabilitySet::empty(), |all, (named, _)| all | *named);
    assert_eq!(nameless, CapabilitySet::empty(), "logs do not show it");
}

#[test]
fn the_kernel_says_its_release() {
    assert!(kernel_release().unwrap() > (3, 0));
}

/// Capabilities belong to threads, and the test runner has several: so this is its own process, and there a
/// thread that is the only one that counts.
#[test]
fn what_is_dropped_is_gone_from_every_set_and_for_children() {
    if env_is_set() {
        return drop_here();
    }
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        println!("SKIPPED: needs root");
        return;
    }
    let test = "privilege::tests::what_is_dropped_is_gone_from_every_set_and_for_children";
    let mut copy = Command::new(std::env::current_exe().unwrap());
    let output = copy.args(["--exact", test, "--test-threads=1"]).env(ALONE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn env_is_set() -> bool {
    std::env::var_os(ALONE).is_some()
}

fn drop_here() {
    // The runner's main thread waits with all that it had: it is the one that is reported.
    let others = fs::read_dir("/proc/self/task").unwrap().count() - 1;
    match drop_all_but(OLD_TC) {
        Ok(kept) => assert_eq!((others, kept), (0, vec!["NET_ADMIN"])),
        Err(PrivilegeError::Threads(count)) => assert_eq!(count, others),
        Err(error) => panic!("{error}"),
    }
    let own = fs::read_to_string("/proc/thread-self/status").unwrap();
    let child = Command::new("cat").arg("/proc/self/status").output().unwrap().stdout;
    for status in [own, String::from_utf8(child).unwrap()] {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap().trim().to_owned()
        };
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(field(set), format!("{:016x}", CapabilitySet::NET_ADMIN.bits()), "{set}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs"), "1");
    }
    // A second time is harmless, though the right to change the bounding set is gone.
    assert!(matches!(drop_all_but(CapabilitySet::empty()), Ok(kept) if kept.is_empty()) || others > 0);
    assert_eq!(rustix::thread::capabilities(None).unwrap().permitted, CapabilitySet::empty());
}
