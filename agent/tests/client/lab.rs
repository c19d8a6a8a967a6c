//! A wire to listen on, and a cgroup to run programs in.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use headstart_ebpf::auth::{epoch, recent_epoch};
use headstart_ebpf::option::{FunctionOption, KIND, claim, shorten};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::KEY;

/// For what has happened already, or happens within a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of a TCP header (RFC 9293, 3.1).
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Runs ip(8) in this thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

/// Takes connections on every address of this namespace, and drops them.
pub(crate) fn listen(port: u16) -> TcpListener {
    TcpListener::bind(("::", port)).expect("the port is free in a namespace of its own")
}

/// A client's SYN, as it was on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Syn {
    pub(crate) port: u16,
    pub(crate) isn: u32,
    /// Kind and content of each option.
    pub(crate) options: Vec<(u8, Vec<u8>)>,
    /// Bytes of data behind the header.
    pub(crate) data: usize,
}

impl Syn {
    /// Reads Ethernet, IPv4 without options or IPv6 without extensions, TCP.
    fn parse(frame: &[u8]) -> Option<Self> {
        let (tcp, end) = match frame.get(12..14)? {
            [0x08, 0x00] if frame.get(23) == Some(&6) => {
                (34, 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]])))
            }
            [0x86, 0xdd] if frame.get(20) == Some(&6) => {
                (54, 54 + usize::from(u16::from_be_bytes([frame[18], frame[19]])))
            }
            _ => return None,
        };
        let tcp = frame.get(tcp..end)?;
        if tcp[13] & (SYN | ACK) != SYN {
            return None;
        }
        let header = usize::from(tcp[12] >> 4) * 4;
        Some(Self {
            port: u16::from_be_bytes([tcp[2], tcp[3]]),
            isn: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
            options: options(&tcp[20..header]),
            data: tcp.len() - header,
        })
    }

    pub(crate) fn has(&self, kind: u8) -> bool {
        self.options.iter().any(|(there, _)| *there == kind)
    }

    /// The function ID option, which must be there once.
    pub(crate) fn function(&self) -> FunctionOption {
        let ours: Vec<_> = self.options.iter().filter(|(kind, _)| *kind == KIND).collect();
        assert_eq!(ours.len(), 1, "{self:x?}");
        let bytes = ours[0].1.as_slice().try_into().expect("sixteen bytes");
        FunctionOption::decode(bytes).expect("our format")
    }

    /// The key's number, if the tag is what a node accepts now.
    pub(crate) fn verified(&self) -> Option<u8> {
        let option = self.function();
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("later than 1970");
        let at = recent_epoch(epoch(unix.as_secs()), option.epoch)?;
        let tag = claim(option.key, at, option.function, self.port, self.isn).tag(KEY);
        (shorten(tag) == option.tag).then_some(option.key)
    }
}

/// Every option with its kind and length bytes (RFC 9293, 3.2).
fn options(mut rest: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    loop {
        match *rest {
            [] | [0, ..] => return found,
            [1, ref tail @ ..] => rest = tail,
            [kind, len, ..] => {
                let (option, tail) = rest.split_at(len.into());
                found.push((kind, option.to_vec()));
                rest = tail;
            }
            [_] => panic!("half an option"),
        }
    }
}

/// Sees all frames of this namespace.
pub(crate) struct Wire {
    socket: Socket,
    seen: HashSet<Vec<u8>>,
}

impl Wire {
    pub(crate) fn tap() -> Self {
        // ETH_P_ALL in network order (packet(7)).
        let all = Protocol::from(i32::from(3_u16.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(all)).expect("root may listen");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        Self { socket, seen: HashSet::new() }
    }

    /// The next SYN. A frame on the loopback is seen twice, leaving and arriving, and returned once.
    pub(crate) fn syn(&mut self) -> Syn {
        let mut frame = vec![0; 64 * 1024];
        loop {
            let len = self.socket.read(&mut frame).expect("a SYN");
            let frame = &frame[..len];
            if let Some(syn) = Syn::parse(frame)
                && self.seen.insert(frame.to_vec())
            {
                return syn;
            }
        }
    }
}

/// The directory of this process in cgroup v2.
pub(crate) fn own_cgroup() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2 is mounted");
    let groups = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup v2");
    Path::new(mount.split(' ').nth(4).expect("a mount point")).join(group)
}

/// A cgroup of this test's own.
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = own_cgroup().join(format!("headstart-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("root may create cgroups");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Connects from inside, with a program that knows nothing of us.
    pub(crate) fn connect(&self, host: &str, port: u16) {
        let script = format!("echo $$ >{}/cgroup.procs && exec 3<>/dev/tcp/{host}/{port}", self.0.display());
        assert!(Command::new("bash").args(["-c", &script]).status().expect("bash runs").success());
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

/// A process that is killed when the test fails. Its input, if it is a pipe, stays open: to wait for a child
/// would close it.
pub(crate) struct Running {
    child: Child,
    _input: Option<ChildStdin>,
}

impl Running {
    /// Starts it, and waits for the first line that it prints.
    pub(crate) fn start(mut command: Command) -> (Self, String) {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let input = child.stdin.take();
        let mut running = Self { child, _input: input };
        let mut line = String::new();
        let out = running.child.stdout.as_mut().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("a line");
        (running, line)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, and gives the exit code when it has ended; `None` when the signal killed it.
    pub(crate) fn end(mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.id().cast_signed()), signal).expect("it runs");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
