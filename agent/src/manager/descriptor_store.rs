//! The descriptors of running instances that the service manager stores: for each the control socket and the activity
//! page, under one name.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;
use socket2::{Domain, SockRef, Type};

use super::notify::{NotifySocket, WhenFull, cannot_notify};

/// Without these seals a peer could truncate the page while another process has it mapped (memfd_create(2)).
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// Why the descriptors of an instance are not stored. The next agent cannot take the instance over, and asks it to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No service manager stores descriptors for the agent.
    #[error("no service manager stores descriptors")]
    NoManager,
    /// The manager does not read its messages, or is gone.
    #[error("the service manager does not read its messages")]
    NotReading,
}

/// Stores descriptors of instances with the service manager, and never waits for it. Clones share one connection.
#[derive(Clone, Default)]
pub struct DescriptorStore(Option<Arc<NotifySocket>>);

impl DescriptorStore {
    pub(super) fn new(notify: Option<Arc<NotifySocket>>) -> Self {
        Self(notify)
    }

    /// Stores both descriptors of an instance for the next agent. One message carries both, so the manager stores both
    /// or none.
    ///
    /// # Errors
    /// When the message cannot be sent now. Success does not mean that the manager has room for the descriptors.
    pub fn store_instance(
        &self,
        instance: &str,
        control: BorrowedFd<'_>,
        page: BorrowedFd<'_>,
    ) -> Result<(), StoreError> {
        self.tell(&format!("FDSTORE=1\nFDNAME={}", name(instance)), &[control, page])
    }

    /// Whether a service manager stores descriptors.
    pub fn has_manager(&self) -> bool {
        self.0.is_some()
    }

    /// Tells the manager to close the descriptors of an instance. If the message cannot be sent, the next agent closes
    /// them.
    pub fn remove_instance(&self, instance: &str) {
        let _closed_later = self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={}", name(instance)), &[]);
    }

    fn tell(&self, state: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), StoreError> {
        let notify = self.0.as_deref().ok_or(StoreError::NoManager)?;
        notify.send(state, descriptors, WhenFull::Fail).map_err(|error| {
            cannot_notify(state, &error);
            StoreError::NotReading
        })
    }
}

/// The name of both descriptors. The name of an instance has only characters that `FDNAME` allows, and is much shorter
/// than its limit.
pub(super) fn name(instance: &str) -> String {
    format!("instance-{instance}")
}

/// Whether it can be a control socket: a connected unix socket of type `SOCK_SEQPACKET`.
pub(super) fn is_control(descriptor: &OwnedFd) -> bool {
    let socket = SockRef::from(descriptor);
    let fits = || {
        let kind = socket.domain()? == Domain::UNIX && socket.r#type()? == Type::SEQPACKET;
        socket.peer_addr().map(|_connected| kind)
    };
    fits().unwrap_or(false)
}

/// Whether it can be an activity page: one page of memory that cannot be truncated.
pub(super) fn is_page(descriptor: &OwnedFd) -> bool {
    // Only files in memory can be sealed.
    let seals = fcntl(descriptor, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    let size = fstat(descriptor).map(|file| usize::try_from(file.st_size).unwrap_or(0));
    seals.is_ok_and(|seals| seals.contains(SEALS)) && size == Ok(rustix::param::page_size())
}
