//! The files that came over one connection, and those that are to go.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ferrule_ffi::peer_file::PeerFile;
use rustix::fs::{OFlags, fcntl_getfl};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::inode::Inode;
use crate::identity::SpiffeId;
use crate::quota::{Quota, Share};

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
    /// Where those that come are counted, once it is known whose they are. Before that none comes.
    account: Option<Account>,
    /// In the order of their arrival.
    received: VecDeque<ReceivedFile>,
    to_send: VecDeque<Arc<OwnedFd>>,
    has_ended: bool,
    /// Somebody forgets them in time.
    is_swept: bool,
}

#[derive(Debug)]
struct Account {
    quota: Arc<Quota>,
    who: String,
}

/// One that came. Whoever has received it holds it; here it waits for a while for others.
#[derive(Debug)]
struct ReceivedFile {
    inode: Inode,
    file: Arc<OwnedFd>,
    since: Instant,
    is_taken: bool,
    _share: Share,
}

impl Files {
    /// Passes a file with the next bytes, and says how a message names it.
    ///
    /// # Errors
    /// The kernel cannot say which it is, it was not opened with `O_PATH`, or more files wait than any call passes.
    pub fn send(&self, file: Arc<OwnedFd>) -> io::Result<Inode> {
        let inode = Inode::of(&file)?;
        if !is_path(&file) {
            let problem = format!("{inode} was not opened with O_PATH: nobody would take it");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
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
                    let mut state = self.lock();
                    if let Some(found) = state.received.iter_mut().find(|found| found.inode == inode) {
                        found.is_taken = true;
                        return Ok(Arc::clone(&found.file));
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

    /// It is known who is at the other end: what it passes is counted.
    pub(crate) fn open(&self, quota: &Arc<Quota>, who: &SpiffeId) {
        self.lock().account = Some(Account { quota: Arc::clone(quota), who: who.to_string() });
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().account.is_some()
    }

    /// Takes what came. Only places are files that messages name: opened with `O_PATH`, they do nothing when they are closed.
    pub(super) fn arrived(&self, files: Vec<PeerFile>) {
        for file in files {
            let inode = is_path(&file).then(|| Inode::of(file.as_fd()).ok()).flatten();
            let Some(inode) = inode else { continue };
            let mut state = self.lock();
            if let Some(known) = state.received.iter_mut().find(|known| known.inode == inode) {
                (known.since, known.is_taken) = (Instant::now(), false);
                continue;
            }
            let Some(share) = state.count() else {
                tracing::warn!(%inode, "a file is not taken: its sender has passed too many that no call has named");
                continue;
            };
            let file = Arc::new(file.into_kept());
            state.received.push_back(ReceivedFile {
                inode,
                file,
                since: Instant::now(),
                is_taken: false,
                _share: share,
            });
            if !std::mem::replace(&mut state.is_swept, true) {
                tokio::spawn(sweep(Arc::downgrade(&self.0)));
            }
        }
        self.0.arrived.notify_waiters();
    }

    /// Nothing comes any more.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.has_ended = true;
        state.to_send.clear();
        state.received.clear();
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
        self.0.lock()
    }
}

impl FileTable {
    fn lock(&self) -> MutexGuard<'_, FileState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileState {
    /// One more. When there are too many, one of this connection goes that a call has had.
    fn count(&mut self) -> Option<Share> {
        let account = self.account.as_ref()?;
        if let Ok(share) = account.quota.take(&account.who) {
            return Some(share);
        }
        let taken = self.received.iter().position(|received| received.is_taken)?;
        self.received.remove(taken);
        account.quota.take(&account.who).ok()
    }

    /// Forgets what came before `until`: a place that is gone must not live on here. Says when the next one came.
    fn forget(&mut self, until: Instant) -> Option<Instant> {
        self.received.retain(|received| received.since > until);
        self.received.iter().map(|received| received.since).min()
    }
}

/// Forgets in time what came, until there is nothing.
async fn sweep(table: Weak<FileTable>) {
    loop {
        let next = {
            let Some(table) = table.upgrade() else { return };
            let mut state = table.lock();
            let next = Instant::now().checked_sub(KEPT_FOR).map_or(Some(Instant::now()), |until| state.forget(until));
            state.is_swept = next.is_some();
            next
        };
        let Some(next) = next else { return };
        sleep_until(next + KEPT_FOR).await;
    }
}

fn is_path(file: impl AsFd) -> bool {
    fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::PATH))
}

/// A call comes with its files, and may wait for its turn. Whoever calls again passes them again.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// A registry passes one beside each endpoint that it finds, to many at once.
const WAITING_MAX: usize = 1 << 10;

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

    fn opened(all_max: usize, one_max: usize) -> Files {
        let files = Files::default();
        open_for(&files, &Quota::new(all_max, one_max), "/nsmgr");
        files
    }

    fn open_for(files: &Files, quota: &Arc<Quota>, who: &str) {
        files.open(quota, &SpiffeId::new(&"example.org".parse().unwrap(), who).unwrap());
    }

    /// New files, named in the order of their arrival.
    fn pass(files: &Files, directory: &std::path::Path, names: std::ops::Range<usize>) -> Vec<Inode> {
        let passed = names.map(|number| {
            let name = directory.join(number.to_string());
            File::create(&name).unwrap();
            // Twice: the second is closed.
            files.arrived(vec![PeerFile::from(path(&name)), PeerFile::from(path(&name))]);
            Inode::of(path(&name)).unwrap()
        });
        passed.collect()
    }

    fn kept(files: &Files) -> Vec<Inode> {
        files.lock().received.iter().map(|received| received.inode).collect()
    }

    #[tokio::test]
    async fn a_waiting_call_gets_the_file_when_it_comes() {
        let files = opened(1, 1);
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

    #[tokio::test]
    async fn only_places_are_kept_and_no_more_than_may_be_of_one_and_of_all() {
        let quota = Quota::new(5, 3);
        let [first, second, other] = [(); 3].map(|()| Files::default());
        open_for(&first, &quota, "/a");
        open_for(&second, &quota, "/a");
        open_for(&other, &quota, "/b");
        first.arrived(vec![PeerFile::from(OwnedFd::from(File::open("/dev/null").unwrap()))]);
        assert!(kept(&first).is_empty());
        let directory = tempfile::tempdir().unwrap();
        let passed = pass(&first, directory.path(), 0..2);
        assert_eq!(kept(&first), passed);
        pass(&second, directory.path(), 2..5);
        assert_eq!(kept(&second).len(), 1, "both are of one");
        pass(&other, directory.path(), 5..9);
        assert_eq!(kept(&other).len(), 2, "all together have five");
        // What a call has had makes room.
        first.receive(passed[0], Duration::ZERO).await.unwrap();
        let next = pass(&first, directory.path(), 9..10);
        assert_eq!(kept(&first), [passed[1], next[0]]);
        first.end();
        assert!(kept(&first).is_empty());
        pass(&second, directory.path(), 10..12);
        assert_eq!(kept(&second).len(), 3);
    }

    #[tokio::test]
    async fn what_came_long_ago_is_forgotten() {
        let files = opened(8, 8);
        let directory = tempfile::tempdir().unwrap();
        let first = pass(&files, directory.path(), 0..1);
        let between = Instant::now();
        let second = pass(&files, directory.path(), 1..2);
        let since = files.lock().received[1].since;
        assert_eq!(files.lock().forget(between), Some(since));
        assert_eq!(kept(&files), second);
        assert_eq!(
            files.receive(first[0], Duration::ZERO).await.unwrap_err(),
            FileError::Late(first[0], Duration::ZERO)
        );
        assert_eq!(files.lock().forget(Instant::now()), None);
    }

    #[test]
    fn what_nobody_would_take_is_not_sent() {
        let file = Arc::new(OwnedFd::from(File::open("/").unwrap()));
        let refused = Files::default().send(file).unwrap_err();
        assert!(refused.to_string().contains("was not opened with O_PATH"), "{refused}");
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
