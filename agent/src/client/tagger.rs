//! Attaches the `sock_ops` program that writes the option to a cgroup v2.
//!
//! Only this process has the link open. When it ends, even if it is killed, the kernel detaches the program, so that no
//! SYN has a tag of a withdrawn key. The program computes the epoch from the kernel's clock and an offset that this file
//! updates. So tags are correct at the change of an epoch, after a suspend, and while this process is stopped; only a
//! step of the clock takes effect late. The kernel's clock is `CLOCK_BOOTTIME` outside time namespaces
//! (time_namespaces(7)).

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use aya::programs::{CgroupAttachMode, SockOps};
use headstart_ebpf::auth::EPOCH_SECONDS;
use headstart_ebpf::client::{CLOCK, ClientTag, PROGRAM, TAGS};
use headstart_ebpf::maps::PortKey;
use nix::time::{ClockId, clock_gettime};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{ClientError, cgroup};

/// The program on a cgroup; dropping it detaches.
pub(super) struct Tagger {
    clock: Array<MapData, u64>,
    refresh: Interval,
    /// Owns the link.
    _ebpf: Ebpf,
}

impl Tagger {
    /// Adds `tag` to SYNs from the cgroup `path` and below to each address of `to`. Other programs stay attached.
    ///
    /// # Errors
    /// [`ClientError`] of the cgroup, or of the kernel that refuses the program.
    pub(super) fn attach(path: &Path, to: &[SocketAddr], tag: ClientTag) -> Result<Self, ClientError> {
        let cgroup = cgroup::open(path)?;
        let mut ebpf =
            Ebpf::load(headstart_ebpf::TAG_OBJECT).map_err(|error| ClientError::Load(chain(&error)))?;
        let mut take = |name| ebpf.take_map(name).ok_or(ClientError::Object(name));
        let mut tags: HashMap<MapData, PortKey, ClientTag> = HashMap::try_from(take(TAGS)?)?;
        let mut clock = Array::try_from(take(CLOCK)?)?;
        for address in to {
            tags.insert(PortKey::listener(*address), tag, 0)?;
        }
        clock.set(0, offset_ns()?, 0)?;
        let program: Option<&mut SockOps> =
            ebpf.program_mut(PROGRAM).and_then(|program| program.try_into().ok());
        let program = program.ok_or(ClientError::Object(PROGRAM))?;
        program.load().map_err(|error| ClientError::Load(chain(&error)))?;
        // A link ignores the mode: a cgroup can have several programs, and all of them run.
        program
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(|error| ClientError::Attach { path: path.to_owned(), reason: chain(&error) })?;
        let mut refresh = interval(Duration::from_secs(EPOCH_SECONDS));
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { clock, refresh, _ebpf: ebpf })
    }

    /// Waits for the next update, and updates the offset of the clock. Call it in a loop.
    pub(super) async fn refresh(&mut self) -> Result<(), ClientError> {
        self.refresh.tick().await;
        Ok(self.clock.set(0, offset_ns()?, 0)?)
    }
}

/// Unix time minus `CLOCK_BOOTTIME`, in nanoseconds, wrapping.
fn offset_ns() -> Result<u64, ClientError> {
    let now = |clock| clock_gettime(clock).map(|time| Duration::from(time).as_nanos() as u64);
    let both = now(ClockId::CLOCK_REALTIME).and_then(|unix| Ok((unix, now(ClockId::CLOCK_BOOTTIME)?)));
    let (unix, boot) =
        both.map_err(|error| ClientError::System { what: "the time cannot be read", error: error.into() })?;
    Ok(unix.wrapping_sub(boot))
}

/// An error with its causes on one line. A verifier's log is long, so only its last relevant line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let Some((summary, log)) = text.split_once("Verifier output:") else { return text };
    let statistics = ["verification time", "stack depth", "processed"];
    let mut reasons = log.lines().map(str::trim).filter(|line| !line.is_empty());
    let reason = reasons.rfind(|line| !statistics.iter().any(|word| line.starts_with(word)));
    format!("{} Verifier: {}", summary.trim_end(), reason.unwrap_or("no output"))
}
