//! Following a conversation in RESP (redis.io/docs/latest/develop/reference/protocol-spec), to know whether a client that
//! leaves without a word, as most do, has left a command behind that is not whole or not answered.

use crate::backend::Goodbye;

/// The longest line that is followed: those that are longer are of no command or answer that we must understand.
const LINE_MAX_BYTES: usize = 64 * 1024;
/// How deep answers may be nested.
const DEPTH_MAX: usize = 64;

/// Both sides of a conversation.
#[derive(Debug, Default)]
pub(super) struct Talk {
    client: Frames,
    server: Frames,
    commands: u64,
    answers: u64,
    /// Cannot be followed: subscriptions, for instance, have answers without commands.
    lost: bool,
}

impl Goodbye for Talk {
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        match self.client.follow(bytes, false) {
            Some(frames) => self.commands += frames,
            None => self.lost = true,
        }
        None
    }

    fn answered(&mut self, bytes: &[u8]) {
        match self.server.follow(bytes, true) {
            Some(frames) => self.answers += frames,
            None => self.lost = true,
        }
        self.lost |= self.answers > self.commands;
    }

    fn is_through(&self) -> bool {
        !self.lost && self.answers == self.commands && self.client.is_between() && self.server.is_between()
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Frames {
    /// The beginning of a line.
    line: Vec<u8>,
    /// Bytes of a bulk string that are to come, with its end.
    bulk: u64,
    /// How many elements are to come, of the innermost aggregate last.
    open: Vec<u64>,
    /// The frame is not an answer.
    aside: bool,
}

impl Frames {
    fn is_between(&self) -> bool {
        self.line.is_empty() && self.bulk == 0 && self.open.is_empty() && !self.aside
    }

    /// How many frames end in the next bytes. What is not RESP is a command in a line, unless they are `answers`.
    fn follow(&mut self, mut bytes: &[u8], answers: bool) -> Option<u64> {
        let mut ended = 0;
        while !bytes.is_empty() {
            if self.bulk > 0 {
                let skipped = bytes.len().min(usize::try_from(self.bulk).unwrap_or(usize::MAX));
                bytes = &bytes[skipped..];
                self.bulk -= skipped as u64;
                ended += if self.bulk == 0 { self.element() } else { 0 };
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
                self.line.extend_from_slice(bytes);
                return (self.line.len() <= LINE_MAX_BYTES).then_some(ended);
            };
            self.line.extend_from_slice(&bytes[..=end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            ended += self.read(line.trim_ascii_end(), answers)?;
        }
        Some(ended)
    }

    /// A line. How many frames end with it.
    fn read(&mut self, line: &[u8], answers: bool) -> Option<u64> {
        let number = || -> Option<i64> { std::str::from_utf8(line.get(1..)?).ok()?.parse().ok() };
        // A null is -1. Nothing that is longer than this can be sent in a lifetime.
        let count = |each: u64| u64::try_from(number()?.max(0)).ok()?.checked_mul(each);
        match line.first() {
            Some(b'$' | b'=' | b'!') if answers || !self.open.is_empty() => match number()? {
                -1 => Some(self.element()),
                bytes => {
                    self.bulk = u64::try_from(bytes).ok()?.checked_add(2)?;
                    Some(0)
                }
            },
            Some(b'*') if !answers => self.begin(count(1)?),
            _ if !answers => {
                // Within a command only bulk strings may come. A line without a word is none.
                (self.open.is_empty()).then_some(u64::from(!line.is_empty()))
            }
            Some(b'*' | b'~') => self.begin(count(1)?),
            Some(b'%') => self.begin(count(2)?),
            // What comes before an answer, and what comes without a command.
            Some(b'|') if self.open.is_empty() && !self.aside => {
                self.aside = true;
                self.begin(count(2)?)
            }
            Some(b'>') if self.open.is_empty() && !self.aside => {
                self.aside = true;
                self.begin(count(1)?)
            }
            Some(b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(') => Some(self.element()),
            _ => None,
        }
    }

    fn begin(&mut self, elements: u64) -> Option<u64> {
        if elements == 0 {
            return Some(self.element());
        }
        self.open.push(elements);
        (self.open.len() <= DEPTH_MAX).then_some(0)
    }

    /// An element has ended. Whether a frame has with it.
    fn element(&mut self) -> u64 {
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return 0;
            }
            self.open.pop();
        }
        u64::from(!std::mem::take(&mut self.aside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(commands: &[u8], answers: &[u8]) -> bool {
        let mut talk = Talk::default();
        talk.find(commands);
        talk.answered(answers);
        talk.is_through()
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
            let mut talk = Talk::default();
            for (at, byte) in commands.iter().enumerate() {
                assert!(at == 0 || !talk.is_through() || commands[..at].ends_with(b"\n"), "{said} {at}");
                talk.find(&[*byte]);
            }
            for byte in answers {
                assert!(commands.is_empty() || !talk.is_through(), "{said}");
                talk.answered(&[*byte]);
            }
            assert!(talk.is_through(), "{said}");
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
        // Whoever gets an answer without a command is not followed any further.
        let mut talk = Talk::default();
        talk.answered(b"+OK\r\n");
        talk.find(GET);
        assert!(!talk.is_through());
        assert!(!after(GET, &b"*1\r\n".repeat(1000)));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(parts in prop::collection::vec("[*$%|>~=!+:,#_(-]?[0-9-]{0,20}\r?\n?|.{0,9}", 0..40)) {
            let bytes = parts.concat().into_bytes();
            let (mut whole, mut cut) = (Talk::default(), Talk::default());
            whole.find(&bytes);
            whole.answered(&bytes);
            for byte in &bytes {
                cut.find(&[*byte]);
            }
            bytes.iter().for_each(|byte| cut.answered(&[*byte]));
            prop_assert_eq!(whole.is_through(), cut.is_through());
        }
    }
}
