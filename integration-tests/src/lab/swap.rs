//! Swap for a test: in memory, compressed (the kernel's Documentation/admin-guide/blockdev/zram.rst). It is the whole machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::run;

const CONTROL: &str = "/sys/class/zram-control";

/// A device that the kernel swaps to. Removed on drop; what is in it goes back to memory.
#[derive(Debug)]
pub struct Swap(u32);

impl Swap {
    /// Of this size.
    pub fn add(bytes: u64) -> Result<Self> {
        if !Path::new(CONTROL).exists() {
            run(Command::new("modprobe").args(["zram", "num_devices=0"]))?;
        }
        let number = fs::read_to_string(Path::new(CONTROL).join("hot_add")).context("a zram device")?;
        let swap = Self(number.trim().parse()?);
        fs::write(format!("/sys/block/zram{}/disksize", swap.0), bytes.to_string())?;
        run(Command::new("mkswap").arg(swap.device()))?;
        run(Command::new("swapon").arg(swap.device()))?;
        Ok(swap)
    }

    fn device(&self) -> PathBuf {
        format!("/dev/zram{}", self.0).into()
    }

    /// Whether the machine has any.
    pub fn is_there() -> Result<bool> {
        Ok(fs::read_to_string("/proc/swaps")?.lines().count() > 1)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let removed = run(Command::new("swapoff").arg(self.device()))
            .and_then(|_| Ok(fs::write(Path::new(CONTROL).join("hot_remove"), self.0.to_string())?));
        if let Err(error) = removed {
            eprintln!("{}: {error:#}", self.device().display());
        }
    }
}
