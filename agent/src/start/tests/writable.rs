//! What is promised of a root file system that instances can write to.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use headstart_config::Mount;

use super::bed::Bed;
use super::*;

const MIB: u64 = 1 << 20;

/// As `find -ls` would show it.
fn listing(root: &Path) -> String {
    let mut entries: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let line = |path: &std::path::PathBuf| {
        let own = fs::symlink_metadata(path).unwrap();
        let below = if own.is_dir() { listing(path) } else { String::new() };
        format!("{} {:o} {} {} {}\n{below}", path.display(), own.mode(), own.uid(), own.len(), own.mtime())
    };
    entries.iter().map(line).collect()
}

/// What is root's on the disk is the function's in the container, and stays what it is on the disk.
pub(super) async fn root_is_written_to(mut bed: Bed) {
    bed.writable = Some(MIB);
    let (root, user) = (bed.rootfs(), bed.kind.user());
    for place in ["var/cache", "proc", "dev", "tmp", "others"] {
        fs::create_dir_all(root.join(place)).unwrap();
    }
    fs::set_permissions(root.join("var/cache"), Permissions::from_mode(0o750)).unwrap();
    fs::write(root.join("etc-file"), "old").unwrap();
    for (name, owner) in [("others/web", 33), ("others/functions", user)] {
        fs::write(root.join(name), "old").unwrap();
        chown(root.join(name), Some(owner), Some(owner)).unwrap();
    }
    let source = bed.rootfs().with_file_name("data");
    fs::write(&source, "7").unwrap();
    bed.mounts = vec![Mount { source, target: "/srv/made/data".into(), read_only: true }];
    let before = listing(&root);
    let script = format!(
        "[ -e /var/cache/mine ] && exit 2; echo new >/var/cache/mine || exit 3; echo new >/etc-file || exit 4; \
         echo new 2>/dev/null >/others/web && exit 5; [ $(cat /others/functions) = old ] || exit 6; \
         mkdir /made || exit 7; ls -lnd /var/cache | grep -q ' {user} *{user} ' || exit 8; \
         [ $(cat /srv/made/data) = 7 ] || exit 10; ls / | grep -q '^lower' && exit 11; \
         grep -q ' / rw,.* overlay {source} ' /proc/self/mountinfo || exit 12; \
         cat /dev/zero 2>/dev/null | head -c {most} >/others-too && exit 13; [ $(wc -c </others-too) -lt {most} ] || exit 14; exit 9",
        most = 2 * MIB,
        source = root.display(),
    );
    // The second sees nothing of the first.
    for _ in 0..2 {
        assert_eq!(bed.run(&script).await.code, Some(9));
        bed.assert_no_trace();
    }
    assert_eq!(listing(&root), before, "nothing is changed on the disk");
}

/// Where the function owns the root directory, nothing is mapped.
pub(super) async fn the_functions_own_stays_its_own(mut bed: Bed) {
    bed.writable = Some(MIB);
    let (root, user) = (bed.rootfs(), bed.kind.user());
    for place in ["", "mine", "roots"] {
        let place = root.join(place);
        fs::create_dir_all(&place).unwrap();
        chown(place, Some(user), Some(user)).unwrap();
    }
    chown(root.join("roots"), Some(0), Some(0)).unwrap();
    let script = "touch /mine/x /x || exit 2; touch /roots/x 2>/dev/null && exit 3; exit 9";
    assert_eq!(bed.run(script).await.code, Some(9));
    bed.assert_no_trace();
}

pub(super) async fn the_written_are_taken_over(mut bed: Bed) {
    bed.writable = Some(MIB);
    the_running_are_taken_over(bed).await;
}

/// A file system that cannot be below an overlay, or not with other owners, is named.
pub(super) async fn what_cannot_be_written_to_is_named(mut bed: Bed) {
    bed.writable = Some(MIB);
    let (root, proc) = (bed.rootfs(), bed.rootfs().with_file_name("proc"));
    std::os::unix::fs::symlink("/proc", &proc).unwrap();
    fs::rename(&root, root.with_file_name("away")).unwrap();
    fs::rename(&proc, &root).unwrap();
    let error = bed.fails(&["/bin/true"]).await;
    let said = error.to_string();
    assert!(said.contains("cannot be made writable") && said.contains("writable = false"), "{said}");
    bed.assert_no_trace();
}
