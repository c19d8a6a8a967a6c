//! `headstart knock`: asks for a function before a client connects to it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use headstart_ebpf::auth::epoch;
use headstart_ebpf::knock::{self, Knock};
use rustix::rand::{GetRandomFlags, getrandom};

use super::{ClientError, Destination, key};

/// What to send, and where to.
#[derive(Args, Debug)]
pub struct KnockArgs {
    /// The node, with the `knock_port` of its configuration.
    #[arg(long, value_name = "HOST:PORT")]
    to: Destination,
    /// The function's ID.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    function: u32,
    /// Proves that this client may start the function: lines of NUMBER HEX, readable by their owner only.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Which key of the file [default: the highest number].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=15))]
    key: Option<u8>,
    /// The `audience` of the node's configuration, if it has one.
    #[arg(long, value_name = "NAME", value_parser = crate::audience::parse)]
    audience: Option<String>,
    /// Says where the knock was sent to.
    #[arg(long, short)]
    verbose: bool,
}

/// Sends one packet to the first address that takes it.
///
/// # Errors
/// See [`ClientError`]. Whether it arrives is not known.
pub fn knock(args: &KnockArgs) -> Result<ExitCode, ClientError> {
    let (number, key) = key(&args.key_file, args.key, args.audience.as_deref())?;
    let to = args.to.resolve()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nonce =
        nonce().map_err(|error| ClientError::System { what: "there are no random numbers", error })?;
    let payload = Knock::new(key, number, epoch(now.as_secs()), args.function, nonce).encode();
    let mut reasons = Vec::new();
    for address in to {
        match send(address, &payload) {
            Ok(()) => {
                if args.verbose {
                    eprintln!("knocked at {address} for function {} with key {number}", args.function);
                }
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => reasons.push(format!("{address}: {error}")),
        }
    }
    Err(ClientError::Send { to: args.to.clone(), reasons: reasons.join("; ") })
}

fn nonce() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // The kernel fills a request this small completely (getrandom(2)).
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

fn send(to: SocketAddr, payload: &[u8; knock::LEN]) -> io::Result<()> {
    let from: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(from)?;
    socket.send_to(payload, to).map(drop)
}
