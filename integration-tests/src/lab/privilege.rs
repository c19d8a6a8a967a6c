//! Checks whether this machine can run a test. If not, the test prints why and is skipped; in CI it fails.

use std::{env, path::Path};

/// True for root; otherwise says why the test is skipped and returns false.
///
/// # Panics
/// When `CI=true`: there a skipped test is a failed one.
pub fn require_root(why: &str) -> bool {
    require(nix::unistd::geteuid().is_root(), || format!("needs root: {why}"))
}

/// True when every one of `tools` (names, or absolute paths) is installed; otherwise says which is missing and returns false.
///
/// # Panics
/// When `CI=true`.
pub fn require_tools(tools: &[&str]) -> bool {
    let missing: Vec<_> = tools.iter().filter(|tool| !is_installed(tool)).copied().collect();
    require(missing.is_empty(), || format!("needs {}: run integration-tests/install.sh", missing.join(", ")))
}

fn require(met: bool, reason: impl Fn() -> String) -> bool {
    if !met {
        assert!(env::var("CI").as_deref() != Ok("true"), "CI may not skip: {}", reason());
        eprintln!("SKIPPED: {}", reason());
    }
    met
}

/// Whether a program, by name or by absolute path, is there.
pub fn is_installed(tool: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // Not every user has the administrator's directories in the PATH.
    let extra = ["/usr/sbin".into(), "/sbin".into()];
    env::split_paths(&path).chain(extra).any(|directory| Path::new(&directory).join(tool).exists())
}
