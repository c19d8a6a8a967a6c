//! The `sock_ops` program that writes the option, on a cgroup v2.
//!
//! It is held by this process alone, by an open link: when the process ends, however it ends, the kernel
//! detaches the program, so that nothing goes on with a key that was withdrawn. The program computes the epoch
//! from the kernel's clock and an offset that is refreshed here. So tags are right at the change of an epoch,
//! after a suspend, and while this process is stopped; only a step of the clock is noticed late. The kernel's
//! clock is `CLOCK_BOOTTIME` outside time namespaces (time_namespaces(7)).

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
    /// Holds the link.
    _ebpf: Ebpf,
}

impl Tagger {
    /// SYNs from `path` and below to each of `to` carry `tag` from now on. Other programs there stay.
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
        // Links take no mode: several programs may be on a cgroup, and all of them run.
        program
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(|error| ClientError::Attach { path: path.to_owned(), reason: chain(&error) })?;
        let mut refresh = interval(Duration::from_secs(EPOCH_SECONDS));
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { clock, refresh, _ebpf: ebpf })
    }

    /// Waits for its time, then follows the clock. To be called again and again.
    pub(super) async fn refresh(&mut self) -> Result<(), ClientError> {
        self.refresh.tick().await;
        Ok(self.clock.set(0, offset_ns()?, 0)?)
    }
}

/// Unix time less `CLOCK_BOOTTIME`, in nanoseconds, wrapping.
fn offset_ns() -> Result<u64, ClientError> {
    let now = |clock| clock_gettime(clock).map(|time| Duration::from(time).as_nanos() as u64);
    let both = now(ClockId::CLOCK_REALTIME).and_then(|unix| Ok((unix, now(ClockId::CLOCK_BOOTTIME)?)));
    let (unix, boot) =
        both.map_err(|error| ClientError::System { what: "the time cannot be read", error: error.into() })?;
    Ok(unix.wrapping_sub(boot))
}

/// An error with its causes on one line, and of the verifier's log, which is pages long, what was wrong at last.
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
    let Some((said, log)) = text.split_once("Verifier output:") else { return text };
    let statistics = ["verification time", "stack depth", "processed"];
    let mut reasons = log.lines().map(str::trim).filter(|line| !line.is_empty());
    let reason = reasons.rfind(|line| !statistics.iter().any(|word| line.starts_with(word)));
    format!("{} Verifier: {}", said.trim_end(), reason.unwrap_or("silent"))
}
