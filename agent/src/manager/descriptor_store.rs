//! What is kept of running instances: for each the control socket and the activity page, under one name.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;
use socket2::{Domain, SockRef, Type};

use super::notify::{NotifySocket, WhenFull};

/// Without these a peer could truncate the page under whoever has mapped it (memfd_create(2)).
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// Why an instance is not kept: the next agent cannot take it over, and asks it to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// There is no service manager that keeps descriptors.
    NoManager,
    /// It does not read what it is told, or is gone.
    NotReading,
}

impl StoreError {
    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoManager => "no_manager",
            Self::NotReading => "deaf",
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Has instances kept by the service manager. Never waits for it. Clones are the same.
#[derive(Clone, Default)]
pub struct DescriptorStore(Option<Arc<NotifySocket>>);

impl DescriptorStore {
    pub(super) fn new(notify: Option<Arc<NotifySocket>>) -> Self {
        Self(notify)
    }

    /// Has both descriptors of an instance kept for the next agent. One message: it keeps both or none.
    ///
    /// # Errors
    /// When the manager cannot be told so now. That it was told does not mean that it has room.
    pub fn store_instance(
        &self,
        instance: &str,
        control: BorrowedFd<'_>,
        page: BorrowedFd<'_>,
    ) -> Result<(), StoreError> {
        self.tell(&format!("FDSTORE=1\nFDNAME={}", name(instance)), &[control, page])
    }

    /// Has what is kept of an instance closed. What stays because the manager does not listen is closed by the
    /// next agent.
    pub fn remove_instance(&self, instance: &str) {
        let _closed_later = self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={}", name(instance)), &[]);
    }

    fn tell(&self, state: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), StoreError> {
        let notify = self.0.as_deref().ok_or(StoreError::NoManager)?;
        notify.send(state, descriptors, WhenFull::Fail).map_err(|error| {
            let notification = state.replace('\n', " ");
            tracing::warn!(notification, "the service manager does not listen: {error}");
            StoreError::NotReading
        })
    }
}

/// Both descriptors have it. An instance's name is as `FDNAME` allows it, and much shorter.
pub(super) fn name(instance: &str) -> String {
    format!("instance-{instance}")
}

/// Whether it can be a control socket: a connected unix socket of packets in sequence.
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
