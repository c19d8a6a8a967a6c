//! Root filesystems, images, Docker, and the usual way of a cold start.

use crate::common::{LIMIT, plain_function};
use headstart_integration_tests::{
    evidence::usual::Usual,
    lab::client,
    lab::leaks::LeakWatch,
    lab::privilege,
    lab::{DockerDaemon, Rootfs, free_port},
};
use std::{thread, time::Duration};

#[test]
fn an_example_becomes_a_root_filesystem() {
    if !privilege::require_root("the laboratory belongs to root") {
        return;
    }
    let rootfs = Rootfs::example("echo").unwrap();
    assert_eq!(rootfs.command(), "/echo");
    for expected in ["echo", "proc", "run/headstart", "etc/passwd"] {
        assert!(rootfs.path().join(expected).exists(), "{expected} is missing");
    }
}

#[test]
fn a_dynamic_binary_is_refused() {
    if !privilege::require_root("the laboratory belongs to root") {
        return;
    }
    let error = Rootfs::with_binary("ls", "/bin/ls".as_ref()).unwrap_err().to_string();
    assert!(error.contains("not a static"), "{error}");
}

#[test]
fn docker_runs_an_image_of_ours() {
    if !privilege::require_root("dockerd") || !privilege::require_tools(&["docker", "dockerd", "runc"]) {
        return;
    }
    let docker = DockerDaemon::shared().unwrap();
    let image = plain_function().docker_image(&docker).unwrap();
    let watch = LeakWatch::default().docker(&docker, "label=harness");
    let before = watch.snapshot().unwrap();
    let id = docker.run(&["run", "-d", "--network=none", "--label=harness", image.tag()]).unwrap();
    let states = docker.run(&["ps", "--no-trunc", "--format={{.ID}} {{.State}}"]).unwrap();
    assert!(states.contains(&format!("{} running", id.trim())), "{states}");
    assert_eq!(watch.snapshot().unwrap().beyond(&before).len(), 1);
    docker.remove_containers("label=harness").unwrap();
    assert_eq!(watch.leaked_since(&before, LIMIT).unwrap(), Vec::<String>::new());
}

#[test]
fn the_usual_way_starts_a_container_for_the_first_request() {
    if !privilege::require_root("containers") || !privilege::require_tools(&["runc"]) {
        return;
    }
    let rootfs = plain_function();
    let upstream = free_port().unwrap();
    let environment = [("LISTEN", &*upstream.to_string()), ("GREETING", "good day")];
    let usual = Usual::start(&rootfs, &environment, "127.0.0.1:0".parse().unwrap(), upstream).unwrap();
    for _ in 0..2 {
        let cold = client::get(usual.address(), "/", LIMIT);
        let cold = cold.unwrap_or_else(|failure| panic!("{failure}: {:?}", usual.problems()));
        assert_eq!((cold.status, &*cold.body), (200, "good day"));
        let warm = client::get(usual.address(), "/", LIMIT).unwrap();
        eprintln!("the usual way: cold {:?}, warm {:?}", cold.timings.total, warm.timings.total);
        assert!(warm.timings.total < cold.timings.total);
        usual.stop().unwrap();
    }
    assert_eq!(usual.problems(), Vec::<String>::new());
}

#[test]
fn the_usual_way_starts_one_container_for_simultaneous_requests() {
    if !privilege::require_root("containers") || !privilege::require_tools(&["runc"]) {
        return;
    }
    let rootfs = plain_function();
    let upstream = free_port().unwrap();
    let environment = [("LISTEN", &*upstream.to_string())];
    let usual = Usual::start(&rootfs, &environment, "127.0.0.1:0".parse().unwrap(), upstream).unwrap();
    let ask = || client::get(usual.address(), "/", Duration::from_secs(10)).unwrap().status;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().for_each(|client| assert_eq!(client.join().unwrap(), 200));
    });
    assert_eq!(usual.problems(), Vec::<String>::new());
}
