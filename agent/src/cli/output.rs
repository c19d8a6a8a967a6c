//! Standard output, whose reader may leave at any time.

use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Writes to standard output; false when its reader is gone, which ends a command without an error.
pub(crate) fn show(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

/// Waits for this pause, in milliseconds, or until the reader of standard output is gone: then it is true.
pub(crate) fn reader_is_gone_within(pause_ms: u16) -> nix::Result<bool> {
    let out = io::stdout();
    // Also when no event is asked for, the kernel tells that the other end is closed.
    match poll(&mut [PollFd::new(out.as_fd(), PollFlags::empty())], PollTimeout::from(pause_ms)) {
        Err(Errno::EINTR) => Ok(false),
        gone => gone.map(|gone| gone > 0),
    }
}
