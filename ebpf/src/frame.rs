//! Packets as the parser wants them: an XDP frame or a socket buffer, read where it is or through the kernel.
//! Part of the programs (`main.rs`), not of the library.

use core::ffi::c_void;
use core::hint::black_box;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::{SkBuffContext, TcContext, XdpContext};
use headstart_ebpf::packet::{Bytes, options};

use crate::tables::OPTIONS;

/// Far above the last byte a parser can ask for; tells the verifier that offsets are small.
const OFFSET_MAX: usize = 0x7fff;

/// What the kernel gives a program that sees packets.
pub(crate) trait Buffer {
    /// Address of the first byte, and of the one after the last that can be read there.
    fn linear(&self) -> (usize, usize);

    /// Length of the whole packet, wherever its bytes are.
    fn total_len(&self) -> usize;

    /// Copies `len` bytes from `offset`, wherever they are; false when they are not all there.
    ///
    /// # Safety
    /// `to` must have room for them.
    unsafe fn copy(&self, offset: u32, to: *mut c_void, len: u32) -> bool;

    /// [`Bytes::find_option`].
    fn find_option(&self, start: u64, len: u64) -> u32;
}

impl Buffer for XdpContext {
    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    fn total_len(&self) -> usize {
        // SAFETY: the context is the one the kernel called this program with.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as usize }
    }

    #[inline(always)]
    unsafe fn copy(&self, offset: u32, to: *mut c_void, len: u32) -> bool {
        // SAFETY: the context is the kernel's; the caller vouches for `to`.
        unsafe { bpf_xdp_load_bytes(self.ctx, offset, to, len) == 0 }
    }

    #[inline(always)]
    fn find_option(&self, start: u64, len: u64) -> u32 {
        headstart_option_xdp(self.ctx, start, len)
    }
}

impl Buffer for SkBuffContext {
    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        (0, 0)
    }

    #[inline(always)]
    fn total_len(&self) -> usize {
        self.len() as usize
    }

    #[inline(always)]
    unsafe fn copy(&self, offset: u32, to: *mut c_void, len: u32) -> bool {
        // SAFETY: the context is the kernel's; the caller vouches for `to`.
        unsafe { bpf_skb_load_bytes(self.skb.skb.cast(), offset, to, len) == 0 }
    }

    #[inline(always)]
    fn find_option(&self, start: u64, len: u64) -> u32 {
        headstart_option_skb(self.skb.skb, start, len)
    }
}

impl Buffer for TcContext {
    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    fn total_len(&self) -> usize {
        self.len() as usize
    }

    #[inline(always)]
    unsafe fn copy(&self, offset: u32, to: *mut c_void, len: u32) -> bool {
        // SAFETY: the context is the kernel's; the caller vouches for `to`.
        unsafe { bpf_skb_load_bytes(self.skb.skb.cast(), offset, to, len) == 0 }
    }

    #[inline(always)]
    fn find_option(&self, start: u64, len: u64) -> u32 {
        headstart_option_skb(self.skb.skb, start, len)
    }
}

/// The part of a packet that can be read where it is: all of it, nearly always.
pub(crate) struct Linear<'a, B>(pub(crate) &'a B);

impl<B: Buffer> Bytes for Linear<'_, B> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > OFFSET_MAX {
            return None;
        }
        let (data, data_end) = self.0.linear();
        let at = data + offset;
        if at + N > data_end {
            return None;
        }
        // SAFETY: `at..at + N` lies between data and data_end (the verifier proves it again), and byte
        // arrays have no alignment.
        Some(unsafe { *(at as *const [u8; N]) })
    }

    #[inline(always)]
    fn holds(&self, len: usize) -> bool {
        // To the verifier of Linux 6.1, a length in network byte order is any number at all until it is
        // compared: this very copy of it, which the compiler must take for a number it knows nothing about.
        let len = black_box(len);
        let (data, data_end) = self.0.linear();
        len <= OFFSET_MAX && data + len <= data_end
    }

    #[inline(always)]
    fn reaches(&self, len: usize) -> bool {
        self.holds(len) || len <= self.0.total_len()
    }

    #[inline(always)]
    fn find_option(&self, start: usize, len: usize) -> u32 {
        self.0.find_option(start as u64, len as u64)
    }
}

/// All of a packet, byte ranges copied one by one: for those whose headers are split over buffers, and for
/// programs that may not read packets where they are. It costs some ten nanoseconds per range.
pub(crate) struct Copied<'a, B>(pub(crate) &'a B);

impl<B: Buffer> Copied<'_, B> {
    /// Whether there is more of the packet than [`Linear`] can read.
    #[inline(always)]
    pub(crate) fn has_more(&self) -> bool {
        let (data, data_end) = self.0.linear();
        data_end - data < self.0.total_len()
    }
}

impl<B: Buffer> Bytes for Copied<'_, B> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: there is room for N bytes, and they are initialised when the copy succeeds.
        unsafe {
            let copied = self.0.copy(offset as u32, bytes.as_mut_ptr().cast(), N as u32);
            copied.then(|| bytes.assume_init())
        }
    }

    #[inline(always)]
    fn holds(&self, len: usize) -> bool {
        len <= self.0.total_len()
    }

    #[inline(always)]
    fn reaches(&self, len: usize) -> bool {
        len <= self.0.total_len()
    }

    #[inline(always)]
    fn find_option(&self, start: usize, len: usize) -> u32 {
        self.0.find_option(start as u64, len as u64)
    }
}

/// [`Bytes::find_option`] of an XDP frame. Global: the verifier looks at it once, for any start and length,
/// and not again for each way that leads here; that makes the difference between acceptable and too complex.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn headstart_option_xdp(ctx: *mut xdp_md, start: u64, len: u64) -> u32 {
    find(&XdpContext::new(ctx), start, len)
}

/// The same of a socket buffer.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn headstart_option_skb(ctx: *mut __sk_buff, start: u64, len: u64) -> u32 {
    find(&SkBuffContext::new(ctx), start, len)
}

#[inline(always)]
fn find<B: Buffer>(buffer: &B, start: u64, len: u64) -> u32 {
    let Some(area) = OPTIONS.get_ptr_mut(0) else { return options::ABSENT };
    // One less is compared, for the verifier of Linux 6.1, which learns nothing from "not 0"; and hidden from the
    // compiler, which would compare the length itself.
    let rest = black_box(len.wrapping_sub(1));
    if rest >= options::OPTIONS_MAX as u64 {
        return options::ABSENT;
    }
    // SAFETY: the array's element is this CPU's own, programs that see packets do not nest on a CPU, and it is
    // longer than the longest options.
    unsafe {
        *area = [0; _];
        if buffer.copy(start as u32, area.cast(), rest as u32 + 1) {
            options::find(&*area)
        } else {
            options::ABSENT
        }
    }
}
