//! What is found wrong with the host, and where it is reported.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use headstart_config::Config;
use tempfile::TempDir;

/// The problems of `text`, in which `D` stands for `dir`.
fn problems(dir: &TempDir, text: &str) -> Vec<String> {
    let path = dir.path().display().to_string();
    let config = Config::parse("h.toml", &text.replace("D/", &format!("{path}/"))).unwrap();
    config.check_host().iter().map(|problem| problem.to_string().replace(&path, "D")).collect()
}

fn write(path: &Path, content: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn interfaces_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        problems(&dir, "\n[agent]\ninterfaces = [\"lo\", \"nope0\"]"),
        ["h.toml:3: agent.interfaces: this host has no interface \"nope0\": `ip link` lists those it has"]
    );
}

#[test]
fn nobody_else_can_change_the_configuration_or_the_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (file, inner) = (dir.path().join("in/h.toml"), dir.path().join("in"));
    write(&file, "[agent]\n", 0o644);
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let path = dir.path().display().to_string();
    let refused = || Config::load(&file).map(drop).unwrap_err().to_string().replace(&path, "D");
    let said = "can be changed by other users (mode";
    Config::load(&file).unwrap();
    mode(&file, 0o666);
    assert_eq!(refused(), format!("D/in/h.toml: D/in/h.toml {said} 666): `chmod go-w D/in/h.toml`"));
    mode(&file, 0o644);
    mode(&inner, 0o757);
    assert_eq!(refused(), format!("D/in/h.toml: D/in {said} 757): `chmod go-w D/in`"));
    // The same for a directory around it.
    let text = "[agent]\nstate_dir = \"D/in/state\"";
    assert_eq!(problems(&dir, text), [""; 0], "the agent makes it");
    fs::create_dir(inner.join("state")).unwrap();
    assert_eq!(
        problems(&dir, text),
        [format!("h.toml:2: agent.state_dir: D/in {said} 757): `chmod go-w D/in`")]
    );
    // As /tmp is.
    mode(&inner, 0o1777);
    Config::load(&file).unwrap();
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI runs this as root");
        eprintln!("skipped in part: only root can give a file away");
        return;
    }
    chown(&file, Some(12_345), None).unwrap();
    assert_eq!(
        refused(),
        "D/in/h.toml: D/in/h.toml belongs to user 12345, who could change it: `chown root D/in/h.toml`"
    );
    chown(&file, Some(0), Some(12_345)).unwrap();
    mode(&file, 0o664);
    assert!(refused().contains(said), "another group is other users");
}

#[test]
fn password_files_are_their_owners_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pw");
    let found = || {
        let text = "[[backend]]\nname = \"db\"\nkind = \"postgres\"\naddress = \"h:1\"\nuser = \"u\"\npassword_file = \"D/pw\"";
        let problems = problems(&dir, text);
        assert!(problems.len() <= 1, "{problems:?}");
        let prefix = "h.toml:6: backend.db.password_file: ";
        problems.first().map(|problem| problem.strip_prefix(prefix).unwrap().to_owned()).unwrap_or_default()
    };
    assert_eq!(
        found(),
        "D/pw: No such file or directory (os error 2): create it with the password, and `chmod 600 D/pw`"
    );
    write(&file, "secret\n", 0o640);
    assert_eq!(
        found(),
        "D/pw is open to others than its owner (mode 640): `chmod 600 D/pw`, and replace what it holds if others may have read it"
    );
    write(&file, "\n", 0o600);
    assert_eq!(found(), "D/pw is empty: write the password into it");
    write(&file, "secret\n", 0o600);
    assert_eq!(found(), "");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(found(), "D/pw is not a regular file: name the file that holds the password");
}

#[test]
fn certificates_are_there_and_private_keys_their_owners_own() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[[backend]]\nname = \"db\"\nkind = \"tls\"\naddress = \"h:1\"\n\
                tls = { ca_file = \"D/ca\", cert_file = \"D/cert\", key_file = \"D/key\" }";
    let prefix = "h.toml:5: backend.db.tls: ";
    write(&dir.path().join("cert"), "no certificate\n", 0o644);
    write(&dir.path().join("key"), "x\n", 0o644);
    assert_eq!(
        problems(&dir, text),
        [
            format!("{prefix}D/cert holds no certificate in PEM"),
            format!(
                "{prefix}D/key is open to others than its owner (mode 644): `chmod 600 D/key`, and replace what it holds if others may have read it"
            ),
            format!("{prefix}D/ca: No such file or directory (os error 2): put the certificates there"),
        ]
    );
    for name in ["ca", "cert"] {
        write(&dir.path().join(name), "-----BEGIN CERTIFICATE-----\n", 0o644);
    }
    write(&dir.path().join("key"), "x\n", 0o600);
    assert_eq!(problems(&dir, text), Vec::<String>::new());
}

#[test]
fn key_files_hold_keys_of_their_owner() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    let found = || problems(&dir, "[syn]\nlookup = true\nkey_file = \"D/keys\"").join("\n");
    let prefix = "h.toml:3: syn.key_file: D/keys";
    assert_eq!(
        found(),
        format!(
            "{prefix}: No such file or directory (os error 2): create it with a line `NUMBER HEX` per key, and \
             `chmod 600 D/keys`"
        )
    );
    write(&file, "# none yet\n", 0o600);
    assert_eq!(found(), format!("{prefix} holds no key: write a line `NUMBER HEX` into it"));
    write(&file, "\n1 hunter2\n", 0o600);
    assert_eq!(
        found(),
        format!("{prefix}:2: the key must be 32 hexadecimal digits: it may have been cut off")
    );
    write(&file, "1 7f3c51a09be4d2286c0f95e1a4b83d72\n", 0o600);
    assert_eq!(found(), "");
    write(&file, "1 7f3c51a09be4d2286c0f95e1a4b83d72\n", 0o640);
    assert!(
        found().starts_with(&format!("{prefix} is open to others than its owner (mode 640)")),
        "{}",
        found()
    );
    // The agent makes this directory, and mounts what it is on.
    assert_eq!(problems(&dir, "[syn]\npin_dir = \"D/none/bpf\""), [""; 0]);
}

#[test]
fn root_file_systems_hold_their_program() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let found = |program: &str| {
        let text = format!(
            "[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\nruntime = \"oci\"\nrootfs = \"D/root\"\ncommand = [{program:?}]"
        );
        problems(&dir, &text).join("\n")
    };
    assert_eq!(
        found("/f"),
        "h.toml:5: function.f.rootfs: D/root is not a directory: unpack the function's root there"
    );
    write(&root.join("usr/bin/f"), "", 0o755);
    write(&root.join("data"), "", 0o644);
    symlink("usr/bin", root.join("bin")).unwrap();
    symlink("/bin/f", root.join("absolute")).unwrap();
    symlink("../../../bin/f", root.join("upwards")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    for program in ["/usr/bin/f", "/bin/f", "/absolute", "/upwards", "/bin/../bin/./f"] {
        assert_eq!(found(program), "", "{program}");
    }
    let command = "h.toml:6: function.f.command";
    assert_eq!(
        found("/g"),
        format!(
            "{command}: there is no program /g in D/root (No such file or directory (os error 2)): build it, or correct the path"
        )
    );
    assert_eq!(
        found("/loop"),
        format!(
            "{command}: there is no program /loop in D/root (too many symbolic links): build it, or correct the path"
        )
    );
    assert_eq!(found("/data"), format!("{command}: /data in D/root is not executable: `chmod +x` it"));
    assert_eq!(found("/bin"), format!("{command}: /bin in D/root is not a file: name the program itself"));
}

#[test]
fn root_file_systems_can_be_started() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let found = |rootfs: &str| {
        let text = format!(
            "[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\nruntime = \"oci\"\nrootfs = \"{rootfs}\"\ncommand = [\"/bin/sh\"]"
        );
        problems(&dir, &text).join("\n").replace("h.toml:5: function.f.rootfs: ", "")
    };
    symlink("/", dir.path().join("link")).unwrap();
    let own = "is the node's own root: unpack the function's root elsewhere, or use runtime = \"process\"";
    assert_eq!(found("/"), format!("/ {own}"));
    assert_eq!(found("D/link"), format!("D/link {own}"));
    write(&root.join("bin/sh"), "", 0o755);
    symlink("root", dir.path().join("current")).unwrap();
    assert_eq!(found("D/root"), "", "a start makes what is missing");
    assert_eq!(found("D/current"), "");
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI runs this as root");
        eprintln!("skipped in part: only root can mount");
        return;
    }
    let mount = |arguments: &[&str]| {
        let path = root.to_str().unwrap();
        let status = std::process::Command::new(arguments[0]).args(&arguments[1..]).args([path]).status();
        assert!(status.unwrap().success(), "{arguments:?}");
    };
    let missing = |place: &str| {
        format!(
            "D/root is on a read-only file system and has no directory {place}: make an empty one there, since a start cannot"
        )
    };
    mount(&["mount", "--bind", root.to_str().unwrap()]);
    mount(&["mount", "-o", "remount,bind,ro"]);
    let without = found("D/root");
    mount(&["mount", "-o", "remount,bind,rw"]);
    for place in ["proc", "dev"] {
        fs::create_dir(root.join(place)).unwrap();
    }
    mount(&["mount", "-o", "remount,bind,ro"]);
    let with_two = found("D/root");
    mount(&["umount"]);
    assert_eq!((without, with_two), (missing("/proc"), missing("/tmp")));
}

#[test]
fn root_file_systems_can_be_reached_by_the_users_of_a_namespace() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("in/root/f"), "", 0o755);
    let found = |agent: &str| {
        let text = format!(
            "[agent]\nuids = \"1900000000-1900065535\"\n{agent}\n[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\n\
             runtime = \"oci\"\nrootfs = \"D/in/root\"\ncommand = [\"/f\"]"
        );
        problems(&dir, &text).join("\n").replace("h.toml:8: function.f.rootfs: ", "")
    };
    let mode = |path: &str, mode| {
        fs::set_permissions(dir.path().join(path), Permissions::from_mode(mode)).unwrap();
    };
    let closed = |path: &str| {
        format!(
            "{path} is closed to the users that the container has (`uids`): `chmod o+x {path}`, or set \
             user_namespaces = false in [agent]"
        )
    };
    mode("", 0o700);
    mode("in", 0o750);
    assert_eq!(found(""), closed("D"));
    mode("", 0o711);
    assert_eq!(found(""), closed("D/in"));
    assert_eq!(found("user_namespaces = false"), "");
    mode("in", 0o751);
    mode("in/root", 0o700);
    assert_eq!(found(""), closed("D/in/root"));
    mode("in/root", 0o755);
    assert_eq!(found(""), "");
}

#[test]
fn programs_of_processes_exist() {
    let found = |program: &str| {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\nruntime = \"process\"\ncommand = [{program:?}]"
        );
        problems(&dir, &text).join("\n")
    };
    let key = "h.toml:5: function.f.command: ";
    assert_eq!(
        found("/nowhere/f"),
        format!(
            "{key}there is no program /nowhere/f (No such file or directory (os error 2)): build it, or correct the path"
        )
    );
    assert_eq!(found("/bin/sh"), "");
    assert_eq!(
        found("/var/tmp/f"),
        format!(
            "{key}/var/tmp/f is not seen by the function, which has /tmp, /var/tmp, /run, /var/run, /dev/shm of its own: put the program elsewhere"
        )
    );
}

#[test]
fn mounts_have_a_source_and_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    write(&root.join("f"), "", 0o755);
    write(&dir.path().join("source/file"), "", 0o644);
    fs::create_dir(root.join("data")).unwrap();
    symlink("/data", root.join("link")).unwrap();
    let found = |runtime: &str, source: &str, target: &str| {
        let text = format!(
            "[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\nruntime = {runtime}\n\
             mounts = [{{ source = \"D/{source}\", target = {target:?} }}]"
        );
        let problems = problems(&dir, &text).join("\n");
        let message = problems.split_once(".mounts: ").map(|(_, message)| message.to_owned());
        assert!(message.is_some() || problems.is_empty(), "{problems}");
        message.unwrap_or_default()
    };
    let oci = |source, target| found("\"oci\"\nrootfs = \"D/root\"\ncommand = [\"/f\"]", source, target);
    for (source, target) in
        [("source", "/data"), ("source", "/link"), ("source/file", "/f"), ("source", "/tmp/a")]
    {
        assert_eq!(oci(source, target), "", "{target}");
    }
    let none = "No such file or directory (os error 2)";
    assert_eq!(oci("nowhere", "/data"), format!("D/nowhere: {none}: create it, or correct `source`"));
    assert_eq!(oci("source/file", "/data"), "D/root/data must be a file, as the source is");
    assert_eq!(
        oci("source", "/other"),
        format!(
            "there is no directory D/root/other to mount it at ({none}), and a start does not change the files there: \
             `mkdir -p D/root/other`"
        )
    );
    let process = |target| found("\"process\"\ncommand = [\"/bin/sh\"]", "source", target);
    for target in ["/srv", "/tmp/a", "/var/tmp/a"] {
        assert_eq!(process(target), "", "{target}");
    }
    assert!(process("/nowhere").ends_with("`mkdir -p /nowhere`"));
}

#[test]
fn secrets_are_their_owners_own() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\nruntime = \"process\"\ncommand = [\"/bin/sh\"]\n\
                secrets = [{ file = \"D/key\", name = \"key\" }]";
    let found = |mode| {
        write(&dir.path().join("key"), "x", mode);
        problems(&dir, text).join("\n")
    };
    assert_eq!(found(0o600), "");
    assert!(
        found(0o604)
            .starts_with("h.toml:6: function.f.secrets: D/key is open to others than its owner (mode 604)")
    );
}
