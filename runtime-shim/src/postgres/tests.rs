use super::*;
use crate::testing::{PATIENCE, attached, ready};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use tokio_postgres::SimpleQueryMessage;

const PROCESS_ID: i32 = 4711;

fn session() -> Session {
    let parameters =
        vec![("server_version".into(), "15.1".into()), ("client_encoding".into(), "UTF8".into())];
    Session::Postgres { process_id: PROCESS_ID, user: "app".into(), database: "orders".into(), parameters }
}

/// One message of the driver: tag and body.
fn message(stream: &mut impl Read) -> (u8, Vec<u8>) {
    let mut head = [0; 5];
    stream.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let mut body = vec![0; usize::try_from(length).unwrap() - 4];
    stream.read_exact(&mut body).unwrap();
    (head[0], body)
}

/// A server that has logged in already, and answers one simple query with "42".
fn answer_one_query(stream: &mut (impl Read + Write)) {
    assert_eq!(message(stream), (b'Q', b"select 42\0".to_vec()), "the first bytes are the query");
    let row_description = [
        &b"T\0\0\0\x19\0\x01n\0\0\0\0\0"[..],
        &[0, 0],
        &23i32.to_be_bytes(),
        &4i16.to_be_bytes(),
        &(-1i32).to_be_bytes(),
        &[0, 0],
    ];
    let mut bytes = row_description.concat();
    let length = u32::try_from(bytes.len() - 1).unwrap();
    bytes[1..5].copy_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(b"D\0\0\0\x0c\0\x01\0\0\0\x0242");
    bytes.extend_from_slice(b"C\0\0\0\x0dSELECT 1\0");
    bytes.extend_from_slice(b"Z\0\0\0\x05I");
    stream.write_all(&bytes).unwrap();
    assert_eq!(message(stream).0, b'X', "dropping the client ends the session");
}

async fn one_query_over(socket: OwnedFd) {
    let (_agent, function) = attached(vec![ready("db", session(), socket)]).await;
    let client = function.backend("db").postgres().await.unwrap();
    let messages = client.simple_query("select 42").await.unwrap();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    assert_eq!(row, Some("42"));
}

#[tokio::test]
async fn the_first_bytes_on_an_injected_tcp_session_are_the_query() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let server = std::thread::spawn(move || answer_one_query(&mut peer));
    one_query_over(socket.into()).await;
    tokio::task::spawn_blocking(|| server.join()).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_first_bytes_on_an_injected_unix_session_are_the_query() {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let server = std::thread::spawn(move || answer_one_query(&mut peer));
    one_query_over(socket.into()).await;
    tokio::task::spawn_blocking(|| server.join()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_tcp_backend_is_not_taken_for_postgres() {
    let (_peer, socket) = UnixStream::pair().unwrap();
    let (_agent, function) = attached(vec![ready("db", Session::Tcp, socket.into())]).await;
    let error = function.backend("db").postgres().await.unwrap_err();
    assert!(matches!(error, Error::WrongKind { kind: "tcp", .. }), "{error:?}");
}

#[tokio::test]
async fn a_bad_url_is_refused_without_being_shown() {
    let function = crate::Function::new(crate::attach::Attachment::Alone).unwrap();
    for url in ["mysql://app:hunter2@db/orders", "postgres://app:hunter2@db:port/orders"] {
        let error = function.backend("db").or_url(url).postgres().await.unwrap_err();
        assert!(matches!(error, Error::Url { .. }), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}
