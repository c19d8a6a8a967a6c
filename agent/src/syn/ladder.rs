//! The sensors on interfaces: each is attached on the best rung that holds, and follows its interface.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aya::Ebpf;
use aya::programs::XdpMode;
use aya::programs::links::FdLink;
use headstart_config::Interfaces;
use tokio::sync::watch;

use super::error::{Part, SynError};
use super::interfaces::{Changes, wanted};
use super::pins::Pins;
use super::sensors::{Mode, tcx, xdp};

/// Rows of [`Attached`] that are kept of interfaces that are gone.
const GONE_MAX: usize = 256;

/// A sensor, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The interface, or `netns` for the socket lookup.
    pub interface: String,
    /// How it is attached.
    pub mode: Mode,
    /// Whether it still is: an interface may have gone.
    pub on: bool,
}

/// A program on an interface.
struct Held {
    name: String,
    mode: Mode,
    /// Attached while this is open, and as long as it is pinned.
    _link: FdLink,
}

/// The programs that watch interfaces, and where they are attached.
pub struct Ladder {
    ebpf: Ebpf,
    /// Programs that the kernel refused, with what it said.
    refused: BTreeMap<Part, String>,
    pins: Option<Arc<Pins>>,
    interfaces: Interfaces,
    /// By interface index.
    held: BTreeMap<u32, Held>,
    /// Interfaces that refuse every rung, so that each is reported once.
    hopeless: BTreeSet<(String, u32)>,
    changes: Option<Changes>,
    shown: watch::Sender<Vec<Attached>>,
}

impl Ladder {
    pub(super) fn new(
        ebpf: Ebpf,
        refused: BTreeMap<Part, String>,
        pins: Option<Arc<Pins>>,
        interfaces: Interfaces,
        shown: watch::Sender<Vec<Attached>>,
    ) -> Self {
        let changes = match Changes::listen() {
            _ if interfaces == Interfaces::Named(Vec::new()) => None,
            Ok(changes) => Some(changes),
            Err(error) => {
                tracing::warn!("interfaces that appear later are not watched: {error}");
                None
            }
        };
        let (held, hopeless) = Default::default();
        Self { ebpf, refused, pins, interfaces, held, hopeless, changes, shown }
    }

    /// Attaches to every wanted interface that exists, and says which do not.
    pub(super) fn begin(&mut self) {
        self.look();
        if let Interfaces::Named(names) = &self.interfaces {
            let present: BTreeSet<_> = wanted(&self.interfaces).into_keys().collect();
            for name in names.iter().filter(|name| !present.contains(*name)) {
                tracing::error!("{}", SynError::NoInterface(name.clone()));
            }
        } else if self.held.is_empty() && self.hopeless.is_empty() {
            tracing::warn!("no interface has a default route: the first that gets one is watched");
        }
        if let Some(pins) = &self.pins {
            let mut names: Vec<_> =
                self.held.iter().map(|(index, held)| pin_name(held.mode, *index)).collect();
            names.push(Mode::Lookup.as_str().into());
            pins.retain(&names);
        }
    }

    /// Attaches to interfaces that appear and forgets those that go, for as long as the agent runs.
    pub(super) async fn follow(mut self) {
        while let Some(changes) = &mut self.changes {
            if let Err(error) = changes.next().await {
                tracing::error!("interfaces are not followed any more: {error}");
                break;
            }
            self.look();
        }
        // What is attached stays so until this task ends.
        std::future::pending().await
    }

    fn look(&mut self) {
        let wanted = wanted(&self.interfaces);
        let gone = |index: &u32, name: &str| wanted.get(name) != Some(index);
        self.hopeless.retain(|(name, index)| !gone(index, name));
        let dropped: Vec<_> = self.held.extract_if(.., |index, held| gone(index, &held.name)).collect();
        for (index, Held { name, mode, _link }) in dropped {
            tracing::warn!(interface = name, "not watched any more: the interface or its route is gone");
            if let Some(pins) = &self.pins {
                pins.forget(&pin_name(mode, index));
            }
            self.show(&name, mode, false);
        }
        for (name, index) in wanted {
            if self.held.contains_key(&index) || self.hopeless.contains(&(name.clone(), index)) {
                continue;
            }
            match self.attach(&name, index) {
                Ok(held) => {
                    tracing::info!(interface = name, mode = held.mode.as_str(), "watching for SYNs");
                    self.show(&name, held.mode, true);
                    self.held.insert(index, held);
                }
                Err(error) => {
                    tracing::error!("{error}");
                    self.hopeless.insert((name, index));
                }
            }
        }
    }

    /// Climbs the ladder, and on each rung takes over what an earlier agent left there.
    fn attach(&mut self, name: &str, index: u32) -> Result<Held, SynError> {
        let mut refusals = Vec::new();
        for mode in Mode::LADDER {
            match self.try_rung(mode, name, index) {
                Ok(link) => return Ok(Held { name: name.to_owned(), mode, _link: link }),
                Err(why) => refusals.push((mode, why)),
            }
        }
        Err(SynError::Attach { interface: name.to_owned(), refusals })
    }

    fn try_rung(&mut self, mode: Mode, name: &str, index: u32) -> Result<FdLink, String> {
        let part = if mode == Mode::Tcx { Part::Tcx } else { Part::Xdp };
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
            // Refused when its interface is gone: the index is another one's now.
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
            // The file is there already.
            Some(pins) if !(taken_over && pins.keeps()) => {
                pins.pin(link, &pin).map_err(|error| error.to_string())
            }
            _ => Ok(link),
        }
    }

    fn show(&self, interface: &str, mode: Mode, on: bool) {
        self.shown.send_modify(|shown| {
            shown.retain(|row| row.interface != interface || row.mode != mode);
            shown.push(Attached { interface: interface.to_owned(), mode, on });
            let gone = shown.iter().filter(|row| !row.on).count();
            if gone > GONE_MAX
                && let Some(oldest) = shown.iter().position(|row| !row.on)
            {
                shown.remove(oldest);
            }
        });
    }
}

/// The name of a link's pin. Of the index, as names change and may hold dots, which bpffs refuses.
fn pin_name(mode: Mode, index: u32) -> String {
    match mode {
        Mode::Native | Mode::Generic => format!("xdp-{mode}-{index}"),
        Mode::Tcx | Mode::Lookup => format!("{mode}-{index}"),
    }
}
