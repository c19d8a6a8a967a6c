//! The entry for fuzz targets: the parsers of what servers and clients send. Not part of the public interface.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::backend::{LoginVariant, Stream};
use crate::{BackendKind, MysqlLogin, PostgresLogin, RedisLogin, Secret};

/// As much as a socket takes at once.
const SCRIPT_MAX_BYTES: usize = 64 * 1024;

/// A script never waits, so nothing should take long.
const LIMIT: Duration = Duration::from_secs(5);

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

fn kind(which: u8) -> BackendKind {
    let (user, password) = ("app".to_owned(), Some(Secret::new("correct-horse")));
    match which % 3 {
        0 => BackendKind::Postgres(PostgresLogin {
            user,
            password,
            database: "orders".to_owned(),
            warm_up: vec!["select 1".to_owned()],
            ..PostgresLogin::default()
        }),
        1 => BackendKind::Mysql(MysqlLogin { user, password, database: Some("orders".to_owned()) }),
        _ => BackendKind::Redis(RedisLogin { user: Some(user), password, database: 3 }),
    }
}

/// The end of a stream that carries the script and nothing else.
async fn played(script: &[u8]) -> Option<(Stream, UnixStream)> {
    let (ours, mut theirs) = UnixStream::pair().ok()?;
    theirs.write_all(script.get(..SCRIPT_MAX_BYTES).unwrap_or(script)).await.ok()?;
    theirs.shutdown().await.ok()?;
    Some((Stream::Unix(ours), theirs))
}

/// A login, or the cleaning of a session, with a server that sends any bytes.
///
/// # Panics
/// When it takes too long, or a parser has a defect.
pub fn server(bytes: &[u8]) {
    let Some((which, script)) = bytes.split_first() else { return };
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let Some((mut stream, _theirs)) = played(script).await else { return };
            let (kind, clean) = (kind(*which), which & 0x80 != 0);
            let protocol = kind.protocol();
            let outcome = timeout(LIMIT, async {
                match clean {
                    true => protocol.clean(&mut stream, &LoginVariant::Plain).await.err(),
                    false => protocol.log_in(&mut stream, Vec::new(), &LoginVariant::Plain).await.err(),
                }
            });
            if let Some(cause) = outcome.await.expect("an end in time") {
                assert!(!cause.to_string().contains("correct-horse"), "{cause}");
            }
        });
    });
}

/// The first packet of a client, and the search for the end of its conversation.
///
/// # Panics
/// When a parser has a defect.
pub fn client(bytes: &[u8]) {
    let Some((which, said)) = bytes.split_first() else { return };
    kind(*which).protocol().fuzz_first_packet(said);
    let (client, server) = said.split_at(said.len() / 2);
    let Some(mut whole) = kind(*which).protocol().termination_detector() else { return };
    let found = whole.find(client);
    assert!(found.is_none_or(|at| at < client.len()));
    if found.is_none() {
        whole.server_sent(server);
        // However it is cut.
        let Some(mut cut) = kind(*which).protocol().termination_detector() else { return };
        let pieces = client.chunks(1 + usize::from(*which) / 3);
        if pieces.map(|piece| cut.find(piece)).all(|found| found.is_none()) {
            server.iter().for_each(|byte| cut.server_sent(&[*byte]));
            assert_eq!(whole.is_complete(), cut.is_complete());
        }
    }
}
