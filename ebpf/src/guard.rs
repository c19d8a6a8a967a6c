//! The contract between the programs that hold the agent's sockets to the addresses they have (`kernel/guard.rs`) and the
//! agent, which sets these constants of the object before it loads it.

/// The programs. Each is at the hook of the same name, for addresses of IPv4 or IPv6.
pub const PROGRAMS: [&str; 4] = ["connect4", "connect6", "bind4", "bind6"];

/// `u64`: the cookie (`SO_NETNS_COOKIE`) of the agent's network namespace.
pub const NETNS: &str = "NETNS";
/// `u64`: the ID of the agent's cgroup, to which the programs are attached.
pub const CGROUP: &str = "CGROUP";
/// `u32`: the agent's user.
pub const USER: &str = "USER";
