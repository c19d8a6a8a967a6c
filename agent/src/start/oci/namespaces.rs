//! What keeps this node from containers with user namespaces.

use std::fs;

/// The kernel lets something be mounted here without hiding anything: these directories are always empty
/// (`proc_create_mount_point`).
const EMPTY: [&str; 3] = ["/proc/fs/nfsd", "/proc/sys/fs/binfmt_misc", "/proc/xen"];

/// The first thing that is found, and what to do.
pub(super) fn obstacle() -> Option<String> {
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").ok();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    obstacle_of(most.as_deref(), &mounts)
}

fn obstacle_of(most: Option<&str>, mounts: &str) -> Option<String> {
    let otherwise = "or set user_namespaces = false in [agent]";
    match most.map(str::trim) {
        None => {
            return Some(format!(
                "the kernel has no user namespaces (CONFIG_USER_NS): get one that has, {otherwise}"
            ));
        }
        Some("0") => {
            return Some(format!(
                "there may be no user namespace: `sysctl user.max_user_namespaces=65536`, {otherwise}"
            ));
        }
        Some(_) => {}
    }
    // The fifth field is the place (proc_pid_mountinfo(5)).
    let mut places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let hidden = places.find(|place| place.starts_with("/proc/") && !EMPTY.contains(place))?;
    Some(format!(
        "something is mounted at {hidden}, and where a part of /proc is hidden, the kernel lets no user namespace have one: \
         unmount it, take ProtectKernelLogs= and ProtectKernelTunables= out of the unit, {otherwise}"
    ))
}

#[cfg(test)]
mod tests {
    use super::obstacle_of;

    #[test]
    fn what_is_in_the_way_is_named() {
        let line = |place: &str| format!("24 30 0:22 / {place} rw,relatime shared:5 - proc proc rw\n");
        let usual = line("/proc") + &line("/proc/sys/fs/binfmt_misc") + &line("/process");
        assert_eq!(obstacle_of(Some("96365\n"), &usual), None);
        for (most, mounts, word) in [
            (None, usual.clone(), "CONFIG_USER_NS"),
            (Some("0\n"), usual.clone(), "user.max_user_namespaces"),
            (Some("9\n"), usual.clone() + &line("/proc/kmsg"), "/proc/kmsg"),
        ] {
            let said = obstacle_of(most, &mounts).unwrap();
            assert!(said.contains(word) && said.contains("user_namespaces = false"), "{said}");
        }
    }
}
