//! A front: one address for many functions, where the agent accepts by itself.
//!
//! ```text
//! client ──> front (accept, TLS, whom it means) ──announce──> decision ──> start
//!                └──────── a connection to the function's own listener ──────> instance
//! ```
//!
//! The function is asked for as soon as its client has named it, in the ClientHello or in the head of a request, and starts
//! while the handshake goes on. Then the front connects to the function's listener, where the connection waits and is counted
//! like any other. All of this runs on the data threads; the thread that decides gets one message for a start, and none for
//! the clients of a function that is warm.
//!
//! Bounds: connections of a front and of a source, the size of a ClientHello (rustls) and of a head, the time of a handshake
//! and of a head, and the time without a byte.

mod bytes;
mod certificates;
mod client;
mod connection;
mod guess;
mod requests;
mod routes;
mod sources;
mod tls;

pub use certificates::{Certificate, CertificateError, Certificates, EXPIRES_SOON};
pub use guess::{Guess, Guesses};
pub use routes::{Routes, Target, reachable};
pub use tls::server_config;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use headstart_config::Carry;
use headstart_ebpf::maps::FUNCTIONS_MAX;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use self::sources::{RequestPlaces, Sources};
use crate::event::{FunctionId, Trigger};
use crate::measure::{self, CarryReason};

/// The pause after a failed accept: mostly there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The first number of a front in the kernel half. Those of functions are smaller.
pub const FIRST_FRONT: FunctionId = (FUNCTIONS_MAX - FRONTS_MAX) as FunctionId;

/// The most fronts that have a number.
const FRONTS_MAX: usize = 64;

/// Whether a number of the kernel half is a front's.
#[must_use]
pub fn is_front(number: FunctionId) -> bool {
    (FIRST_FRONT..FUNCTIONS_MAX as FunctionId).contains(&number)
}

/// Tells the owner of the functions' state of a client.
pub trait Announce: Send + Sync {
    /// A connection from `from` to the function will follow, for a client of this address. It was announced already if its
    /// SYN led to the right guess.
    fn announce(
        &self,
        function: FunctionId,
        trigger: Trigger,
        client: SocketAddr,
        from: SocketAddr,
        guess: Option<Guess>,
    );

    /// What is known of where clients go.
    fn guesses(&self) -> &Guesses;
}

/// What a front does, until the configuration is read again.
pub struct FrontSettings {
    /// Its name.
    pub name: String,
    /// Its number in the kernel half.
    pub number: FunctionId,
    /// With TLS: the certificates, and what is spoken.
    pub tls: Option<Arc<ServerConfig>>,
    /// What goes to functions.
    pub carry: Carry,
    /// Whether functions are told their clients' addresses before the first byte.
    pub proxy_protocol: bool,
    /// Who is meant.
    pub routes: Routes,
    /// The most connections of one source.
    pub source_connections: u32,
    /// For the handshake, and for the head of a request.
    pub handshake_timeout: Duration,
    /// Without a byte.
    pub idle_timeout: Duration,
}

/// A front that accepts. It stops when it is dropped; its clients are served to their end.
pub struct RunningFront {
    settings: watch::Sender<Arc<FrontSettings>>,
    count: ConnectionCount,
}

impl RunningFront {
    /// Accepts on the threads of `data` from now on, `most` connections at a time.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn start(
        listener: &OwnedFd,
        settings: Arc<FrontSettings>,
        most: u32,
        announce: Arc<dyn Announce>,
        data: &Handle,
    ) -> io::Result<Self> {
        let listener = std::net::TcpListener::from(listener.try_clone()?);
        let most = usize::try_from(most).unwrap_or(Semaphore::MAX_PERMITS);
        let (settings, current) = watch::channel(settings);
        let sources: Arc<Sources> = Arc::default();
        let count = ConnectionCount(Arc::clone(&sources));
        let front = Accepting {
            places: Arc::new(Semaphore::new(most)),
            requests: Arc::new(RequestPlaces::new(most)),
            settings: current,
            announce,
            sources,
        };
        data.spawn(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => front.run(listener).await,
                Err(error) => tracing::error!("a front cannot accept: {error}"),
            }
        });
        Ok(Self { settings, count })
    }

    /// Treats new connections so from now on.
    pub fn set(&self, settings: Arc<FrontSettings>) {
        self.settings.send_replace(settings);
    }

    /// Counts its connections, also when it was changed since.
    #[must_use]
    pub fn count(&self) -> ConnectionCount {
        self.count.clone()
    }
}

/// Counts the connections of a front.
#[derive(Clone)]
pub struct ConnectionCount(Arc<Sources>);

impl ConnectionCount {
    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.total()
    }
}

struct Accepting {
    places: Arc<Semaphore>,
    requests: Arc<RequestPlaces>,
    settings: watch::Receiver<Arc<FrontSettings>>,
    announce: Arc<dyn Announce>,
    sources: Arc<Sources>,
}

impl Accepting {
    /// Until the front is dropped.
    async fn run(mut self, listener: TcpListener) {
        loop {
            let next = async {
                // What finds no place waits in the backlog.
                let place = Arc::clone(&self.places).acquire_owned().await.map_err(io::Error::other)?;
                let (socket, client) = listener.accept().await?;
                io::Result::Ok((place, socket, client))
            };
            let accepted = tokio::select! {
                accepted = next => accepted,
                changed = self.settings.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            let settings = Arc::clone(&self.settings.borrow());
            let (place, socket, client) = match accepted {
                Ok((place, socket, client)) => {
                    (place, socket, SocketAddr::new(client.ip().to_canonical(), client.port()))
                }
                Err(error) => {
                    tracing::warn!(front = settings.name, "a client cannot be accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(of_source) = self.sources.enter(client.ip(), settings.source_connections) else {
                measure::record_front_connection(&settings.name, CarryReason::SourceLimit);
                continue;
            };
            let (announce, requests) = (Arc::clone(&self.announce), Arc::clone(&self.requests));
            let (current, places) = (self.settings.clone(), (place, of_source));
            tokio::spawn(connection::serve(socket, client, current, announce, requests, places));
        }
    }
}
