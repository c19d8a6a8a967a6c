//! Messages in and out during the login, with limits, and without the ones that carry no decision.
//!
//! PostgreSQL documentation, "Message Formats": one tag byte, a big-endian length that counts itself
//! but not the tag, the body.

use std::io;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{ErrorResponseBody, Header, Message};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::Secret;
use crate::backend::ConnectCause;

/// Longest message accepted: a login has none near that.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Most bytes accepted up to a hand-over. A real login is about 0.5 KiB.
const MAX_LOGIN_BYTES: usize = 256 * 1024;
/// What is kept of a server's error text.
const MAX_ERROR_CHARS: usize = 300;
/// `NegotiateProtocolVersion`, which postgres-protocol does not know.
const NEGOTIATE_TAG: u8 = b'v';
const HEADER_BYTES: usize = 5;

/// The server does not speak the protocol as documented.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// A length field beyond the limit: most likely not a PostgreSQL server.
    #[error("a message of {bytes} bytes, more than {MAX_MESSAGE_BYTES}")]
    MessageTooLong {
        /// What the length field says.
        bytes: usize,
    },
    /// Talks, but does not get ready.
    #[error("more than {MAX_LOGIN_BYTES} bytes without getting ready")]
    LoginTooLong,
    /// A message that has no place here.
    #[error("unexpected message {:?}", char::from(*tag))]
    Unexpected {
        /// The first byte of the message.
        tag: u8,
    },
    /// A message that does not parse.
    #[error("malformed message: {0}")]
    Malformed(io::Error),
    /// The server ignores protocol options that were configured: they are honoured or refused.
    #[error("the server does not know {options} of the protocol options")]
    OptionsIgnored {
        /// How many.
        options: u32,
    },
    /// More bytes after `ReadyForQuery`: the receiver would take them for an answer.
    #[error("the server sent more after it was ready")]
    NotQuiet,
    /// The receiver would go on in it.
    #[error("a statement of `warm_up` has left a transaction open")]
    OpenTransaction,
    /// A user name, option, password or query that no message can carry.
    #[error("cannot be sent: {0}")]
    Unsendable(io::Error),
}

/// Builds one message.
pub(super) fn encode(write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<BytesMut, ConnectCause> {
    let mut buf = BytesMut::new();
    write(&mut buf).map_err(ProtocolError::Unsendable)?;
    Ok(buf)
}

/// A stream seen as messages.
pub(super) struct Frames<'a, S> {
    stream: &'a mut S,
    secret: Option<&'a Secret>,
    buf: BytesMut,
    taken_bytes: usize,
    last_tag: u8,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin + Send> Frames<'a, S> {
    pub(super) fn new(stream: &'a mut S, secret: Option<&'a Secret>) -> Self {
        Self { stream, secret, buf: BytesMut::with_capacity(4096), taken_bytes: 0, last_tag: 0 }
    }

    pub(super) async fn send(&mut self, message: &[u8]) -> Result<(), ConnectCause> {
        self.stream.write_all(message).await.map_err(ConnectCause::Lost)?;
        self.stream.flush().await.map_err(ConnectCause::Lost)
    }

    /// The next message that matters. Notices are passed over; an error of the server is an `Err`.
    pub(super) async fn next(&mut self) -> Result<Message, ConnectCause> {
        loop {
            let bytes = self.fill().await?;
            self.last_tag = self.buf[0];
            self.taken_bytes += bytes;
            if self.taken_bytes > MAX_LOGIN_BYTES {
                return Err(ProtocolError::LoginTooLong.into());
            }
            if self.last_tag == NEGOTIATE_TAG {
                negotiated(&self.buf.split_to(bytes))?;
                continue;
            }
            match Message::parse(&mut self.buf).map_err(ProtocolError::Malformed)? {
                Some(Message::NoticeResponse(_)) | None => {}
                Some(Message::ErrorResponse(body)) => return Err(self.refusal(&body)),
                Some(message) => return Ok(message),
            }
        }
    }

    /// Reads until a whole message is buffered; its length with the tag.
    async fn fill(&mut self) -> Result<usize, ConnectCause> {
        loop {
            if let Some(header) = Header::parse(&self.buf).map_err(ProtocolError::Malformed)? {
                let bytes = 1 + usize::try_from(header.len()).unwrap_or(usize::MAX - 1);
                if bytes > MAX_MESSAGE_BYTES {
                    return Err(ProtocolError::MessageTooLong { bytes }.into());
                }
                if self.buf.len() >= bytes {
                    return Ok(bytes);
                }
            }
            if self.stream.read_buf(&mut self.buf).await.map_err(ConnectCause::Lost)? == 0 {
                return Err(ConnectCause::Closed);
            }
        }
    }

    /// The error for the message that `next` returned last.
    pub(super) fn unexpected(&self) -> ProtocolError {
        ProtocolError::Unexpected { tag: self.last_tag }
    }

    /// Whether nothing was read beyond the last message.
    pub(super) fn is_quiet(&self) -> bool {
        self.buf.is_empty()
    }

    /// The server's error text, fit for a log line: short, one line, without our password.
    fn refusal(&self, body: &ErrorResponseBody) -> ConnectCause {
        let (mut sqlstate, mut message) = (String::new(), String::new());
        let mut fields = body.fields();
        while let Ok(Some(field)) = fields.next() {
            let text = String::from_utf8_lossy(field.value_bytes());
            match field.type_() {
                b'C' => sqlstate = printable(&text, 5),
                b'M' => {
                    message = printable(&Secret::hide(self.secret, &text), MAX_ERROR_CHARS);
                }
                _ => {}
            }
        }
        ConnectCause::Server { sqlstate, message }
    }
}

fn printable(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `NegotiateProtocolVersion`: the newest minor version, then the options that it does not know. We
/// ask for 3.0, so only the options matter.
fn negotiated(message: &[u8]) -> Result<(), ConnectCause> {
    let count = message.get(HEADER_BYTES + 4..HEADER_BYTES + 8);
    let Some(count) = count.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) else {
        return Err(ProtocolError::Malformed(io::ErrorKind::UnexpectedEof.into()).into());
    };
    match u32::from_be_bytes(count) {
        0 => Ok(()),
        options => Err(ProtocolError::OptionsIgnored { options }.into()),
    }
}
