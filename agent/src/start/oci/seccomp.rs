//! The filter of system calls, as an OCI configuration has it.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};
use seccompiler::TargetArch;

use crate::start::seccomp::{Condition, ENOSYS, EPERM, NOT_THERE, allowed, arch, conditions};

/// The filter. `None` on an architecture it was not written for.
pub(super) fn profile() -> Result<Option<LinuxSeccomp>, OciSpecError> {
    let Some(arch) = arch() else { return Ok(None) };
    let name = match arch {
        TargetArch::aarch64 => Arch::ScmpArchAarch64,
        _ => Arch::ScmpArchX86_64,
    };
    let allowed = LinuxSyscallBuilder::default()
        .names(allowed(arch).map(str::to_owned).collect::<Vec<_>>())
        .action(LinuxSeccompAction::ScmpActAllow)
        .build()?;
    let mut calls = vec![allowed, not_there()?];
    for condition in conditions() {
        calls.push(allowed_if(&condition)?);
    }
    let profile = LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(vec![name])
        .syscalls(calls)
        .build()?;
    Ok(Some(profile))
}

fn allowed_if(condition: &Condition) -> Result<LinuxSyscall, OciSpecError> {
    let first = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(condition.mask)
        .value_two(condition.value)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .build()?;
    LinuxSyscallBuilder::default()
        .names(vec![condition.name.to_owned()])
        .action(LinuxSeccompAction::ScmpActAllow)
        .args(vec![first])
        .build()
}

fn not_there() -> Result<LinuxSyscall, OciSpecError> {
    LinuxSyscallBuilder::default()
        .names(vec![NOT_THERE.to_owned()])
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(ENOSYS)
        .build()
}
