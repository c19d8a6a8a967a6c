//! A layer as it was sent, uncompressed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, Write};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

use crate::digest::Hashing;

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A frame of data, or one of those that are skipped (RFC 8878, 3.1). Layers of `zstd:chunked` have both.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const ZSTD_SKIPPED: [u8; 3] = [0x2a, 0x4d, 0x18];

/// Writes the archive in `blob` to `archive`, at most `max` bytes of it. Returns its digest and what is left of `max`.
pub(crate) fn uncompress(blob: &mut File, archive: &mut File, max: u64) -> io::Result<(String, u64)> {
    blob.rewind()?;
    let mut input = BufReader::with_capacity(256 * 1024, blob);
    let mut output = Hashing::new(&mut *archive, max);
    let start = input.fill_buf()?;
    if start.starts_with(&GZIP) {
        io::copy(&mut MultiGzDecoder::new(input), &mut output)?;
    } else if start.starts_with(&ZSTD) || start.get(1..4) == Some(&ZSTD_SKIPPED[..]) {
        unzstd(&mut input, &mut output)?;
    } else {
        io::copy(&mut input, &mut output)?;
    }
    output.flush()?;
    let done = output.finish();
    archive.rewind()?;
    Ok(done)
}

fn unzstd(input: &mut impl BufRead, output: &mut impl Write) -> io::Result<()> {
    while !input.fill_buf()?.is_empty() {
        match StreamingDecoder::new(&mut *input) {
            Ok(mut frame) => drop(io::copy(&mut frame, output)?),
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                io::copy(&mut input.by_ref().take(length.into()), &mut io::sink())?;
            }
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
        }
    }
    Ok(())
}
