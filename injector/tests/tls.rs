//! TLS to real servers and to bad ones.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use common::{Adopted, Postgres, postgres, relayed, spec, until};
use headstart_injector::{
    Address, BackendKind, BackendSpec, ConnectCause, LeaseError, Pool, Tls, TlsSettings, TlsSettingsError,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A certificate authority with its files.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let (key, directory) =
            (KeyPair::generate().expect("a key"), tempfile::tempdir().expect("a directory"));
        let name = directory.path().display().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("written");
        Self { issuer: Issuer::new(params, key), directory }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Writes `name.pem` and `name.key` for whom the certificate is for.
    fn issue(&self, directory: &Path, name: &str, valid: bool) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        if !valid {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
        std::fs::write(&files.0, certificate.pem()).expect("written");
        std::fs::write(&files.1, key.serialize_pem()).expect("written");
        std::fs::set_permissions(&files.1, std::fs::Permissions::from_mode(0o600)).expect("its mode");
        files
    }

    /// A server whose certificate is for `localhost`, and which trusts this authority as well.
    fn server(&self, valid: bool, more: &str) -> Option<Postgres> {
        Postgres::start_with(|data| {
            self.issue(data, "localhost", valid);
            std::fs::copy(self.file(), data.join("ca.pem")).expect("copied");
            [
                "ssl=on",
                "ssl_cert_file=localhost.pem",
                "ssl_key_file=localhost.key",
                "ssl_ca_file=ca.pem",
                more,
            ]
            .into_iter()
            .filter(|setting| !setting.is_empty())
            .map(str::to_owned)
            .collect()
        })
    }

    fn settings(&self) -> TlsSettings {
        TlsSettings { ca_file: Some(self.file()), server_name: "localhost".into(), ..TlsSettings::default() }
    }
}

fn backend(role: &str, address: Address, tls: &TlsSettings) -> BackendSpec {
    BackendSpec {
        tls: Some(Tls::new(tls).expect("TLS")),
        ..spec(BackendKind::Postgres(postgres(role)), address)
    }
}

async fn refusal(spec: BackendSpec) -> (String, bool) {
    let error = Pool::spawn(spec).lease().await.expect_err("no lease");
    assert!(error.to_string().contains("orders-db"), "{error}");
    let retry = error.retry_helps();
    (error.to_string(), retry)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_used_in_the_clear_and_travels_in_tls() {
    let authority = Authority::new();
    for (version, more) in [("TLSv1.3", ""), ("TLSv1.2", "ssl_max_protocol_version=TLSv1.2")] {
        let Some(server) = authority.server(true, more) else { return };
        for role in ["scrammer", "hasher", "shouter"] {
            let pool = Pool::spawn(backend(role, server.tcp(), &authority.settings()));
            let lease = relayed(pool.lease().await.expect(role));
            let mut client = Adopted::new(lease.fd);
            let tls = "select version from pg_stat_ssl where ssl and pid = pg_backend_pid()";
            assert_eq!(client.query(tls).as_deref(), Ok(version), "{role}");
            let long = client.query("select repeat('x', 3000000)").expect("an answer of many records");
            assert_eq!(long.len(), 3_000_000);

            // A function that dies says nothing.
            let gone = format!("select count(*) from pg_stat_activity where usename = '{role}'");
            assert_eq!(server.psql(&gone).trim(), "1");
            drop(client);
            drop(lease.slot);
            until(&pool, "returned", |status| status.leased == 0).await;
            for _ in 0..100 {
                if server.psql(&gone).trim() == "0" {
                    break;
                }
            }
            assert_eq!(server.psql(&gone).trim(), "0", "the server knows at once");
        }
    }
}

#[tokio::test]
async fn a_query_is_cancelled_through_tls_too() {
    let authority = Authority::new();
    let Some(server) = authority.server(true, "") else { return };
    let pool = Pool::spawn(backend("scrammer", server.tcp(), &authority.settings()));
    let lease = relayed(pool.lease().await.expect("a lease"));
    let mut client = Adopted::new(lease.fd);
    let asked = tokio::task::spawn_blocking(move || client.query("select pg_sleep(60)"));
    let sleeps =
        "select count(*) from pg_stat_activity where query like '%pg_sleep%' and usename = 'scrammer'";
    while server.psql(sleeps).trim() != "1" {
        tokio::task::yield_now().await;
    }
    assert!(lease.slot.cancel_query().await.expect("reached"));
    assert_eq!(asked.await.expect("asked"), Err("57014".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_can_be_known_by_its_certificate() {
    let authority = Authority::new();
    let Some(server) = authority.server(true, "") else { return };
    let mut settings = authority.settings();
    let (text, _) = refusal(backend("certified", server.tcp(), &settings)).await;
    assert!(text.contains("certificate"), "{text}");
    settings.client = Some(authority.issue(authority.directory.path(), "certified", true));
    let lease = Pool::spawn(backend("certified", server.tcp(), &settings)).lease().await.expect("a lease");
    assert_eq!(Adopted::new(relayed(lease).fd).query("select current_user").as_deref(), Ok("certified"));
}

#[tokio::test]
async fn who_cannot_prove_to_be_the_server_gets_no_password() {
    let (authority, other) = (Authority::new(), Authority::new());
    let Some(server) = authority.server(true, "") else { return };
    let address = server.tcp();
    let stranger = TlsSettings { ca_file: Some(other.file()), ..authority.settings() };
    let elsewhere = TlsSettings { server_name: "db.example".into(), ..authority.settings() };
    for (settings, said) in
        [(stranger, "no trusted authority has signed it"), (elsewhere, "set `server_name`")]
    {
        let (text, retry) = refusal(backend("scrammer", address.clone(), &settings)).await;
        assert!(text.contains(said) && !retry, "{text}");
    }
    let Some(expired) = authority.server(false, "") else { return };
    let (text, _) = refusal(backend("scrammer", expired.tcp(), &authority.settings())).await;
    assert!(text.contains("it has expired"), "{text}");
    let Some(plain) = Postgres::start() else { return };
    let (text, retry) = refusal(backend("scrammer", plain.tcp(), &authority.settings())).await;
    assert!(text.contains("does not offer TLS") && !retry, "{text}");
}

/// Answers the first bytes of each connection with these, and reads on.
fn says(answer: &'static [u8]) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(answer);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    Address::Tcp(address)
}

#[tokio::test]
async fn servers_that_speak_something_else_are_named_with_the_cause() {
    let authority = Authority::new();
    for (answer, said) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "unexpected message 'H'"),
        (b"SHTTP/1.1 400 Bad Request\r\n\r\n", "no TLS session"),
        // Something slipped in before the handshake is part of it, and breaks it (CVE-2021-23222).
        (b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I", "no TLS session"),
        (b"E\0\0\0\x08FATAL\0", "unexpected message 'E'"),
    ] {
        let (text, retry) = refusal(backend("scrammer", says(answer), &authority.settings())).await;
        assert!(text.contains(said) && !retry, "{answer:?}: {text}");
    }
    let mut slow = backend("scrammer", says(b"S"), &authority.settings());
    slow.pool.connect_timeout = std::time::Duration::from_millis(200);
    let (text, retry) = refusal(slow).await;
    assert!(text.contains("not logged in after 200 ms") && retry, "{text}");
}

#[tokio::test]
async fn a_bare_stream_offers_what_is_configured() {
    let authority = Authority::new();
    let Some(server) = authority.server(true, "") else { return };
    // A PostgreSQL before 17 does not take TLS without being asked first.
    let bare = BackendSpec {
        tls: Some(Tls::new(&TlsSettings { alpn: vec!["x/1".into()], ..authority.settings() }).expect("TLS")),
        ..spec(BackendKind::Tcp, server.tcp())
    };
    let error = Pool::spawn(bare).lease().await.expect_err("no lease");
    assert!(
        matches!(&error, LeaseError::Connect(error) if !matches!(error.cause, ConnectCause::Timeout { .. })),
        "{error}"
    );
}

/// As PostgreSQL does from 17 on, which is not at hand: TLS from the first byte, and only for who offers its protocol.
#[tokio::test]
async fn tls_can_begin_without_a_question() {
    let authority = Authority::new();
    let files = authority.issue(authority.directory.path(), "localhost", true);
    let chain =
        CertificateDer::pem_file_iter(files.0).expect("a file").collect::<Result<_, _>>().expect("a chain");
    let key = PrivateKeyDer::from_pem_file(files.1).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("versions").with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key).expect("a certificate");
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Address::Tcp(listener.local_addr().expect("its address").to_string());
    let server = thread::spawn(move || {
        let (socket, _) = listener.accept().expect("a connection");
        let session = ServerConnection::new(Arc::new(config)).expect("a session");
        let mut stream = StreamOwned::new(session, socket);
        let mut first = [0; 8];
        stream.read_exact(&mut first).expect("a first packet");
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"postgresql"[..]));
        assert_eq!(first[4..], [0, 3, 0, 0], "the login, and no question before it");
        // AuthenticationOk, ReadyForQuery.
        stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").expect("sent");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let tls = TlsSettings { direct: true, ..authority.settings() };
    let pool = Pool::spawn(backend("truster", address, &tls));
    let lease = pool.lease().await.expect("a lease");
    drop((lease, pool));
    tokio::task::spawn_blocking(|| server.join()).await.expect("joined").expect("as expected");
}

#[test]
fn settings_that_cannot_be_used_say_what_to_do() {
    let authority = Authority::new();
    let directory = authority.directory.path();
    let (certificate, key) = authority.issue(directory, "client", true);
    let (_, other_key) = authority.issue(directory, "other", true);
    let empty = directory.join("empty.pem");
    std::fs::write(&empty, "").expect("written");
    // Only its owner can read it, as a private key must be.
    let no_key = directory.join("no-key.pem");
    std::fs::copy(&certificate, &no_key).expect("copied");
    std::fs::set_permissions(&no_key, std::fs::Permissions::from_mode(0o600)).expect("closed");
    let good = authority.settings();
    for (settings, said) in [
        (TlsSettings { ca_file: Some("/nowhere/ca.pem".into()), ..good.clone() }, "/nowhere/ca.pem"),
        (TlsSettings { ca_file: Some(empty.clone()), ..good.clone() }, "empty.pem"),
        (TlsSettings { server_name: "not a name".into(), ..good.clone() }, "server_name"),
        (TlsSettings { client: Some((empty.clone(), key.clone())), ..good.clone() }, "empty.pem"),
        (TlsSettings { client: Some((certificate.clone(), no_key)), ..good.clone() }, "private key"),
        (
            TlsSettings { client: Some((certificate.clone(), certificate.clone())), ..good.clone() },
            "chmod 600",
        ),
        (TlsSettings { client: Some((certificate.clone(), other_key)), ..good.clone() }, "cannot be used"),
    ] {
        let error: TlsSettingsError = Tls::new(&settings).expect_err("refused");
        assert!(error.to_string().contains(said), "{error}");
    }
    assert!(Tls::new(&TlsSettings { client: Some((certificate, key)), ..good }).is_ok());
}
