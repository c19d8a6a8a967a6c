//! Sessions whose records the kernel encrypts and decrypts. The kernel handles data; this file handles other records.

use std::fmt;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use headstart_wire::{Flow, Suite, TrafficKey, ktls};
use nix::libc;
use rustls::ContentType;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::KeyUpdates;
use super::record::{
    CLOSE_NOTIFY, ControlMessages, Fault, KEY_UPDATE, PLAIN_MAX, RecordContent, record_limit,
};

const CANNOT_REKEY: &str =
    "the keys of the TLS session must change, which this kernel does not support: Linux 6.14 does";

/// The plaintext stream of a TLS session in the kernel.
pub(crate) struct KernelStream {
    socket: TcpStream,
    suite: Suite,
    keys: KeyUpdates,
    control: ControlMessages,
    /// Records sent with the current key, and the most that it allows.
    sent: u64,
    pub(super) limit: u64,
    /// The key of a KeyUpdate that is not sent yet.
    next_to_server: Option<TrafficKey>,
    /// The server has sent close_notify.
    ended: bool,
    /// This side has sent close_notify.
    closed: bool,
    /// The error that ended the session.
    broken: Option<String>,
}

impl KernelStream {
    pub(crate) fn new(socket: TcpStream, suite: Suite, keys: KeyUpdates) -> io::Result<Self> {
        let (control, limit) = (ControlMessages::default(), record_limit(suite)?);
        let (next_to_server, broken) = (None, None);
        Ok(Self {
            socket,
            suite,
            keys,
            control,
            sent: 0,
            limit,
            next_to_server,
            ended: false,
            closed: false,
            broken,
        })
    }

    fn check(&self) -> io::Result<()> {
        match &self.broken {
            Some(why) => Err(io::Error::new(ErrorKind::InvalidData, why.clone())),
            None => Ok(()),
        }
    }

    /// Ends the session, because later records cannot be trusted.
    fn fail(&mut self, why: impl Into<String>) -> io::Error {
        let why = why.into();
        self.broken = Some(why.clone());
        io::Error::new(ErrorKind::InvalidData, why)
    }

    /// Ends the session with an error, and sends the server an alert if the socket has room.
    fn refuse(&mut self, fault: &Fault) -> io::Error {
        if let Some(alert) = fault.alert() {
            let _ = ktls::send(&self.socket, ktls::ALERT, &[2, alert]);
        }
        self.fail(fault.to_string())
    }

    fn set_key(&mut self, flow: Flow, key: &TrafficKey) -> io::Result<()> {
        let set = ktls::set_key(&self.socket, flow, self.suite, key);
        set.map_err(|error| {
            self.fail(format!("the kernel does not take the next key of the TLS session: {error}"))
        })
    }

    /// Reads once. False when that was no data, and there may be more.
    fn receive(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        let socket = &self.socket;
        let part = buf.initialize_unfilled();
        let mut alert = [0; 2];
        let received = socket.try_io(Interest::READABLE, || match ktls::receive(socket, part)? {
            (ktls::ALERT, 1) => {
                // There was no room for all of it: the kernel has kept the rest.
                alert[0] = part[0];
                ktls::receive(socket, &mut alert[1..]).map(|(content, more)| (content, &alert[..1 + more]))
            }
            (content, bytes) => Ok((content, &part[..bytes])),
        });
        let said = match received {
            Ok((ktls::APPLICATION_DATA, [])) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok((ktls::APPLICATION_DATA, data)) => {
                let bytes = data.len();
                buf.advance(bytes);
                self.control.data().map(|()| RecordContent::Data)
            }
            Ok((content, bytes)) => self.control.read(ContentType::from(content), bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBADMSG) => Err(Fault::BadRecordMac),
                Some(libc::EMSGSIZE) => Err(Fault::RecordOverflow),
                _ => return Err(error),
            },
        };
        match said.map_err(|fault| self.refuse(&fault))? {
            RecordContent::Data => return Ok(true),
            RecordContent::Nothing => {}
            RecordContent::End => self.ended = true,
            RecordContent::KeyUpdate { .. } if !ktls::can_rekey() => return Err(self.fail(CANNOT_REKEY)),
            RecordContent::KeyUpdate { requested } => self.keys.updated(requested),
        }
        Ok(false)
    }

    /// Sends a record other than data, as soon as the socket has room.
    fn poll_send(&self, cx: &mut Context<'_>, content: u8, bytes: &[u8]) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_io(Interest::WRITABLE, || ktls::send(&self.socket, content, bytes)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    /// Changes the key for sending, if that is due.
    fn poll_key_update(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.next_to_server.is_none() {
            let worn = self.sent >= self.limit;
            if worn && !ktls::can_rekey() {
                return Poll::Ready(Err(self.fail(CANNOT_REKEY)));
            }
            match ready!(self.keys.poll_to_server(cx, worn)) {
                Ok(None) => return Poll::Ready(Ok(())),
                Ok(key) => self.next_to_server = key,
                Err(why) => return Poll::Ready(Err(self.fail(why))),
            }
        }
        ready!(self.poll_send(cx, ktls::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0]))?;
        if let Some(key) = self.next_to_server.take() {
            self.set_key(Flow::ToServer, &key)?;
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for KernelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        stream.check()?;
        while buf.remaining() > 0 && !stream.ended {
            match ready!(stream.keys.poll_from_server(cx)) {
                Ok(None) => {}
                Ok(Some(key)) => stream.set_key(Flow::FromServer, &key)?,
                Err(why) => return Poll::Ready(Err(stream.fail(why))),
            }
            ready!(stream.socket.poll_read_ready(cx))?;
            if stream.receive(buf)? {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for KernelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.check()?;
        ready!(stream.poll_key_update(cx))?;
        // One record at a time, to count records.
        let part = &buf[..buf.len().min(PLAIN_MAX)];
        let written = ready!(Pin::new(&mut stream.socket).poll_write(cx, part))?;
        stream.sent += 1;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel has all written bytes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if !stream.closed && stream.broken.is_none() {
            ready!(stream.poll_send(cx, ktls::ALERT, &[1, CLOSE_NOTIFY]))?;
            stream.closed = true;
        }
        Pin::new(&mut stream.socket).poll_shutdown(cx)
    }
}

impl fmt::Debug for KernelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
