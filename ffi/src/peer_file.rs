//! Descriptors that a peer passed, closed without waiting.
//!
//! `close` can block for as long as a peer likes: a socket that lingers waits for its far end, a file
//! of a FUSE file system for its owner. A thread that serves other peers must not be the one that waits,
//! so a descriptor that turned out to be unwanted loses its lingering, and is closed by a thread that
//! nobody waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use nix::sys::stat::fstat;

use crate::closers;
use crate::descriptor_account::{DescriptorAccount, DescriptorShare};
use crate::notifier::is_eventfd;

/// A descriptor that a peer passed, and of which nothing is known.
#[derive(Debug)]
pub struct PeerFile {
    file: Option<OwnedFd>,
    share: Option<DescriptorShare>,
}

impl PeerFile {
    /// One that the peers of an account hold from now on.
    pub(crate) fn counted(file: OwnedFd, account: &Arc<DescriptorAccount>) -> Self {
        Self { file: Some(file), share: Some(account.count()) }
    }

    /// The descriptor as memory: a memfd, tmpfs or hugetlbfs file. Asking and closing never block.
    pub fn into_memory(mut self) -> io::Result<OwnedFd> {
        self.check_memory()?;
        Ok(self.take())
    }

    /// It is memory.
    pub(crate) fn check_memory(&self) -> io::Result<()> {
        if is_memory(self.as_fd()) {
            return Ok(());
        }
        let problem = "the file is not in memory (a memfd, tmpfs or hugetlbfs file is wanted)";
        Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
    }

    /// The descriptor as an eventfd; `None` if it is a pipe, socket or whatever else.
    pub fn into_eventfd(mut self) -> Option<OwnedFd> {
        is_eventfd(self.as_fd()).then(|| self.take())
    }

    /// The descriptor for whoever keeps it, not counted any more. Whoever drops it may have to wait, so look first at what it is: one
    /// that was opened with `O_PATH` closes at once.
    pub fn into_kept(mut self) -> OwnedFd {
        self.take()
    }

    fn take(&mut self) -> OwnedFd {
        self.file.take().expect("it is there until the value is consumed")
    }
}

impl From<OwnedFd> for PeerFile {
    fn from(file: OwnedFd) -> Self {
        Self { file: Some(file), share: None }
    }
}

impl AsFd for PeerFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_ref().expect("it is there until the value is consumed").as_fd()
    }
}

impl Drop for PeerFile {
    fn drop(&mut self) {
        // Memory without pages closes at once. The last to close other memory frees its pages, which may be many.
        let is_light = |file: &OwnedFd| is_memory(file.as_fd()) && fstat(file).is_ok_and(|stat| stat.st_blocks == 0);
        let Some(file) = self.file.take().filter(|file| !is_light(file)) else { return };
        // Fails on everything that is no socket.
        let _ = setsockopt(&file, Linger, &libc::linger { l_onoff: 0, l_linger: 0 });
        // One of ours, in a test: whoever made it is no peer.
        let share = self.share.take().unwrap_or_else(|| Arc::<DescriptorAccount>::default().count());
        closers::close(file, share);
    }
}

/// Whether pages of this file can come from nowhere but memory. The kernel looks at the kind of file
/// only, where `fstatfs` would ask a FUSE file system and wait for its answer.
fn is_memory(file: BorrowedFd<'_>) -> bool {
    fcntl(file, FcntlArg::F_GET_SEALS).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::fs::File;

    #[test]
    fn only_memory_is_taken_as_memory_and_only_an_eventfd_as_one() {
        let memory = || PeerFile::from(memfd_create(c"anon_inode:[eventfd]", MFdFlags::MFD_CLOEXEC).unwrap());
        let eventfd = || PeerFile::from(OwnedFd::from(crate::notifier::eventfd().unwrap()));
        assert!(memory().into_memory().is_ok());
        assert!(memory().into_eventfd().is_none());
        assert!(eventfd().into_eventfd().is_some());
        assert!(eventfd().into_memory().is_err());
        for path in ["/proc/self/status", "/dev/zero", "/"] {
            assert!(PeerFile::from(OwnedFd::from(File::open(path).unwrap())).into_memory().is_err(), "{path}");
        }
    }

    #[test]
    fn an_unwanted_descriptor_is_closed_by_another_thread() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(PeerFile::from(writer));
        // The end of the file comes when nobody has the other end any more.
        assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0);
    }
}
