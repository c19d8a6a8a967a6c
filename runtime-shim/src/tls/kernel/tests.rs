//! A server that is played with our own record layer, and a function whose records are the kernel's: only where the
//! kernel has kTLS, as in `make test-vm`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::BytesMut;
use headstart_wire::TrafficKeys;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::super::record::{Opener, RECORD_MAX, Sealer};
use super::*;
use crate::Function;
use crate::testing::{PATIENCE, attached};

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::Chacha20Poly1305];

struct Played {
    _function: Function,
    stream: KernelStream,
    server: TcpStream,
    sealer: Sealer,
    opener: Opener,
    records: BytesMut,
}

/// A session in which both sides have said something already.
async fn play(suite: Suite) -> Option<Played> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let key = |byte, sequence| TrafficKey { key: [byte; 32], iv: [byte; 12], sequence };
    let keys = TrafficKeys { to_server: key(1, 5), from_server: key(2, 700) };
    if !ktls::install(&socket, suite, &keys).unwrap() {
        assert!(!ktls::is_loaded());
        return None;
    }
    let (_, function) = attached(Vec::new()).await;
    let later = KeyUpdates::new(Arc::clone(function.agent().unwrap()), 7, PATIENCE);
    Some(Played {
        _function: function,
        stream: KernelStream::new(socket, suite, later).unwrap(),
        server,
        sealer: Sealer::new(suite, &keys.from_server).unwrap(),
        opener: Opener::new(suite, &keys.to_server).unwrap(),
        records: BytesMut::new(),
    })
}

impl Played {
    async fn send(&mut self) {
        self.server.write_all_buf(&mut self.records).await.unwrap();
    }

    async fn hears(&mut self, text: &[u8]) {
        let mut heard = vec![0; text.len()];
        timeout(PATIENCE, self.stream.read_exact(&mut heard)).await.expect("in time").unwrap();
        assert!(heard == text);
    }

    async fn fails(&mut self) -> io::Error {
        timeout(PATIENCE, self.stream.read(&mut [0; 99])).await.expect("in time").unwrap_err()
    }
}

#[tokio::test]
async fn records_arrive_in_any_pieces_and_tickets_between_them() {
    for suite in SUITES {
        let Some(mut played) = play(suite).await else { return };
        played.sealer.data(b"one", &mut played.records).unwrap();
        // A ticket in two parts, and then in one.
        for part in [&[4, 0, 0, 2, 7][..], &[7], &[4, 0, 0, 1, 9]] {
            played.sealer.seal(ContentType::Handshake, part, &mut played.records).unwrap();
        }
        played.sealer.data(b"", &mut played.records).unwrap();
        played.sealer.data(b"two", &mut played.records).unwrap();
        played.server.set_nodelay(true).unwrap();
        for byte in played.records.split() {
            played.server.write_all(&[byte]).await.unwrap();
        }
        played.hears(b"onetwo").await;
        played.sealer.close_notify(&mut played.records).unwrap();
        played.send().await;
        // The room for one byte is not enough for a goodbye.
        assert_eq!(timeout(PATIENCE, played.stream.read(&mut [0])).await.expect("an end").unwrap(), 0);
    }
}

#[tokio::test]
async fn what_is_written_is_read_whole_and_ends_with_a_goodbye() {
    for suite in SUITES {
        let Some(mut played) = play(suite).await else { return };
        let text: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        let Played { stream, server, opener, sealer, records, .. } = &mut played;
        let write = async {
            stream.write_all(&text).await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let mut plain = BytesMut::new();
        let read = async {
            let mut incoming = BytesMut::new();
            loop {
                match opener.open(&mut incoming, &mut plain).unwrap() {
                    Some(RecordContent::End) => break,
                    Some(said) => assert_eq!(said, RecordContent::Data),
                    None => {
                        incoming.reserve(RECORD_MAX);
                        assert_ne!(server.read_buf(&mut incoming).await.unwrap(), 0);
                    }
                }
            }
        };
        timeout(PATIENCE, async { tokio::join!(write, read) }).await.expect("in time");
        assert!(plain == text);

        // And back.
        for part in text.chunks(PLAIN_MAX) {
            sealer.data(part, records).unwrap();
        }
        let mut heard = vec![0; text.len()];
        let both = async { tokio::join!(server.write_all_buf(records), stream.read_exact(&mut heard)) };
        let (written, read) = timeout(PATIENCE, both).await.expect("in time");
        assert!(written.is_ok() && read.is_ok() && heard == text);
        server.shutdown().await.unwrap();
        assert_eq!(played.fails().await.kind(), ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn forged_and_unknown_records_end_the_session_for_good() {
    for (forge, said) in [
        (0, "cannot be decrypted"),
        (1, "cannot be decrypted"),
        (2, "a message of the handshake"),
        (3, "a message in parts"),
        (4, "alert 80"),
    ] {
        let Some(mut played) = play(Suite::Aes256Gcm).await else { return };
        let (sealer, records) = (&mut played.sealer, &mut played.records);
        match forge {
            0 => {
                sealer.data(b"forged", records).unwrap();
                let last = records.len() - 1;
                records[last] ^= 1;
            }
            1 => {
                sealer.data(b"replayed", records).unwrap();
                let record = records.clone();
                played.send().await;
                played.hears(b"replayed").await;
                played.records = record;
            }
            2 => sealer.seal(ContentType::Handshake, &[1, 0, 0, 0], records).unwrap(),
            3 => {
                sealer.seal(ContentType::Handshake, &[4, 0, 0, 9], records).unwrap();
                sealer.data(b"between", records).unwrap();
            }
            _ => sealer.seal(ContentType::Alert, &[2, 80], records).unwrap(),
        }
        played.send().await;
        for _ in 0..2 {
            let error = played.fails().await;
            assert!(error.to_string().contains(said), "{forge}: {error}");
        }
        assert!(played.stream.write_all(b"after that").await.is_err(), "{forge}");
    }
}
