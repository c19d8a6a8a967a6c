//! Redis (RESP2, redis.io/docs/latest/develop/reference/protocol-spec): `AUTH`, `SELECT`, and a `PING` to see that it
//! serves.
//!
//! The function may go on in RESP3 (`HELLO 3`): the connection is its own.

mod talk;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::printable;
use super::{BoxFuture, ConnectCause, Goodbye, LoggedIn, Protocol, Session, Stream};
use crate::{RedisLogin, Secret};

/// The name of the socket in a directory.
const SOCKET_NAME: &str = "redis.sock";

/// Longest reply that is read: a login has only one-line ones.
const MAX_REPLY_BYTES: usize = 512;

impl Protocol for RedisLogin {
    fn log_in<'a>(
        &'a self,
        stream: &'a mut Stream,
        _: Vec<u8>,
    ) -> BoxFuture<'a, Result<LoggedIn, ConnectCause>> {
        Box::pin(log_in(self, stream))
    }

    fn socket_name(&self) -> &'static str {
        SOCKET_NAME
    }

    fn goodbye(&self) -> Option<Box<dyn Goodbye>> {
        Some(Box::<talk::Talk>::default())
    }

    fn clean<'a>(&'a self, stream: &'a mut Stream) -> BoxFuture<'a, Result<(), ConnectCause>> {
        Box::pin(clean(self, stream))
    }

    fn farewell(&self) -> &'static [u8] {
        b"*1\r\n$4\r\nQUIT\r\n"
    }
}

/// From the first byte to a quiet connection. The caller sets the time limit.
async fn log_in<S>(login: &RedisLogin, stream: &mut S) -> Result<LoggedIn, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut asked = Vec::new();
    let mut replies = Vec::new();
    if let Some(password) = &login.password {
        let user = login.user.iter().map(String::as_str);
        let words: Vec<_> = ["AUTH"].into_iter().chain(user).chain([password.expose()]).collect();
        command(&mut asked, &words);
        replies.push("+OK");
    }
    if login.database != 0 {
        command(&mut asked, &["SELECT", &login.database.to_string()]);
        replies.push("+OK");
    }
    command(&mut asked, &["PING"]);
    replies.push("+PONG");
    // At once: one round trip.
    stream.write_all(&asked).await.map_err(ConnectCause::Lost)?;
    stream.flush().await.map_err(ConnectCause::Lost)?;
    asked.fill(0);
    let mut read = Vec::new();
    for expected in replies {
        let line = line(login, stream, &mut read).await?;
        match line.strip_prefix('-') {
            _ if line == expected => {}
            Some(refusal) => return Err(refused(login.password.as_ref(), refusal)),
            None => return Err(unexpected(login, expected, &line)),
        }
    }
    nothing_more(&read)?;
    let session = Session::Redis { user: login.user.clone(), database: login.database };
    Ok(LoggedIn { session, cancel: None })
}

/// `RESET` (Redis 6.2) ends transactions, subscriptions and the login, and goes back to RESP2; then all is as in the
/// beginning.
async fn clean<S>(login: &RedisLogin, stream: &mut S) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut asked, mut read) = (Vec::new(), Vec::new());
    command(&mut asked, &["RESET"]);
    stream.write_all(&asked).await.map_err(ConnectCause::Lost)?;
    stream.flush().await.map_err(ConnectCause::Lost)?;
    let (expected, found) = ("+RESET", line(login, stream, &mut read).await?);
    if found != expected {
        return Err(unexpected(login, expected, &found));
    }
    nothing_more(&read)?;
    log_in(login, stream).await.map(drop)
}

fn unexpected(login: &RedisLogin, expected: &'static str, found: &str) -> ConnectCause {
    ConnectCause::Unexpected { expected, found: printable(&Secret::hide(login.password.as_ref(), found)) }
}

fn nothing_more(read: &[u8]) -> Result<(), ConnectCause> {
    match read.is_empty() {
        true => Ok(()),
        false => Err(ConnectCause::Unexpected { expected: "nothing more", found: "more".to_owned() }),
    }
}

/// An array of bulk strings.
fn command(bytes: &mut Vec<u8>, words: &[&str]) {
    bytes.extend(format!("*{}\r\n", words.len()).into_bytes());
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).into_bytes());
        bytes.extend(word.as_bytes());
        bytes.extend(b"\r\n");
    }
}

/// The next line, without its end; what comes after it stays in `read`.
async fn line<S>(login: &RedisLogin, stream: &mut S, read: &mut Vec<u8>) -> Result<String, ConnectCause>
where
    S: AsyncRead + Unpin,
{
    loop {
        if let Some(end) = read.windows(2).position(|end| end == b"\r\n") {
            let line = String::from_utf8_lossy(&read[..end]).into_owned();
            read.drain(..end + 2);
            return Ok(line);
        }
        if read.len() > MAX_REPLY_BYTES {
            return Err(unexpected(login, "a short line", &String::from_utf8_lossy(read)));
        }
        if stream.read_buf(read).await.map_err(ConnectCause::Lost)? == 0 {
            return Err(ConnectCause::Closed);
        }
    }
}

/// An error's first word is its kind.
fn refused(password: Option<&Secret>, text: &str) -> ConnectCause {
    let text = Secret::hide(password, text);
    let code = text.split(' ').next().unwrap_or_default();
    ConnectCause::Refused {
        passes: is_transient(code) || text.contains("max number of clients"),
        message: printable(&text),
    }
}

/// Kinds of errors that pass: it loads its data, runs a script, has lost its master, or changes its place.
fn is_transient(code: &str) -> bool {
    ["LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "MISCONF", "OOM"].contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    const PASSWORD: &str = "corr3ct-horse";

    /// What a login says, and what comes of these answers.
    async fn against(login: &RedisLogin, script: &[u8]) -> (String, Result<LoggedIn, ConnectCause>) {
        let (mut ours, mut theirs) = duplex(1 << 16);
        theirs.write_all(script).await.unwrap();
        theirs.shutdown().await.unwrap();
        let outcome = log_in(login, &mut ours).await;
        drop(ours);
        let mut said = String::new();
        theirs.read_to_string(&mut said).await.unwrap();
        (said, outcome)
    }

    fn login() -> RedisLogin {
        RedisLogin { user: Some("app".into()), password: Some(Secret::new(PASSWORD)), database: 3 }
    }

    #[tokio::test]
    async fn a_login_is_one_round_trip_and_only_what_is_needed() {
        let (said, outcome) = against(&login(), b"+OK\r\n+OK\r\n+PONG\r\n").await;
        assert_eq!(
            said,
            "*3\r\n$4\r\nAUTH\r\n$3\r\napp\r\n$13\r\ncorr3ct-horse\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n*1\r\n$4\r\nPING\r\n"
        );
        assert_eq!(outcome.unwrap().session, Session::Redis { user: Some("app".into()), database: 3 });
        let (said, outcome) = against(&RedisLogin::default(), b"+PONG\r\n").await;
        assert!(said == "*1\r\n$4\r\nPING\r\n" && outcome.is_ok());
    }

    #[tokio::test]
    async fn refusals_are_told_without_the_password() {
        for (answer, said, passes) in [
            (&b"-WRONGPASS corr3ct-horse is wrong\r\n"[..], "WRONGPASS", false),
            (b"+OK\r\n-ERR DB index is out of range\r\n", "out of range", false),
            (b"+you said corr3ct-horse\r\n", "you said ***", false),
            (b"+OK\r\n+OK\r\n-LOADING Redis is loading the dataset in memory\r\n", "LOADING", true),
            (b"-ERR max number of clients reached\r\n", "max number of clients", true),
        ] {
            let cause = against(&login(), answer).await.1.unwrap_err();
            let text = cause.to_string();
            assert!(text.contains(said) && !text.contains(PASSWORD), "{text}");
            assert_eq!(cause.retry_helps(), passes, "{text}");
        }
        let unlocked = RedisLogin::default();
        let text =
            against(&unlocked, b"-NOAUTH Authentication required.\r\n").await.1.unwrap_err().to_string();
        assert!(text.contains("NOAUTH"), "{text}");
    }

    #[tokio::test]
    async fn a_session_is_clean_when_it_has_logged_in_again() {
        let reset = "*1\r\n$5\r\nRESET\r\n";
        for (answers, good) in [
            (&b"+RESET\r\n+OK\r\n+OK\r\n+PONG\r\n"[..], true),
            // What the client left behind; a server that is too old; one that stops.
            (b"+OK\r\n+RESET\r\n+OK\r\n+OK\r\n+PONG\r\n", false),
            (b"-ERR unknown command\r\n", false),
            (b"+RESET\r\n+OK\r\n", false),
        ] {
            let (mut ours, mut theirs) = duplex(1 << 16);
            let server = async {
                let mut said = vec![0; reset.len()];
                theirs.read_exact(&mut said).await.unwrap();
                assert_eq!(said, reset.as_bytes());
                // The login is another question.
                let (first, rest) = answers.split_at(answers.len().min(8));
                theirs.write_all(first).await.unwrap();
                if first == b"+RESET\r\n" {
                    theirs.read_u8().await.unwrap();
                }
                theirs.write_all(rest).await.unwrap();
                theirs.shutdown().await.unwrap();
            };
            let login = login();
            let (outcome, ()) = tokio::join!(clean(&login, &mut ours), server);
            assert_eq!(outcome.is_ok(), good, "{}: {outcome:?}", String::from_utf8_lossy(answers));
        }
    }

    #[tokio::test]
    async fn what_is_no_redis_is_named() {
        let long = [b'x'; 600];
        for (answer, said) in [
            (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "HTTP/1.1 400"),
            (&long, "a short line"),
            (b"+OK\r\n+OK\r\n", "closed the connection"),
            (b"+OK\r\n+OK\r\n+PONG\r\n+", "nothing more"),
            (b"", "closed the connection"),
        ] {
            let text = against(&login(), answer).await.1.unwrap_err().to_string();
            assert!(text.contains(said), "{text}");
        }
    }
}
