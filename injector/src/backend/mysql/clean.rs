//! Using a session again: finding the end of a client's conversation, and cleaning the session.

use tokio::io::{AsyncRead, AsyncWrite};

use super::QUIT;
use super::admit::set_collation;
use super::login::COLLATION;
use super::packets::Packets;
use crate::MysqlLogin;
use crate::backend::{ConnectCause, TerminationDetector};

/// Length and sequence number.
const HEADER_BYTES: u8 = 4;

/// Rolls back, and drops variables, prepared statements, temporary tables and locks.
const COM_RESET_CONNECTION: u8 = 0x1f;
const COM_INIT_DB: u8 = 0x02;
/// `COM_SET_OPTION`, `MYSQL_OPTION_MULTI_STATEMENTS_OFF`.
const MULTI_STATEMENTS_OFF: [u8; 3] = [0x1b, 1, 0];
/// Its answer is a line of text, unlike the answers to all other commands here.
const COM_STATISTICS: u8 = 0x09;

/// Follows the client's packets.
#[derive(Debug, Default)]
pub(super) struct QuitDetector {
    /// Bytes of the current packet's header that were seen.
    header: u8,
    length: usize,
    /// Bytes of its body that follow.
    body: usize,
}

impl TerminationDetector for QuitDetector {
    /// A `COM_QUIT` in pieces is not found: its beginning was passed on already.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if self.body > 0 {
                let skipped = self.body.min(bytes.len() - at);
                self.body -= skipped;
                at += skipped;
                continue;
            }
            if self.header == 0 && bytes[at..].starts_with(&QUIT) {
                return Some(at);
            }
            if self.header < HEADER_BYTES - 1 {
                self.length |= usize::from(*byte) << (8 * self.header);
            }
            self.header += 1;
            if self.header == HEADER_BYTES {
                (self.header, self.body, self.length) = (0, self.length, 0);
            }
            at += 1;
        }
        None
    }
}

/// A selected database cannot be deselected, so the login must have a database.
pub(super) async fn clean<S>(login: &MysqlLogin, stream: &mut S) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let database = login.database.as_deref().ok_or(ConnectCause::Closed)?;
    let mut packets = Packets::new(stream, 0, login.password.as_ref());
    packets.order(&[COM_RESET_CONNECTION]).await?;
    packets.order(&MULTI_STATEMENTS_OFF).await?;
    packets.order(&[&[COM_INIT_DB], database.as_bytes()].concat()).await?;
    packets.order(&set_collation(COLLATION)).await?;
    // If a command of the client is still unanswered, its answer comes first, and another one than this is read here.
    let last = packets.ask(&[COM_STATISTICS]).await?;
    if last.first().is_some_and(u8::is_ascii_alphabetic) {
        Ok(())
    } else {
        Err(packets.unexpected("statistics", &last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const OK: [u8; 11] = [7, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0];
    const END: [u8; 9] = [5, 0, 0, 1, 0xfe, 0, 0, 2, 0];
    const STATISTICS: [u8; 10] = *b"\x06\0\0\x01Uptime";

    #[test]
    fn a_termination_is_found_where_a_command_begins() {
        let query = [&[9, 0, 0, 0, 3][..], &QUIT, b"abc"].concat();
        let all = [&query[..], &[0, 0, 0, 1], &query, &QUIT].concat();
        let end = all.len() - QUIT.len();
        assert_eq!(QuitDetector::default().find(&all), Some(end));
        for cut in 1..end {
            let mut commands = QuitDetector::default();
            assert_eq!(commands.find(&all[..cut]), None, "{cut}");
            assert_eq!(commands.find(&all[cut..]), Some(end - cut), "{cut}");
        }
        for cut in end + 1..all.len() {
            let mut commands = QuitDetector::default();
            assert!(commands.find(&all[..cut]).is_none() && commands.find(&all[cut..]).is_none());
        }
        // A packet that goes on with something else.
        assert_eq!(QuitDetector::default().find(&[1, 0, 0, 1, 1]), None);
    }

    proptest! {
        #[test]
        fn no_client_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(at) = QuitDetector::default().find(&bytes) {
                prop_assert!(bytes[at..].starts_with(&QUIT));
            }
        }
    }

    async fn against(answers: &[&[u8]]) -> Result<(), ConnectCause> {
        let login = MysqlLogin { user: "app".into(), password: None, database: Some("orders".into()) };
        let (mut ours, mut theirs) = duplex(1 << 16);
        theirs.write_all(&answers.concat()).await.unwrap();
        theirs.shutdown().await.unwrap();
        let outcome = clean(&login, &mut ours).await;
        drop(ours);
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        assert!(said.starts_with(&[1, 0, 0, 0, COM_RESET_CONNECTION]));
        outcome
    }

    #[tokio::test]
    async fn only_the_answers_to_our_own_commands_make_it_clean() {
        let good: [&[u8]; 5] = [&OK, &END, &OK, &OK, &STATISTICS];
        against(&good).await.unwrap();
        for left in [&OK[..], &END, &STATISTICS, &[1, 0, 0, 1, 2]] {
            let answers = [&[left][..], &good].concat();
            assert!(against(&answers).await.is_err(), "{left:?}");
        }
        for bad in 0..good.len() {
            let mut answers = good;
            answers[bad] = b"\x09\0\0\x01\xff\x15\x04#28000";
            assert!(against(&answers).await.is_err(), "{bad}");
            assert!(against(&good[..bad]).await.is_err(), "{bad}");
        }
    }
}
