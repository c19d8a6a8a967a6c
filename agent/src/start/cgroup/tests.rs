//! On directories that stand in for hierarchies.

use super::*;

const LIMIT: MemoryLimit = MemoryLimit { bytes: 1 << 20, swaps: false };
const ALL: Shares = Shares { cpu_millis: Some(1500), cpu_weight: Some(200), io_weight: Some(2000) };

/// A directory in the place of the kernel's, in which these files are already.
fn hierarchy(mount: &Path, files: &[&str]) -> Cgroup {
    for file in files {
        let file = mount.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "").unwrap();
    }
    Cgroup { mount: mount.to_owned(), path: "headstart/f-1".into() }
}

#[test]
fn shares_are_written_in_the_units_of_the_second_version() {
    let mount = tempfile::tempdir().unwrap();
    let own =
        ["cpu.max", "cpu.weight", "io.weight", "io.bfq.weight"].map(|file| format!("headstart/f-1/{file}"));
    let parents = ["cgroup.controllers", "cgroup.subtree_control", "headstart/cgroup.subtree_control"];
    let files: Vec<_> = own.iter().map(String::as_str).chain(parents).collect();
    let cgroup = hierarchy(mount.path(), &files);
    cgroup.create(&LIMIT, 7, &ALL).unwrap();
    let read = |file: &str| fs::read_to_string(mount.path().join(file)).unwrap();
    assert_eq!(own.each_ref().map(|file| read(file)), ["150000 100000", "200", "default 2000", "1000"]);
    assert_eq!(read("cgroup.subtree_control"), "+io", "the last one written");
    assert_eq!(read("headstart/cgroup.subtree_control"), "+io");
    assert_eq!(read("headstart/f-1/pids.max"), "7");
}

#[test]
fn shares_are_written_in_the_units_of_the_first_version() {
    let mount = tempfile::tempdir().unwrap();
    let cgroup =
        hierarchy(mount.path(), &["memory/x", "pids/x", "cpu/x", "blkio/headstart/f-1/blkio.bfq.weight"]);
    cgroup.create(&LIMIT, 7, &ALL).unwrap();
    let own = ["cpu/{}/cpu.cfs_period_us", "cpu/{}/cpu.cfs_quota_us", "cpu/{}/cpu.shares"];
    let read =
        |file: &str| fs::read_to_string(mount.path().join(file.replace("{}", "headstart/f-1"))).unwrap();
    assert_eq!(own.map(read), ["100000", "150000", "2048"]);
    assert_eq!(read("blkio/{}/blkio.bfq.weight"), "1000");
    assert!(cgroup.join_files().is_empty() || cgroup.join_files().len() == 4, "all that were made");
}

#[test]
fn a_quota_without_its_controller_is_an_error_and_a_weight_of_devices_is_not() {
    let mount = tempfile::tempdir().unwrap();
    let cgroup = hierarchy(mount.path(), &["memory/x", "pids/x"]);
    let error = cgroup.create(&LIMIT, 7, &ALL).unwrap_err().to_string();
    assert!(error.contains("cpu.cfs_period_us"), "{error}");
    cgroup.create(&LIMIT, 7, &Shares { io_weight: Some(5), ..Shares::default() }).unwrap();
}

fn agent(cgroup_parent: &str, state_dir: &str) -> Agent {
    Agent { cgroup_parent: cgroup_parent.into(), state_dir: state_dir.into(), ..Agent::default() }
}

fn stand_in(mount: &Path, agent: &Agent) -> Cgroups {
    Cgroups { mount: mount.to_owned(), ..Cgroups::new(agent) }
}

#[test]
fn the_cgroups_of_agents_with_different_state_directories_are_apart() {
    let path = |state_dir| Cgroups::new(&agent("/headstart", state_dir)).of("f-1").path();
    assert_eq!(path("/run/headstart"), Path::new("/headstart/run:headstart/f-1"));
    assert_eq!(path("/run/a:b"), Path::new("/headstart/run:a\\x3ab/f-1"));
    assert_eq!(path("/run/a/b"), Path::new("/headstart/run:a:b/f-1"));
}

#[test]
fn controllers_are_enabled_all_the_way_down_where_they_are_not() {
    let mount = tempfile::tempdir().unwrap();
    fs::write(mount.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
    let cgroup = stand_in(mount.path(), &agent("/a.slice/b.service", "/run/headstart")).of("f-1");
    let own = mount.path().join("a.slice/b.service/run:headstart/f-1");
    fs::create_dir_all(&own).unwrap();
    // The stand-in keeps the last word that was written, or what was there.
    let files: Vec<_> =
        own.ancestors().skip(1).take(4).map(|above| above.join("cgroup.subtree_control")).collect();
    for (file, enabled) in files.iter().zip(["", "memory", "cpu memory pids", "cpu memory pids"]) {
        fs::write(file, enabled).unwrap();
    }
    cgroup.create(&LIMIT, 7, &Shares::default()).unwrap();
    let said: Vec<_> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    assert_eq!(said, ["+pids", "+pids", "cpu memory pids", "cpu memory pids"]);
    assert_eq!(fs::read_to_string(own.join("memory.max")).unwrap(), "1048576");
    assert_eq!(fs::read_to_string(own.join("pids.max")).unwrap(), "7");
}

#[test]
fn a_parent_that_another_makes_must_be_there() {
    let mount = tempfile::tempdir().unwrap();
    let own = stand_in(mount.path(), &agent("/system.slice/headstart-functions.service", "/run/headstart"));
    let lack = own.check().unwrap_err().to_string();
    assert!(lack.contains("no cgroup /system.slice/headstart-functions.service"), "{lack}");
    fs::create_dir_all(mount.path().join("memory/system.slice/headstart-functions.service")).unwrap();
    own.check().unwrap();
    stand_in(mount.path(), &agent("/headstart", "/run/headstart")).check().unwrap();
}

#[test]
fn an_instance_whose_files_are_gone_is_found_by_its_cgroup() {
    let mount = tempfile::tempdir().unwrap();
    let cgroups = stand_in(mount.path(), &agent("/headstart", "/run/headstart"));
    for instance in ["f-1", "g-2"] {
        fs::create_dir_all(mount.path().join("pids/headstart/run:headstart").join(instance)).unwrap();
    }
    fs::create_dir_all(mount.path().join("pids/headstart/run:other/f-3")).unwrap();
    let orphans = cgroups.orphans(|instance| instance == "f-1");
    let names: Vec<_> = orphans.iter().map(|orphan| orphan.instance()).collect();
    assert_eq!(names, ["g-2"]);
    assert!(!orphans[0].runs());
}
