//! The files that came over one connection, and those that are to go.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrule_ffi::peer_file::PeerFile;
use rustix::fs::{OFlags, fcntl_getfl};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::inode::Inode;

/// The files of one connection. All its calls share them, as they share its bytes.
#[derive(Clone, Debug, Default)]
pub struct Files(Arc<FileTable>);

/// Why a file that a message names is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It does not come.
    #[error("{0} was named but did not arrive within {1:?}: pass the file with the call")]
    Late(Inode, Duration),
    /// The connection is over.
    #[error("{0} was named but did not arrive before the connection ended")]
    Ended(Inode),
}

#[derive(Debug, Default)]
struct FileTable {
    state: Mutex<FileState>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct FileState {
    /// In the order of their arrival.
    received: VecDeque<(Inode, Arc<OwnedFd>)>,
    to_send: VecDeque<Arc<OwnedFd>>,
    has_ended: bool,
}

impl Files {
    /// Passes a file with the next bytes, and says how a message names it.
    ///
    /// # Errors
    /// The kernel cannot say which it is, or more files wait than any call passes.
    pub fn send(&self, file: Arc<OwnedFd>) -> io::Result<Inode> {
        let inode = Inode::of(&file)?;
        let mut state = self.lock();
        if state.to_send.len() >= WAITING_MAX {
            let problem = format!("{WAITING_MAX} files wait to be passed: the peer does not read");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, problem));
        }
        state.to_send.push_back(file);
        Ok(inode)
    }

    /// The file that a message names. It may come a little later than the message, but within `limit`.
    pub async fn receive(&self, inode: Inode, limit: Duration) -> Result<Arc<OwnedFd>, FileError> {
        let arrives = async {
            loop {
                let mut arrived = std::pin::pin!(self.0.arrived.notified());
                arrived.as_mut().enable();
                {
                    let state = self.lock();
                    if let Some((_, file)) = state.received.iter().find(|(found, _)| *found == inode) {
                        return Ok(Arc::clone(file));
                    }
                    if state.has_ended {
                        return Err(FileError::Ended(inode));
                    }
                }
                arrived.await;
            }
        };
        timeout(limit, arrives).await.unwrap_or(Err(FileError::Late(inode, limit)))
    }

    /// Takes what came. Only places are files that messages name: opened with `O_PATH`, they do nothing when they are closed.
    pub(super) fn arrived(&self, files: Vec<PeerFile>) {
        for file in files {
            let is_path = fcntl_getfl(file.as_fd()).is_ok_and(|flags| flags.contains(OFlags::PATH));
            let Some(inode) = is_path.then(|| Inode::of(file.as_fd()).ok()).flatten() else { continue };
            let mut state = self.lock();
            if state.received.iter().any(|(known, _)| *known == inode) {
                continue;
            }
            if state.received.len() >= RECEIVED_MAX {
                state.received.pop_front();
            }
            state.received.push_back((inode, Arc::new(file.into_kept())));
        }
        self.0.arrived.notify_waiters();
    }

    /// Nothing comes any more.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.has_ended = true;
        state.to_send.clear();
        drop(state);
        self.0.arrived.notify_waiters();
    }

    /// The next file to pass.
    pub(super) fn next_to_send(&self) -> Option<Arc<OwnedFd>> {
        self.lock().to_send.front().cloned()
    }

    /// It went.
    pub(super) fn sent(&self) {
        self.lock().to_send.pop_front();
    }

    fn lock(&self) -> MutexGuard<'_, FileState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of one connection. A call names three at most, so those of many calls are here; when more come, the oldest goes, which a
/// peer that wants it again passes again.
const RECEIVED_MAX: usize = 64;
const WAITING_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{Mode, open};

    use super::*;

    fn path(name: &std::path::Path) -> OwnedFd {
        open(name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[tokio::test]
    async fn a_file_that_does_not_come_is_waited_for_no_longer_than_the_limit() {
        let files = Files::default();
        let inode = Inode { device: 1, number: 2 };
        let limit = Duration::from_millis(1);
        assert_eq!(files.receive(inode, limit).await.unwrap_err(), FileError::Late(inode, limit));
        files.end();
        assert_eq!(files.receive(inode, Duration::from_mins(1)).await.unwrap_err(), FileError::Ended(inode));
    }

    #[tokio::test]
    async fn a_waiting_call_gets_the_file_when_it_comes() {
        let files = Files::default();
        let file = path("/".as_ref());
        let inode = Inode::of(&file).unwrap();
        let waiting = tokio::spawn({
            let files = files.clone();
            async move { files.receive(inode, Duration::from_mins(1)).await }
        });
        tokio::task::yield_now().await;
        files.arrived(vec![PeerFile::from(file)]);
        assert_eq!(Inode::of(waiting.await.unwrap().unwrap()).unwrap(), inode);
    }

    #[test]
    fn what_is_no_place_is_not_kept_and_of_places_the_oldest_go() {
        let files = Files::default();
        let directory = tempfile::tempdir().unwrap();
        files.arrived(vec![PeerFile::from(OwnedFd::from(File::open("/dev/null").unwrap()))]);
        assert!(files.lock().received.is_empty());
        let mut inodes = Vec::new();
        for number in 0..=RECEIVED_MAX {
            let name = directory.path().join(number.to_string());
            File::create(&name).unwrap();
            inodes.push(Inode::of(path(&name)).unwrap());
            // Twice: the second is closed.
            files.arrived(vec![PeerFile::from(path(&name)), PeerFile::from(path(&name))]);
        }
        let kept: Vec<Inode> = files.lock().received.iter().map(|(inode, _)| *inode).collect();
        assert_eq!(kept, inodes[1..]);
    }

    #[test]
    fn no_more_files_wait_to_be_passed_than_calls_can_pass() {
        let files = Files::default();
        let file = Arc::new(path("/".as_ref()));
        for _ in 0..WAITING_MAX {
            files.send(Arc::clone(&file)).unwrap();
        }
        assert_eq!(files.send(file).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    }
}
