//! The door for fuzz targets: what parses the words of servers and clients. No part of the interface.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::backend::{Stream, mysql, postgres};
use crate::{BackendKind, MysqlLogin, PostgresLogin, RedisLogin, Secret};

/// As much as a socket takes at once.
const SCRIPT_MAX_BYTES: usize = 64 * 1024;

/// Nothing waits here: what a script does not say does not come any more.
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

/// The end of a stream on which the script, and nothing else, was said.
async fn played(script: &[u8]) -> Option<(Stream, UnixStream)> {
    let (ours, mut theirs) = UnixStream::pair().ok()?;
    theirs.write_all(script.get(..SCRIPT_MAX_BYTES).unwrap_or(script)).await.ok()?;
    theirs.shutdown().await.ok()?;
    Some((Stream::Unix(ours), theirs))
}

/// A login, or the cleaning of a session, with a server that says what it likes.
///
/// # Panics
/// When it takes too long, and whenever a target should.
pub fn server(bytes: &[u8]) {
    let Some((which, script)) = bytes.split_first() else { return };
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let Some((mut stream, _theirs)) = played(script).await else { return };
            let (kind, clean) = (kind(*which), which & 0x80 != 0);
            let protocol = kind.protocol();
            let outcome = timeout(LIMIT, async {
                match clean {
                    true => protocol.clean(&mut stream).await.err(),
                    false => protocol.log_in(&mut stream, Vec::new()).await.err(),
                }
            });
            if let Some(cause) = outcome.await.expect("an end in time") {
                assert!(!cause.to_string().contains("correct-horse"), "{cause}");
            }
        });
    });
}

/// What is read of a client before it is admitted, and where it says goodbye.
///
/// # Panics
/// Whenever a target should.
pub fn client(bytes: &[u8]) {
    let Some((which, said)) = bytes.split_first() else { return };
    match kind(*which) {
        BackendKind::Postgres(login) => postgres::fuzz_first_packet(&login, said),
        BackendKind::Mysql(login) => mysql::fuzz_first_packet(&login, said),
        _ => {}
    }
    let (client, server) = said.split_at(said.len() / 2);
    let Some(mut whole) = kind(*which).protocol().goodbye() else { return };
    let found = whole.find(client);
    assert!(found.is_none_or(|at| at < client.len()));
    if found.is_none() {
        whole.answered(server);
        // However it is cut.
        let Some(mut cut) = kind(*which).protocol().goodbye() else { return };
        let pieces = client.chunks(1 + usize::from(*which) / 3);
        if pieces.map(|piece| cut.find(piece)).all(|found| found.is_none()) {
            server.iter().for_each(|byte| cut.answered(&[*byte]));
            assert_eq!(whole.is_through(), cut.is_through());
        }
    }
}
