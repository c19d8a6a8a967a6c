//! The options of a SYN, walked in search of the function's ID (RFC 9293, 3.2; RFC 6994).

use core::hint::black_box;

use super::Bytes;
use crate::option::{EXID, FunctionOption, KIND, LEN};

/// Most bytes of options in a TCP header (RFC 9293, 3.1).
pub const OPTIONS_MAX: usize = 40;

/// Options copied to where they can be walked, zeros after their end.
pub type Area = [u8; AREA_LEN];
/// What is read of an option at [`OFFSET_MASK`] still fits.
const AREA_LEN: usize = 72;
/// No walk gets further. A mask, and no comparison, keeps reads inside the area: to the verifier, every step
/// then looks like the one before, and it need not follow each way to get there.
const OFFSET_MASK: usize = 63;
/// After a longer one, no other option of our length fits.
const SKIPPED_MAX: usize = OPTIONS_MAX - LEN;

/// Option kinds of one byte (RFC 9293, 3.2). Zeros after the end of the options are "end" once more.
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
/// Kind and length, which every other option has.
const HEAD_LEN: usize = 2;
/// Kind, length and experiment identifier.
const EXPERIMENT_LEN: usize = HEAD_LEN + EXID.len();

/// What [`find`] returns when there is no option of our kind and experiment.
pub const ABSENT: u32 = u32::MAX;

/// Where the first option of our kind and experiment begins; [`ABSENT`] when there is none. Options that
/// others made of the same kind are passed over, and what cannot be read ends the search, as in Linux.
#[inline(always)]
pub fn find(options: &Area) -> u32 {
    let mut at = 0;
    // The shortest option takes one byte. What begins after the last byte reads as "end".
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
        // At most OFFSET_MASK as it is. The compiler knows that, and would leave the mask out.
        at = black_box(at + step) & OFFSET_MASK;
    }
    ABSENT
}

const _: () =
    assert!(OPTIONS_MAX - 1 + SKIPPED_MAX <= OFFSET_MASK && OFFSET_MASK + EXPERIMENT_LEN <= AREA_LEN);

/// Where the options of a SYN are, as offsets into its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    start: usize,
    len: usize,
}

/// An option of our kind and experiment that is not of our length or version, or is cut off.
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
    /// [`BadOption`] when there is one and it cannot be understood.
    #[inline(always)]
    pub fn function<B: Bytes + ?Sized>(&self, frame: &B) -> Result<Option<FunctionOption>, BadOption> {
        if self.len < EXPERIMENT_LEN {
            return Ok(None);
        }
        let at = frame.find_option(self.start, self.len);
        if at == ABSENT {
            return Ok(None);
        }
        let at = at as usize;
        if at + LEN > self.len {
            return Err(BadOption);
        }
        let bytes: [u8; LEN] = frame.load(self.start + at).ok_or(BadOption)?;
        FunctionOption::decode(&bytes).map(Some).ok_or(BadOption)
    }
}
