use super::*;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::start::{BoxFuture, Exit, StartError};

/// An instance whose processes are known.
struct Processes(Vec<i32>);

impl Process for Processes {
    fn release(&self) -> BoxFuture<'_, Result<u64, StartError>> {
        Box::pin(std::future::pending())
    }
    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(std::future::pending())
    }
    fn freeze(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(std::future::pending())
    }
    fn thaw(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(std::future::pending())
    }
    fn terminate(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(std::future::pending())
    }
    fn directory(&self) -> &Path {
        Path::new("/")
    }
    fn owns(&self, _pid: i32) -> bool {
        false
    }
    fn processes(&self) -> Vec<i32> {
        self.0.clone()
    }
}

fn page() -> Arc<Activity> {
    Arc::new(Activity::create().unwrap().0)
}

fn counter(listener: &TcpListener, shared: bool) -> ConnectionCounter {
    ConnectionCounter::start(CountedListener { address: listener.local_addr().unwrap(), shared }).unwrap()
}

fn own() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

#[tokio::test]
async fn open_connections_and_those_that_have_passed_are_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for shared in [false, true] {
        let (counter, activity) = (counter(&listener, shared), page());
        assert_eq!(activity.read().open, None);
        let instance = counter.watch(Arc::new(Processes(vec![own()])), Arc::clone(&activity));
        instance.count().await;
        let seen = activity.read();
        assert_eq!((seen.open, seen.accepted, seen.sampled), (Some(0), 0, true));
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        instance.count().await;
        assert_eq!((activity.read().open, activity.read().accepted), (Some(0), 0), "all are in the queue");
        let two = [listener.accept().unwrap(), listener.accept().unwrap()];
        instance.count().await;
        assert_eq!((activity.read().open, activity.read().accepted), (Some(2), 2));
        instance.count().await;
        assert_eq!((activity.read().open, activity.read().accepted), (Some(2), 2), "none is counted twice");
        drop((two, listener.accept().unwrap()));
        drop(clients);
        instance.count().await;
        let passed = if shared { 0 } else { 1 };
        assert_eq!((activity.read().open, activity.read().accepted), (Some(0), 2 + passed));
    }
}

/// Another process that holds a copy of the connections: a worker.
fn holder(connections: Vec<TcpStream>) -> Child {
    let connection: std::os::fd::OwnedFd = connections.into_iter().next().unwrap().into();
    Command::new("sleep").arg("60").stdin(Stdio::from(connection)).spawn().unwrap()
}

#[tokio::test]
async fn several_instances_have_what_their_processes_have_open() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let counter = counter(&listener, false);
    let _clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut worker = holder(vec![listener.accept().unwrap().0]);
    let _ours = [listener.accept().unwrap(), listener.accept().unwrap()];
    let (one, other) = (page(), page());
    let worker_id = i32::try_from(worker.id()).unwrap();
    let first = counter.watch(Arc::new(Processes(vec![own()])), Arc::clone(&one));
    let second = counter.watch(Arc::new(Processes(vec![worker_id, 1 << 22])), Arc::clone(&other));
    second.count().await;
    assert_eq!((one.read().open, other.read().open), (Some(2), Some(1)));
    drop(first);
    second.count().await;
    assert_eq!(one.read().open, Some(2), "it is no longer counted");
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[tokio::test]
async fn what_came_and_went_unseen_ends_the_idle_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (counter, activity) = (counter(&listener, false), page());
    let instance = counter.watch(Arc::new(Processes(Vec::new())), Arc::clone(&activity));
    instance.count().await;
    let before = now_ns();
    counter.came();
    counter.came();
    instance.count().await;
    assert!(activity.read().changed_ns >= before);
    assert_eq!(activity.read().open, Some(0));
}

/// The watch of the accept queue does not tell of a connection that is accepted while it pauses, or before it has woken up.
#[tokio::test]
async fn a_connection_that_nothing_tells_of_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (counter, activity) = (counter(&listener, false), page());
    let instance = counter.watch(Arc::new(Processes(Vec::new())), Arc::clone(&activity));
    instance.count().await;
    assert_eq!(activity.read().open, Some(0));
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _accepted = listener.accept().unwrap();
    while activity.read().open != Some(1) {
        tokio::task::yield_now().await;
    }
    drop(instance);
}
