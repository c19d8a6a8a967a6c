//! Finds the function ID option among the options of a SYN (RFC 9293, 3.2; RFC 6994).

use core::hint::black_box;

use super::Bytes;
use crate::option::{EXID, FunctionOption, KIND, LEN};

/// Most bytes of options in a TCP header (RFC 9293, 3.1).
pub const OPTIONS_MAX: usize = 40;

/// A copy of the options, followed by zeros, in which [`find`] walks.
pub type OptionArea = [u8; AREA_LEN];
/// Long enough for the bytes that [`find`] reads of an option at [`OFFSET_MASK`].
const AREA_LEN: usize = 72;
/// The largest offset of the walk. A mask, not a comparison, keeps reads inside the area: then every step looks the
/// same to the verifier, and it does not follow each path separately.
const OFFSET_MASK: usize = 63;
/// Longest option that the walk skips; after a longer one the function ID option does not fit.
const SKIPPED_MAX: usize = OPTIONS_MAX - LEN;

/// Option kinds of one byte (RFC 9293, 3.2). Zeros after the end of the options are "end" once more.
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
/// Kind and length, which every other option has.
const HEAD_LEN: usize = 2;
/// Kind, length and experiment identifier.
const EXPERIMENT_LEN: usize = HEAD_LEN + EXID.len();

/// [`find`] returns this when there is no option of our kind and experiment.
pub const ABSENT: u32 = u32::MAX;

/// Offset of the first option of our kind and experiment; [`ABSENT`] when there is none. The walk skips options of the
/// same kind and another experiment, and ends at one that it cannot read, as Linux does.
#[inline(always)]
pub fn find(options: &OptionArea) -> u32 {
    let mut at = 0;
    // The shortest option takes one byte. Bytes after the last option read as "end".
    for _ in 0..OPTIONS_MAX {
        let kind = options[at];
        let len = usize::from(options[at + 1]);
        let step = match kind {
            END => break,
            NO_OPERATION => 1,
            _ if len < HEAD_LEN => break,
            KIND if len >= EXPERIMENT_LEN && options[at + 2] == EXID[0] && options[at + 3] == EXID[1] => {
                return at as u32;
            }
            _ if len > SKIPPED_MAX => break,
            _ => len,
        };
        // The sum is at most OFFSET_MASK. Without black_box the compiler would know that, and omit the mask.
        at = black_box(at + step) & OFFSET_MASK;
    }
    ABSENT
}

const _: () =
    assert!(OPTIONS_MAX - 1 + SKIPPED_MAX <= OFFSET_MASK && OFFSET_MASK + EXPERIMENT_LEN <= AREA_LEN);

/// The position of a SYN's options in its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    start: usize,
    len: usize,
}

/// The option has our kind and experiment, but another length or version, or it is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOption;

impl Options {
    /// `len` bytes of options, at most [`OPTIONS_MAX`], from byte `start` of a frame.
    #[inline(always)]
    pub const fn new(start: usize, len: usize) -> Self {
        Self { start, len }
    }

    /// The function ID option, the first if there are several; `None` when there is none.
    ///
    /// # Errors
    /// [`BadOption`] when there is one that this version cannot read.
    #[inline(always)]
    pub fn function<B: Bytes + ?Sized>(&self, frame: &B) -> Result<Option<FunctionOption>, BadOption> {
        match self.position(frame) {
            ABSENT => Ok(None),
            at => self.read(frame, at).map(Some),
        }
    }

    /// [`find`] among these options.
    #[inline(always)]
    pub fn position<B: Bytes + ?Sized>(&self, frame: &B) -> u32 {
        if self.len < EXPERIMENT_LEN { ABSENT } else { frame.find_option(self.start, self.len) }
    }

    /// The function ID option at [`Options::position`].
    ///
    /// # Errors
    /// [`BadOption`] when this version cannot read it.
    #[inline(always)]
    pub fn read<B: Bytes + ?Sized>(&self, frame: &B, at: u32) -> Result<FunctionOption, BadOption> {
        let at = at as usize;
        if at + LEN > self.len {
            return Err(BadOption);
        }
        let bytes: [u8; LEN] = frame.load(self.start + at).ok_or(BadOption)?;
        FunctionOption::decode(&bytes).ok_or(BadOption)
    }
}
