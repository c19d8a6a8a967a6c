//! Network namespaces, and veth links between them and the host.

use super::{
    claim::NumberClaim,
    command::ip,
    scratch::{LabLease, prefix, unique},
};
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    panic,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// The private range that the links share: 10.213.0.0/16, in pieces of four addresses.
const SUBNETS: u32 = 1 << 14;

/// A network namespace with nothing but loopback in it. Clones are the same namespace; the last
/// one dropped deletes it.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<NamespaceInner>);

#[derive(Debug)]
struct NamespaceInner {
    name: String,
    file: File,
    links: AtomicUsize,
    _lease: LabLease,
}

impl Namespace {
    /// Makes a namespace; `kind` becomes part of its name.
    pub fn new(kind: &str) -> Result<Self> {
        let lease = LabLease::take()?;
        let name = unique(kind);
        ip(&format!("netns add {name}"))?;
        let file = File::open(format!("/run/netns/{name}"))?;
        let inner = NamespaceInner { name, file, links: AtomicUsize::new(0), _lease: lease };
        ip(&format!("-n {} link set lo up", inner.name))?;
        Ok(Self(Arc::new(inner)))
    }

    /// Its name below `/run/netns`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets, threads and processes made
    /// there stay in the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let inside = || -> nix::Result<T> {
            setns(&self.0.file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        };
        let result = thread::scope(|scope| scope.spawn(inside).join());
        result.unwrap_or_else(|panic| panic::resume_unwind(panic)).context("entering a namespace")
    }

    /// Runs a command inside, as [`super::run`] does.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        self.enter(|| super::run(command))?
    }
}

impl Drop for NamespaceInner {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("netns delete {}", self.name)) {
            eprintln!("{error:#}");
        }
    }
}

/// A veth pair between the host, or a namespace in its place, and a namespace, with an address on each end.
/// Removed on drop.
#[derive(Debug)]
pub struct Link {
    host: Option<Namespace>,
    host_if: String,
    peer_if: String,
    host_ip: Ipv4Addr,
    peer_ip: Ipv4Addr,
    namespace: Namespace,
    _subnet: NumberClaim,
}

impl Link {
    /// Connects `namespace` with the host. The interfaces have no addresses but these two, so that
    /// no packet crosses the link that a test did not send (ARP apart).
    pub fn connect(namespace: &Namespace) -> Result<Self> {
        Self::make(None, namespace)
    }

    /// Connects `namespace` with `host`, which then is the host in all that is said here.
    pub fn between(host: &Namespace, namespace: &Namespace) -> Result<Self> {
        Self::make(Some(host.clone()), namespace)
    }

    fn make(host: Option<Namespace>, namespace: &Namespace) -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let subnet = NumberClaim::take("subnet", SUBNETS)?;
        let [_, _, high, low] = (subnet.number() * 4).to_be_bytes();
        let link = Self {
            host,
            host_if: format!("{}v{}", prefix(), NEXT.fetch_add(1, Ordering::Relaxed)),
            peer_if: format!("eth{}", namespace.0.links.fetch_add(1, Ordering::Relaxed)),
            host_ip: Ipv4Addr::new(10, 213, high, low + 1),
            peer_ip: Ipv4Addr::new(10, 213, high, low + 2),
            namespace: namespace.clone(),
            _subnet: subnet,
        };
        link.set_up()?;
        Ok(link)
    }

    fn set_up(&self) -> Result<()> {
        let (host_if, peer_if, inside) = (&self.host_if, &self.peer_if, self.namespace.name());
        let near = self.at_host();
        ip(&format!("{near}link add {host_if} type veth peer name {peer_if} netns {inside}"))?;
        let ends = [(near, host_if, self.host_ip), (format!("-n {inside} "), peer_if, self.peer_ip)];
        for (at, interface, address) in ends {
            ip(&format!("{at}link set {interface} addrgenmode none"))?;
            ip(&format!("{at}address add {address}/30 dev {interface}"))?;
            ip(&format!("{at}link set {interface} up"))?;
        }
        Ok(())
    }

    /// What makes `ip` act where the host's end is.
    fn at_host(&self) -> String {
        self.host.as_ref().map_or_else(String::new, |host| format!("-n {} ", host.name()))
    }

    /// The namespace in the host's place, if there is one.
    pub fn host_namespace(&self) -> Option<&Namespace> {
        self.host.as_ref()
    }

    /// The namespace at the other end.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The interface on the host: where the agent attaches its XDP program.
    pub fn host_if(&self) -> &str {
        &self.host_if
    }

    /// The interface inside the namespace.
    pub fn peer_if(&self) -> &str {
        &self.peer_if
    }

    /// An address on the host, as the namespace sees it.
    pub fn host(&self, port: u16) -> SocketAddr {
        (self.host_ip, port).into()
    }

    /// An address in the namespace, as the host sees it.
    pub fn peer(&self, port: u16) -> SocketAddr {
        (self.peer_ip, port).into()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The namespace is still there, so the interface is too, unless set-up failed before it.
        if let Err(error) = ip(&format!("{}link delete {}", self.at_host(), self.host_if)) {
            eprintln!("{error:#}");
        }
    }
}
