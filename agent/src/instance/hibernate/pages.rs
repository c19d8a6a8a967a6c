//! The private memory of a process, as the kernel shows it: `/proc/PID/maps`, `/proc/PID/pagemap` (the kernel's
//! Documentation/admin-guide/mm/pagemap.rst).

use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read as _};
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use headstart_wire::memory::{MemoryAdvice, RANGES_MAX, advise};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The page is in memory.
const PRESENT: u64 = 1 << 63;
/// It is of a file, or shared.
const OF_FILE: u64 = 1 << 61;
/// Only this process maps it. The page of zeros, which all share and which costs nothing, is not; nor is a page that a fork
/// has left to both, which the kernel does not write.
const EXCLUSIVE: u64 = 1 << 56;

/// Bytes of `pagemap` for one page.
const ENTRY: u64 = 8;
/// Entries that are read at once.
const ENTRIES: u64 = 8192;

/// Bytes of `maps` that are read.
const MAPS_MAX: u64 = 16 << 20;

/// The longest range, and bytes after which a writer looks whether the instance is wanted. The kernel holds the lock of a
/// process's mappings while it treats a range.
const STEP: u64 = 1 << 20;

/// What may be looked at and kept of an instance. A function can reserve any number of addresses, in any number of processes,
/// and touch every second page.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Bytes of addresses.
    addresses: u64,
    ranges: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { addresses: 64 << 30, ranges: 1 << 16 }
    }
}

/// A process of an instance. Its number cannot become that of another while this is there.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pid: i32,
    pidfd: Arc<OwnedFd>,
}

impl Target {
    /// Opens a process that `owns` accepts. `None`: it has ended.
    pub(super) fn open(pid: i32, owns: impl Fn(i32) -> bool) -> io::Result<Option<Self>> {
        let raw = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let target = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => Self { pid, pidfd: Arc::new(pidfd) },
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok((owns(pid) && target.runs()).then_some(target))
    }

    /// Whose it is.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// What was opened by its number before is its own if it still runs now.
    fn runs(&self) -> bool {
        let mut descriptors = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut descriptors, PollTimeout::ZERO) == Ok(0)
    }
}

/// Pages of a process: private, and in memory when it was looked at.
#[derive(Debug, Clone)]
pub(super) struct ProcessPages {
    process: Target,
    ranges: Vec<Range<u64>>,
}

impl ProcessPages {
    /// Those that are in memory now, within what is left of `bounds`, until it is cancelled.
    pub(super) fn resident(
        process: &Target,
        bounds: &mut Bounds,
        cancelled: impl Fn() -> bool,
    ) -> io::Result<Self> {
        let mut pages = Self { process: process.clone(), ranges: Vec::new() };
        let pid = process.pid;
        let (mut maps, mut text) = (File::open(format!("/proc/{pid}/maps"))?.take(MAPS_MAX), Vec::new());
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        if !process.runs() {
            return Ok(pages);
        }
        maps.read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        for mapping in text.lines().filter_map(private) {
            let Some(left) = bounds.addresses.checked_sub(length(&mapping)) else { continue };
            bounds.addresses = left;
            resident(&pagemap, &mapping, &mut pages.ranges, bounds, &cancelled)?;
        }
        Ok(pages)
    }

    /// Whose they are.
    pub(super) fn pid(&self) -> i32 {
        self.process.pid
    }

    /// How much they are.
    pub(super) fn bytes(&self) -> u64 {
        self.ranges.iter().map(length).sum()
    }

    /// Writes them to swap, until it is cancelled.
    pub(super) fn page_out(&self, cancelled: impl Fn() -> bool) -> io::Result<()> {
        self.advise(MemoryAdvice::PageOut, cancelled)
    }

    /// Reads them from swap, until it is cancelled. The process takes them when it touches them.
    pub(super) fn read_ahead(&self, cancelled: impl Fn() -> bool) -> io::Result<()> {
        self.advise(MemoryAdvice::WillNeed, cancelled)
    }

    /// Lets the process take what was read ahead, until it is cancelled: what no process has taken cannot be written.
    pub(super) fn take(&self, cancelled: impl Fn() -> bool) {
        let page = rustix::param::page_size();
        let pages = self.ranges.iter().flat_map(|range| (range.start..range.end).step_by(page));
        let (mut bytes, pid) = ([0; RANGES_MAX], nix::unistd::Pid::from_raw(self.process.pid));
        let mut batch = Vec::with_capacity(RANGES_MAX);
        let mut pages = pages.peekable();
        while pages.peek().is_some() && !cancelled() && self.process.runs() {
            batch.clear();
            let one = |start| RemoteIoVec { base: usize::try_from(start).unwrap_or(usize::MAX), len: 1 };
            batch.extend(pages.by_ref().take(RANGES_MAX).map(one));
            // What is no longer mapped ends the batch; nothing of it was read ahead.
            let _ = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &batch);
        }
    }

    fn advise(&self, advice: MemoryAdvice, over: impl Fn() -> bool) -> io::Result<()> {
        let mut rest = self.ranges.as_slice();
        let mut refused = 0;
        while !rest.is_empty() && !over() {
            let mut bytes = 0;
            let small = |range: &&Range<u64>| {
                bytes += length(range);
                bytes <= STEP
            };
            let count = rest.iter().take(RANGES_MAX).take_while(small).count().max(1);
            let (step, later) = rest.split_at(count);
            let advised = match advise(self.process.pidfd.as_fd(), step, advice) {
                Ok(advised) => advised,
                // The first range cannot be treated: it is locked, or gone.
                Err(error) if is(&error, &[Errno::EINVAL, Errno::ENOMEM]) && refused < REFUSALS_MAX => 0,
                Err(error) if is(&error, &[Errno::ESRCH]) => return Ok(()),
                Err(error) => return Err(error),
            };
            refused = if advised == 0 { refused + 1 } else { 0 };
            // The kernel stops at a range that it cannot treat: the next step begins behind it.
            let treated = treated(step, advised);
            rest = if treated == step.len() { later } else { rest.get(treated + 1..).unwrap_or_default() };
        }
        Ok(())
    }
}

/// After so many ranges in a row that cannot be treated, none can: the kernel does not know the advice, or all is locked.
const REFUSALS_MAX: usize = 4096;

fn is(error: &io::Error, numbers: &[Errno]) -> bool {
    numbers.iter().any(|number| error.raw_os_error() == Some(*number as i32))
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// How many of these ranges so many bytes are.
fn treated(ranges: &[Range<u64>], mut bytes: u64) -> usize {
    let whole = |range: &&Range<u64>| match bytes.checked_sub(length(range)) {
        Some(less) => {
            bytes = less;
            true
        }
        None => false,
    };
    ranges.iter().take_while(whole).count()
}

/// The addresses of a line of `maps`, if the mapping is private and can be read. The kernel's own mappings are left out.
fn private(line: &str) -> Option<Range<u64>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let name = words.nth(3).unwrap_or_default();
    if !rights.starts_with('r') || !rights.ends_with('p') || name.starts_with("[v") {
        return None;
    }
    let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    (range.start < range.end).then_some(range)
}

/// Adds the private pages of a mapping that are in memory.
fn resident(
    pagemap: &File,
    mapping: &Range<u64>,
    ranges: &mut Vec<Range<u64>>,
    bounds: &mut Bounds,
    cancelled: impl Fn() -> bool,
) -> io::Result<()> {
    let page = rustix::param::page_size() as u64;
    let mut buffer =
        vec![0; usize::try_from(ENTRIES.min(length(mapping) / page) * ENTRY).unwrap_or_default()];
    let (mut address, mut last) = (mapping.start, None::<Range<u64>>);
    while address < mapping.end && !cancelled() {
        let read = pagemap.read_at(&mut buffer, address / page * ENTRY)?;
        let entries = buffer.get(..read).unwrap_or_default().chunks_exact(ENTRY as usize);
        if entries.len() == 0 {
            break;
        }
        for entry in entries {
            if address >= mapping.end {
                break;
            }
            let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
            if entry & (PRESENT | OF_FILE | EXCLUSIVE) == PRESENT | EXCLUSIVE {
                match &mut last {
                    Some(last) if last.end == address && length(last) < STEP => last.end += page,
                    _ if bounds.ranges == 0 => {
                        ranges.extend(last);
                        return Ok(());
                    }
                    _ => {
                        bounds.ranges -= 1;
                        ranges.extend(last.replace(address..address + page));
                    }
                }
            }
            address += page;
        }
    }
    ranges.extend(last);
    Ok(())
}

/// Bytes of a process that are resident, and in swap (proc(5), `status`).
pub(super) fn memory_of(pid: i32) -> io::Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok((field(&status, "VmRSS:"), field(&status, "VmSwap:")))
}

/// A number of kB in a file of the kernel, in bytes; 0 where there is none.
pub(super) fn field(text: &str, key: &str) -> u64 {
    let value =
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    value.unwrap_or_default().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_mappings_are_told_from_others() {
        for (line, range) in [
            ("5500-6500 r-xp 00000000 fe:00 17 /usr/bin/node", Some(0x5500..0x6500)),
            ("7f00-8000 rw-p 00000000 00:00 0 ", Some(0x7f00..0x8000)),
            ("7f00-8000 rw-p 00000000 00:00 0 [heap]", Some(0x7f00..0x8000)),
            ("7f00-8000 rw-s 00000000 00:01 5 /memfd:page (deleted)", None),
            ("7f00-8000 ---p 00000000 00:00 0 ", None),
            ("7f00-8000 r-xp 00000000 00:00 0 [vdso]", None),
            ("8000-7f00 rw-p 00000000 00:00 0 ", None),
            ("", None),
            ("x-y rw-p", None),
        ] {
            assert_eq!(private(line), range, "{line}");
        }
    }

    fn own() -> Target {
        Target::open(i32::try_from(std::process::id()).unwrap(), |_| true).unwrap().unwrap()
    }

    #[test]
    fn a_process_of_others_is_not_opened() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(Target::open(pid, |_| false).unwrap().is_none());
        assert!(Target::open(i32::MAX, |_| true).unwrap().is_none(), "there is none");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let ended = Target::open(pid, |_| true).unwrap();
        child.wait().unwrap();
        assert!(ended.is_none_or(|target| !target.runs()));
    }

    #[test]
    fn what_was_only_read_is_not_memory() {
        let bytes = 64 << 20;
        let zeros = vec![0_u8; bytes];
        assert_eq!(zeros.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>(), 0);
        let (start, end) = (zeros.as_ptr() as u64, zeros.as_ptr() as u64 + bytes as u64);
        let pages = ProcessPages::resident(&own(), &mut Bounds::default(), || false).unwrap();
        let inside = pages.ranges.iter().filter(|range| range.start >= start && range.end <= end);
        assert!(inside.map(length).sum::<u64>() < 1 << 20);
        drop(zeros);
    }

    #[test]
    fn no_more_is_kept_of_an_instance_than_its_bounds_allow() {
        let mut bounds = Bounds { ranges: 3, ..Bounds::default() };
        let pages = ProcessPages::resident(&own(), &mut bounds, || false).unwrap();
        assert_eq!((pages.ranges.len(), bounds.ranges), (3, 0), "program, heap and stack are more");
        let mut bounds = Bounds { addresses: 4096, ..Bounds::default() };
        let pages = ProcessPages::resident(&own(), &mut bounds, || false).unwrap();
        assert!(pages.bytes() <= 4096);
    }

    #[test]
    fn what_this_process_has_touched_is_resident() {
        let page = rustix::param::page_size();
        let touched = vec![1_u8; 64 * page];
        let pages = ProcessPages::resident(&own(), &mut Bounds::default(), || false).unwrap();
        let middle = touched.as_ptr() as u64 + 32 * page as u64;
        assert!(pages.ranges.iter().any(|range| range.contains(&middle)));
        assert!(pages.bytes() >= 64 * page as u64);
        assert!(pages.ranges.iter().all(|range| length(range) <= STEP));
        drop(touched);
    }

    /// What is not mapped is passed over. Without the right to it, or without swap, memory stays where it is.
    #[test]
    fn memory_keeps_its_contents() {
        let page = rustix::param::page_size() as u64;
        let memory = vec![7_u8; 1 << 20];
        let start = (memory.as_ptr() as u64).div_ceil(page) * page;
        let own = ProcessPages { process: own(), ranges: vec![page..2 * page, start..start + 8 * page] };
        for done in [own.page_out(|| false), own.read_ahead(|| false)] {
            assert!(done.is_ok() || nix::unistd::geteuid().as_raw() != 0, "{done:?}");
        }
        own.take(|| false);
        assert!(memory.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_range_that_the_kernel_stops_at_is_found() {
        let ranges = [0..10, 20..30, 40..50];
        assert_eq!([0, 9, 10, 15, 20, 30, 99].map(|bytes| treated(&ranges, bytes)), [0, 0, 1, 1, 2, 3, 3]);
    }

    #[test]
    fn fields_of_the_kernels_files_are_read() {
        let text = "SwapTotal:       8388604 kB\nVmSwap:\t       7 kB\nOdd: x kB\n";
        assert_eq!(
            [field(text, "SwapTotal:"), field(text, "VmSwap:"), field(text, "Odd:"), field(text, "None:")],
            [8_388_604 * 1024, 7 * 1024, 0, 0]
        );
    }
}
