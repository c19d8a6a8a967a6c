//! Mistakes in `mounts` and `secrets`.

use super::{GOOD, check};

fn one(keys: &str, expected: &[&str]) {
    let expected: Vec<_> = expected.iter().map(|problem| format!("6: function.f.{problem}")).collect();
    let expected: Vec<_> = expected.iter().map(String::as_str).collect();
    check(&format!("[[function]]\n{GOOD}{keys}"), &expected);
}

#[test]
fn mounts_cover_nothing_that_is_not_theirs() {
    one(
        "mounts = [{ source = \"/srv/a\", target = \"/a\" }, { source = \"/srv/b\", target = \"/b\", read_only = false }]",
        &[],
    );
    for (target, message) in [
        ("a", "must be an absolute path"),
        ("/a/../b", "must not contain \"..\""),
        ("/", "an instance has one of its own: choose a directory below it"),
        ("//tmp/.", "an instance has one of its own: choose a directory below it"),
        ("/proc", "/proc is the instance's own: choose another place"),
        ("/proc/sys", "/proc is the instance's own: choose another place"),
        ("/dev/shm", "/dev is the instance's own: choose another place"),
        ("/sys/fs", "/sys is the instance's own: choose another place"),
        ("/run", "the agent puts something at /run/headstart: choose another place"),
        ("/run/headstart/backends", "the agent puts something at /run/headstart: choose another place"),
        ("/run/secrets/a", "the agent puts something at /run/secrets: choose another place"),
    ] {
        one(
            &format!("mounts = [{{ source = \"/srv\", target = {target:?} }}]"),
            &[&format!("mounts[0].target: {message}")],
        );
    }
    for target in ["/a", "/a/b", "/a/"] {
        one(
            &format!(
                "mounts = [{{ source = \"/x\", target = \"/a\" }}, {{ source = \"/y\", target = {target:?} }}]"
            ),
            &["mounts[1].target: is the target /a, or one is below the other"],
        );
    }
    one("mounts = [{ source = \"/x\", target = \"/a\" }, { source = \"/y\", target = \"/ab\" }]", &[]);
    one(
        "mounts = [{ source = \"../x\", readonly = true }]",
        &[
            "mounts[0].source: must be an absolute path",
            "mounts[0].target: is required",
            "mounts[0].readonly: unknown key, did you mean \"read_only\"?",
        ],
    );
    let mounts: Vec<_> = (0..17).map(|i| format!("{{ source = \"/x\", target = \"/a{i}\" }}")).collect();
    one(&format!("mounts = [{}]", mounts.join(", ")), &["mounts: must be at most 16, not 17"]);
}

#[test]
fn secrets_have_names_of_files() {
    one("secrets = [{ file = \"/etc/a\", name = \"a.b-c_D9\" }]", &[]);
    for name in ["", "..", ".a", "a/b", "a b"] {
        one(
            &format!("secrets = [{{ file = \"/etc/a\", name = {name:?} }}]"),
            &[
                "secrets[0].name: must be 1 to 64 letters, digits, \"-\", \"_\" and \".\", and not begin with \".\"",
            ],
        );
    }
    one(
        "secrets = [{ file = \"/etc/a\", name = \"a\" }, { file = \"etc/b\", name = \"a\" }]",
        &["secrets[1].file: must be an absolute path", "secrets[1].name: \"a\" is the name of two secrets"],
    );
    check(
        "[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\nruntime = \"docker\"\nimage = \"i\"\n\
         secrets = [{ file = \"/etc/a\", name = \"a\" }]",
        &[
            "6: function.f.secrets: needs runtime = \"oci\" or \"process\": with another one, show the file by mounts",
        ],
    );
}
