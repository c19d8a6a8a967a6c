//! The programs of the load: a server, and a relay that does outside of the agent what the agent's relays do. Both are
//! modes of this bench, with one thread each.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::{ChildProcess, Namespace, Scratch, free_port};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The arguments that select these modes.
const SERVER: &str = "--server";
const RELAY: &str = "--relay";
const READY: &str = "listening";
/// As the function's: bytes without end are asked for by this first byte; what else comes is repeated.
const ENDLESS: u8 = b'e';
const BUFFER_BYTES: usize = 64 * 1024;

/// A server on loopback of a namespace, in the clear and over TLS, and a relay to each beside the agent. Ended on drop.
#[derive(Debug)]
pub(crate) struct Servers {
    addresses: Addresses,
    _server: ChildProcess,
    _relay: ChildProcess,
    _files: Scratch,
}

/// Where the server and the relay listen.
#[derive(Debug)]
struct Addresses {
    clear: SocketAddr,
    tls: SocketAddr,
    directory: PathBuf,
}

impl Servers {
    /// Starts both, and waits until they listen.
    pub(crate) fn start(namespace: &Namespace) -> Result<Self> {
        let files = Scratch::new("relay-load")?;
        let directory = files.path().to_owned();
        let addresses = Addresses { clear: free_port()?, tls: free_port()?, directory };
        let start = |mode: &str| -> Result<ChildProcess> {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg(mode).args([addresses.clear, addresses.tls].map(|address| address.to_string()));
            command.arg(&addresses.directory);
            let process = namespace.enter(|| ChildProcess::spawn(&mut command))??;
            process.wait_line(READY, LIMIT)?;
            Ok(process)
        };
        let (server, relay) = (start(SERVER)?, start(RELAY)?);
        Ok(Self { addresses, _server: server, _relay: relay, _files: files })
    }

    /// The `[[backend]]` sections of all ways to the server, by the names that `Load` knows.
    pub(crate) fn backends(&self) -> String {
        let Addresses { clear, tls, .. } = &self.addresses;
        let [relayed, relayed_tls] = self.addresses.relays();
        let sections = [
            ("beside", "tcp", format!("unix:{}", relayed.display()), String::new()),
            ("beside-tls", "tcp", format!("unix:{}", relayed_tls.display()), String::new()),
            ("agent", "tcp", clear.to_string(), String::new()),
            (
                "agent-tls",
                "tls",
                tls.to_string(),
                format!("tls = {{ ca_file = {:?} }}\n", self.addresses.ca()),
            ),
        ];
        let section = |(name, kind, address, tls): (&str, &str, String, String)| {
            format!(
                "[[backend]]\nname = \"{name}\"\nkind = \"{kind}\"\naddress = \"{address}\"\n\
                 pool = {{ min_idle = 1, max = 80 }}\n{tls}"
            )
        };
        sections.map(section).concat()
    }
}

impl Addresses {
    fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The relay's sockets: to the server in the clear, and over TLS.
    fn relays(&self) -> [PathBuf; 2] {
        ["clear", "tls"].map(|name| self.directory.join(name))
    }
}

/// Runs one of the modes to its end, if the arguments of this process select one.
pub(crate) fn mode() -> Option<Result<()>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, clear, tls, directory] = &arguments[..] else { return None };
    if ![SERVER, RELAY].contains(&&**mode) {
        return None;
    }
    let run = || {
        let addresses = Addresses {
            clear: clear.parse()?,
            tls: tls.parse()?,
            directory: Path::new(directory).to_owned(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            if mode == SERVER { serve(&addresses).await } else { relay(&addresses).await }
        })
    };
    Some(run())
}

async fn serve(addresses: &Addresses) -> Result<()> {
    let certified = rcgen::generate_simple_self_signed([addresses.tls.ip().to_string()])?;
    fs::write(addresses.ca(), certified.cert.pem())?;
    let key = PrivateKeyDer::from_pem_slice(certified.signing_key.serialize_pem().as_bytes())?;
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certified.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (clear, tls) = (TcpListener::bind(addresses.clear).await?, TcpListener::bind(addresses.tls).await?);
    println!("{READY}");
    loop {
        tokio::select! {
            accepted = clear.accept() => {
                let stream = accepted?.0;
                stream.set_nodelay(true)?;
                tokio::spawn(answer(stream));
            }
            accepted = tls.accept() => {
                let (stream, acceptor) = (accepted?.0, acceptor.clone());
                stream.set_nodelay(true)?;
                tokio::spawn(async move { answer(acceptor.accept(stream).await?).await });
            }
        }
    }
}

/// Bytes without end, or what was said.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = stream.read(&mut buffer).await?;
        match buffer.first() {
            _ if count == 0 => return Ok(()),
            Some(&ENDLESS) => loop {
                stream.write_all(&buffer).await?;
            },
            _ => stream.write_all(&buffer[..count]).await?,
        }
        stream.flush().await?;
    }
}

async fn relay(addresses: &Addresses) -> Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(addresses.ca())?)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let [clear, tls] = addresses.relays().map(UnixListener::bind);
    let (clear, tls) = (clear?, tls?);
    println!("{READY}");
    loop {
        tokio::select! {
            accepted = clear.accept() => {
                let (client, address) = (accepted?.0, addresses.clear);
                tokio::spawn(async move {
                    pass_on(client, connect(address).await?).await;
                    anyhow::Ok(())
                });
            }
            accepted = tls.accept() => {
                let (client, address, connector) = (accepted?.0, addresses.tls, connector.clone());
                tokio::spawn(async move {
                    let server = connector.connect(address.ip().into(), connect(address).await?).await?;
                    pass_on(client, server).await;
                    anyhow::Ok(())
                });
            }
        }
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Until one side has ended.
async fn pass_on(client: UnixStream, server: impl AsyncRead + AsyncWrite) {
    let (mut from_server, mut to_server) = split(server);
    let (mut from_client, mut to_client) = client.into_split();
    tokio::select! {
        _ = copy(&mut from_server, &mut to_client) => {}
        _ = copy(&mut from_client, &mut to_server) => {}
    }
}
