//! One client of a backend socket: admitted, served, and its session cleaned for the next client.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use headstart_wire::AuditFields;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional, split};
use tokio::time::timeout;

use super::{AUDIT, BackendSocket};
use crate::backend::{Stream, TerminationDetector};
use crate::{LeaseSlot, Session};

/// Deadline of cleaning a session.
const CLEAN_LIMIT: Duration = Duration::from_secs(5);

/// How many bytes are passed on at a time.
const CHUNK_BYTES: usize = 8 * 1024;

/// A client's connection to the server, which ends when this is dropped.
pub(crate) struct ClientSession<'a> {
    pub(crate) server: Stream,
    /// As it was after the login.
    pub(crate) session: Session,
    pub(crate) slot: Arc<LeaseSlot>,
    /// With what the client can cancel its queries, in protocols that have a way to ask for that.
    pub(crate) cancel: Option<CancelRegistration<'a>>,
}

/// Process and secret, as a client was told them. The secret is not the server's.
pub(crate) type CancelKey = (i32, Vec<u8>);

/// A client's cancel key, which is known to its socket as long as this lives.
pub(crate) struct CancelRegistration<'a> {
    socket: &'a BackendSocket,
    key: CancelKey,
}

impl<'a> CancelRegistration<'a> {
    pub(crate) fn new(socket: &'a BackendSocket, key: CancelKey, slot: &Arc<LeaseSlot>) -> Self {
        socket.cancels().insert(key.clone(), Arc::clone(slot));
        Self { socket, key }
    }
}

impl Drop for CancelRegistration<'_> {
    fn drop(&mut self) {
        self.socket.cancels().remove(&self.key);
    }
}

pub(super) async fn serve(mut client: Stream, socket: &BackendSocket) {
    let protocol = socket.pool.protocol();
    let Some(mut admitted) = protocol.admit(&mut client, socket).await else { return };
    let (instance, backend) = (&socket.instance, socket.pool.name());
    let AuditFields { process_id, connection_id, user, database } = admitted.session.audit_fields();
    tracing::info!(
        target: AUDIT,
        instance,
        backend,
        process_id,
        connection_id,
        user,
        database,
        "connection for a client of a socket"
    );
    match protocol.termination_detector().filter(|_| socket.pool.recycles()) {
        Some(detector) => {
            if pass_on(&mut client, &mut admitted, detector).await {
                drop(client);
                admitted.recycle(socket).await;
            }
        }
        // Either side may end at any time: an error is no more than that.
        None => drop(copy_bidirectional(&mut client, &mut admitted.server).await),
    }
}

/// Passes everything on but the client's termination message. Returns whether the client has ended its conversation so that
/// the session can be cleaned.
async fn pass_on(
    client: &mut Stream,
    admitted: &mut ClientSession<'_>,
    detector: Box<dyn TerminationDetector>,
) -> bool {
    let (mut from_client, mut to_client) = split(client);
    let (slot, (mut from_server, mut to_server)) = (&admitted.slot, split(&mut admitted.server));
    let detector = Mutex::new(detector);
    let detector = || detector.lock().unwrap_or_else(PoisonError::into_inner);
    let up = async {
        let mut buf = vec![0; CHUNK_BYTES];
        loop {
            let bytes = from_client.read(&mut buf).await?;
            let end = detector().find(&buf[..bytes]);
            to_server.write_all(&buf[..end.unwrap_or(bytes)]).await?;
            to_server.flush().await?;
            if bytes == 0 || end.is_some() {
                return io::Result::Ok(end.is_some() || detector().is_complete());
            }
        }
    };
    let down = async {
        let mut buf = vec![0; CHUNK_BYTES];
        loop {
            let bytes = from_server.read(&mut buf).await?;
            if bytes == 0 {
                return io::Result::Ok(());
            }
            detector().server_sent(&buf[..bytes]);
            if detector().is_read_only() {
                slot.server_is_read_only();
            }
            to_client.write_all(&buf[..bytes]).await?;
            to_client.flush().await?;
        }
    };
    tokio::select! {
        // Both may have ended: a session that the server has closed is of no use.
        biased;
        _ = down => false,
        complete = up => complete.unwrap_or(false),
    }
}

impl ClientSession<'_> {
    /// Keeps the connection for the next client of the same function, if the session can be cleaned.
    async fn recycle(self, socket: &BackendSocket) {
        let Self { mut server, session, slot, cancel } = self;
        drop(cancel);
        // Another owner of the slot is sending a cancel request, which could hit a query of the next client.
        let Some(slot) = Arc::into_inner(slot) else { return };
        match timeout(CLEAN_LIMIT, socket.pool.protocol().clean(&mut server, slot.variant())).await {
            Ok(Ok(())) => slot.recycle(&socket.function, server, session),
            Ok(Err(cause)) => tracing::debug!(backend = socket.pool.name(), "not used again: {cause}"),
            Err(_) => {
                tracing::debug!(backend = socket.pool.name(), "not used again: cleaning takes too long")
            }
        }
    }
}
