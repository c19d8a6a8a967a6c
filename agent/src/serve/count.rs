//! Counts the connections of programs that do not count them: those whose contract is not `headstart`.
//!
//! The kernel knows the sockets of a port ([`super::sockets`]), and which of them a process has open (`/proc/PID/fd`). A thread
//! compares the two and writes the numbers on the instance's activity page, as a shim would. It looks when connections have
//! come, every [`PAUSE`] while there are any, less and less often while there are none, and when it is asked. What came and went
//! between two looks is not seen: the page says so ([`Activity::sample`]).
//!
//! The watch of the accept queue does not tell of every connection: an instance may accept one before the agent's thread has
//! woken up, and the kernel then has nothing to tell.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use headstart_wire::Activity;
use tokio::sync::oneshot;

use super::sockets::{Connection, SocketDiagnosis};
use crate::measure::now_ns;
use crate::start::Process;

/// Between two looks while a connection is open.
const PAUSE: Duration = Duration::from_millis(250);

/// The shortest time between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// The longest time between two looks while an instance is there.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// While there are no connections, the time between two looks is this part of the time since the last one.
const PATIENCE: u32 = 4;

/// A look takes at most this part of the thread's time.
const SHARE: u32 = 50;

/// Where the connections of a function come in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CountedListener {
    /// The address that clients connect to.
    pub(crate) address: SocketAddr,
    /// Other functions have clients there too.
    pub(crate) shared: bool,
}

/// Counts the connections of one function.
pub(crate) struct ConnectionCounter {
    orders: Sender<Order>,
    /// [`Order::Came`] waits for the thread.
    came: Arc<AtomicBool>,
}

/// An instance whose connections are counted as long as this lives.
pub(crate) struct CountedInstance {
    orders: Sender<Order>,
    _alive: Arc<()>,
}

enum Order {
    Watch(Watched),
    Came,
    Count(oneshot::Sender<()>),
}

struct Watched {
    process: Arc<dyn Process>,
    activity: Arc<Activity>,
    alive: Weak<()>,
}

impl ConnectionCounter {
    /// Starts a thread, which ends with this and every [`CountedInstance`].
    ///
    /// # Errors
    /// When the system has no thread or no descriptor left.
    pub(crate) fn start(listener: CountedListener) -> io::Result<Self> {
        let (orders, inbox) = channel();
        let came = Arc::new(AtomicBool::new(false));
        let counting = Counting {
            listener,
            diagnosis: SocketDiagnosis::open()?,
            watched: Vec::new(),
            queued: HashSet::new(),
            open: HashSet::new(),
            came: Arc::clone(&came),
            failed: false,
        };
        thread::Builder::new().name("count".to_owned()).spawn(move || counting.run(&inbox))?;
        Ok(Self { orders, came })
    }

    /// Counts the connections of an instance too.
    pub(crate) fn watch(&self, process: Arc<dyn Process>, activity: Arc<Activity>) -> CountedInstance {
        let alive = Arc::new(());
        let watched = Watched { process, activity, alive: Arc::downgrade(&alive) };
        // The thread ends after its senders.
        let _ = self.orders.send(Order::Watch(watched));
        CountedInstance { orders: self.orders.clone(), _alive: alive }
    }

    /// Connections have come.
    pub(crate) fn came(&self) {
        if !self.came.swap(true, Ordering::AcqRel) {
            let _ = self.orders.send(Order::Came);
        }
    }
}

impl CountedInstance {
    /// Counts now. The page is up to date afterwards.
    pub(crate) async fn count(&self) {
        let (done, counted) = oneshot::channel();
        let _ = self.orders.send(Order::Count(done));
        // An error means that the thread has failed: then nothing is newer than what is on the page.
        let _ = counted.await;
    }
}

/// The state of the thread.
struct Counting {
    listener: CountedListener,
    diagnosis: SocketDiagnosis,
    watched: Vec<Watched>,
    /// The sockets that were in the accept queue, by their cookies.
    queued: HashSet<u64>,
    /// The sockets that an instance had open.
    open: HashSet<u64>,
    came: Arc<AtomicBool>,
    failed: bool,
}

impl Counting {
    #[expect(clippy::disallowed_methods, reason = "the pause bounds how often the thread looks")]
    fn run(mut self, inbox: &Receiver<Order>) {
        // When to look without being asked.
        let mut next: Option<Instant> = None;
        let mut last = Instant::now();
        // When there last was a connection.
        let mut busy = last;
        loop {
            let order = match next {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let mut asked = Vec::new();
            match order {
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Order::Came) => {
                    thread::sleep((last + PAUSE_MIN).saturating_duration_since(Instant::now()));
                    self.came.store(false, Ordering::Release);
                    busy = Instant::now();
                    self.touch();
                }
                Ok(Order::Count(done)) => asked.push(done),
                Ok(Order::Watch(watched)) => {
                    // It was released for a connection, which may be over before the first look.
                    busy = Instant::now();
                    self.watched.push(watched);
                }
            }
            let begun = Instant::now();
            let any = self.look();
            last = Instant::now();
            if any {
                busy = last;
            }
            let pause = ((last - busy) / PATIENCE).clamp(PAUSE, PAUSE_MAX).max((last - begun) * SHARE);
            next = (!self.watched.is_empty()).then(|| last + pause);
            for done in asked {
                let _ = done.send(());
            }
        }
    }

    /// The instances were not idle until now, also if what came is gone already.
    fn touch(&self) {
        let now_ns = now_ns();
        self.watched.iter().for_each(|watched| watched.activity.touch(now_ns));
    }

    /// Counts. Whether there are any connections.
    fn look(&mut self) -> bool {
        self.watched.retain(|watched| watched.alive.strong_count() > 0);
        let connections = match self.diagnosis.connections(self.listener.address) {
            Ok(connections) => connections,
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    let address = self.listener.address;
                    tracing::error!(
                        %address,
                        "its connections cannot be counted, so its instances are never idle: {error}; modprobe tcp_diag"
                    );
                }
                return true;
            }
        };
        let owners = self.owners();
        let (mut open, mut counts) = (HashSet::new(), vec![(0_u32, 0_u64); self.watched.len()]);
        for connection in connections.iter().filter(|one| one.inode != 0) {
            let is_new = u64::from(!self.open.contains(&connection.cookie));
            let Some(owned) = owned_by(&owners, connection, counts.len()) else { continue };
            for (open_there, new) in counts.get_mut(owned).into_iter().flatten() {
                *open_there += 1;
                *new += is_new;
            }
            open.insert(connection.cookie);
        }
        let queued: HashSet<_> =
            connections.iter().filter(|one| one.inode == 0).map(|one| one.cookie).collect();
        let there: HashSet<_> = connections.iter().map(|one| one.cookie).collect();
        // They were accepted and closed since the last look, by any of the instances.
        let passed = self.queued.iter().filter(|cookie| !there.contains(cookie)).count() as u64;
        if !self.listener.shared
            && let Some((_, new)) = counts.first_mut()
        {
            *new += passed;
        }
        let now_ns = now_ns();
        for (watched, (open, new)) in self.watched.iter().zip(counts) {
            watched.activity.sample(open, new, now_ns);
        }
        (self.open, self.queued) = (open, queued);
        !there.is_empty()
    }

    /// The instance of each open socket, by inode; `None` when all are of the only instance.
    fn owners(&self) -> Option<HashMap<u64, usize>> {
        if !self.listener.shared && self.watched.len() == 1 {
            return None;
        }
        let mut owners = HashMap::new();
        for (index, watched) in self.watched.iter().enumerate() {
            for process in watched.process.processes() {
                owners.extend(sockets_of(process).map(|inode| (inode, index)));
            }
        }
        Some(owners)
    }
}

/// The instances that may have the connection open.
fn owned_by(
    owners: &Option<HashMap<u64, usize>>,
    connection: &Connection,
    instances: usize,
) -> Option<Range<usize>> {
    match owners {
        None => Some(0..1),
        // No process can be looked into: rather busy than frozen with a client.
        Some(owners) if owners.is_empty() => Some(0..instances),
        Some(owners) => owners.get(&connection.inode).map(|owner| *owner..*owner + 1),
    }
}

/// The inodes of the sockets that a process has open. It may end meanwhile.
fn sockets_of(process: i32) -> impl Iterator<Item = u64> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
    entries.filter_map(|entry| {
        let target = fs::read_link(entry.ok()?.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

#[cfg(test)]
mod tests;
