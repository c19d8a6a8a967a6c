use super::*;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, duplex};

use crate::Secret;

const PASSWORD: &str = "corr3ct-horse";

fn login() -> RedisLogin {
    RedisLogin { user: Some("app".into()), password: Some(Secret::new(PASSWORD)), database: 3 }
}

fn after(commands: &[u8], answers: &[u8]) -> bool {
    let mut talk = RespDetector::default();
    talk.find(commands);
    talk.server_sent(answers);
    talk.is_complete()
}

const GET: &[u8] = b"*2\r\n$3\r\nGET\r\n$5\r\n*1\r\n$\r\n";

#[test]
fn a_client_is_through_when_all_that_it_said_is_answered() {
    for (commands, answers) in [
        (&b""[..], &b""[..]),
        (GET, b"$5\r\n+OK\r\n\r\n"),
        (GET, b"$-1\r\n"),
        (GET, b"*-1\r\n"),
        (GET, b"*0\r\n"),
        (b"PING\r\n\r\nPING\n", b"+PONG\r\n+PONG\r\n"),
        (GET, b"*2\r\n*1\r\n:1\r\n*2\r\n$0\r\n\r\n-ERR\r\n"),
        (GET, b"%2\r\n+a\r\n:1\r\n+b\r\n~1\r\n#t\r\n"),
        (GET, b"|1\r\n+ttl\r\n:3600\r\n,3.5\r\n"),
        (GET, b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n_\r\n"),
    ] {
        let said = String::from_utf8_lossy(answers);
        assert!(after(commands, answers), "{said}");
        // However it is cut; and not before its end.
        let mut talk = RespDetector::default();
        for (at, byte) in commands.iter().enumerate() {
            assert!(at == 0 || !talk.is_complete() || commands[..at].ends_with(b"\n"), "{said} {at}");
            talk.find(&[*byte]);
        }
        for byte in answers {
            assert!(commands.is_empty() || !talk.is_complete(), "{said}");
            talk.server_sent(&[*byte]);
        }
        assert!(talk.is_complete(), "{said}");
    }
}

#[test]
fn what_is_left_undone_or_not_understood_is_seen() {
    for (commands, answers) in [
        // Not whole, not answered, answered too often, answered in part.
        (&GET[..GET.len() - 1], &b"+OK\r\n"[..]),
        (GET, b""),
        (GET, b"+OK\r\n+OK\r\n"),
        (GET, b"$9\r\n+OK\r\n\r\n"),
        (GET, b"*2\r\n:1\r\n"),
        (GET, b"+OK"),
        // A message of a subscription.
        (GET, b"*3\r\n+subscribe\r\n+c\r\n:1\r\n*3\r\n+message\r\n+c\r\n+m\r\n"),
        (GET, b"HTTP/1.1 400\r\n"),
        (GET, b"$x\r\n"),
        (b"*2\r\nGET\r\n", b"+OK\r\n"),
        (b"*x\r\n", b"+OK\r\n"),
    ] {
        assert!(!after(commands, answers), "{}", String::from_utf8_lossy(answers));
    }
    // After an answer without a command the conversation is not followed further.
    let mut talk = RespDetector::default();
    talk.server_sent(b"+OK\r\n");
    talk.find(GET);
    assert!(!talk.is_complete());
    assert!(!after(GET, &b"*1\r\n".repeat(1000)));
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

proptest! {
    #[test]
    fn nothing_makes_it_panic(parts in prop::collection::vec("[*$%|>~=!+:,#_(-]?[0-9-]{0,20}\r?\n?|.{0,9}", 0..40)) {
        let bytes = parts.concat().into_bytes();
        let (mut whole, mut cut) = (RespDetector::default(), RespDetector::default());
        whole.find(&bytes);
        whole.server_sent(&bytes);
        for byte in &bytes {
            cut.find(&[*byte]);
        }
        bytes.iter().for_each(|byte| cut.server_sent(&[*byte]));
        prop_assert_eq!(whole.is_complete(), cut.is_complete());
    }
}
