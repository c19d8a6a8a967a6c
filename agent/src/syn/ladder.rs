//! The sensors on interfaces. Each is attached in the best mode that the interface accepts, and follows the interface.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aya::Ebpf;
use aya::programs::XdpMode;
use aya::programs::links::FdLink;
use headstart_config::Interfaces;
use tokio::sync::watch;

use super::error::{KernelProgram, SynError};
use super::interfaces::{Changes, wanted};
use super::pins::Pins;
use super::sensors::{Mode, tcx, xdp};

/// Most rows of [`AttachedSensor`] for interfaces that are gone.
const GONE_MAX: usize = 256;

/// A sensor, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedSensor {
    /// The interface, or `netns` for the socket lookup.
    pub interface: String,
    /// The way it is attached.
    pub mode: Mode,
    /// Whether it is still attached; false when its interface is gone.
    pub on: bool,
}

/// An interface with an attached program.
struct WatchedInterface {
    name: String,
    mode: Mode,
    /// The program stays attached while this is open or pinned.
    _link: FdLink,
}

/// The programs for interfaces, and the interfaces that they are attached to.
pub struct Ladder {
    ebpf: Ebpf,
    /// Programs that the kernel refused, with its error.
    refused: BTreeMap<KernelProgram, String>,
    pins: Option<Arc<Pins>>,
    interfaces: Interfaces,
    /// By interface index.
    watched: BTreeMap<u32, WatchedInterface>,
    /// Interfaces that refuse every mode, so that each is reported once.
    refusing: BTreeSet<(String, u32)>,
    changes: Option<Changes>,
    rows: watch::Sender<Vec<AttachedSensor>>,
}

impl Ladder {
    pub(super) fn new(
        ebpf: Ebpf,
        refused: BTreeMap<KernelProgram, String>,
        pins: Option<Arc<Pins>>,
        interfaces: Interfaces,
        rows: watch::Sender<Vec<AttachedSensor>>,
    ) -> Self {
        let changes = match Changes::listen() {
            _ if interfaces == Interfaces::Named(Vec::new()) => None,
            Ok(changes) => Some(changes),
            Err(error) => {
                tracing::warn!(
                    "interfaces that appear later are not watched: {error}; restart the agent when one appears"
                );
                None
            }
        };
        let (watched, refusing) = Default::default();
        Self { ebpf, refused, pins, interfaces, watched, refusing, changes, rows }
    }

    /// Attaches to every wanted interface that exists, and logs those that do not.
    pub(super) fn begin(&mut self) {
        self.look();
        if let Interfaces::Named(names) = &self.interfaces {
            let present: BTreeSet<_> = wanted(&self.interfaces).into_keys().collect();
            for name in names.iter().filter(|name| !present.contains(*name)) {
                tracing::error!("{}", SynError::NoInterface(name.clone()));
            }
        } else if self.watched.is_empty() && self.refusing.is_empty() {
            tracing::warn!(
                "no interface has a default route; the agent will watch each interface that gets one"
            );
        }
        if let Some(pins) = &self.pins {
            let mut names: Vec<_> =
                self.watched.iter().map(|(index, watched)| pin_name(watched.mode, *index)).collect();
            names.push(Mode::Lookup.as_str().into());
            pins.retain(&names);
        }
    }

    /// Attaches to interfaces that appear, and drops those that disappear, until the agent ends.
    pub(super) async fn follow(mut self) {
        while let Some(changes) = &mut self.changes {
            if let Err(error) = changes.next().await {
                tracing::error!("changes of interfaces are no longer followed: {error}; restart the agent");
                break;
            }
            self.look();
        }
        // Programs stay attached until this task ends.
        std::future::pending().await
    }

    fn look(&mut self) {
        let wanted = wanted(&self.interfaces);
        let gone = |index: &u32, name: &str| wanted.get(name) != Some(index);
        self.refusing.retain(|(name, index)| !gone(index, name));
        let dropped: Vec<_> =
            self.watched.extract_if(.., |index, watched| gone(index, &watched.name)).collect();
        for (index, WatchedInterface { name, mode, _link }) in dropped {
            tracing::warn!(
                interface = name,
                "the interface is no longer watched, because it or its default route is gone"
            );
            if let Some(pins) = &self.pins {
                pins.forget(&pin_name(mode, index));
            }
            self.update_row(&name, mode, false);
        }
        for (name, index) in wanted {
            if self.watched.contains_key(&index) || self.refusing.contains(&(name.clone(), index)) {
                continue;
            }
            match self.attach(&name, index) {
                Ok(watched) => {
                    tracing::info!(interface = name, mode = watched.mode.as_str(), "watching for SYNs");
                    self.update_row(&name, watched.mode, true);
                    self.watched.insert(index, watched);
                }
                Err(error) => {
                    tracing::error!("{error}");
                    self.refusing.insert((name, index));
                }
            }
        }
    }

    /// Tries each mode, best first, and in each takes over an earlier agent's link.
    fn attach(&mut self, name: &str, index: u32) -> Result<WatchedInterface, SynError> {
        let mut refusals = Vec::new();
        for mode in Mode::LADDER {
            match self.try_mode(mode, name, index) {
                Ok(link) => return Ok(WatchedInterface { name: name.to_owned(), mode, _link: link }),
                Err(why) => refusals.push((mode, why)),
            }
        }
        Err(SynError::Attach { interface: name.to_owned(), refusals })
    }

    fn try_mode(&mut self, mode: Mode, name: &str, index: u32) -> Result<FdLink, String> {
        let part = if mode == Mode::Tcx { KernelProgram::Tcx } else { KernelProgram::Xdp };
        if let Some(why) = self.refused.get(&part) {
            return Err(why.clone());
        }
        let pin = pin_name(mode, index);
        let old = self.pins.as_ref().and_then(|pins| pins.opened(&pin));
        let had_old = old.is_some();
        let adopted = old.and_then(|link| {
            let adopted = match mode {
                Mode::Tcx => tcx::adopt(&mut self.ebpf, link),
                _ => xdp::adopt(&mut self.ebpf, link),
            };
            // The kernel refuses when the link's interface is gone, and the index belongs to another one.
            adopted.inspect_err(|why| tracing::debug!(pin, "an old link is dead: {why}")).ok()
        });
        if let (true, None, Some(pins)) = (had_old, &adopted, &self.pins) {
            pins.forget(&pin);
        }
        let taken_over = adopted.is_some();
        let link = match (adopted, mode) {
            (Some(link), _) => link,
            (None, Mode::Native) => xdp::attach(&mut self.ebpf, index, XdpMode::Driver)?,
            (None, Mode::Generic) => xdp::attach(&mut self.ebpf, index, XdpMode::Skb)?,
            (None, _) => tcx::attach(&mut self.ebpf, name)?,
        };
        match &self.pins {
            // The link is already pinned.
            Some(pins) if !(taken_over && pins.keeps()) => {
                pins.pin(link, &pin).map_err(|error| error.to_string())
            }
            _ => Ok(link),
        }
    }

    fn update_row(&self, interface: &str, mode: Mode, on: bool) {
        self.rows.send_modify(|rows| {
            rows.retain(|row| row.interface != interface || row.mode != mode);
            rows.push(AttachedSensor { interface: interface.to_owned(), mode, on });
            let gone = rows.iter().filter(|row| !row.on).count();
            if gone > GONE_MAX
                && let Some(oldest) = rows.iter().position(|row| !row.on)
            {
                rows.remove(oldest);
            }
        });
    }
}

/// The name of a link's pin. It has the interface's index, because names change and may contain dots, which bpffs
/// refuses.
fn pin_name(mode: Mode, index: u32) -> String {
    match mode {
        Mode::Native | Mode::Generic => format!("xdp-{mode}-{index}"),
        Mode::Tcx | Mode::Lookup => format!("{mode}-{index}"),
    }
}
