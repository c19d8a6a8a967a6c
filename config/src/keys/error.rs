//! What is wrong with a key file, without a word of what it holds.

use std::fmt;
use std::path::PathBuf;

use super::MAX_NUMBER;
use crate::private::PrivateFileError;

/// A key file that cannot be used.
#[derive(Debug)]
pub enum KeyError {
    /// The file itself.
    File(PrivateFileError),
    /// A line of it.
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        fault: LineFault,
    },
}

impl From<PrivateFileError> for KeyError {
    fn from(error: PrivateFileError) -> Self {
        Self::File(error)
    }
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
        match self {
            Self::File(error) => error.fmt(f),
            Self::Line { path, line, fault } => write!(f, "{}:{line}: {fault}", path.display()),
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
