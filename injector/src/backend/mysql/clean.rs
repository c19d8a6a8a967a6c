//! Using a session again: finding the end of a client's conversation, and cleaning the session.

use mysql_common::constants::CapabilityFlags;
use rand::RngExt;
use tokio::io::{AsyncRead, AsyncWrite};

use super::QUIT;
use super::login::{MysqlTransport, log_in_again, wanted};
use super::packets::{Packets, query};
use crate::MysqlLogin;
use crate::backend::{ConnectCause, LoginVariant, TerminationDetector};

/// Length and sequence number.
const HEADER_BYTES: u8 = 4;

const COM_SET_OPTION: u8 = 0x1b;
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
    /// The sequence number of the packet before.
    sequence: u8,
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
            // The 256th packet of a file (LOAD DATA LOCAL) has the number of a command, too.
            if self.header == 0 && bytes[at..].starts_with(&QUIT) && self.sequence != u8::MAX {
                return Some(at);
            }
            if self.header < HEADER_BYTES - 1 {
                self.length |= usize::from(*byte) << (8 * self.header);
            } else {
                self.sequence = *byte;
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

/// Logs in again, which ends whatever a client has left (its role, user and database too), and undoes what that leaves.
pub(super) async fn clean<S>(
    login: &MysqlLogin,
    stream: &mut S,
    transport: MysqlTransport,
    variant: &LoginVariant,
) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut packets = Packets::new(stream, 0, login.password.as_ref());
    log_in_again(login, &mut packets, transport, variant).await?;
    let [first, second] = rand::rng().random::<[u32; 2]>();
    let (flags, _) = wanted(variant);
    // `MYSQL_OPTION_MULTI_STATEMENTS_ON` is 0, the other one 1.
    let single = !flags.contains(CapabilityFlags::CLIENT_MULTI_STATEMENTS);
    // RAND() goes on from other numbers; FOUND_ROWS() is 1 and ROW_COUNT() 0, as after a login.
    let mut set = format!("SET rand_seed1={first}, rand_seed2={second}");
    if flags.contains(CapabilityFlags::CLIENT_IGNORE_SPACE) {
        // It counts at the first login only.
        set.push_str(", sql_mode=CONCAT_WS(',', NULLIF(@@sql_mode, ''), 'IGNORE_SPACE')");
    }
    let option = [COM_SET_OPTION, u8::from(single), 0];
    packets.commands(&[&option, &query("SELECT 1"), &query(&set), &[COM_STATISTICS]]).await?;
    packets.done().await?;
    packets.row().await?;
    packets.done().await?;
    // If a command of the client is still unanswered, its answer comes first, and another one than this is read here.
    let last = packets.answer().await?;
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
    const ROW: [u8; 31] =
        *b"\x01\0\0\x01\x01\x02\0\0\x02\x03x\x01\0\0\x03\xfe\x02\0\0\x04\x011\x05\0\0\x05\xfe\0\0\x02\0";
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
        // The end of a file.
        assert_eq!(QuitDetector::default().find(&[1, 0, 0, 255, 7, 1, 0, 0, 0, 1, 0, 0, 0, 1]), None);
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
        let outcome = clean(&login, &mut ours, MysqlTransport::default(), &LoginVariant::Plain).await;
        drop(ours);
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        assert!(said[4..].starts_with(b"\x11app\0\0orders\0"));
        outcome
    }

    #[tokio::test]
    async fn only_the_answers_to_our_own_commands_make_it_clean() {
        let good: [&[u8]; 5] = [&OK, &END, &ROW, &OK, &STATISTICS];
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
