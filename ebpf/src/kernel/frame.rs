//! Packets for the parser: an XDP frame or a socket buffer, read in place or with a helper of the kernel.

use core::ffi::c_void;
use core::hint::black_box;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::{SkBuffContext, TcContext, XdpContext};
use headstart_ebpf::packet::{Bytes, options};

use crate::tables::OPTIONS;

/// Above the largest offset that the parser uses; tells the verifier that offsets are small.
const OFFSET_MAX: usize = 0x7fff;

/// The packet that the kernel passes to a program.
pub(crate) trait PacketBuffer {
    /// Address of the first byte that can be read in place, and of the byte after the last one.
    fn linear(&self) -> (usize, usize);

    /// Length of the whole packet, also of bytes that cannot be read in place.
    fn total_len(&self) -> usize;

    /// Copies `len` bytes from `offset` of the whole packet; false when the packet is too short.
    ///
    /// # Safety
    /// `to` must have room for `len` bytes.
    unsafe fn copy(&self, offset: u32, to: *mut c_void, len: u32) -> bool;

    /// [`Bytes::find_option`].
    fn find_option(&self, start: u64, len: u64) -> u32;
}

impl PacketBuffer for XdpContext {
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
        // SAFETY: the context is the kernel's; the caller guarantees room at `to`.
        unsafe { bpf_xdp_load_bytes(self.ctx, offset, to, len) == 0 }
    }

    #[inline(always)]
    fn find_option(&self, start: u64, len: u64) -> u32 {
        headstart_option_xdp(self.ctx, start, len)
    }
}

impl PacketBuffer for SkBuffContext {
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
        // SAFETY: the context is the kernel's; the caller guarantees room at `to`.
        unsafe { bpf_skb_load_bytes(self.skb.skb.cast(), offset, to, len) == 0 }
    }

    #[inline(always)]
    fn find_option(&self, start: u64, len: u64) -> u32 {
        headstart_option_skb(self.skb.skb, start, len)
    }
}

impl PacketBuffer for TcContext {
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
        // SAFETY: the context is the kernel's; the caller guarantees room at `to`.
        unsafe { bpf_skb_load_bytes(self.skb.skb.cast(), offset, to, len) == 0 }
    }

    #[inline(always)]
    fn find_option(&self, start: u64, len: u64) -> u32 {
        headstart_option_skb(self.skb.skb, start, len)
    }
}

/// The part of a packet that can be read in place, which is nearly always all of it.
pub(crate) struct LinearPacket<'a, B>(pub(crate) &'a B);

impl<B: PacketBuffer> Bytes for LinearPacket<'_, B> {
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
        // The verifier of Linux 6.1 knows nothing about a length in network byte order until the program compares
        // it. `black_box` makes the compiler compare and use the same copy.
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

/// All of a packet; each read copies a range of bytes. For packets whose headers are split over buffers, and for
/// programs that may not read packets in place. A read costs about ten nanoseconds.
pub(crate) struct CopiedPacket<'a, B>(pub(crate) &'a B);

impl<B: PacketBuffer> CopiedPacket<'_, B> {
    /// Whether there is more of the packet than [`LinearPacket`] can read.
    #[inline(always)]
    pub(crate) fn has_more(&self) -> bool {
        let (data, data_end) = self.0.linear();
        data_end - data < self.0.total_len()
    }
}

impl<B: PacketBuffer> Bytes for CopiedPacket<'_, B> {
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

/// [`Bytes::find_option`] of an XDP frame. A global function: the verifier checks it once, for any start and length,
/// instead of once per path to each call, which would exceed its limit.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn headstart_option_xdp(ctx: *mut xdp_md, start: u64, len: u64) -> u32 {
    find(&XdpContext::new(ctx), start, len)
}

/// [`Bytes::find_option`] of a socket buffer.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn headstart_option_skb(ctx: *mut __sk_buff, start: u64, len: u64) -> u32 {
    find(&SkBuffContext::new(ctx), start, len)
}

#[inline(always)]
fn find<B: PacketBuffer>(buffer: &B, start: u64, len: u64) -> u32 {
    let Some(area) = OPTIONS.get_ptr_mut(0) else { return options::ABSENT };
    // The comparison is with `len - 1`, because the verifier of Linux 6.1 learns nothing from "not 0". `black_box`
    // keeps the compiler from comparing `len` itself.
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
