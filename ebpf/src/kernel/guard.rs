//! The programs that hold the agent's sockets to the addresses they have.
//!
//! An instance holds sockets of the agent's network namespace, and could disconnect one (`connect` with `AF_UNSPEC`) and
//! connect or bind it to something else there. The kernel runs the programs of the cgroup in which a socket was made, no
//! matter who calls; an accepted socket belongs to the cgroup of its listener. So the programs are attached to the agent's
//! cgroup and refuse every caller that is not the agent. For a target other than `bpf` this is an empty program.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    unsafe_code,
    reason = "constants of a kernel program are read from where the loader has written them"
)]

mod object;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_get_current_uid_gid, bpf_get_netns_cookie};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

/// The loader writes these; see `headstart_ebpf::guard`.
#[unsafe(no_mangle)]
static NETNS: u64 = 0;
#[unsafe(no_mangle)]
static CGROUP: u64 = 0;
#[unsafe(no_mangle)]
static USER: u32 = 0;

/// The results: the kernel goes on, or the call fails with `EPERM`.
const GO_ON: i32 = 1;
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    judge(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    judge(&ctx)
}

#[cgroup_sock_addr(bind4)]
fn bind4(ctx: SockAddrContext) -> i32 {
    judge(&ctx)
}

#[cgroup_sock_addr(bind6)]
fn bind6(ctx: SockAddrContext) -> i32 {
    judge(&ctx)
}

/// Where functions stay in the agent's cgroup (with cgroup v1), they have other users than the agent, and the sockets of
/// their own are in network namespaces of their own.
#[inline(always)]
fn judge(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the context is the one the kernel called this program with; the helpers have no other preconditions.
    let (netns, cgroup) = unsafe { (bpf_get_netns_cookie(ctx.as_ptr()), bpf_get_current_cgroup_id()) };
    let user = bpf_get_current_uid_gid() as u32;
    // SAFETY: statics of this program. Volatile, because the loader changes them.
    let (own_netns, own_cgroup, own_user) = unsafe {
        (
            (&raw const NETNS).read_volatile(),
            (&raw const CGROUP).read_volatile(),
            (&raw const USER).read_volatile(),
        )
    };
    if netns != own_netns || (cgroup == own_cgroup && user == own_user) { GO_ON } else { REFUSE }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this program runs in the kernel: build it with ebpf/build.sh");
}
