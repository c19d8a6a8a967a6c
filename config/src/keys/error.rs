//! What is wrong with a key file, without a word of what it holds.

use std::path::PathBuf;
use std::{fmt, io};

use super::{MAX_BYTES, MAX_NUMBER};

/// A key file that cannot be used.
#[derive(Debug)]
pub struct KeyError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: KeyFault,
}

/// What is wrong with a key file.
#[derive(Debug)]
pub enum KeyFault {
    /// It does not exist, or this process may not read it.
    Unreadable(io::Error),
    /// A directory, a FIFO or a device.
    NotAFile,
    /// Others than its owner may do something with it; the permission bits.
    Open(u32),
    /// It belongs to neither root nor the effective user of this process; the owner's user ID.
    Owner(u32),
    /// It does not belong to root, and who runs this process cannot be told without `/proc`.
    NoProc(io::Error),
    /// It is larger than [`MAX_BYTES`].
    TooLarge,
    /// A line is wrong.
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        fault: LineFault,
    },
}

/// What is wrong with a line of a key file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFault {
    /// It is not two words.
    Form,
    /// The number is none, or not 1 to [`MAX_NUMBER`].
    Number,
    /// The key is not 32 hexadecimal digits.
    Digits,
    /// The key is all zero.
    Zero,
    /// The number is already used.
    NumberTwice {
        /// The line where it is.
        first: usize,
    },
    /// The key is already there under another number.
    KeyTwice {
        /// The line where it is.
        first: usize,
    },
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.reason {
            KeyFault::Unreadable(error) if error.kind() == io::ErrorKind::NotFound => {
                write!(
                    f,
                    "{path}: {error}: create it with a line `NUMBER HEX` per key, and `chmod 600 {path}`"
                )
            }
            KeyFault::Unreadable(error) => {
                write!(f, "{path}: {error}: `chown` it to the user that runs this program")
            }
            KeyFault::NotAFile => {
                write!(f, "{path} is not a regular file: name the file that holds the keys")
            }
            KeyFault::Open(mode) => {
                write!(
                    f,
                    "{path} is open to others than its owner (mode {mode:03o}): `chmod 600 {path}`, and replace \
                     the keys if others may have read them"
                )
            }
            KeyFault::Owner(uid) => {
                write!(
                    f,
                    "{path} belongs to user {uid}, who could change the keys: `chown` it to root or to the user \
                     that runs this program"
                )
            }
            KeyFault::NoProc(error) => {
                write!(
                    f,
                    "{path} may belong to another user (/proc/self: {error}): mount /proc, or `chown` it to root"
                )
            }
            KeyFault::TooLarge => write!(
                f,
                "{path} is larger than {} KiB: name the file that holds the keys, one a line",
                MAX_BYTES >> 10
            ),
            KeyFault::Line { line, fault } => write!(f, "{path}:{line}: {fault}"),
        }
    }
}

impl std::error::Error for KeyError {}

impl fmt::Display for LineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => f.write_str("must be a number and a key, as `NUMBER HEX`"),
            Self::Number => write!(f, "the number before the key must be 1 to {MAX_NUMBER}"),
            Self::Digits => f.write_str("the key must be 32 hexadecimal digits: it may have been cut off"),
            Self::Zero => f.write_str("the key is all zero, which anybody guesses: make a random one"),
            Self::NumberTwice { first } => {
                write!(f, "the number is that of the key on line {first}: take a free one for a new key")
            }
            Self::KeyTwice { first } => {
                write!(f, "the key is the one on line {first}: make a new random one, or remove a line")
            }
        }
    }
}
