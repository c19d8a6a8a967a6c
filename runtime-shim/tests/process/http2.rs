//! A client of HTTP/2.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// A client of HTTP/2 (RFC 9113, RFC 7541).
pub(crate) struct Http2(pub(crate) TcpStream);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
pub(crate) const SETTINGS: u8 = 4;
const PING: u8 = 6;

impl Http2 {
    pub(crate) fn frame(&mut self, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
        let length = u8::try_from(payload.len()).unwrap();
        let head = [0, 0, length, kind, flags, 0, 0, 0, stream];
        self.0.write_all(&[&head, payload].concat()).unwrap();
    }

    pub(crate) fn ask(&mut self, stream: u8, path: &str) {
        // GET, http, and a path that stands here.
        let mut fields = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        fields.extend(path.as_bytes());
        let (end_stream, end_headers) = (1, 4);
        self.frame(HEADERS, end_stream | end_headers, stream, &fields);
    }

    /// The stream of the next body, and the body, which is small.
    pub(crate) fn body(&mut self) -> (u8, Vec<u8>) {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).unwrap();
            let [0, high, low, kind, flags, .., stream] = head else { panic!("{head:?}") };
            let mut payload = vec![0; usize::from(u16::from_be_bytes([high, low]))];
            self.0.read_exact(&mut payload).unwrap();
            match kind {
                DATA if !payload.is_empty() => return (stream, payload),
                PING if flags == 0 => self.frame(PING, 1, 0, &payload),
                _ => {}
            }
        }
    }
}
