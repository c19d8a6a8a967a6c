//! The kernel half, from loading to running.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader};
use headstart_config::{Interfaces, Syn};
use headstart_ebpf::maps;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::error::{Part, SynError, chain};
use super::fill::Maps;
use super::keys::KeyStore;
use super::ladder::{Attached, Ladder};
use super::lobby;
use super::pins::{MAPS, Pins};
use super::ring::{Reader, Rings};
use super::sensor::Sensor;
use super::sensors::gate::Gate;
use super::sensors::{self, Mode, lookup};
use super::settings::{Clock, settings};
use super::table::Routes;
use crate::measure::now_ns;

/// The loaded programs and maps, not yet told of any function.
pub struct Kernel {
    ebpf: Ebpf,
    pins: Option<Arc<Pins>>,
    /// Whether the maps are an earlier agent's.
    kept: bool,
    refused: BTreeMap<Part, SynError>,
    lookup: Option<FdLink>,
}

impl Kernel {
    /// Makes the maps, or opens the pinned ones, and loads every program that the kernel takes. Those that it
    /// refuses are in [`Kernel::refused`].
    ///
    /// # Errors
    /// [`SynError::Load`] where nothing can be loaded at all.
    pub fn load(object: &[u8], pins: Option<Arc<Pins>>) -> Result<Self, SynError> {
        let mut loader = EbpfLoader::new();
        let dir = pins.as_ref().and_then(|pins| pins.maps());
        let kept = dir.as_ref().is_some_and(|dir| dir.join(maps::FUNCTIONS).exists());
        for name in MAPS {
            if let Some(dir) = &dir {
                loader.map_pin_path(name, dir.join(name));
            }
        }
        let mut ebpf = loader.load(object).map_err(|error| SynError::Load(chain(&error)))?;
        let load = |part| Some((part, sensors::load(&mut ebpf, part).err()?));
        let refused = Part::ALL.into_iter().filter_map(load).collect();
        Ok(Self { ebpf, pins, kept, refused, lookup: None })
    }

    /// The programs that the kernel refused, with what each lack costs.
    #[must_use]
    pub fn refused(&self) -> &BTreeMap<Part, SynError> {
        &self.refused
    }

    /// Attaches the socket lookup to this network namespace, and then drops an earlier agent's.
    ///
    /// # Errors
    /// [`SynError::Lookup`], or why the program was not loaded.
    pub fn attach_lookup(&mut self) -> Result<(), SynError> {
        if let Some(error) = self.refused.remove(&Part::Lookup) {
            return Err(error);
        }
        let link = lookup::attach(&mut self.ebpf)?;
        let link = match &self.pins {
            Some(pins) => pins
                .pin(link, Mode::Lookup.as_str())
                .map_err(|error| SynError::Lookup { why: error.to_string() })?,
            None => link,
        };
        self.lookup = Some(link);
        Ok(())
    }

    /// What it can do for listeners, from now on.
    #[must_use]
    pub fn listeners(&self) -> ListenerSupport {
        let gate = match self.refused.get(&Part::Gate) {
            Some(error) => Err(error.to_string()),
            None => Gate::new(&self.ebpf, self.kept).map_err(|error| error.to_string()),
        };
        ListenerSupport { gate, steers: self.lookup.is_some() }
    }

    /// Tells the kernel of the functions, and attaches to interfaces.
    ///
    /// # Errors
    /// When a map cannot be written, or is not in the object.
    pub fn watch(mut self, routes: &Routes, config: &Syn, wanted: &Interfaces) -> Result<Sensing, SynError> {
        let lobby = self.lobby(config)?;
        let mut seed = [0; 8];
        getrandom(&mut seed, GetRandomFlags::empty())
            .map_err(|error| SynError::Io { what: "no random number", error: error.into() })?;
        let settings = settings(config, u64::from_ne_bytes(seed), lobby.is_some());

        let mut maps = Maps(&mut self.ebpf);
        let keys = KeyStore::new(maps.take(maps::KEYS)?, config.key_file.clone())?;
        maps.sources(config)?;
        let clock = Clock::new(maps.take(maps::SETTINGS)?, settings)?;
        let mut sensor = Sensor::new(&mut maps, config.key_file.is_some(), lobby.as_ref())?;
        sensor.update(routes)?;
        // Whatever was written before speaks of an earlier agent's functions.
        let since_ns = now_ns();
        let rings = Rings {
            authenticated: maps.take(maps::EVENTS_AUTHENTICATED)?,
            open: maps.take(maps::EVENTS_OPEN)?,
        };
        let rings = Reader::new(rings, since_ns);

        let lookup = self.lookup.is_some();
        let row = Attached { interface: "netns".into(), mode: Mode::Lookup, on: true };
        let (shown, attached) = watch::channel(if lookup { vec![row] } else { Vec::new() });
        if let (false, Some(pins)) = (lookup, &self.pins) {
            pins.forget(Mode::Lookup.as_str());
        }
        let refused = self.refused.iter().map(|(part, error)| (*part, error.to_string())).collect();
        let mut ladder = Ladder::new(self.ebpf, refused, self.pins, wanted.clone(), shown);
        ladder.begin();
        let background = Background { ladder, clock, lobby, _lookup: self.lookup };
        Ok(Sensing { sensor, attached, watching: Watching { rings, keys, background } })
    }

    /// The lobby, where there are ignored sources and the lookup that leads them there.
    fn lobby(&self, config: &Syn) -> Result<Option<socket2::Socket>, SynError> {
        if config.ignore.is_empty() {
            return Ok(None);
        }
        if self.lookup.is_none() {
            tracing::warn!(
                "sources in `ignore` wake cold functions when they connect: sk_lookup is not attached"
            );
            return Ok(None);
        }
        lobby::open().map(Some).map_err(|error| SynError::Io { what: "the lobby cannot listen", error })
    }
}

/// What the kernel half can do for the listeners of functions.
pub struct ListenerSupport {
    gate: Result<Gate, String>,
    steers: bool,
}

impl ListenerSupport {
    /// Whether connections can be given to the function that they name.
    #[must_use]
    pub fn can_steer(&self) -> bool {
        self.steers
    }

    /// Closes a listener to unauthenticated clients, for good. To be done before it listens.
    ///
    /// # Errors
    /// [`SynError::Gate`] or [`SynError::GateLocked`].
    pub fn guard(&self, listener: impl AsFd) -> Result<(), SynError> {
        self.gate.as_ref().map_err(|why| SynError::Gate(why.clone()))?.guard(listener)
    }
}

/// The running kernel half.
pub struct Sensing {
    /// For the owner of the functions' state.
    pub sensor: Sensor,
    /// Where it is attached, as that changes.
    pub attached: watch::Receiver<Vec<Attached>>,
    /// For tasks of their own.
    pub watching: Watching,
}

impl Sensing {
    /// What the owner of the state keeps, and the rest.
    #[must_use]
    pub fn split(self) -> (Sensor, Watching) {
        (self.sensor, self.watching)
    }
}

/// What runs beside the owner of the state.
pub struct Watching {
    /// What [`super::read`] reads.
    pub rings: Reader,
    /// The keys of clients.
    pub keys: KeyStore,
    /// What runs by itself.
    pub background: Background,
}

/// What keeps the kernel half as it should be. Unpinned programs detach when it is dropped.
pub struct Background {
    ladder: Ladder,
    clock: Clock,
    lobby: Option<socket2::Socket>,
    _lookup: Option<FdLink>,
}

impl Background {
    /// Keeps the clock, follows interfaces and answers in the lobby, for as long as the agent runs.
    pub async fn run(self) {
        let lobby = async {
            let Some(socket) = self.lobby else { return };
            match TcpListener::from_std(socket.into()) {
                Ok(listener) => lobby::serve(listener).await,
                Err(error) => tracing::error!("nobody answers in the lobby: {error}"),
            }
        };
        tokio::join!(self.clock.keep(), self.ladder.follow(), lobby);
    }
}
