//! A TLS session over TCP whose buffers are all ours: received bytes that are no whole record yet, decrypted bytes that
//! were not read, encrypted bytes that were not sent. So it can be checked that a hand-over loses none.

use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind, Read, Write};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustls::ClientConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::DiscardReason;
use crate::backend::ConnectCause;
use crate::backend::stream::{end, poll_end};

/// The most plaintext in one record (RFC 8446, section 5.1).
const RECORD_MAX: usize = 1 << 14;
/// What a record, a key update before it, and their headers and tags add to that.
const OVERHEAD: usize = 512;

/// The most that a server may send to an idle connection, in chunks of 4 KiB.
const CHUNKS_MAX: u32 = 16;

/// The stream of plaintext in a TLS session.
pub(crate) struct TlsStream {
    pub(super) socket: TcpStream,
    pub(super) machine: Machine,
}

/// The session without its socket.
pub(super) struct Machine {
    pub(super) session: UnbufferedClientConnection,
    /// Received: after [`Machine::advance`] at most the beginning of a record.
    incoming: BytesMut,
    /// How many of these bytes the session has processed and needs to see again.
    pending: usize,
    /// To be sent.
    outgoing: BytesMut,
    /// Decrypted.
    plain: BytesMut,
    /// The server has sent close_notify.
    ended: bool,
    /// The server may have asked for new keys; the session answers before the next bytes that it sends.
    pub(super) owes_key_update: bool,
}

impl TlsStream {
    /// The handshake, with us as the client.
    pub(super) async fn connect(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        mut socket: TcpStream,
    ) -> Result<Self, ConnectCause> {
        let session = UnbufferedClientConnection::new(config, name).map_err(ConnectCause::Tls)?;
        let (incoming, outgoing, plain) = Default::default();
        let mut machine =
            Machine { session, incoming, pending: 0, outgoing, plain, ended: false, owes_key_update: false };
        loop {
            let advanced = machine.advance();
            // Also after an error: then these bytes are the alert for the server.
            let sent = socket.write_all_buf(&mut machine.outgoing).await;
            advanced.map_err(ConnectCause::Tls)?;
            sent.map_err(ConnectCause::Lost)?;
            if !machine.session.is_handshaking() {
                return Ok(Self { socket, machine });
            }
            machine.incoming.reserve(RECORD_MAX);
            if socket.read_buf(&mut machine.incoming).await.map_err(ConnectCause::Lost)? == 0 {
                return Err(ConnectCause::Lost(ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    pub(super) fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.machine.session.peer_certificates()?.first()
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Checks, without blocking, that the server has sent nothing for the next owner of this connection. Session tickets
    /// and key updates do not count.
    pub(crate) fn is_quiet(&mut self) -> Result<(), DiscardReason> {
        self.machine.is_quiet(&self.socket)
    }

    /// Pending as long as [`TlsStream::is_quiet`], and then wakes `cx`.
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<DiscardReason> {
        let Self { socket, machine } = self;
        poll_end(
            || socket.poll_read_ready(cx),
            || socket.try_io(Interest::READABLE, || end(machine.is_quiet(socket))),
        )
    }

    /// Sends the last message and close_notify, if the socket takes them at once.
    pub(crate) fn send_termination(&mut self, message: &[u8]) {
        let Self { socket, machine } = self;
        let written = machine
            .write(message.len() + OVERHEAD, |traffic, space| traffic.encrypt(message, space))
            .and_then(|()| machine.write(OVERHEAD, |traffic, space| traffic.queue_close_notify(space)));
        if written.is_ok() {
            drop((&*SockRef::from(&*socket)).write(&machine.outgoing));
        }
    }

    /// Sends `outgoing`.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.machine.outgoing.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.machine.outgoing))?;
            self.machine.outgoing.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl Machine {
    /// Processes the received bytes.
    fn advance(&mut self) -> Result<(), rustls::Error> {
        let handshaking = self.session.is_handshaking();
        let mut outcome = if handshaking { self.step(self.incoming.len()) } else { Ok(()) };
        while outcome.is_ok() && !self.session.is_handshaking() {
            // One record at a time, to know the type of each.
            let Some(record) = record_bytes(&self.incoming[self.pending..]) else { return Ok(()) };
            let before = (self.plain.len(), self.session.tls13_tickets_received());
            outcome = self.step(self.pending + record);
            if before == (self.plain.len(), self.session.tls13_tickets_received()) && !self.ended {
                self.owes_key_update = true;
            }
        }
        if outcome.is_err() {
            // The session may have an alert for the server now; the error stays the same.
            drop(self.step(self.pending));
        }
        outcome
    }

    /// Processes this many of the received bytes.
    fn step(&mut self, mut bytes: usize) -> Result<(), rustls::Error> {
        loop {
            let input = &mut self.incoming[..bytes];
            let UnbufferedStatus { mut discard, state } = self.session.process_tls_records(input);
            let blocked = match state? {
                ConnectionState::EncodeTlsData(mut data) => {
                    append(&mut self.outgoing, OVERHEAD, |space| match data.encode(space) {
                        Err(EncodeError::InsufficientSize(size)) => Err(size),
                        Err(EncodeError::AlreadyEncoded) => Ok(0),
                        Ok(bytes) => Ok(bytes),
                    });
                    false
                }
                // The bytes are in `outgoing`, before all later ones.
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    false
                }
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        self.plain.extend_from_slice(record.payload);
                    }
                    false
                }
                ConnectionState::PeerClosed => {
                    self.ended = true;
                    false
                }
                _ => true,
            };
            self.incoming.advance(discard);
            bytes -= discard;
            self.pending = bytes;
            if blocked {
                return Ok(());
            }
        }
    }

    /// Calls `write` of the session with room in `outgoing`.
    fn write(
        &mut self,
        space: usize,
        mut write: impl FnMut(
            &mut WriteTraffic<'_, rustls::client::ClientConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> io::Result<()> {
        self.advance().map_err(invalid)?;
        let UnbufferedStatus { state, .. } =
            self.session.process_tls_records(&mut self.incoming[..self.pending]);
        let ConnectionState::WriteTraffic(mut traffic) = state.map_err(invalid)? else {
            return Err(ErrorKind::BrokenPipe.into());
        };
        let (mut exhausted, before) = (false, self.outgoing.len());
        append(&mut self.outgoing, space, |space| match write(&mut traffic, space) {
            Err(EncryptError::InsufficientSize(size)) => Err(size),
            Err(EncryptError::EncryptExhausted) => {
                exhausted = true;
                Ok(0)
            }
            Ok(bytes) => Ok(bytes),
        });
        // A key update that is owed goes before the bytes.
        self.owes_key_update &= self.outgoing.len() == before;
        if exhausted { Err(io::Error::other("the keys of the TLS session are used up")) } else { Ok(()) }
    }

    fn is_quiet(&mut self, socket: &TcpStream) -> Result<(), DiscardReason> {
        let socket = SockRef::from(socket);
        let mut chunk = [0; 4096];
        // Tickets are small: a server that sends without end must not block the other connections.
        let mut left = CHUNKS_MAX;
        loop {
            left = left.checked_sub(1).ok_or(DiscardReason::UnreadMessage)?;
            match (&*socket).read(&mut chunk) {
                Ok(0) => return Err(DiscardReason::ClosedByServer),
                Ok(bytes) => self.incoming.extend_from_slice(&chunk[..bytes]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => break,
                    ErrorKind::Interrupted => continue,
                    ErrorKind::ConnectionReset => return Err(DiscardReason::ClosedByServer),
                    _ => return Err(DiscardReason::SocketError),
                },
            }
            self.advance().map_err(|_| DiscardReason::SocketError)?;
            if !self.plain.is_empty() {
                return Err(DiscardReason::UnreadMessage);
            }
        }
        if self.ended {
            return Err(DiscardReason::ClosedByServer);
        }
        if !self.outgoing.is_empty() {
            let sent = (&*socket).write(&self.outgoing).map_err(|_| DiscardReason::SocketError)?;
            self.outgoing.advance(sent);
        }
        let whole = self.incoming.is_empty() && self.outgoing.is_empty() && self.plain.is_empty();
        if whole { Ok(()) } else { Err(DiscardReason::UnreadMessage) }
    }
}

/// The length of the first record, with its header (RFC 8446, section 5.1), if all of it is there.
fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let length = usize::from(u16::from_be_bytes([*bytes.get(3)?, *bytes.get(4)?])) + 5;
    (bytes.len() >= length).then_some(length)
}

/// Adds room at the end of `buffer` until it suffices for `write`.
fn append(
    buffer: &mut BytesMut,
    mut space: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, InsufficientSizeError>,
) {
    let begin = buffer.len();
    loop {
        buffer.resize(begin + space, 0);
        match write(&mut buffer[begin..]) {
            Ok(written) => return buffer.truncate(begin + written),
            Err(InsufficientSizeError { required_size, .. }) => space = required_size,
        }
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, machine } = self.get_mut();
        while machine.plain.is_empty() && !machine.ended {
            machine.incoming.reserve(RECORD_MAX + OVERHEAD);
            let received = ready!(pin!(socket.read_buf(&mut machine.incoming)).poll(cx))?;
            if received == 0 {
                // Without close_notify bytes may be missing (RFC 8446, section 6.1).
                return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
            }
            machine.advance().map_err(invalid)?;
        }
        let bytes = machine.plain.len().min(buf.remaining());
        buf.put_slice(&machine.plain.split_to(bytes));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        // One record at a time: bytes that the socket does not take wait in `outgoing`.
        ready!(stream.poll_send(cx))?;
        let part = &buf[..buf.len().min(RECORD_MAX)];
        stream.machine.write(part.len() + OVERHEAD, |traffic, space| traffic.encrypt(part, space))?;
        if let Poll::Ready(Err(error)) = stream.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        // Called again while pending: the session queues close_notify once.
        stream.machine.write(OVERHEAD, |traffic, space| traffic.queue_close_notify(space))?;
        ready!(stream.poll_send(cx))?;
        Pin::new(&mut stream.socket).poll_shutdown(cx)
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}
