//! The system calls that functions may use which the agent isolates itself.
//!
//! An allow-list: what is not named fails with `EPERM`. Left out on
//! purpose, although some programs would call them: mount and its relatives,
//! ptrace and process_vm_*, bpf, key rings, kexec, modules, setns and unshare,
//! io_uring, userfaultfd, perf_event_open, setting the clock, reboot, swap,
//! quota, accounting, and handles that open files outside the mount namespace.

use std::collections::HashMap;
use std::io;

use seccompiler::{BpfProgram, TargetArch, apply_filter, compile_from_json};
use serde_json::{Value, json};

/// `EPERM` and `ENOSYS` of errno(3), the same on both architectures.
pub(super) const EPERM: u32 = 1;
pub(super) const ENOSYS: u32 = 38;

/// The `CLONE_NEW*` flags of clone(2) that make a namespace: mount, cgroup,
/// UTS, IPC, user, PID and network.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Families of address_families(7): unix, IPv4, IPv6 and netlink. Others reach past the network namespace (`AF_VSOCK` the
/// hypervisor), or are a way into seldom used code of the kernel (`AF_ALG`).
const AF_UNIX: u64 = 1;
const FAMILIES: [u64; 4] = [AF_UNIX, 2, 10, 16];

/// clone3 has its flags in memory, which a filter cannot see. C libraries fall back to clone, but only on `ENOSYS`.
pub(super) const NOT_THERE: &str = "clone3";

// One name a line would make this table unreadable: rustfmt leaves it as it is.

/// Files, directories and what is known about them.
#[rustfmt::skip]
const FILES: &[&str] = &[
    "chdir", "close", "close_range", "copy_file_range", "dup", "dup3", "faccessat", "faccessat2",
    "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "fcntl",
    "fdatasync", "fgetxattr", "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat", "fstatfs",
    "fsync", "ftruncate", "getcwd", "getdents64", "getxattr", "inotify_add_watch", "inotify_init1",
    "inotify_rm_watch", "ioctl", "lgetxattr", "linkat", "listxattr", "llistxattr", "lremovexattr", "lseek",
    "lsetxattr", "mkdirat", "mknodat", "newfstatat", "openat", "openat2", "pread64", "preadv", "preadv2",
    "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlinkat", "readv", "removexattr",
    "renameat", "renameat2", "sendfile", "setxattr", "splice", "statfs", "statx", "symlinkat", "sync",
    "sync_file_range", "syncfs", "tee", "truncate", "umask", "unlinkat", "utimensat", "vmsplice", "write",
    "writev",
];

/// Sockets, pipes and waiting for them.
#[rustfmt::skip]
const IO: &[&str] = &[
    "accept", "accept4", "bind", "connect", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2",
    "eventfd2", "getpeername", "getsockname", "getsockopt", "io_cancel", "io_destroy", "io_getevents",
    "io_pgetevents", "io_setup", "io_submit", "listen", "pipe2", "ppoll", "pselect6", "recvfrom",
    "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "signalfd4",
    "timerfd_create", "timerfd_gettime", "timerfd_settime",
];

/// Memory.
#[rustfmt::skip]
const MEMORY: &[&str] = &[
    "brk", "cachestat", "get_mempolicy", "madvise", "map_shadow_stack", "mbind", "membarrier",
    "memfd_create", "memfd_secret", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mprotect", "mremap",
    "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect",
    "process_mrelease", "remap_file_pages", "set_mempolicy", "set_mempolicy_home_node", "shmat", "shmctl",
    "shmdt", "shmget",
];

/// Processes, threads, signals and their limits.
#[rustfmt::skip]
const PROCESSES: &[&str] = &[
    "capget", "capset", "execve", "execveat", "exit", "exit_group", "futex", "futex_requeue", "futex_wait",
    "futex_waitv", "futex_wake", "get_robust_list", "getcpu", "getegid", "geteuid", "getgid", "getgroups",
    "getpgid", "getpid", "getppid", "getpriority", "getresgid", "getresuid", "getrlimit", "getrusage",
    "getsid", "gettid", "getuid", "ioprio_get", "ioprio_set", "kill", "landlock_add_rule",
    "landlock_create_ruleset", "landlock_restrict_self", "personality", "pidfd_open", "pidfd_send_signal",
    "prctl", "prlimit64", "restart_syscall", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
    "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo",
    "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr",
    "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_setattr",
    "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp", "set_robust_list", "set_tid_address",
    "setfsgid", "setfsuid", "setgid", "setgroups", "setpgid", "setpriority", "setregid", "setresgid",
    "setresuid", "setreuid", "setrlimit", "setsid", "setuid", "sigaltstack", "tgkill", "times", "tkill",
    "wait4", "waitid",
];

/// Time, identity of the machine, random numbers and System V queues (in an IPC namespace of their own).
#[rustfmt::skip]
const REST: &[&str] = &[
    "clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "getrandom", "gettimeofday",
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl",
    "msgget", "msgrcv", "msgsnd", "nanosleep", "semctl", "semget", "semop", "semtimedop", "setitimer",
    "sysinfo", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime",
    "uname",
];

/// What only the older architecture has. There are newer calls for the same.
#[rustfmt::skip]
const X86_64_ONLY: &[&str] = &[
    "access", "alarm", "arch_prctl", "chmod", "chown", "creat", "dup2", "epoll_create", "epoll_ctl_old",
    "epoll_wait", "epoll_wait_old", "eventfd", "fork", "futimesat", "get_thread_area", "getdents",
    "getpgrp", "inotify_init", "lchown", "link", "lstat", "mkdir", "mknod", "open", "pause", "pipe", "poll",
    "readlink", "rename", "rmdir", "select", "set_thread_area", "signalfd", "stat", "symlink", "time",
    "unlink", "utime", "utimes", "vfork",
];

/// A call that is allowed if its first argument, as far as `mask` goes, is `value`.
pub(super) struct Condition {
    pub(super) name: &'static str,
    pub(super) mask: u64,
    pub(super) value: u64,
}

/// Calls that are allowed whatever their arguments are.
pub(super) fn allowed(arch: TargetArch) -> impl Iterator<Item = &'static str> {
    let older: &[&str] = if matches!(arch, TargetArch::x86_64) { X86_64_ONLY } else { &[] };
    [FILES, IO, MEMORY, PROCESSES, REST, older].into_iter().flatten().copied()
}

/// Calls that are allowed on a condition. One of several for the same call is enough.
pub(super) fn conditions() -> impl Iterator<Item = Condition> {
    // The kernel takes an int: the upper half of the register may hold anything.
    let first = |name, value| Condition { name, mask: u64::from(u32::MAX), value };
    // Threads and children, but no namespaces.
    let clone = Condition { name: "clone", mask: CLONE_NAMESPACES, value: 0 };
    let sockets = FAMILIES.into_iter().map(move |family| first("socket", family));
    sockets.chain([first("socketpair", AF_UNIX), clone])
}

/// The architecture of this program, if the lists are for it.
pub(super) fn arch() -> Option<TargetArch> {
    match std::env::consts::ARCH {
        "x86_64" => Some(TargetArch::x86_64),
        "aarch64" => Some(TargetArch::aarch64),
        _ => None,
    }
}

/// Filters the system calls of this thread, and of what it executes, for good. On an architecture without lists it does
/// nothing.
///
/// # Errors
/// When the kernel has no seccomp filters.
pub(super) fn install() -> io::Result<()> {
    let Some(arch) = arch() else { return Ok(()) };
    let filters = compile(arch).map_err(io::Error::other)?;
    filters.values().try_for_each(|filter| apply_filter(filter).map_err(io::Error::other))
}

/// A filter has one action for what it names and one for the rest. The kernel takes the stricter answer of both.
fn compile(arch: TargetArch) -> Result<HashMap<String, BpfProgram>, seccompiler::Error> {
    let named = allowed(arch).chain([NOT_THERE]).map(|name| json!({ "syscall": name }));
    let filter: Vec<Value> = named.chain(conditions().map(|condition| condition.json())).collect();
    let filters = json!({
        "allowed": { "mismatch_action": { "errno": EPERM }, "match_action": "allow", "filter": filter },
        "not-there": {
            "mismatch_action": "allow", "match_action": { "errno": ENOSYS }, "filter": [{ "syscall": NOT_THERE }]
        },
    });
    compile_from_json(filters.to_string().as_bytes(), arch)
}

impl Condition {
    fn json(&self) -> Value {
        let Self { name, mask, value } = self;
        json!({
            "syscall": name,
            "args": [{ "index": 0, "type": "qword", "op": { "masked_eq": mask }, "val": value }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel would go on to accept for a frozen instance.
    #[test]
    fn nothing_accepts_behind_a_frozen_instance() {
        for arch in [TargetArch::x86_64, TargetArch::aarch64] {
            let conditional = conditions().map(|condition| condition.name);
            assert!(!allowed(arch).chain(conditional).any(|name| name.starts_with("io_uring")));
        }
    }

    #[test]
    fn every_call_is_known_on_both_architectures() {
        for arch in [TargetArch::x86_64, TargetArch::aarch64] {
            assert_eq!(compile(arch).unwrap().len(), 2, "{arch:?}");
        }
    }
}
