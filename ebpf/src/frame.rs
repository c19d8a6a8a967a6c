//! An XDP frame as the parser wants it. Part of the program (`main.rs`), not of the library.

use aya_ebpf::helpers::generated::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use headstart_ebpf::packet::Bytes;

/// Far above the last byte `parse` can ask for; tells the verifier that offsets are small.
const OFFSET_MAX: usize = 0x7fff;

/// The frame's first buffer. Headers beyond it (split frames) are not read: those SYNs count as malformed
/// and their function starts when the connection is accepted.
pub(crate) struct Frame<'a>(pub(crate) &'a XdpContext);

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > OFFSET_MAX {
            return None;
        }
        let at = self.0.data() + offset;
        if at + N > self.0.data_end() {
            return None;
        }
        // SAFETY: `at..at + N` lies between data and data_end (the verifier proves it again), and byte
        // arrays have no alignment.
        Some(unsafe { *(at as *const [u8; N]) })
    }

    #[inline(always)]
    fn reaches(&self, len: usize) -> bool {
        // To the verifier of Linux 6.1, a length in network byte order is any number at all until it is
        // compared with something that the compiler cannot prove and leave out.
        if len <= OFFSET_MAX && self.0.data() + len <= self.0.data_end() {
            return true;
        }
        // SAFETY: the context is the one the kernel called this program with.
        len <= unsafe { bpf_xdp_get_buff_len(self.0.ctx) } as usize
    }
}
