use super::*;
use tokio::io::{AsyncReadExt, duplex};

use crate::Secret;

const PASSWORD: &str = "corr3ct-horse";

/// What a login says, and what comes of these answers.
async fn against(login: &RedisLogin, script: &[u8]) -> (String, Result<LoginResult, ConnectCause>) {
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
    let text = against(&unlocked, b"-NOAUTH Authentication required.\r\n").await.1.unwrap_err().to_string();
    assert!(text.contains("NOAUTH"), "{text}");
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
