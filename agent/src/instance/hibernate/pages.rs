//! The private memory of a process, as the kernel shows it: `/proc/PID/maps`, `/proc/PID/pagemap` (the kernel's
//! Documentation/admin-guide/mm/pagemap.rst).

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use headstart_wire::memory::{MemoryAdvice, RANGES_MAX, advise};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The page is in memory.
const PRESENT: u64 = 1 << 63;
/// It is of a file, or shared.
const OF_FILE: u64 = 1 << 61;

/// Bytes of `pagemap` for one page.
const ENTRY: u64 = 8;
/// Entries that are read at once.
const ENTRIES: u64 = 8192;

/// What is looked at of a process, in bytes of `maps` and of addresses: a process can reserve any number of addresses.
const MAPS_MAX: u64 = 16 << 20;
const ADDRESSES_MAX: u64 = 64 << 30;

/// Bytes that are written between two looks whether the instance is wanted; no range is longer.
const STEP: u64 = 4 << 20;

/// Pages of a process: private, and in memory when it was looked at.
#[derive(Debug, Clone)]
pub(super) struct ProcessPages {
    pid: i32,
    ranges: Vec<Range<u64>>,
}

impl ProcessPages {
    /// Those that are in memory now.
    pub(super) fn resident(pid: i32) -> io::Result<Self> {
        let mut maps = String::new();
        File::open(format!("/proc/{pid}/maps"))?.take(MAPS_MAX).read_to_string(&mut maps)?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        let page = rustix::param::page_size() as u64;
        let mut ranges = Vec::new();
        let mut looked_at = 0;
        for mapping in maps.lines().filter_map(private) {
            looked_at += mapping.end - mapping.start;
            if looked_at > ADDRESSES_MAX {
                break;
            }
            resident(&pagemap, &mapping, page, &mut ranges)?;
        }
        Ok(Self { pid, ranges })
    }

    /// Whose they are.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// How much they are.
    pub(super) fn bytes(&self) -> u64 {
        self.ranges.iter().map(length).sum()
    }

    /// Writes them to swap, until it is cancelled.
    pub(super) fn page_out(&self, cancelled: &AtomicBool) -> io::Result<()> {
        self.advise(MemoryAdvice::PageOut, || cancelled.load(Ordering::Relaxed))
    }

    /// Reads them from swap.
    pub(super) fn read_ahead(&self) -> io::Result<()> {
        self.advise(MemoryAdvice::WillNeed, || false)
    }

    fn advise(&self, advice: MemoryAdvice, over: impl Fn() -> bool) -> io::Result<()> {
        let process = self.open()?;
        let mut rest = self.ranges.as_slice();
        while !rest.is_empty() && !over() {
            let mut bytes = 0;
            let small = |range: &&Range<u64>| {
                let fits = bytes < STEP;
                bytes += length(range);
                fits
            };
            let count = rest.iter().take(RANGES_MAX).take_while(small).count();
            let (step, later) = rest.split_at(count);
            let advised = match advise(process.as_fd(), step, advice) {
                Ok(advised) => advised,
                // The first range cannot be treated: it is locked, or gone.
                Err(error) if matches!(error.raw_os_error(), Some(EINVAL | ENOMEM)) => 0,
                Err(error) => return Err(error),
            };
            // The kernel stops at a range that it cannot treat: the next step begins behind it.
            let treated = treated(step, advised);
            rest = if treated == step.len() { later } else { rest.get(treated + 1..).unwrap_or_default() };
        }
        Ok(())
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    }
}

const EINVAL: i32 = nix::errno::Errno::EINVAL as i32;
const ENOMEM: i32 = nix::errno::Errno::ENOMEM as i32;

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
fn resident(pagemap: &File, mapping: &Range<u64>, page: u64, ranges: &mut Vec<Range<u64>>) -> io::Result<()> {
    let mut buffer =
        vec![0; usize::try_from(ENTRIES.min(length(mapping) / page) * ENTRY).unwrap_or_default()];
    let mut address = mapping.start;
    while address < mapping.end {
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
            if entry & PRESENT != 0 && entry & OF_FILE == 0 {
                match ranges.last_mut() {
                    Some(last) if last.end == address && length(last) < STEP => last.end += page,
                    _ => ranges.push(address..address + page),
                }
            }
            address += page;
        }
    }
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

    #[test]
    fn what_this_process_has_touched_is_resident() {
        let page = rustix::param::page_size();
        let touched = vec![1_u8; 64 * page];
        let pages = ProcessPages::resident(i32::try_from(std::process::id()).unwrap()).unwrap();
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
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = ProcessPages { pid, ranges: vec![page..2 * page, start..start + 8 * page] };
        for done in [own.page_out(&AtomicBool::new(false)), own.read_ahead()] {
            assert!(done.is_ok() || nix::unistd::geteuid().as_raw() != 0, "{done:?}");
        }
        assert!(memory.iter().all(|byte| *byte == 7));
        assert!(ProcessPages { pid: i32::MAX, ranges: own.ranges }.read_ahead().is_err());
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
