//! What a successor process is given of a live peer: values that can be written down, and descriptors that are passed
//! beside them.
//!
//! Each kind of port has a `restore.rs` with its `Saved...` structs, made from a peer whose rings no worker has. A struct
//! names a descriptor by its [`FileId`] only; [`SavedFiles`] holds it. How both reach the successor (a file and a socket,
//! or nothing but memory in a test) is not known here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ferrule_ffi::peer_file::PeerFile;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The descriptors that saved values name, in the order in which they are to be passed.
#[derive(Debug, Default)]
pub struct SavedFiles(Vec<Option<OwnedFd>>);

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId(u32);

impl SavedFiles {
    /// Adds a descriptor.
    pub fn push(&mut self, file: OwnedFd) -> FileId {
        self.0.push(Some(file));
        // A process has fewer.
        FileId(self.0.len() as u32 - 1)
    }

    /// Adds a copy of a descriptor that is still needed here.
    pub fn push_copy(&mut self, file: impl AsFd) -> io::Result<FileId> {
        Ok(self.push(file.as_fd().try_clone_to_owned()?))
    }

    /// Adds a copy of an eventfd, if there is one.
    pub fn push_eventfd(&mut self, eventfd: Option<&Arc<OwnedFd>>) -> io::Result<Option<FileId>> {
        eventfd.map(|eventfd| self.push_copy(eventfd.as_fd())).transpose()
    }

    /// Takes an eventfd out, if there is one.
    pub fn take_eventfd(&mut self, id: Option<FileId>) -> Result<Option<Arc<OwnedFd>>, RestoreError> {
        let Some(id) = id else { return Ok(None) };
        let eventfd = PeerFile::from(self.take(id)?).into_eventfd();
        let not_one = || RestoreError::Invalid("the descriptor of a ring is not an eventfd".to_owned());
        eventfd.map(|eventfd| Some(Arc::new(eventfd))).ok_or_else(not_one)
    }

    /// Takes a descriptor out; each can be taken once.
    pub fn take(&mut self, id: FileId) -> Result<OwnedFd, RestoreError> {
        self.0.get_mut(id.0 as usize).and_then(Option::take).ok_or(RestoreError::NoFile(id.0))
    }

    /// The descriptors, to be passed on.
    pub fn into_inner(self) -> Vec<OwnedFd> {
        self.0.into_iter().flatten().collect()
    }
}

impl From<Vec<OwnedFd>> for SavedFiles {
    /// Those that were passed, in their order.
    fn from(files: Vec<OwnedFd>) -> Self {
        Self(files.into_iter().map(Some).collect())
    }
}

/// Why a peer cannot be taken over.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Values and descriptors do not belong together.
    #[error("restore a peer: descriptor {0} was not passed, or was taken before")]
    NoFile(u32),
    /// A descriptor that is not what the values say.
    #[error("restore a peer: {what}: {source}")]
    File {
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        source: io::Error,
    },
    /// Values that no peer has.
    #[error("restore a peer: {0}")]
    Invalid(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrule_ffi::notifier::eventfd;

    #[test]
    fn a_descriptor_is_taken_once_and_by_its_name() {
        let mut files = SavedFiles::default();
        let first = eventfd().unwrap();
        let ids = [files.push_copy(&first).unwrap(), files.push(eventfd().unwrap().into())];
        let mut passed = SavedFiles::from(files.into_inner());
        let copy = passed.take(ids[0]).unwrap();
        nix::unistd::write(&copy, &7u64.to_ne_bytes()).unwrap();
        assert_eq!(first.read(), Ok(7));
        assert!(passed.take(ids[1]).is_ok());
        for id in [ids[0], FileId(2), FileId(u32::MAX)] {
            assert!(matches!(passed.take(id), Err(RestoreError::NoFile(_))));
        }
    }
}
