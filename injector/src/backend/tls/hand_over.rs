//! Taking a session apart: socket and keys for the function, the traffic secrets for the agent.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use headstart_wire::{Flow, Suite, TlsSession, TrafficKey, TrafficKeys, ktls};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::{CipherSuite, ConnectionTrafficSecrets, ProtocolVersion};
use thiserror::Error;

use super::TlsStream;

/// Why a session must stay where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum NoHandOver {
    /// The function would get keys from which every other key of the session can be made.
    #[error("the server speaks an older version than TLS 1.3")]
    Version,
    /// rustls makes ciphers of keys of 256 bits only.
    #[error("the server chose AES-128: configure it to prefer a suite with keys of 256 bits")]
    Suite,
    /// The answer is still in the session, and would be lost.
    #[error("the server has just asked for new keys")]
    KeyUpdate,
}

/// What the agent keeps of a session: the secrets from which the next keys are made, in order only.
pub(crate) struct RetainedSecrets {
    connection: u64,
    secrets: Mutex<KernelConnection<ClientConnectionData>>,
}

impl TlsStream {
    /// Whether the session is of a kind that can be handed over.
    pub(crate) fn check_hand_over(&self) -> Result<(), NoHandOver> {
        let session = &self.machine.session;
        if session.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            return Err(NoHandOver::Version);
        }
        match session.negotiated_cipher_suite().map(|suite| suite.suite()) {
            Some(CipherSuite::TLS13_AES_256_GCM_SHA384 | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => {}
            _ => return Err(NoHandOver::Suite),
        }
        if self.machine.owes_key_update { Err(NoHandOver::KeyUpdate) } else { Ok(()) }
    }

    /// Takes apart a session that is quiet at this moment, and passes [`TlsStream::check_hand_over`]. With `to_kernel` the
    /// keys go to the kernel if it accepts them: then the function needs no keys and no record layer.
    pub(crate) fn hand_over(self, to_kernel: bool) -> io::Result<(OwnedFd, TlsSession, RetainedSecrets)> {
        let connection = rand::random::<u64>() >> 11;
        let (secrets, kept) =
            self.machine.session.dangerous_into_kernel_connection().map_err(io::Error::other)?;
        let (suite, to_server) = key(secrets.tx)?;
        let (_, from_server) = key(secrets.rx)?;
        let (socket, keys) = (OwnedFd::from(self.socket.into_std()?), TrafficKeys { to_server, from_server });
        let in_kernel = to_kernel && ktls::install(&socket, suite, &keys)?;
        let keys = (!in_kernel).then_some(keys);
        let session = TlsSession { connection, suite, keys };
        Ok((socket, session, RetainedSecrets { connection, secrets: Mutex::new(kept) }))
    }
}

impl RetainedSecrets {
    /// Names the connection, as in its [`TlsSession`].
    pub(crate) fn connection(&self) -> u64 {
        self.connection
    }

    /// The key that follows the last one of this direction.
    pub(crate) fn next_key(&self, flow: Flow) -> io::Result<TrafficKey> {
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        let next = match flow {
            Flow::ToServer => secrets.update_tx_secret(),
            Flow::FromServer => secrets.update_rx_secret(),
        };
        key(next.map_err(io::Error::other)?).map(|(_, key)| key)
    }
}

impl fmt::Debug for RetainedSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RetainedSecrets({}, ***)", self.connection)
    }
}

fn key((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> io::Result<(Suite, TrafficKey)> {
    let (suite, key, iv) = match &secrets {
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Suite::Chacha20Poly1305, key, iv),
        _ => return Err(io::Error::other(NoHandOver::Suite)),
    };
    match (key.as_ref().try_into(), iv.as_ref().try_into()) {
        (Ok(key), Ok(iv)) => Ok((suite, TrafficKey { key, iv, sequence })),
        _ => Err(io::Error::other(NoHandOver::Suite)),
    }
}
