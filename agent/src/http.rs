//! A small answer of HTTP, for clients that no function serves.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of a request's head: cookies and tokens make some longer than servers take by default.
pub(crate) const HEAD_MAX: usize = 64 * 1024;
/// Bytes that are read at a time.
const PART: usize = 4096;
/// From the connection to the end of the request, and from the answer to the end of the connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads one request and answers it. `head` is the status, and further lines without the last line end. False when the
/// client did not ask in HTTP, in time: then nothing was written.
pub(crate) async fn reply(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    head: &str,
    body: &str,
) -> io::Result<bool> {
    let mut request = Vec::new();
    let whole = tokio::time::timeout(PATIENCE, async {
        let mut whole = false;
        while !whole && request.len() < HEAD_MAX {
            let before = request.len();
            request.reserve(PART);
            if (&mut *client).take(PART as u64).read_buf(&mut request).await? == 0 {
                break;
            }
            whole = is_whole(&request[before.saturating_sub(3)..]);
        }
        io::Result::Ok(whole || request.len() >= HEAD_MAX)
    });
    if !matches!(whole.await, Ok(Ok(true))) || !is_http(&request) {
        return Ok(false);
    }
    let length = body.len();
    let body = if request.starts_with(b"HEAD ") { "" } else { body };
    let reply = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    client.write_all(reply.as_bytes()).await?;
    client.shutdown().await?;
    // To close with something unread would be a reset, which may overtake the answer (RFC 9112, 9.6).
    let mut rest = [0; 1024];
    let drained = async { while matches!(client.read(&mut rest).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(PATIENCE, drained).await;
    Ok(true)
}

/// Whether the blank line is there (RFC 9112, 2.1; a lone LF counts, as its 2.2 allows).
fn is_whole(request: &[u8]) -> bool {
    request.windows(4).any(|end| end == b"\r\n\r\n") || request.windows(2).any(|end| end == b"\n\n")
}

/// Whether the first line ends in an HTTP version.
fn is_http(request: &[u8]) -> bool {
    let line = request.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client reads, and whether it was answered.
    async fn visit(request: &[u8]) -> (String, bool) {
        let (mut client, mut server) = tokio::io::duplex(2 * HEAD_MAX);
        client.write_all(request).await.unwrap();
        let head = "200 OK\r\nContent-Type: text/plain";
        let server = tokio::spawn(async move { reply(&mut server, head, "asleep\n").await.unwrap() });
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        drop(client);
        (text, server.await.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_answered() {
        let both = [("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", "asleep\n"), ("HEAD / HTTP/1.0\n\n", "")];
        for (request, body) in both {
            let (text, answered) = visit(request.as_bytes()).await;
            assert!(
                answered && text.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"),
                "{text}"
            );
            assert!(text.contains("\r\nContent-Length: 7\r\n"), "the length of the body also without it");
            assert_eq!(text.split_once("\r\n\r\n").unwrap().1, body);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_head_of_a_request_may_be_long() {
        for length in [PART - 21, PART - 20, PART - 19, PART - 18, 3 * PART, HEAD_MAX + PART] {
            let request = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(length));
            let (text, answered) = visit(request.as_bytes()).await;
            assert!(answered && text.starts_with("HTTP/1.1 200 OK\r\n"), "{length}: {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn everything_else_is_closed_when_it_is_complete_or_too_long_or_late() {
        let long = [b"GET / ".as_slice(), &[b'x'; HEAD_MAX]].concat();
        let late = b"GET / HTTP/1.1\r\nX: y\r\n".as_slice();
        for request in
            [b"".as_slice(), b"\x16\x03\x01", b"*1\r\n$4\r\nPING\r\n", b"GET / FTP\r\n\r\n", &long, late]
        {
            assert_eq!(visit(request).await, (String::new(), false), "{request:?}");
        }
    }
}
