//! What a process uses, from procfs (proc(5)).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Memory that is resident (`VmRSS`), in bytes.
pub fn resident_bytes(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = field(&status, "VmRSS").and_then(|value| value.strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no VmRSS in {status}"))? * 1024)
}

/// Time on a processor, of all threads that live.
pub fn cpu_time(process: u32) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
        // A thread that has ended meanwhile is no longer counted.
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let on_cpu = text.split(' ').next().and_then(|number| number.parse().ok());
        sum += Duration::from_nanos(on_cpu.with_context(|| format!("not a schedstat: {text}"))?);
    }
    Ok(sum)
}

/// The capability sets of a thread, by the name of their line in its `status`.
pub fn capabilities(status: &str) -> Result<Vec<(&'static str, u64)>> {
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
        .into_iter()
        .map(|set| {
            let bits = field(status, set).and_then(|hex| u64::from_str_radix(hex, 16).ok());
            Ok((set, bits.with_context(|| format!("no {set} in {status}"))?))
        })
        .collect()
}

fn field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_time() {
        let own = std::process::id();
        assert!(resident_bytes(own).unwrap() > 100 * 1024);
        let before = cpu_time(own).unwrap();
        let mut spent = before;
        // Bounded by the harness's own patience: the time passes because this spends it.
        while spent <= before {
            spent = cpu_time(own).unwrap();
        }
    }

    #[test]
    fn capability_sets_are_read_from_a_status() {
        let status = "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t000001ffffffffff\n\
                      CapEff:\t0000000000003000\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n";
        let sets = capabilities(status).unwrap();
        assert_eq!(sets[2], ("CapEff", 0x3000));
        assert!(capabilities("Name:\tx\n").is_err());
    }
}
