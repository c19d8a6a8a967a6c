//! Nothing stays behind, not even after a kill.

use crate::common::{LIMIT, ROLE, can_network, copy_of_this_test, plain_function, plays};
use headstart_integration_tests::{
    evidence::usual::Usual,
    lab::cli,
    lab::client,
    lab::leaks::{LeakWatch, descriptors},
    lab::privilege,
    lab::{self, ChildProcess, Delay, DockerDaemon, Link, Namespace, PostgresServer, Scratch},
};
use nix::sys::signal::Signal;
use std::{env, fs, fs::File, path::Path, sync::Arc, thread, time::Duration};

const DOOMED: &str = "doomed";
const NEXT: &str = "next";

#[test]
fn what_is_left_is_found() {
    if !can_network() {
        return;
    }
    let site = Namespace::new("leak").unwrap();
    let watch = LeakWatch::default().name(site.name()).process(std::process::id());
    assert!(watch.snapshot().unwrap().beyond(&Default::default()).contains(&leak(&site)));

    let name = site.name().to_owned();
    drop(site);
    let before = LeakWatch::default().name(&name);
    assert_eq!(before.leaked_since(&Default::default(), LIMIT).unwrap(), Vec::<String>::new());

    let own = std::process::id();
    let file = File::open("/proc/self/status").unwrap();
    assert!(descriptors(own).unwrap().iter().any(|target| target.ends_with("/status")));
    drop(file);
}

fn leak(site: &Namespace) -> String {
    format!("namespace {} (0 -> 1)", site.name())
}

#[test]
fn dropping_everything_leaves_nothing() {
    if !can_network() || !privilege::require_tools(&["runc", "/usr/lib/postgresql"]) {
        return;
    }
    let mut child = ChildProcess::spawn(&mut copy_of_this_test("cleanliness::life_of_a_run", NEXT)).unwrap();
    let (prefix, directory) = (format!("hs{}", child.id()), lab_directory(child.id()));
    let status = child.wait(LIMIT * 3).unwrap();
    assert!(status.success(), "{}", child.log());
    assert_nothing_left(&prefix, &directory);
}

#[test]
fn the_next_run_clears_what_a_killed_one_left() {
    if !can_network() || !privilege::require_tools(&["runc", "dockerd", "/usr/lib/postgresql"]) {
        return;
    }
    let mut child =
        ChildProcess::spawn(&mut copy_of_this_test("cleanliness::life_of_a_run", DOOMED)).unwrap();
    let (prefix, directory) = (format!("hs{}", child.id()), lab_directory(child.id()));
    child.wait_line("all is up", LIMIT * 3).unwrap();
    assert!(!watch(&prefix).snapshot().unwrap().beyond(&Default::default()).is_empty());
    child.stop(Signal::SIGKILL, LIMIT).unwrap();

    let mut next = copy_of_this_test("cleanliness::life_of_a_run", NEXT);
    lab::run(next.env("HEADSTART_TEST_BRIEFLY", "1")).unwrap();
    assert_nothing_left(&prefix, &directory);
}

/// Not a test: a run of its own, which ends well or is killed in full swing.
#[test]
fn life_of_a_run() {
    if env::var(ROLE).is_err() {
        return;
    }
    let site = Namespace::new("client").unwrap();
    if env::var("HEADSTART_TEST_BRIEFLY").is_ok() {
        return;
    }
    let link = Link::connect(&site).unwrap();
    let _delay = Delay::new(&site, Duration::from_millis(2)).unwrap();
    let _database = PostgresServer::inside(&site, link.peer(5432)).unwrap();
    let _files = Scratch::new("files").unwrap();
    let rootfs = plain_function();
    let upstream = lab::free_port().unwrap();
    let environment = [("LISTEN", &*upstream.to_string())];
    let usual = Usual::start(&rootfs, &environment, "127.0.0.1:0".parse().unwrap(), upstream).unwrap();
    client::get(usual.address(), "/", LIMIT).unwrap();
    if plays(DOOMED) {
        let docker = DockerDaemon::start().unwrap();
        let image = rootfs.docker_image(&Arc::new(docker)).unwrap();
        println!("all is up, {} too", image.tag());
        loop {
            thread::park(); // until it is killed
        }
    }
}

fn lab_directory(process: u32) -> String {
    env::temp_dir().join("headstart-lab").join(process.to_string()).display().to_string()
}

fn watch(prefix: &str) -> LeakWatch {
    LeakWatch::default().name(&format!("{prefix}-")).name(&format!("{prefix}v"))
}

fn assert_nothing_left(prefix: &str, directory: &str) {
    let left = watch(prefix).name(directory).leaked_since(&Default::default(), LIMIT).unwrap();
    assert_eq!(left, Vec::<String>::new());
    // Another run on this machine may be the one that clears it.
    let gone = || Ok((!Path::new(directory).exists()).then_some(()));
    cli::eventually("the directory is gone", LIMIT, gone).unwrap();
    let lines = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    let running: Vec<_> = lines.filter(|line| line.contains(&format!("{directory}/"))).collect();
    assert_eq!(running, Vec::<String>::new());
}
