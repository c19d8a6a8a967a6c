//! The login: `AUTH`, `SELECT`, and a `PING` to see that the server serves.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::RedisLogin;
use super::replies::{command, line, nothing_more, refused, unexpected};
use crate::backend::{ConnectCause, LoginResult, Session};

/// From the first byte to a quiet connection. The caller sets the time limit.
pub(super) async fn log_in<S>(login: &RedisLogin, stream: &mut S) -> Result<LoginResult, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut read = Vec::new();
    ask(login, stream, &mut read, &[]).await?;
    nothing_more(&read)?;
    let session = Session::Redis { user: login.user.clone(), database: login.database };
    let exposed = login.password.as_ref().map(|_| "the password is sent in the clear; set `tls`");
    Ok(LoginResult { session, cancel: None, exposed })
}

/// Logs in, and sends another command in the same round trip, whose reply is left to the caller.
pub(super) async fn ask<S>(
    login: &RedisLogin,
    stream: &mut S,
    read: &mut Vec<u8>,
    another: &[&str],
) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut commands = Vec::new();
    let mut replies = Vec::new();
    if let Some(password) = &login.password {
        let user = login.user.iter().map(String::as_str);
        let words: Vec<_> = ["AUTH"].into_iter().chain(user).chain([password.expose()]).collect();
        command(&mut commands, &words);
        replies.push("+OK");
    }
    if login.database != 0 {
        command(&mut commands, &["SELECT", &login.database.to_string()]);
        replies.push("+OK");
    }
    command(&mut commands, &["PING"]);
    replies.push("+PONG");
    if !another.is_empty() {
        command(&mut commands, another);
    }
    // All commands at once: one round trip.
    stream.write_all(&commands).await.map_err(ConnectCause::Lost)?;
    stream.flush().await.map_err(ConnectCause::Lost)?;
    commands.fill(0);
    for expected in replies {
        let line = line(login, stream, read).await?;
        match line.strip_prefix('-') {
            _ if line == expected => {}
            Some(refusal) => return Err(refused(login.password.as_ref(), refusal)),
            None => return Err(unexpected(login, expected, &line)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
