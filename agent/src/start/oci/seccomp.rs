//! The system calls that functions may use.
//!
//! An allow-list: what is not named fails with `EPERM`, and calls newer than
//! the filter library with `ENOSYS`, so that programs fall back. Left out on
//! purpose, although some programs would call them: mount and its relatives,
//! ptrace and process_vm_*, bpf, key rings, kexec, modules, setns and unshare,
//! io_uring, userfaultfd, perf_event_open, setting the clock, reboot, swap,
//! quota, accounting, and handles that open files outside the mount namespace.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// `EPERM` and `ENOSYS` of errno(3), the same on both architectures.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The `CLONE_NEW*` flags of clone(2) that make a namespace: mount, cgroup,
/// UTS, IPC, user, PID and network.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

// One name a line would make this table unreadable: rustfmt leaves it as it is.

/// Files, directories and what is known about them.
#[rustfmt::skip]
const FILES: &[&str] = &[
    "access", "chdir", "chmod", "chown", "close", "close_range", "copy_file_range", "creat", "dup",
    "dup2", "dup3", "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat",
    "fchmodat2", "fchown", "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock",
    "fremovexattr", "fsetxattr", "fstat", "fstatfs", "fsync", "ftruncate", "futimesat", "getcwd",
    "getdents", "getdents64", "getxattr", "inotify_add_watch", "inotify_init", "inotify_init1",
    "inotify_rm_watch", "ioctl", "lchown", "lgetxattr", "link", "linkat", "listxattr", "llistxattr",
    "lremovexattr", "lseek", "lsetxattr", "lstat", "mkdir", "mkdirat", "mknod", "mknodat", "newfstatat",
    "open", "openat", "openat2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2",
    "read", "readahead", "readlink", "readlinkat", "readv", "removexattr", "rename", "renameat",
    "renameat2", "rmdir", "sendfile", "setxattr", "splice", "stat", "statfs", "statx", "symlink",
    "symlinkat", "sync", "sync_file_range", "syncfs", "tee", "truncate", "umask", "unlink", "unlinkat",
    "utime", "utimensat", "utimes", "vmsplice", "write", "writev",
];

/// Sockets, pipes and waiting for them.
#[rustfmt::skip]
const IO: &[&str] = &[
    "accept", "accept4", "bind", "connect", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old",
    "epoll_pwait", "epoll_pwait2", "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "getpeername",
    "getsockname", "getsockopt", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_setup",
    "io_submit", "listen", "pipe", "pipe2", "poll", "ppoll", "pselect6", "recvfrom", "recvmmsg",
    "recvmsg", "select", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "signalfd",
    "signalfd4", "socket", "socketpair", "timerfd_create", "timerfd_gettime", "timerfd_settime",
];

/// Memory.
#[rustfmt::skip]
const MEMORY: &[&str] = &[
    "brk", "cachestat", "get_mempolicy", "madvise", "map_shadow_stack", "mbind", "membarrier",
    "memfd_create", "memfd_secret", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mprotect",
    "mremap", "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free",
    "pkey_mprotect", "process_mrelease", "remap_file_pages", "set_mempolicy", "set_mempolicy_home_node",
    "shmat", "shmctl", "shmdt", "shmget",
];

/// Processes, threads, signals and their limits.
#[rustfmt::skip]
const PROCESSES: &[&str] = &[
    "arch_prctl", "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "futex",
    "futex_requeue", "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "getcpu", "getegid",
    "geteuid", "getgid", "getgroups", "getpgid", "getpgrp", "getpid", "getppid", "getpriority",
    "getresgid", "getresuid", "getrlimit", "getrusage", "getsid", "gettid", "getuid", "ioprio_get",
    "ioprio_set", "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
    "pause", "personality", "pidfd_open", "pidfd_send_signal", "prctl", "prlimit64", "restart_syscall",
    "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn",
    "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "sched_get_priority_max",
    "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam",
    "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "set_robust_list", "set_thread_area",
    "get_thread_area", "set_tid_address", "setfsgid", "setfsuid", "setgid", "setgroups", "setpgid",
    "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setrlimit", "setsid", "setuid",
    "sigaltstack", "tgkill", "times", "tkill", "vfork", "wait4", "waitid",
];

/// Time, identity of the machine, random numbers and System V queues (in an IPC namespace of their own).
#[rustfmt::skip]
const REST: &[&str] = &[
    "alarm", "clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "getrandom", "gettimeofday",
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl",
    "msgget", "msgrcv", "msgsnd", "nanosleep", "semctl", "semget", "semop", "semtimedop", "setitimer",
    "sysinfo", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
    "timer_settime", "uname",
];

/// The filter. `None` on an architecture it was not written for.
pub(super) fn profile() -> Result<Option<LinuxSeccomp>, OciSpecError> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => Arch::ScmpArchX86_64,
        "aarch64" => Arch::ScmpArchAarch64,
        _ => return Ok(None),
    };
    let names: Vec<String> =
        [FILES, IO, MEMORY, PROCESSES, REST].concat().into_iter().map(str::to_owned).collect();
    let allowed =
        LinuxSyscallBuilder::default().names(names).action(LinuxSeccompAction::ScmpActAllow).build()?;
    let profile = LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(vec![arch])
        .syscalls(vec![allowed, clone_without_namespaces()?, no_clone3()?])
        .build()?;
    Ok(Some(profile))
}

/// A filter sees clone's flags in a register: threads and children, but no namespaces.
fn clone_without_namespaces() -> Result<LinuxSyscall, OciSpecError> {
    let flags = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(CLONE_NAMESPACES)
        .value_two(0u64)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .build()?;
    LinuxSyscallBuilder::default()
        .names(vec!["clone".to_owned()])
        .action(LinuxSeccompAction::ScmpActAllow)
        .args(vec![flags])
        .build()
}

/// clone3 has its flags in memory, which a filter cannot see. C libraries fall
/// back to clone, but only on `ENOSYS`.
fn no_clone3() -> Result<LinuxSyscall, OciSpecError> {
    LinuxSyscallBuilder::default()
        .names(vec!["clone3".to_owned()])
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(ENOSYS)
        .build()
}
