//! Using a session again: finding the end of a client's conversation, and cleaning the session.

use bytes::BytesMut;
use postgres_protocol::message::{backend::Message, frontend};
use rand::RngExt;
use tokio::io::{AsyncRead, AsyncWrite};

use super::frames::{Frames, encode};
use super::login::{run_out, warm_up};
use crate::PostgresLogin;
use crate::backend::{ConnectCause, ProtocolError, TerminationDetector};

/// `Terminate`.
const TERMINATE_TAG: u8 = b'X';

/// The statements that clean a session. Each has its own answer: if a query of the client is still unanswered, another
/// answer comes first, and the session is discarded. The server only warns when there is nothing to roll back.
const STEPS: [&str; 2] = ["ROLLBACK", "DISCARD ALL"];

/// Follows the client's messages: each has a tag and its own length (PostgreSQL documentation, "Message Formats").
#[derive(Debug, Default)]
pub(super) struct TerminateDetector {
    /// Bytes of the current message's header that were seen.
    header: u8,
    length: u32,
    /// Bytes of its body that follow.
    body: usize,
}

impl TerminationDetector for TerminateDetector {
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if self.body > 0 {
                let skipped = self.body.min(bytes.len() - at);
                self.body -= skipped;
                at += skipped;
                continue;
            }
            match self.header {
                0 if *byte == TERMINATE_TAG => return Some(at),
                0 => self.length = 0,
                _ => self.length = self.length << 8 | u32::from(*byte),
            }
            self.header += 1;
            if self.header == 5 {
                self.header = 0;
                self.body = usize::try_from(self.length.saturating_sub(4)).unwrap_or(usize::MAX);
            }
            at += 1;
        }
        None
    }
}

/// Rolls back an open transaction, resets the session with `DISCARD ALL`, and warms it up again.
pub(super) async fn clean<S>(login: &PostgresLogin, stream: &mut S) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut frames = Frames::new(stream, login.password.as_ref());
    // random() goes on from other numbers.
    let seed = format!("SELECT pg_catalog.setseed({})", rand::rng().random_range(-1.0..1.0));
    let mut queries = BytesMut::new();
    for query in STEPS.into_iter().chain([seed.as_str()]) {
        queries.extend(encode(|buf| frontend::query(query, buf))?);
    }
    // All at once: one round trip.
    frames.send(&queries).await?;
    for step in STEPS {
        match frames.next().await? {
            Message::CommandComplete(body) if body.tag().is_ok_and(|tag| tag == step) => {}
            _ => return Err(frames.unexpected().into()),
        }
        loop {
            match frames.next().await? {
                // The server reports the values of parameters that were reset.
                Message::ParameterStatus(_) => {}
                Message::ReadyForQuery(body) if body.status() == b'I' => break,
                _ => return Err(frames.unexpected().into()),
            }
        }
    }
    run_out(&mut frames).await?;
    warm_up(login, &mut frames).await?;
    if frames.is_quiet() { Ok(()) } else { Err(ProtocolError::NotQuiet.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[test]
    fn a_termination_is_found_between_messages_only() {
        let query = b"Q\0\0\0\x0dselect X\0";
        let all = [&query[..], b"S\0\0\0\x04", query, b"X\0\0\0\x04"].concat();
        let end = all.len() - 5;
        assert_eq!(TerminateDetector::default().find(&all), Some(end));
        // However it is cut.
        for size in 1..all.len() {
            let (mut messages, mut before) = (TerminateDetector::default(), 0);
            let found = all.chunks(size).find_map(|chunk| {
                let found = messages.find(chunk);
                before += if found.is_none() { chunk.len() } else { 0 };
                found
            });
            assert_eq!(found.map(|at| before + at), Some(end), "in pieces of {size}");
        }
        assert_eq!(TerminateDetector::default().find(query), None);
        assert_eq!(TerminateDetector::default().find(b""), None);
    }

    proptest! {
        #[test]
        fn no_client_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(at) = TerminateDetector::default().find(&bytes) {
                prop_assert_eq!(bytes[at], TERMINATE_TAG);
            }
        }
    }

    async fn against(answers: &[u8]) -> (String, Result<(), ConnectCause>) {
        let (mut ours, mut theirs) = duplex(1 << 16);
        theirs.write_all(answers).await.unwrap();
        theirs.shutdown().await.unwrap();
        let outcome = clean(&PostgresLogin::default(), &mut ours).await;
        drop(ours);
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        (String::from_utf8(said).unwrap(), outcome)
    }

    #[tokio::test]
    async fn only_the_answers_to_our_own_questions_make_it_clean() {
        let rolled_back = b"C\0\0\0\x0dROLLBACK\0Z\0\0\0\x05I";
        let discarded = b"C\0\0\0\x10DISCARD ALL\0S\0\0\0\x08a\0b\0Z\0\0\0\x05I";
        let seeded = b"D\0\0\0\x0a\0\x01\0\0\0\0C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
        let (said, outcome) = against(&[&rolled_back[..], discarded, seeded].concat()).await;
        assert!(outcome.is_ok() && said.contains("ROLLBACK") && said.contains("DISCARD ALL"), "{outcome:?}");
        for answers in [
            // The answer to a query that the client has left behind.
            [&b"C\0\0\0\x0dUPDATE 1\0Z\0\0\0\x05I"[..], rolled_back].concat(),
            [&b"D\0\0\0\x06\0\0"[..], rolled_back].concat(),
            // A notification.
            [&rolled_back[..], b"A\0\0\0\x0a\0\0\0\x01c\0", discarded].concat(),
            // Still in a transaction.
            b"C\0\0\0\x0dROLLBACK\0Z\0\0\0\x05T".to_vec(),
            // More than was asked for.
            [&rolled_back[..], discarded, seeded, b"Z\0\0\0\x05I"].concat(),
            [&rolled_back[..], discarded].concat(),
            rolled_back.to_vec(),
            Vec::new(),
        ] {
            assert!(against(&answers).await.1.is_err(), "{answers:?}");
        }
    }
}
