//! What goes wrong before there is a container.

use headstart_config::{Agent, DockerNetwork, NOBODY, Runtime};

use super::bed::{self, Kind};
use super::*;

fn spec() -> ContainerSpec {
    ContainerSpec {
        function: "f".to_owned(),
        command: vec!["/bin/true".to_owned()],
        env: Vec::new(),
        memory_bytes: 64 * 1024 * 1024,
        swaps: false,
        pids: 32,
        shares: Shares::default(),
        user: 65534,
        group: 65534,
        namespace_root: None,
        mounts: Vec::new(),
        secrets: Vec::new(),
        backends: false,
        init: Init { file: "/nowhere/init".into(), contract: Vec::new() },
        adapter: None,
        workdir: "/".into(),
    }
}

/// `[agent]` of a node that has nothing.
fn bare(state_dir: &Path) -> Agent {
    let (runc, docker_socket) = ("/no/runc".into(), "/no.sock".into());
    Agent { state_dir: state_dir.to_owned(), runc, docker_socket, ..Agent::default() }
}

fn oci(rootfs: &Path) -> Runtime {
    Runtime::Oci { rootfs: rootfs.to_owned(), image: None, writable: None }
}

fn docker(image: &str) -> Runtime {
    Runtime::Docker { image: image.to_owned(), network: DockerNetwork::None, user: NOBODY.to_owned() }
}

async fn reason(agent: &Agent, configured: &Runtime) -> (&'static str, String) {
    let runtime = Drivers::new(agent).runtime(configured, &spec()).unwrap();
    let error = runtime.prepare("f-1").await.err().expect("cannot be prepared");
    (error.reason(), error.to_string())
}

#[tokio::test]
async fn a_missing_rootfs_is_named() {
    let state = tempfile::tempdir().unwrap();
    let (reason, text) = reason(&bare(state.path()), &oci(Path::new("/no/rootfs"))).await;
    assert_eq!(reason, "rootfs_missing");
    assert!(text.contains("/no/rootfs"), "{text}");
}

#[tokio::test]
async fn a_missing_runtime_is_named() {
    let state = tempfile::tempdir().unwrap();
    let (reason, text) = reason(&bare(state.path()), &oci(state.path())).await;
    assert_eq!(reason, "runtime_missing");
    assert!(text.contains("/no/runc") && text.contains("apt install"), "{text}");
    assert_eq!(std::fs::read_dir(state.path().join("oci")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_daemon_that_is_down_is_named() {
    let state = tempfile::tempdir().unwrap();
    let socket = state.path().join("none.sock");
    let agent = Agent { docker_socket: socket.clone(), ..bare(state.path()) };
    let (reason, text) = reason(&agent, &docker("orders:1")).await;
    assert_eq!(reason, "daemon_unreachable");
    assert!(text.contains(&*socket.to_string_lossy()), "{text}");
    // It is only asked for what an earlier agent has left.
    let driver = bed::driver(Kind::Docker, &agent);
    assert_eq!(driver.survivors().await.unwrap().len(), 0);
    std::fs::create_dir_all(state.path().join("docker/f-1")).unwrap();
    let error = driver.survivors().await.err().expect("unreachable");
    assert_eq!(error.reason(), "daemon_unreachable");
}

/// A unix socket's path has at most 107 bytes, a state directory may have more.
#[tokio::test]
async fn a_long_state_directory_is_no_fault() {
    let state = tempfile::tempdir().unwrap();
    let deep = state.path().join("d".repeat(200));
    // It gets as far as asking the daemon.
    assert_eq!(reason(&bare(&deep), &docker("orders:1")).await.0, "daemon_unreachable");
}

#[tokio::test]
async fn a_missing_image_is_named() {
    let Some(bed) = bed::lay(Kind::Docker).await else { return };
    let (reason, text) = reason(&bed.agent(), &docker("no-such:1")).await;
    assert_eq!(reason, "image_missing");
    assert!(text.contains("no-such:1"), "{text}");
}

/// The parked container of a daemon is not a process: others can only remove it.
#[tokio::test]
async fn removal_by_others_is_told() {
    let Some(bed) = bed::lay(Kind::Docker).await else { return };
    let parked = bed.prepare("exit 0").await;
    bed.survivors().await.end(Duration::ZERO).await;
    assert_eq!(parked.process.exited().await.signal, Some(9));
    assert_eq!(parked.process.release().await.unwrap_err().reason(), "died");
    parked.process.remove().await.unwrap();
}

#[test]
fn every_runtime_of_the_configuration_has_one_driver() {
    let (mut drivers, mut words) = (Drivers::new(&Agent::default()).names(), Runtime::WORDS);
    drivers.sort_unstable();
    words.sort_unstable();
    assert_eq!(drivers, words);
}

#[test]
fn what_the_host_lacks_is_named_where_it_is_configured() {
    let text = "[agent]\nstate_dir = \"/no\"\nrunc = \"/no/runc\"\ndocker_socket = \"/no.sock\"\n\
                [[function]]\nname = \"f\"\nlisten = \"127.0.0.1:81\"\nruntime = \"docker\"\nimage = \"f:1\"\n";
    let config = headstart_config::Config::parse("h.toml", text).unwrap();
    let drivers = Drivers::new(&config.agent);
    let lacks: Vec<_> =
        drivers.checks().into_iter().map(|check| check.found.unwrap_err().to_string()).collect();
    assert!(lacks.len() == 2 && lacks[0].contains("/no/runc") && lacks[1].contains("/no.sock"), "{lacks:?}");
    // Only what the functions need.
    let problems: Vec<_> =
        drivers.problems(&config.agent, &config.functions).iter().map(ToString::to_string).collect();
    assert!(
        problems.len() == 1 && problems[0].starts_with("h.toml:4: agent.docker_socket: "),
        "{problems:?}"
    );
}
