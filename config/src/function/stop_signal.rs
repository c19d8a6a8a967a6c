//! `stop_signal`: what asks the program of an instance to stop.

/// The signal that a program which knows nothing of Headstart gets when its instance is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopSignal(&'static str);

/// Those that end a server well, somewhere; and their numbers on every machine that we run on (signal(7)).
const ALL: [(&str, u8); 7] = [
    ("SIGTERM", 15),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGHUP", 1),
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGWINCH", 28),
];

impl StopSignal {
    /// By the words in the file.
    pub(super) const WORDS: [(&'static str, Self); ALL.len()] = {
        let mut words = [("", Self("")); ALL.len()];
        let mut at = 0;
        while at < ALL.len() {
            words[at] = (ALL[at].0, Self(ALL[at].0));
            at += 1;
        }
        words
    };

    /// Its name, as in `SIGTERM`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// As images write it: with or without `SIG`, or by number.
    pub(super) fn of_image(text: &str) -> Option<Self> {
        let is_it = |(name, number): &&(&'static str, u8)| {
            *name == text || name.strip_prefix("SIG") == Some(text) || number.to_string() == text
        };
        ALL.iter().find(is_it).map(|(name, _)| Self(name))
    }
}
