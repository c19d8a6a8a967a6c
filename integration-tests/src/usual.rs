//! A cold start the usual way, to compare with: the request arrives at an activator, which then
//! runs a container, waits for its port and forwards the bytes. It has no needless delay; it only
//! learns late, builds the container late, and leaves connecting to the function.

use crate::lab::{Process, Rootfs, Scratch, run, unique};
use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use std::{
    fs, io,
    io::{PipeReader, PipeWriter},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// A function behind a request-triggered activator. Everything ends on drop.
#[derive(Debug)]
pub struct Usual {
    address: SocketAddr,
    function: Arc<Function>,
    stop: Option<PipeWriter>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Function {
    bundle: Scratch,
    upstream: SocketAddr,
    container: Mutex<Option<Container>>,
    connections: Mutex<Vec<(TcpStream, JoinHandle<()>)>>,
    problems: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Container {
    id: String,
    root: PathBuf,
    process: Process,
}

impl Usual {
    /// Listens on `listen` for the function in `rootfs`, which will itself listen on `upstream` in
    /// the host's network. `environment` is all it is told: where to listen, where its database is.
    pub fn start(
        rootfs: &Rootfs,
        environment: &[(&str, &str)],
        listen: SocketAddr,
        upstream: SocketAddr,
    ) -> Result<Self> {
        let listener = TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let function = Arc::new(Function {
            bundle: bundle(rootfs, environment)?,
            upstream,
            container: Mutex::default(),
            connections: Mutex::default(),
            problems: Mutex::default(),
        });
        let address = listener.local_addr()?;
        let ((stopped, stop), shared) = (io::pipe()?, Arc::clone(&function));
        let acceptor = thread::spawn(move || shared.accept(&listener, &stopped));
        Ok(Self { address, function, stop: Some(stop), acceptor: Some(acceptor) })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills and deletes the container: the next request is a cold one again.
    pub fn stop(&self) -> Result<()> {
        let container = lock(&self.function.container).take();
        container.map_or(Ok(()), Container::stop)
    }

    /// What went wrong so far: nothing, in a valid comparison.
    pub fn problems(&self) -> Vec<String> {
        lock(&self.function.problems).clone()
    }
}

impl Drop for Usual {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.acceptor.take().map(JoinHandle::join);
        let connections = std::mem::take(&mut *lock(&self.function.connections));
        for (stream, _) in &connections {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
        for (_, thread) in connections {
            let _ = thread.join();
        }
    }
}

impl Function {
    fn accept(self: Arc<Self>, listener: &TcpListener, stopped: &PipeReader) {
        loop {
            let mut sources =
                [listener.as_fd(), stopped.as_fd()].map(|source| PollFd::new(source, PollFlags::POLLIN));
            let _ = poll(&mut sources, PollTimeout::NONE);
            if sources[1].any().unwrap_or(false) {
                return;
            }
            let Ok((client, _)) = listener.accept() else { continue };
            let Ok(copy) = client.try_clone() else { continue };
            let function = Arc::clone(&self);
            let thread = thread::spawn(move || {
                if let Err(error) = function.serve(&client) {
                    lock(&function.problems).push(format!("{error:#}"));
                }
                let _ = client.shutdown(Shutdown::Both);
            });
            let mut connections = lock(&self.connections);
            connections.retain(|(_, thread)| !thread.is_finished());
            connections.push((copy, thread));
        }
    }

    fn serve(&self, client: &TcpStream) -> Result<()> {
        client.set_nonblocking(false)?;
        client.set_nodelay(true)?;
        client.set_read_timeout(Some(FIRST_BYTE_LIMIT))?;
        if client.peek(&mut [0])? == 0 {
            return Ok(()); // it never asked for anything
        }
        client.set_read_timeout(None)?;
        let function = self.connect()?;
        function.set_nodelay(true)?;
        thread::scope(|scope| {
            scope.spawn(|| forward(client, &function));
            forward(&function, client);
        });
        Ok(())
    }

    /// A connection to the function, which this starts if it does not run.
    fn connect(&self) -> Result<TcpStream> {
        let mut container = lock(&self.container);
        let running = container.take_if(|it| !it.process.ended_within(Duration::ZERO));
        let running = running.map_or_else(|| Container::run(&self.bundle), Ok)?;
        let process = &container.insert(running).process;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match TcpStream::connect(self.upstream) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() >= deadline => return Err(error).context(process.log()),
                Err(_) => ensure!(!process.ended_within(TRY_AGAIN), "the function ended: {}", process.log()),
            }
        }
    }
}

impl Container {
    fn run(bundle: &Scratch) -> Result<Self> {
        let (id, root) = (unique("usual"), bundle.path().join("state"));
        let mut command = Command::new("runc");
        command.arg("--root").arg(&root).arg("run").arg("--bundle").arg(bundle.path()).arg(&id);
        Ok(Self { id, root, process: Process::spawn(&mut command)? })
    }

    /// `runc run` deletes its container when the function has ended; deleting by force ends it.
    fn stop(mut self) -> Result<()> {
        let mut command = Command::new("runc");
        run(command.arg("--root").arg(&self.root).args(["delete", "--force", &self.id]))?;
        self.process.wait(STOP_LIMIT)?;
        Ok(())
    }
}

/// What `runc spec` proposes, with the function's command and environment, the host's network, and
/// no terminal.
fn bundle(rootfs: &Rootfs, environment: &[(&str, &str)]) -> Result<Scratch> {
    let files = Scratch::new("bundle")?;
    run(Command::new("runc").arg("spec").arg("--bundle").arg(files.path()))?;
    let config = files.path().join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
    let variables: Vec<_> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!([rootfs.command()]);
    spec["process"]["env"] = json!(variables);
    spec["root"]["path"] = json!(rootfs.path());
    spec["linux"]["cgroupsPath"] = json!(format!("/{}", unique("usual")));
    let namespaces = spec["linux"]["namespaces"].as_array_mut().context("runc spec has changed")?;
    namespaces.retain(|namespace| namespace["type"] != "network");
    fs::write(&config, spec.to_string())?;
    Ok(files)
}

/// Copies until `from` ends, then passes the end on. Broken connections are the peers' to notice.
fn forward(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
