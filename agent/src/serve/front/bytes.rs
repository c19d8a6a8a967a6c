//! Carries the bytes of a client to a function, and those of the function back.

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;

/// The signature of a header of version 2 (the PROXY protocol, 2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// `client` and `server` are the two ends of the connection that the front has accepted; `None` for a function that is not
/// to be told.
pub(super) async fn carry(
    mut from: impl AsyncRead + AsyncWrite + Unpin,
    mut to: TcpStream,
    ends: Option<(SocketAddr, SocketAddr)>,
) {
    if let Some((client, server)) = ends
        && to.write_all(&proxy_header(client, server)).await.is_err()
    {
        return;
    }
    // An end that closes its half is told to the other. An error of one ends both.
    let _ = copy_bidirectional(&mut from, &mut to).await;
}

/// A header of the PROXY protocol, version 2.
fn proxy_header(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let (family, addresses) = match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(server)) => (0x11, [client.octets(), server.octets()].concat()),
        (client, server) => (0x21, [mapped(client), mapped(server)].concat()),
    };
    let mut header = SIGNATURE.to_vec();
    // Version 2 and PROXY; the family, over TCP.
    header.extend([0x21, family]);
    header.extend(u16::try_from(addresses.len() + 4).unwrap_or_default().to_be_bytes());
    header.extend(addresses);
    header.extend(client.port().to_be_bytes());
    header.extend(server.port().to_be_bytes());
    header
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_the_protocol_says() {
        let header =
            proxy_header("192.0.2.1:258".parse().unwrap(), "[::ffff:192.0.2.2]:443".parse().unwrap());
        let v4 = [&SIGNATURE[..], &[0x21, 0x11, 0, 12, 192, 0, 2, 1, 192, 0, 2, 2, 1, 2, 1, 187]].concat();
        assert_eq!(header, v4);
        let header = proxy_header("[2001:db8::1]:1".parse().unwrap(), "[::1]:2".parse().unwrap());
        assert_eq!((header.len(), header[13], header[15]), (16 + 36, 0x21, 36));
        assert_eq!(header[48..], [0, 1, 0, 2]);
    }
}
