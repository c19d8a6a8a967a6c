//! The eBPF programs and maps, from loading to running.

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

use super::error::{KernelProgram, SynError, chain};
use super::fill::Maps;
use super::keys::KeyStore;
use super::ladder::{AttachedSensor, Ladder};
use super::lobby;
use super::pins::{MAPS, Pins};
use super::ring::{Reader, Rings};
use super::sensor::Sensor;
use super::sensors::gate::Gate;
use super::sensors::{self, Mode, lookup};
use super::settings::{Clock, settings};
use super::table::Routes;
use crate::measure::now_ns;

/// The loaded programs and maps, without any function yet.
pub struct Kernel {
    ebpf: Ebpf,
    pins: Option<Arc<Pins>>,
    /// Whether an earlier agent made the maps.
    kept: bool,
    refused: BTreeMap<KernelProgram, SynError>,
    lookup: Option<FdLink>,
}

impl Kernel {
    /// Makes the maps, or opens the pinned ones, and loads every program that the kernel accepts. The others are in
    /// [`Kernel::refused`].
    ///
    /// # Errors
    /// [`SynError::Load`] when nothing can be loaded.
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
        let refused = KernelProgram::ALL.into_iter().filter_map(load).collect();
        Ok(Self { ebpf, pins, kept, refused, lookup: None })
    }

    /// The programs that the kernel refused, with the reasons.
    #[must_use]
    pub fn refused(&self) -> &BTreeMap<KernelProgram, SynError> {
        &self.refused
    }

    /// Attaches the socket lookup to this network namespace, and then detaches an earlier agent's.
    ///
    /// # Errors
    /// [`SynError::Lookup`], or the error of loading the program.
    pub fn attach_lookup(&mut self) -> Result<(), SynError> {
        if let Some(error) = self.refused.remove(&KernelProgram::Lookup) {
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

    /// What the programs can do for listeners.
    #[must_use]
    pub fn listeners(&self) -> ListenerSupport {
        let gate = match self.refused.get(&KernelProgram::Gate) {
            Some(error) => Err(error.to_string()),
            None => Gate::new(&self.ebpf, self.kept).map_err(|error| error.to_string()),
        };
        ListenerSupport { gate, steers: self.lookup.is_some() }
    }

    /// Writes the functions to the maps, and attaches to interfaces.
    ///
    /// # Errors
    /// When a map cannot be written, or is not in the object.
    pub fn watch(
        mut self,
        routes: &Routes,
        config: &Syn,
        wanted: &Interfaces,
    ) -> Result<RunningSensors, SynError> {
        let lobby = self.lobby(config)?;
        let mut seed = [0; 8];
        getrandom(&mut seed, GetRandomFlags::empty())
            .map_err(|error| SynError::Io { what: "no random number", error: error.into() })?;
        let settings = settings(config, u64::from_ne_bytes(seed), lobby.is_some());

        let mut maps = Maps(&mut self.ebpf);
        let keys = KeyStore::new(maps.take(maps::KEYS)?, config)?;
        maps.sources(config)?;
        let clock = Clock::new(maps.take(maps::SETTINGS)?, settings)?;
        let mut sensor = Sensor::new(&mut maps, config.key_file.is_some(), lobby.as_ref())?;
        sensor.update(routes)?;
        // Earlier events have function numbers of an earlier agent.
        let since_ns = now_ns();
        let rings = Rings {
            authenticated: maps.take(maps::EVENTS_AUTHENTICATED)?,
            open: maps.take(maps::EVENTS_OPEN)?,
        };
        let rings = Reader::new(rings, since_ns);

        let lookup = self.lookup.is_some();
        let row = AttachedSensor { interface: "netns".into(), mode: Mode::Lookup, on: true };
        let (shown, attached) = watch::channel(if lookup { vec![row] } else { Vec::new() });
        if let (false, Some(pins)) = (lookup, &self.pins) {
            pins.forget(Mode::Lookup.as_str());
        }
        let refused = self.refused.iter().map(|(part, error)| (*part, error.to_string())).collect();
        let mut ladder = Ladder::new(self.ebpf, refused, self.pins, wanted.clone(), shown);
        ladder.begin();
        let background = Background { ladder, clock, lobby, _lookup: self.lookup };
        Ok(RunningSensors { sensor, attached, watching: SensorTasks { rings, keys, background } })
    }

    /// The lobby, if there are ignored sources, and the socket lookup that gives it their connections.
    fn lobby(&self, config: &Syn) -> Result<Option<socket2::Socket>, SynError> {
        if config.ignore.is_empty() {
            return Ok(None);
        }
        if self.lookup.is_none() {
            tracing::warn!(
                "sk_lookup is not attached, so connections from sources in `ignore` start cold functions"
            );
            return Ok(None);
        }
        lobby::open()
            .map(Some)
            .map_err(|error| SynError::Io { what: "cannot listen for ignored sources (the lobby)", error })
    }
}

/// What the programs can do for the listeners of functions.
pub struct ListenerSupport {
    gate: Result<Gate, String>,
    steers: bool,
}

impl ListenerSupport {
    /// Whether connections can be steered to the function that they name.
    #[must_use]
    pub fn can_steer(&self) -> bool {
        self.steers
    }

    /// Closes a listener to unannounced clients, permanently. Call it before the socket listens.
    ///
    /// # Errors
    /// [`SynError::Gate`] or [`SynError::GateLocked`].
    pub fn guard(&self, listener: impl AsFd) -> Result<(), SynError> {
        self.gate.as_ref().map_err(|why| SynError::Gate(why.clone()))?.guard(listener)
    }
}

/// The running programs.
pub struct RunningSensors {
    /// For the owner of the functions' state.
    pub sensor: Sensor,
    /// The attached sensors; updated when they change.
    pub attached: watch::Receiver<Vec<AttachedSensor>>,
    /// The parts that run in tasks of their own.
    pub watching: SensorTasks,
}

impl RunningSensors {
    /// The part of the functions' owner, and the parts with tasks of their own.
    #[must_use]
    pub fn split(self) -> (Sensor, SensorTasks) {
        (self.sensor, self.watching)
    }
}

/// The parts of the sensors that run in tasks of their own.
pub struct SensorTasks {
    /// The rings, for [`super::read`].
    pub rings: Reader,
    /// The keys of clients.
    pub keys: KeyStore,
    /// Keeps programs, clock and lobby running.
    pub background: Background,
}

/// Keeps the programs attached and the epoch current. Unpinned programs detach when it is dropped.
pub struct Background {
    ladder: Ladder,
    clock: Clock,
    lobby: Option<socket2::Socket>,
    _lookup: Option<FdLink>,
}

impl Background {
    /// Updates the epoch, follows interfaces and answers connections of ignored sources, until the agent ends.
    pub async fn run(self) {
        let lobby = async {
            let Some(socket) = self.lobby else { return };
            match TcpListener::from_std(socket.into()) {
                Ok(listener) => lobby::serve(listener).await,
                Err(error) => tracing::error!(
                    "connections from sources in `ignore` to cold functions are not answered: {error}; restart the agent"
                ),
            }
        };
        tokio::join!(self.clock.keep(), self.ladder.follow(), lobby);
    }
}
