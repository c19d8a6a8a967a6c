//! A Docker daemon of the tests' own, without networks. It ends with this process.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

use super::{SOON, find};

pub(in super::super) const IMAGE: &str = "headstart-test:1";

/// The daemon's parent reads its standard input, which ends when this process does, however it does.
const KEEPER: &str = r#"
    "$1" --data-root "$2/data" --exec-root "$2/exec" --pidfile "$2/pid" --host "unix://$2/docker.sock" \
        --bridge=none --iptables=false >"$2/log" 2>&1 &
    read _
    kill "$!"; wait "$!"; rm -rf "$2""#;

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// Where the daemon keeps everything, once it runs.
pub(super) fn directory() -> Option<PathBuf> {
    DIRECTORY.get().cloned()
}

pub(super) fn socket() -> PathBuf {
    DIRECTORY.get().expect("the daemon runs").join("docker.sock")
}

/// Makes an image of a directory, starting the daemon at the first call.
pub(super) async fn import(rootfs: &Path) {
    static KEPT: OnceCell<Child> = OnceCell::const_new();
    KEPT.get_or_init(async || {
        let child = start().await;
        let pack = "tar -C \"$1\" -c . | docker -H \"unix://$2\" import - \"$3\"";
        let mut packing = Command::new("sh");
        packing.args(["-c", pack, "sh"]).arg(rootfs).arg(socket()).arg(IMAGE).stdout(Stdio::null());
        assert!(packing.status().await.unwrap().success());
        child
    })
    .await;
}

async fn start() -> Child {
    let directory = DIRECTORY.get_or_init(|| tempfile::tempdir_in("/var/tmp").unwrap().keep());
    let mut keeper = Command::new("sh");
    keeper.args(["-c", KEEPER, "sh"]).arg(find("dockerd").unwrap()).arg(directory);
    let child = keeper.stdin(Stdio::piped()).spawn().unwrap();
    let answers = async {
        let ask = || {
            Command::new("docker")
                .arg("-H")
                .arg(format!("unix://{}", socket().display()))
                .arg("info")
                .output()
        };
        while !ask().await.unwrap().status.success() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(SOON * 3, answers).await.is_err() {
        panic!("no daemon: {}", std::fs::read_to_string(directory.join("log")).unwrap_or_default());
    }
    child
}
