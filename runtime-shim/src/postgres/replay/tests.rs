use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

fn startup(version: i32, rest: &[u8]) -> Vec<u8> {
    let length = i32::try_from(STARTUP_HEAD_BYTES + rest.len()).unwrap();
    [&length.to_be_bytes()[..], &version.to_be_bytes(), rest].concat()
}

fn sample() -> Vec<u8> {
    startup(PROTOCOL, b"user\0app\0\0")
}

fn replay(greeting: &[u8]) -> (Replay<DuplexStream>, DuplexStream) {
    let (stream, server) = duplex(1024);
    (Replay::new(stream, greeting.to_vec()), server)
}

#[test]
fn the_greeting_is_what_a_server_says() {
    let parameters = [("a".to_owned(), "b".to_owned())];
    let expected = [
        &b"R\0\0\0\x08\0\0\0\0"[..],
        b"S\0\0\0\x08a\0b\0",
        b"K\0\0\0\x0c\0\0\0\x07\0\0\0\0",
        b"Z\0\0\0\x05I",
    ];
    assert_eq!(greeting(7, &parameters), expected.concat());
}

#[tokio::test]
async fn a_startup_message_written_byte_by_byte_is_swallowed() {
    let (mut driver, mut server) = replay(b"hello");
    for byte in sample() {
        driver.write_all(&[byte]).await.unwrap();
    }
    driver.write_all(b"query").await.unwrap();
    let mut seen = [0; 5];
    server.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"query", "the server sees nothing before the query");
    // And read byte by byte, with the server's own words after it.
    server.write_all(b"!").await.unwrap();
    let mut heard = Vec::new();
    for _ in 0..6 {
        heard.push(driver.read_u8().await.unwrap());
    }
    assert_eq!(heard, b"hello!");
    assert!(matches!(driver.state, ReplayState::Open));
}

#[tokio::test]
async fn what_follows_the_startup_message_in_one_write_reaches_the_server() {
    let (mut driver, mut server) = replay(b"hello");
    driver.write_all(&[sample(), b"query".to_vec()].concat()).await.unwrap();
    let mut seen = [0; 5];
    server.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"query");
}

#[tokio::test]
async fn a_driver_that_reads_first_is_woken() {
    let (driver, _server) = replay(b"hello");
    let (mut reader, mut writer) = split(driver);
    let reading = tokio::spawn(async move {
        let mut heard = [0; 5];
        reader.read_exact(&mut heard).await.map(|_| heard)
    });
    tokio::task::yield_now().await;
    writer.write_all(&sample()).await.unwrap();
    assert_eq!(&reading.await.unwrap().unwrap(), b"hello");
}

#[tokio::test]
async fn what_is_no_startup_message_is_refused() {
    const SSL_REQUEST: i32 = 80_877_103;
    for (bytes, kind) in [
        (startup(SSL_REQUEST, b""), io::ErrorKind::Unsupported),
        (startup(PROTOCOL, b""), io::ErrorKind::InvalidData),
        (startup(PROTOCOL, &[0; STARTUP_MAX_BYTES]), io::ErrorKind::InvalidData),
        (vec![0xff; 8], io::ErrorKind::Unsupported),
    ] {
        let (mut driver, _server) = replay(b"");
        assert_eq!(driver.write_all(&bytes).await.unwrap_err().kind(), kind);
    }
}
