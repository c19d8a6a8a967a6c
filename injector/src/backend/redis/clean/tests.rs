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
    // A server that is a replica now.
    for (answer, read_only) in [
        ("-READONLY You can't write against a read only replica.", true),
        ("+READONLY ", false),
        ("-ERR READONLY ", false),
    ] {
        let mut talk = RespDetector::default();
        talk.find(GET);
        talk.server_sent(format!("{answer}\r\n").as_bytes());
        assert_eq!((talk.is_complete(), talk.is_read_only()), (true, read_only), "{answer}");
    }
    // After an answer without a command the conversation is not followed further.
    let mut talk = RespDetector::default();
    talk.server_sent(b"+OK\r\n");
    talk.find(GET);
    assert!(!talk.is_complete());
    assert!(!after(GET, &b"*1\r\n".repeat(1000)));
}

/// A server's answers to each question, and whether the session is used again.
async fn against(answers: &[&str]) -> Result<(), ConnectCause> {
    let (mut ours, mut theirs) = duplex(1 << 16);
    let server = async {
        let mut said = [0; 4096];
        for answer in answers {
            let bytes = theirs.read(&mut said).await.unwrap();
            if bytes == 0 || theirs.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
        theirs.shutdown().await.unwrap();
    };
    let client = async {
        let outcome = clean(&login(), &mut ours).await;
        drop(ours);
        outcome
    };
    tokio::join!(client, server).0
}

/// An answer to the login and the question after it.
fn info(fields: &str) -> String {
    format!("+OK\r\n+OK\r\n+PONG\r\n{}", bulk(fields))
}

fn bulk(fields: &str) -> String {
    let fields = format!("id=4 addr=1.2.3.4:5 db=3 user=app {fields} resp=2 tot-cmds=1");
    format!("${}\r\n{fields}\r\n", fields.len())
}

#[tokio::test]
async fn a_session_is_clean_when_it_has_logged_in_again_and_says_so() {
    let (plain, clean) = ("flags=N name= lib-name= sub=0 multi=-1", "+RESET\r\n");
    for answers in [
        &[clean, &info(plain)][..],
        &[clean, &info("flags=U")],
        // Valkey, once the session has been in a transaction.
        &[clean, &info("flags=N sub=0 multi=0 watch=0")],
        &[clean, &info("flags=e"), &format!("+OK\r\n{}", bulk(plain))],
        &[clean, &info("flags=N lib-name=x lib-ver=1"), &format!("+OK\r\n+OK\r\n{}", bulk(plain))],
    ] {
        against(answers).await.unwrap();
    }
    for answers in [
        // What the client left behind; a server that is too old; one that stops, or says no more than that.
        &["+OK\r\n+RESET\r\n", &info(plain)][..],
        &["-ERR unknown command\r\n"],
        &[clean, "+OK\r\n"],
        &[clean, "+OK\r\n+OK\r\n+PONG\r\n-NOPERM\r\n"],
        &[clean, &format!("{}+OK\r\n", info(plain))],
        // What cannot be undone, or is not.
        &[clean, &info("flags=N capa=r"), &bulk("flags=N capa=r")],
        &[clean, &info("flags=N db=4"), &bulk("flags=N db=4")],
        &[clean, &info("flags=N user=other"), &bulk("flags=N user=other")],
        &[clean, &info("flags=T"), &format!("-NOPERM\r\n{}", bulk("flags=T"))],
    ] {
        assert!(against(answers).await.is_err(), "{answers:?}");
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
