//! TLS 1.3 records in the kernel (Documentation/networking/tls.rst): plaintext is read from and written to the socket.
//!
//! [`receive`] returns records without data too, such as the end of a session; read(2) fails with `EIO` on them.

use std::fs;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::LazyLock;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, TlsGetRecordType, recvmsg, setsockopt};

use crate::tls::{Flow, Suite, TrafficKey, TrafficKeys};

/// `ContentType` of records (RFC 8446, section 5.1).
pub const ALERT: u8 = 21;
/// Of the handshake protocol, which also has messages after the handshake.
pub const HANDSHAKE: u8 = 22;
/// Of data.
pub const APPLICATION_DATA: u8 = 23;

/// The first kernel that can change the keys of a session (commit 47069594e67e, "tls: implement rekey for TLS1.3").
const REKEY_SINCE: (u32, u32) = (6, 14);

/// The upper layer protocols that the kernel has for TCP sockets, separated by spaces.
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_ulp";

/// Asks the kernel to load the module, for which it needs `CAP_NET_ADMIN`. Returns whether the kernel has it then.
pub fn load() -> bool {
    let accepts = |(_listener, socket)| setsockopt(&socket, TcpUlp::default(), b"tls").is_ok();
    is_loaded() || connect().is_ok_and(accepts)
}

/// Only a connected socket accepts the option, and one in an accept queue is reset with its listener: the kernel would load
/// the module and refuse the socket.
fn connect() -> io::Result<(TcpListener, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let socket = TcpStream::connect(listener.local_addr()?)?;
    Ok((listener, socket))
}

/// Whether the kernel has the module now.
#[must_use]
pub fn is_loaded() -> bool {
    fs::read_to_string(AVAILABLE).is_ok_and(|list| list.split_whitespace().any(|name| name == "tls"))
}

/// Whether this kernel can change the keys after a `KeyUpdate`.
#[must_use]
pub fn can_rekey() -> bool {
    static CAN: LazyLock<bool> = LazyLock::new(|| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= REKEY_SINCE
    });
    *CAN
}

/// Gives the kernel the keys of a session, which it continues at their sequence numbers. `false`, and an unchanged
/// socket, when the kernel has no kTLS or not for this suite.
///
/// # Errors
/// When the kernel took one direction only: then the socket is unusable.
pub fn install(socket: impl AsFd, suite: Suite, keys: &TrafficKeys) -> io::Result<bool> {
    let socket = socket.as_fd();
    if setsockopt(&socket, TcpUlp::default(), b"tls").is_err() {
        return Ok(false);
    }
    if set_key(socket, Flow::ToServer, suite, &keys.to_server).is_err() {
        return Ok(false);
    }
    set_key(socket, Flow::FromServer, suite, &keys.from_server).map(|()| true)
}

/// Sets the key for the next records of this direction; one after the first only where [`can_rekey`].
///
/// # Errors
/// Those of setsockopt(2): `EBUSY` where the keys cannot be changed.
pub fn set_key(socket: impl AsFd, flow: Flow, suite: Suite, key: &TrafficKey) -> io::Result<()> {
    let info = info(suite, key);
    match flow {
        Flow::ToServer => setsockopt(&socket, TcpTlsTx, &info),
        Flow::FromServer => setsockopt(&socket, TcpTlsRx, &info),
    }
    .map_err(io::Error::from)
}

/// The kernel takes a nonce in two parts for AES-GCM, and whole for ChaCha20-Poly1305 (include/uapi/linux/tls.h).
fn info(suite: Suite, key: &TrafficKey) -> TlsCryptoInfo {
    let version = libc::TLS_1_3_VERSION;
    let (rec_seq, [a, b, c, d, iv @ ..]) = (key.sequence.to_be_bytes(), key.iv);
    match suite {
        Suite::Aes256Gcm => TlsCryptoInfo::Aes256Gcm(libc::tls12_crypto_info_aes_gcm_256 {
            info: libc::tls_crypto_info { version, cipher_type: libc::TLS_CIPHER_AES_GCM_256 },
            iv,
            key: key.key,
            salt: [a, b, c, d],
            rec_seq,
        }),
        Suite::Chacha20Poly1305 => {
            TlsCryptoInfo::Chacha20Poly1305(libc::tls12_crypto_info_chacha20_poly1305 {
                info: libc::tls_crypto_info { version, cipher_type: libc::TLS_CIPHER_CHACHA20_POLY1305 },
                iv: key.iv,
                key: key.key,
                salt: [],
                rec_seq,
            })
        }
    }
}

/// The next bytes, all of one type, which is returned with their number. Zero bytes of [`APPLICATION_DATA`] are the end
/// of the connection, with or without close_notify before it.
///
/// # Errors
/// Those of recvmsg(2): `EBADMSG` for a record that cannot be decrypted, `EKEYEXPIRED` as long as the key for it is
/// not set.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(u8, usize)> {
    let mut space = nix::cmsg_space!(u8);
    let mut parts = [IoSliceMut::new(buffer)];
    let socket = socket.as_fd().as_raw_fd();
    let received = recvmsg::<()>(socket, &mut parts, Some(&mut space), MsgFlags::empty())?;
    let mut content = APPLICATION_DATA;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::TlsGetRecordType(kind) = message {
            content = match kind {
                TlsGetRecordType::ChangeCipherSpec => 20,
                TlsGetRecordType::Alert => ALERT,
                TlsGetRecordType::Handshake => HANDSHAKE,
                TlsGetRecordType::ApplicationData => APPLICATION_DATA,
                TlsGetRecordType::Unknown(other) => other,
                _ => 0,
            };
        }
    }
    Ok((content, received.bytes))
}

/// Sends a record of another type than data.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send(socket: impl AsFd, content: u8, bytes: &[u8]) -> io::Result<()> {
    send_record(socket.as_fd(), content, bytes)
}

#[expect(unsafe_code, reason = "no crate has a safe interface to TLS_SET_RECORD_TYPE")]
fn send_record(socket: BorrowedFd<'_>, content: u8, bytes: &[u8]) -> io::Result<()> {
    /// One control message of one byte.
    #[repr(C)]
    struct Space {
        header: libc::cmsghdr,
        content: u8,
    }
    // SAFETY: plain integers.
    let mut space: Space = unsafe { std::mem::zeroed() };
    // SAFETY: it only computes a length.
    space.header.cmsg_len = unsafe { libc::CMSG_LEN(1) } as _;
    space.header.cmsg_level = libc::SOL_TLS;
    space.header.cmsg_type = libc::TLS_SET_RECORD_TYPE;
    space.content = content;
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: plain integers and pointers that may be null.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = ptr::from_mut(&mut space).cast();
    message.msg_controllen = size_of::<Space>() as _;
    // SAFETY: everything the message points to lives until the call returns, and the kernel only reads it; the
    // descriptor is borrowed for longer than that.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    match Errno::result(sent)? {
        sent if usize::try_from(sent) == Ok(bytes.len()) => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_that_loads_the_module_stays_connected() {
        let (_listener, socket) = connect().unwrap();
        socket.peer_addr().unwrap();
    }
    use std::io::{Read, Write};

    fn key() -> TrafficKey {
        let iv = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        TrafficKey { key: [7; 32], iv, sequence: 0x0102_0304_0506_0708 }
    }

    #[test]
    fn keys_are_laid_out_as_the_kernel_wants_them() {
        let TlsCryptoInfo::Aes256Gcm(info) = info(Suite::Aes256Gcm, &key()) else {
            panic!("the wrong suite")
        };
        // "salt" and "iv" are the two parts of a nonce (net/tls/tls_sw.c).
        assert_eq!((info.salt, info.iv), ([1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12]));
        assert_eq!((info.rec_seq, info.key), ([1, 2, 3, 4, 5, 6, 7, 8], [7; 32]));
        assert_eq!((info.info.version, info.info.cipher_type), (0x0304, 52));
        let TlsCryptoInfo::Chacha20Poly1305(info) = super::info(Suite::Chacha20Poly1305, &key()) else {
            panic!("the wrong suite")
        };
        assert_eq!((info.iv, info.rec_seq), (key().iv, [1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!((info.info.version, info.info.cipher_type), (0x0304, 54));
    }

    #[test]
    fn a_kernel_without_it_leaves_the_socket_as_it_was() {
        if load() {
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let keys = TrafficKeys { to_server: key(), from_server: key() };
        assert!(!install(&socket, Suite::Aes256Gcm, &keys).unwrap());
        socket.write_all(b"as it is").unwrap();
        let mut heard = [0; 8];
        server.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"as it is");
    }
}
