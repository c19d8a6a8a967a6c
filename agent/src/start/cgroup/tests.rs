use super::*;

const ALL: Shares = Shares { cpu_millis: Some(1500), cpu_weight: Some(200), io_weight: Some(2000) };

/// A directory in the place of the kernel's, in which these files are already.
fn stand_in(mount: &Path, files: &[&str]) -> Cgroup {
    for file in files {
        let file = mount.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "").unwrap();
    }
    Cgroup { mount: mount.to_owned(), instance: "f-1".to_owned() }
}

#[test]
fn shares_are_written_in_the_units_of_the_second_version() {
    let mount = tempfile::tempdir().unwrap();
    let own =
        ["cpu.max", "cpu.weight", "io.weight", "io.bfq.weight"].map(|file| format!("headstart/f-1/{file}"));
    let files: Vec<_> = own.iter().map(String::as_str).chain(["cgroup.controllers"]).collect();
    let cgroup = stand_in(mount.path(), &files);
    cgroup.create(1 << 20, 7, &ALL).unwrap();
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
        stand_in(mount.path(), &["memory/x", "pids/x", "cpu/x", "blkio/headstart/f-1/blkio.bfq.weight"]);
    cgroup.create(1 << 20, 7, &ALL).unwrap();
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
    let cgroup = stand_in(mount.path(), &["memory/x", "pids/x"]);
    let error = cgroup.create(1 << 20, 7, &ALL).unwrap_err().to_string();
    assert!(error.contains("cpu.cfs_period_us"), "{error}");
    cgroup.create(1 << 20, 7, &Shares { io_weight: Some(5), ..Shares::default() }).unwrap();
}
