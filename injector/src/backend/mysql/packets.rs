//! Packets: three bytes of length, one of a sequence that restarts with each command, the body ("Client/Server
//! Protocol", MariaDB Knowledge Base; the same in the MySQL source documentation).

use std::io::{self, ErrorKind};

use mysql_common::constants::CapabilityFlags;
use mysql_common::io::ParseBuf;
use mysql_common::packets::ErrPacket;
use mysql_common::proto::{MyDeserialize, MySerialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::login::NEEDED;
use crate::Secret;
use crate::backend::ConnectCause;
use crate::backend::error::printable;

/// Largest packet that is read: those of a login are far smaller.
const PACKET_MAX_BYTES: usize = 16 * 1024;

/// Codes of temporary errors: too many connections (1040), shutting down (1053), too many of this user (1203, 1226),
/// out of memory (1037, 1038, 1041).
const TRANSIENT: [u16; 7] = [1037, 1038, 1040, 1041, 1053, 1203, 1226];

/// One side of a conversation.
pub(super) struct Packets<'a, S> {
    stream: &'a mut S,
    /// Of the next packet, in either direction.
    sequence: u8,
    password: Option<&'a Secret>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Packets<'a, S> {
    /// `password` is removed from texts of the other side that become part of an error.
    pub(super) fn new(stream: &'a mut S, sequence: u8, password: Option<&'a Secret>) -> Self {
        Self { stream, sequence, password }
    }

    pub(super) async fn next(&mut self) -> Result<Vec<u8>, ConnectCause> {
        let lost = |error: io::Error| match error.kind() {
            ErrorKind::UnexpectedEof => ConnectCause::Closed,
            _ => ConnectCause::Lost(error),
        };
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).await.map_err(lost)?;
        let [a, b, c, sequence] = header;
        let bytes = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
        if bytes > PACKET_MAX_BYTES || bytes == 0 || sequence != self.sequence {
            let found = printable(&String::from_utf8_lossy(&header));
            return Err(ConnectCause::Unexpected { expected: "the next packet of a MySQL login", found });
        }
        let mut body = vec![0; bytes];
        self.stream.read_exact(&mut body).await.map_err(lost)?;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(body)
    }

    pub(super) async fn send(&mut self, body: &[u8]) -> Result<(), ConnectCause> {
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut packet = zeroize::Zeroizing::new(vec![length[0], length[1], length[2], self.sequence]);
        packet.extend_from_slice(body);
        self.stream.write_all(&packet).await.map_err(ConnectCause::Lost)?;
        self.stream.flush().await.map_err(ConnectCause::Lost)?;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }

    pub(super) async fn say(&mut self, body: &impl MySerialize) -> Result<(), ConnectCause> {
        let mut bytes = zeroize::Zeroizing::new(Vec::new());
        body.serialize(&mut bytes);
        self.send(&bytes).await
    }

    /// Begins a command.
    pub(super) async fn command(&mut self, body: &[u8]) -> Result<(), ConnectCause> {
        self.sequence = 0;
        self.send(body).await
    }

    /// Sends commands without waiting for their answers.
    pub(super) async fn commands(&mut self, bodies: &[&[u8]]) -> Result<(), ConnectCause> {
        let mut bytes = Vec::new();
        for body in bodies {
            let [a, b, c, _] = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
            bytes.extend([a, b, c, 0]);
            bytes.extend_from_slice(body);
        }
        self.stream.write_all(&bytes).await.map_err(ConnectCause::Lost)?;
        self.stream.flush().await.map_err(ConnectCause::Lost)
    }

    /// The first packet of the answer to the next command.
    pub(super) async fn answer(&mut self) -> Result<Vec<u8>, ConnectCause> {
        self.sequence = 1;
        self.next().await
    }

    /// The answer to the next command, which is only that it is done.
    pub(super) async fn done(&mut self) -> Result<(), ConnectCause> {
        let packet = self.answer().await?;
        match packet[0] {
            0x00 | 0xfe => Ok(()),
            0xff => Err(self.refused(&packet, NEEDED)),
            _ => Err(self.unexpected("an OK", &packet)),
        }
    }

    /// The answer to the next command, which is one row.
    pub(super) async fn row(&mut self) -> Result<(), ConnectCause> {
        // How many columns, the column, their end, the row, the end of the rows.
        for (end, first) in [(false, true), (false, false), (true, false), (false, false), (true, false)] {
            let packet = if first { self.answer().await? } else { self.next().await? };
            if (packet[0] == 0xfe) != end || packet[0] == 0xff || (first && packet != [1]) {
                return Err(self.unexpected("a row", &packet));
            }
        }
        Ok(())
    }

    /// The error for an error packet of the server.
    pub(super) fn refused(&self, packet: &[u8], capabilities: CapabilityFlags) -> ConnectCause {
        match parse::<ErrPacket<'_>>(packet, capabilities) {
            Ok(ErrPacket::Error(error)) => {
                let message = printable(&Secret::hide(self.password, &error.to_string()));
                ConnectCause::Refused { message, transient: TRANSIENT.contains(&error.error_code()) }
            }
            _ => self.unexpected("an error", packet),
        }
    }

    /// The error for a packet that has no place here.
    pub(super) fn unexpected(&self, expected: &'static str, packet: &[u8]) -> ConnectCause {
        unexpected(expected, packet, self.password)
    }
}

/// A `COM_QUERY`.
pub(super) fn query(sql: &str) -> Vec<u8> {
    [&[0x03], sql.as_bytes()].concat()
}

pub(super) fn parse<'de, T: MyDeserialize<'de>>(packet: &'de [u8], ctx: T::Ctx) -> io::Result<T> {
    // The library does not check these sizes, and would panic.
    match T::SIZE {
        Some(size) if packet.len() < size => Err(ErrorKind::UnexpectedEof.into()),
        _ => ParseBuf(packet).parse(ctx),
    }
}

pub(super) fn unexpected(expected: &'static str, packet: &[u8], password: Option<&Secret>) -> ConnectCause {
    let found = printable(&Secret::hide(password, &String::from_utf8_lossy(packet)));
    ConnectCause::Unexpected { expected, found }
}
