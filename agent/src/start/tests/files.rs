//! What a function sees of the node: mounts and secrets.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use headstart_config::{Mount, Secret};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::bed::Bed;
use super::*;

const SECRET: &str = "a secret word";

pub(super) async fn sees_what_is_mounted(mut bed: Bed) {
    let volume = bed.rootfs().with_file_name("volume");
    fs::create_dir_all(volume.join("out")).unwrap();
    fs::write(volume.join("data"), "7").unwrap();
    fs::set_permissions(volume.join("out"), Permissions::from_mode(0o777)).unwrap();
    let volume_at = |source: &Path, target: &str, read_only| Mount {
        source: source.to_owned(),
        target: target.into(),
        read_only,
    };
    bed.mounts = vec![
        volume_at(&volume, "/tmp/in", true),
        volume_at(&volume.join("out"), "/tmp/out", false),
        volume_at(&volume.join("data"), "/tmp/one/data", true),
    ];
    if !bed.kind().is_plain() {
        fs::create_dir(bed.rootfs().join("srv")).unwrap();
        bed.mounts.push(volume_at(&volume, "/srv", true));
    }
    let script = "[ \"$(cat /tmp/in/data)\" = 7 ] || exit 2; [ \"$(cat /tmp/one/data)\" = 7 ] || exit 3; \
                  touch /tmp/in/out/x && exit 4; touch /tmp/out/y || exit 5; \
                  exit 9";
    let in_the_root = if bed.kind().is_plain() { "" } else { "[ -e /srv/data ] || exit 6; " };
    assert_eq!(bed.run(&format!("{in_the_root}{script}")).await.code, Some(9));
    assert!(volume.join("out/y").exists() && !volume.join("out/x").exists());
    bed.assert_no_trace();
}

pub(super) async fn has_its_secrets(mut bed: Bed) {
    let file = bed.rootfs().with_file_name("word");
    let write = |mode| {
        fs::write(&file, SECRET).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    };
    write(0o600);
    bed.secrets = vec![Secret { file: file.clone(), name: "the-word".to_owned() }];
    let user = bed.kind.user();
    let script = format!(
        "cd /run/secrets; [ \"$(cat the-word)\" = '{SECRET}' ] || exit 2; \
         ls -ln | grep -q '^-r-------- .* {user} *{user} .* the-word$' || exit 3; touch x && exit 4; \
         [ $(ls | wc -l) = 1 ] || exit 5; exit 9"
    );
    let parked = bed.prepare(&script).await;
    let kept = walk(&bed.state_dir());
    assert!(!kept.iter().any(|path| path.ends_with("the-word")), "{kept:?}");
    parked.process.release().await.unwrap();
    assert_eq!(parked.process.exited().await.code, Some(9));
    parked.process.remove().await.unwrap();
    bed.assert_no_trace();

    write(0o644);
    let error = bed.fails(&["/bin/true"]).await;
    assert_eq!(error.reason(), "secret");
    let said = error.to_string();
    assert!(said.contains("is open to others than its owner") && !said.contains(SECRET), "{said}");
    bed.assert_no_trace();
}

/// What is mounted on the node cannot be mounted with more rights in a user namespace.
pub(super) async fn volumes_keep_the_limits_of_their_mounts(mut bed: Bed) {
    let volume = bed.rootfs().with_file_name("limited");
    fs::create_dir(&volume).unwrap();
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("tmpfs"), &volume, Some("tmpfs"), flags, None::<&str>).unwrap();
    bed.mounts = vec![Mount { source: volume.clone(), target: "/tmp/limited".into(), read_only: false }];
    let exit = bed.run("grep -q ' /tmp/limited ro,.*noexec' /proc/self/mountinfo || exit 2; exit 9").await;
    umount2(&volume, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(exit.code, Some(9));
    bed.assert_no_trace();
}

fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
