//! A flood: TCP SYNs with random sources, as fast as one core can send them through a [`Link`].
//!
//! The sources are in 198.18.0.0/15, which is set aside for benchmarks (RFC 2544, RFC 6890). [`SpoofedRoutes`] sends
//! the answers back through the link, where they end; nothing leaves the namespaces. IPv4 only.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use headstart_ebpf::auth::{Key, epoch};
use headstart_ebpf::option::FunctionOption;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockType, bind, sendmmsg, socket,
};
use nix::unistd::Pid;

use super::command::ip;
use super::netns::{Link, Namespace};

mod frame;

pub use frame::Template;

/// Where spoofed sources come from: network and prefix length.
pub const SOURCES: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);

/// Frames handed to the kernel in one call.
const BATCH: usize = 256;

/// The longest flood: it ends even if a test does not stop it.
const LONGEST: Duration = Duration::from_secs(120);

/// The option in the SYNs of a flood.
#[derive(Clone, Copy)]
pub enum FloodTag {
    /// Nothing: no option.
    None,
    /// They name a function.
    Open(u32),
    /// They name a function, and prove the knowledge of a key in the present epoch.
    Authenticated {
        /// The function's ID.
        function: u32,
        /// The key's number.
        number: u8,
        /// The key.
        key: Key,
    },
}

/// A flood to come, from the far end of a link to its near one.
#[derive(Clone)]
pub struct Flood {
    namespace: Namespace,
    interface: String,
    template: Template,
    ports: Vec<u16>,
    tag: FloodTag,
    lasting: Duration,
    cpu: Option<usize>,
}

/// A flood under way; dropping it ends it.
#[derive(Debug)]
pub struct FloodProcess {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<FloodCount>>>,
}

/// How much was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodCount {
    /// Frames that the kernel took.
    pub frames: u64,
    /// Frames that it refused, as its queues were full.
    pub refused: u64,
    /// From the first to the last.
    pub took: Duration,
}

impl FloodCount {
    /// Frames per second.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn rate(&self) -> f64 {
        self.frames as f64 / self.took.as_secs_f64()
    }
}

impl Flood {
    /// A flood of a second from the peer of `link` to these ports at its near end.
    pub fn new(link: &Link, ports: &[u16]) -> Result<Self> {
        ensure!(!ports.is_empty(), "a flood needs a port to go to");
        let SocketAddr::V4(target) = link.host(0) else { unreachable!("links have IPv4 addresses") };
        let near = mac(link.host_namespace(), link.host_if())?;
        let far = mac(Some(link.namespace()), link.peer_if())?;
        Ok(Self {
            namespace: link.namespace().clone(),
            interface: link.peer_if().to_owned(),
            template: Template::new(near, far, *target.ip()),
            ports: ports.to_vec(),
            tag: FloodTag::None,
            lasting: Duration::from_secs(1),
            cpu: None,
        })
    }

    /// Sets the option in the SYNs.
    pub fn tag(mut self, tag: FloodTag) -> Self {
        self.tag = tag;
        self
    }

    /// How long, at most two minutes.
    pub fn lasting(mut self, time: Duration) -> Self {
        self.lasting = time.min(LONGEST);
        self
    }

    /// Keeps the sender on one CPU.
    pub fn cpu(mut self, number: usize) -> Self {
        self.cpu = Some(number);
        self
    }

    /// Starts it; it ends by itself.
    pub fn start(self) -> Result<FloodProcess> {
        let stop = Arc::new(AtomicBool::new(false));
        let (asked, namespace) = (Arc::clone(&stop), self.namespace.clone());
        let thread = thread::spawn(move || namespace.enter(|| self.send(&asked))?);
        Ok(FloodProcess { stop, thread: Some(thread) })
    }

    /// Sends it all, on a thread of the namespace.
    fn send(&self, stop: &AtomicBool) -> Result<FloodCount> {
        if let Some(cpu) = self.cpu {
            let mut set = CpuSet::new();
            set.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("CPU {cpu}"))?;
        }
        let socket = open(&self.interface)?;
        let length = self.template.length(!matches!(self.tag, FloodTag::None));
        let mut frames = vec![vec![0; length]; BATCH];
        let mut headers = MultiHeaders::preallocate(BATCH, None);
        let mut random = Random::seeded();
        let mut ports = self.ports.iter().copied().cycle();
        let begin = Instant::now();
        let mut sent = FloodCount { frames: 0, refused: 0, took: Duration::ZERO };
        while !stop.load(Ordering::Relaxed) && sent.took < self.lasting {
            let now = epoch(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
            for (frame, port) in frames.iter_mut().zip(&mut ports) {
                let (isn, place) = (random.next() as u32, random.next());
                let option = option(self.tag, now, port, isn);
                self.template.write(frame, spoofed(place), (place >> 48) as u16 | 1024, port, isn, option);
            }
            let took = transmit(&socket, &mut headers, &frames)?;
            sent.frames += took as u64;
            sent.refused += (BATCH - took) as u64;
            sent.took = begin.elapsed();
        }
        Ok(sent)
    }
}

impl FloodProcess {
    /// Waits for its end.
    pub fn join(mut self) -> Result<FloodCount> {
        self.end()
    }

    /// Ends it now.
    pub fn stop(mut self) -> Result<FloodCount> {
        self.stop.store(true, Ordering::Relaxed);
        self.end()
    }

    /// Whether it is still under way.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn end(&mut self) -> Result<FloodCount> {
        let thread = self.thread.take().context("the flood has ended before")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for FloodProcess {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended_with_its_owner = thread.join();
        }
    }
}

/// Sends these frames, whatever they are, once and in this order from the far end of `link`.
pub fn send_frames(link: &Link, frames: &[Vec<u8>]) -> Result<()> {
    link.namespace().enter(|| {
        let socket = open(link.peer_if())?;
        for frame in frames {
            let sent = nix::unistd::write(&socket, frame).context("sending a frame")?;
            ensure!(sent == frame.len(), "only {sent} of {} bytes were sent", frame.len());
        }
        Ok(())
    })?
}

/// Answers to spoofed sources go to the far end of the link and end there. Undone on drop.
#[derive(Debug)]
pub struct SpoofedRoutes(Vec<String>);

impl SpoofedRoutes {
    /// Routes [`SOURCES`] through `link`.
    pub fn route(link: &Link) -> Result<Self> {
        let ((network, bits), via) = (SOURCES, link.peer(0).ip());
        let near = link.host_namespace().map(|namespace| format!("-n {} ", namespace.name()));
        let (near, far) = (near.unwrap_or_default(), link.namespace().name());
        let mut routes = Self(Vec::new());
        // First where they end: a host that forwards must not send them on.
        for (at, route) in [
            (format!("-n {far} "), format!("blackhole {network}/{bits}")),
            (near, format!("{network}/{bits} via {via} dev {}", link.host_if())),
        ] {
            ip(&format!("{at}route add {route}"))?;
            routes.0.push(format!("{at}route del {route}"));
        }
        Ok(routes)
    }
}

impl Drop for SpoofedRoutes {
    fn drop(&mut self) {
        for route in self.0.iter().rev() {
            if let Err(error) = ip(route) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn option(tag: FloodTag, epoch: u64, port: u16, isn: u32) -> Option<FunctionOption> {
    match tag {
        FloodTag::None => None,
        FloodTag::Open(function) => Some(FunctionOption::open(function)),
        FloodTag::Authenticated { function, number, key } => {
            Some(FunctionOption::tagged(key, number, epoch, function, port, isn))
        }
    }
}

/// A source of [`SOURCES`].
fn spoofed(random: u64) -> Ipv4Addr {
    let (network, bits) = SOURCES;
    let host = random as u32 & (u32::MAX >> bits);
    Ipv4Addr::from_bits(network.to_bits() | host)
}

/// How many of the frames the kernel took.
fn transmit(socket: &OwnedFd, headers: &mut MultiHeaders<LinkAddr>, frames: &[Vec<u8>]) -> Result<usize> {
    let slices: Vec<_> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
    let (addresses, flags) = ([const { None }; BATCH], MsgFlags::empty());
    match sendmmsg(socket.as_raw_fd(), headers, &slices, addresses, [], flags) {
        Ok(sent) => Ok(sent.count()),
        // The receiver's queue is full.
        Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => Ok(0),
        Err(error) => Err(error).context("sending SYNs"),
    }
}

/// A packet socket that only sends: it is bound to no protocol, so nothing is received.
fn open(interface: &str) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let address = nix::ifaddrs::getifaddrs()?
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address?.as_link_addr().copied())
        .with_context(|| format!("there is no interface {interface}"))?;
    bind(socket.as_raw_fd(), &address).with_context(|| format!("binding to {interface}"))?;
    Ok(socket)
}

/// The hardware address of an interface.
fn mac(namespace: Option<&Namespace>, interface: &str) -> Result<[u8; 6]> {
    let look = || -> Result<[u8; 6]> {
        nix::ifaddrs::getifaddrs()?
            .filter(|found| found.interface_name == interface)
            .find_map(|found| found.address?.as_link_addr()?.addr())
            .with_context(|| format!("{interface} has no hardware address"))
    };
    match namespace {
        Some(namespace) => namespace.enter(look)?,
        None => look(),
    }
}

/// `SplitMix64` (Steele, Lea and Flood, 2014): cheap beside a system call, and random enough for sources.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        Self(u64::from(nanoseconds) << 32 | u64::from(std::process::id()))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}
