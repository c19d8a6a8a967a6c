//! What can be read of a thread whose call waits: its memory and its descriptors.
//!
//! The thread can change both at any time. What is read here decides only what the thread itself gets.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use nix::libc;

/// The longest address that is looked at: `struct sockaddr_in6`.
const ADDRESS_BYTES: usize = 28;

/// Where a socket is to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BindAddress {
    /// IPv4 or IPv6, with the port.
    Port(u16),
    /// Another family, or no address.
    Other,
}

/// Reads the address that the thread passes to bind(2).
pub(crate) fn address(thread: u32, place: u64, length: u64) -> io::Result<BindAddress> {
    let mut bytes = [0; ADDRESS_BYTES];
    let length = usize::try_from(length & u64::from(u32::MAX)).unwrap_or(usize::MAX).min(ADDRESS_BYTES);
    let wanted = &mut bytes[..length];
    File::open(format!("/proc/{thread}/mem"))?.read_exact_at(wanted, place)?;
    Ok(parse(wanted))
}

/// `struct sockaddr_in` and `sockaddr_in6` begin alike: the family in the machine's order, the port in the network's.
fn parse(bytes: &[u8]) -> BindAddress {
    let [a, b, high, low, ..] = bytes else { return BindAddress::Other };
    match i32::from(u16::from_ne_bytes([*a, *b])) {
        libc::AF_INET | libc::AF_INET6 => BindAddress::Port(u16::from_be_bytes([*high, *low])),
        _ => BindAddress::Other,
    }
}

/// The inode of the file behind a descriptor of the thread, which tells sockets apart.
pub(crate) fn inode(thread: u32, descriptor: u64) -> io::Result<u64> {
    Ok(fs::metadata(format!("/proc/{thread}/fd/{}", number(descriptor)))?.ino())
}

/// The flags of a descriptor of the thread, as `O_NONBLOCK` and `O_CLOEXEC`.
pub(crate) fn flags(thread: u32, descriptor: u64) -> io::Result<i32> {
    let text = fs::read_to_string(format!("/proc/{thread}/fdinfo/{}", number(descriptor)))?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
    flags
        .and_then(|octal| i32::from_str_radix(octal, 8).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no flags in fdinfo"))
}

/// The kernel takes an int: the upper half of the register may hold anything.
pub(crate) fn number(argument: u64) -> u32 {
    (argument & u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd as _;

    #[test]
    fn addresses_of_both_families_have_their_port_and_others_have_none() {
        let v4 = [2, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse(&v4), BindAddress::Port(8080));
        let mut v6 = [0; 28];
        v6[..4].copy_from_slice(&[10, 0, 0, 80]);
        assert_eq!(parse(&v6), BindAddress::Port(80));
        for other in [&[][..], &[2], &[2, 0, 1], &[1, 0, b'/', b'a', 0], &[0, 0, 0, 80]] {
            assert_eq!(parse(other), BindAddress::Other, "{other:?}");
        }
    }

    #[test]
    fn memory_and_descriptors_of_a_thread_can_be_read() {
        let own = std::process::id();
        let address_of = [2_u8, 0, 0x1f, 0x91, 0, 0, 0, 0];
        let place = address_of.as_ptr() as u64;
        assert_eq!(address(own, place, 8).unwrap(), BindAddress::Port(8081));
        assert_eq!(address(own, place, 2).unwrap(), BindAddress::Other);
        assert!(address(own, 0, 8).is_err());
        let (one, other) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let inode_of = |fd: i32| inode(own, fd as u64).unwrap();
        let (copy, upper_half) = (one.try_clone().unwrap(), 7 << 32);
        assert_eq!(inode_of(one.as_raw_fd()), inode_of(copy.as_raw_fd()));
        assert_ne!(inode_of(one.as_raw_fd()), inode_of(other.as_raw_fd()));
        assert_eq!(
            inode(own, one.as_raw_fd() as u64 | upper_half).unwrap(),
            inode_of(one.as_raw_fd()),
            "the upper half does not count"
        );
        let set = |listener: &TcpListener| flags(own, listener.as_raw_fd() as u64).unwrap();
        assert_eq!(set(&one) & (libc::O_NONBLOCK | libc::O_CLOEXEC), libc::O_CLOEXEC);
        one.set_nonblocking(true).unwrap();
        assert_eq!(set(&one) & libc::O_NONBLOCK, libc::O_NONBLOCK);
    }
}
