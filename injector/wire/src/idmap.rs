//! Whose files are, as a mount shows them (idmapped mounts, mount_setattr(2); Linux 5.12).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pause};

/// A user namespace with these lines of uid_map and gid_map (user_namespaces(7)), in which nothing runs.
///
/// # Errors
/// When there may be none (`ENOSPC`, `EPERM`), or the kernel does not take the lines.
pub fn user_namespace(users: &str, groups: &str) -> io::Result<OwnedFd> {
    // A namespace begins with a process.
    let process = Sleeper::start()?;
    let of_process = |file: &str| format!("/proc/{}/{file}", process.0);
    fs::write(of_process("uid_map"), users)?;
    fs::write(of_process("gid_map"), groups)?;
    Ok(File::open(of_process("ns/user"))?.into())
}

/// A process in a user namespace of its own. Ends on drop.
struct Sleeper(Pid);

impl Sleeper {
    #[expect(unsafe_code, reason = "no crate has a safe interface to clone(2) without a stack")]
    fn start() -> io::Result<Self> {
        // With the table of descriptors shared, the child keeps none open that this process closes.
        let flags = libc::CLONE_NEWUSER | libc::CLONE_FILES | libc::SIGCHLD;
        let parent = Pid::this();
        // SAFETY: without CLONE_VM the child is a copy of this process on a copy of this stack, as fork(2) makes it. Until it is
        // killed it makes system calls only: no lock that another thread held is taken, nothing is allocated or dropped.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
        if pid == 0 {
            let _ = set_pdeathsig(Signal::SIGKILL);
            if Pid::parent() != parent {
                // It was gone before.
                let _ = kill(Pid::this(), Signal::SIGKILL);
            }
            loop {
                pause();
            }
        }
        Errno::result(pid)?;
        Ok(Self(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?)))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It is this thread's child, and nothing else waits for it.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// Shows the files of a mount that nothing has seen yet (open_tree(2), `OPEN_TREE_CLONE`) as `namespace` maps their owners.
///
/// # Errors
/// `EINVAL` when the file system cannot do that.
#[expect(unsafe_code, reason = "no crate has a safe interface to mount_setattr")]
pub fn map_owners(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX),
    };
    // SAFETY: the kernel reads `attributes`, of which it gets the size, and a string that ends in NUL; both are live. The
    // descriptors are borrowed for longer than the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn what_is_closed_is_not_kept_open_by_the_namespace_s_process() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: needs root");
            return;
        }
        let (mut end, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let _process = Sleeper::start().unwrap();
        drop(other);
        end.set_nonblocking(true).unwrap();
        assert_eq!(io::Read::read(&mut end, &mut [0]).unwrap(), 0, "the other end is closed");
    }

    #[test]
    fn a_namespace_is_made_and_nothing_runs_in_it() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: needs root");
            return;
        }
        let namespace = user_namespace("0 7 1\n7 0 1\n", "0 8 1\n").unwrap();
        let own = fs::read_link("/proc/self/ns/user").unwrap();
        let made = fs::read_link(format!("/proc/self/fd/{}", namespace.as_raw_fd())).unwrap();
        assert_ne!(made, own);
        let is_in_it = |pid: &str| {
            fs::read_link(format!("/proc/{pid}/ns/user")).is_ok_and(|namespace| namespace == made)
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        assert!(!processes.into_iter().any(|process| is_in_it(&process.file_name().to_string_lossy())));
        assert!(user_namespace("no map", "").is_err());
        let file = File::open("/proc").unwrap();
        assert!(map_owners(file.as_fd(), namespace.as_fd()).is_err(), "it is no mount of its own");
    }
}
