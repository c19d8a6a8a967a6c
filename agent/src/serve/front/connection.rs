//! One client of a front, from its acceptance to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use headstart_config::Carry;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_rustls::server::TlsStream;

use super::client::{ClientStream, LastByte};
use super::routes::{Found, Target};
use super::sources::{RequestPlaces, SourcePlace};
use super::tls::{self, Hello};
use super::{Announce, FrontSettings, bytes, requests};
use crate::event::Trigger;
use crate::measure::{self, CarryReason, HandshakeOutcome, RequestOutcome};

/// What holds a client's place among the connections of its front and of its source.
pub(super) type Places = (OwnedSemaphorePermit, SourcePlace);

/// What is known of a client.
pub(super) struct Connection {
    /// The front's, as they were when it came.
    pub(super) settings: Arc<FrontSettings>,
    current: watch::Receiver<Arc<FrontSettings>>,
    /// Its address.
    pub(super) client: SocketAddr,
    /// Whether it speaks TLS.
    pub(super) is_tls: bool,
    /// The host in its ClientHello.
    pub(super) host: Option<String>,
    /// Bounds the requests that are at functions.
    pub(super) requests: Arc<RequestPlaces>,
    announce: Arc<dyn Announce>,
    /// It has named a function.
    has_named: AtomicBool,
    /// A function that was asked for, and the socket whose connection was announced to it.
    announced: Mutex<Option<(String, TcpSocket)>>,
    /// Requests without a whole answer.
    open_requests: AtomicUsize,
    /// When one last came or ended.
    last_request: LastByte,
    last_byte: LastByte,
    _places: Places,
}

/// Serves a client until it leaves.
pub(super) async fn serve(
    socket: TcpStream,
    client: SocketAddr,
    current: watch::Receiver<Arc<FrontSettings>>,
    announce: Arc<dyn Announce>,
    requests: Arc<RequestPlaces>,
    places: Places,
) {
    let settings = Arc::clone(&current.borrow());
    let last_byte = LastByte::new();
    let stream = ClientStream::new(socket, last_byte.clone());
    let mut connection = Connection {
        settings,
        current,
        client,
        is_tls: false,
        host: None,
        requests,
        announce,
        has_named: AtomicBool::new(false),
        announced: Mutex::new(None),
        open_requests: AtomicUsize::new(0),
        last_request: LastByte::new(),
        last_byte,
        _places: places,
    };
    if connection.settings.tls.is_none() {
        measure::record_front_connection(&connection.settings.name, CarryReason::Requests);
        let connection = Arc::new(connection);
        return connection.unless_idle(requests::carry(stream, Arc::clone(&connection), false)).await;
    }
    let limit = connection.settings.handshake_timeout;
    let handshake = tls::within(limit, connection.handshake(stream)).await;
    let outcome = handshake.as_ref().err().copied().unwrap_or(HandshakeOutcome::Done);
    measure::record_front_handshake(&connection.settings.name, outcome);
    let Ok(stream) = handshake else { return };
    let connection = Arc::new(connection);
    match connection.settings.carry {
        Carry::Requests => {
            measure::record_front_connection(&connection.settings.name, CarryReason::Requests);
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            connection.unless_idle(requests::carry(stream, Arc::clone(&connection), is_http2)).await;
        }
        Carry::Bytes => {
            connection.unless_idle(connection.carry_bytes(stream)).await;
        }
    }
}

/// A request without a whole answer.
pub(super) struct OpenRequest(Arc<Connection>);

impl OpenRequest {
    pub(super) fn of(connection: &Arc<Connection>) -> Self {
        connection.open_requests.fetch_add(1, Ordering::Relaxed);
        connection.last_request.touch();
        Self(Arc::clone(connection))
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.last_request.touch();
        self.0.open_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    /// The front's settings of now: an open connection must not reach what a reload has taken away.
    pub(super) fn current(&self) -> Arc<FrontSettings> {
        Arc::clone(&self.current.borrow())
    }

    /// Returns when no request has been open for this long.
    pub(super) async fn unasked(&self, limit: Duration) {
        loop {
            self.last_request.idle_for(limit).await;
            if self.open_requests.load(Ordering::Relaxed) == 0 {
                return;
            }
            self.last_request.touch();
        }
    }

    /// Makes the TLS session; the function starts meanwhile, if the host is its own.
    async fn handshake(&mut self, stream: ClientStream) -> Result<TlsStream<ClientStream>, HandshakeOutcome> {
        let hello = Hello::read(stream).await?;
        let Some(tls) = self.settings.tls.clone() else { return Err(HandshakeOutcome::Failed) };
        let routes = &self.settings.routes;
        let host = hello.host();
        let target = routes.alone(host.as_deref());
        // A host of which paths decide has no function yet.
        let by_path =
            self.settings.carry == Carry::Requests && host.as_ref().is_some_and(|host| routes.knows(host));
        if target.is_none() && !by_path {
            hello.refuse().await;
            return Err(HandshakeOutcome::UnknownName);
        }
        if let Some(Found::Target(target)) = &target
            && let Some(socket) = self.ask_for(target, Trigger::Sni)
        {
            self.announced = Mutex::new(Some((target.function.clone(), socket)));
        }
        self.is_tls = true;
        self.host = host;
        hello.finish(tls).await
    }

    /// Asks for a function, unless that was done already.
    pub(super) fn announce(&self, target: &Target, trigger: Trigger) -> Option<TcpSocket> {
        let before = self.announced.lock().unwrap_or_else(PoisonError::into_inner).take();
        match before {
            Some((function, socket)) if function == target.function => Some(socket),
            _ => self.ask_for(target, trigger),
        }
    }

    /// The client has named this function.
    fn ask_for(&self, target: &Target, trigger: Trigger) -> Option<TcpSocket> {
        let is_first = !self.has_named.swap(true, Ordering::Relaxed);
        let guess = is_first.then(|| self.announce.guesses().named(self.client)).flatten();
        if let Some(guess) = guess {
            let right = target.doorbell.number() == Some(guess.function);
            measure::record_front_guess(&self.settings.name, right);
        }
        if !target.needs_key {
            self.announce.guesses().learn(self.settings.number, self.client.ip(), &target.doorbell);
        }
        target.announce(&*self.announce, trigger, self.client, guess)
    }

    async fn carry_bytes(&self, stream: TlsStream<ClientStream>) {
        let front = &self.settings.name;
        let Some(Found::Target(target)) = self.settings.routes.alone(self.host.as_deref()) else {
            return measure::record_front_connection(front, CarryReason::Unserved);
        };
        let server = stream.get_ref().0.server();
        let Ok(function) = target.connect(self.announce(&target, Trigger::Sni)).await else {
            return measure::record_front_connection(front, CarryReason::Unreachable);
        };
        measure::record_front_connection(front, CarryReason::Bytes);
        let ends = server.filter(|_| self.settings.proxy_protocol).map(|server| (self.client, server));
        bytes::carry(stream, function, ends).await;
    }

    /// Ends the work when no byte comes from the client or goes to it for too long.
    pub(super) async fn unless_idle<T>(&self, work: impl Future<Output = T>) {
        tokio::select! {
            _ = work => {}
            () = self.last_byte.idle_for(self.settings.idle_timeout) => {}
        }
    }

    pub(super) fn count_request(&self, outcome: RequestOutcome) {
        measure::record_front_request(&self.settings.name, outcome);
    }
}
