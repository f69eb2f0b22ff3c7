//! Work at the addresses of sockets: binding, connecting, looking whether a path still leads here, removing a file.
//!
//! Each of these looks a path up, and a directory of a file system that hangs (FUSE, NFS) holds up whoever does that, for
//! ever. So threads do it, and each job has a deadline, after which control goes on without it and says why. A directory
//! has few threads at a time, and none for anything new while one of them is overdue: it holds up its own wires only.
//!
//! ```text
//!   submit --> waits for its turn in its directory --> runs ---- in time ----> done
//!     |                     |                           |
//!     |                     |                           `-- deadline --> unanswered; what comes later is discarded
//!     `---------------------`-- another job there is overdue --> unanswered
//! ```

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slotmap::Key;

use super::done::SocketOutcome;
use super::jobs::ReapAccount;
use super::jobs::SocketTask;
use super::keys::{EndId, ListenerKey, SocketJobId, WireKey};
use super::listen_address::ListenAddress;
use super::poller::Timer;
use super::state::State;
use crate::socket::{Listener, SocketError};
use crate::spec::SocketAddress;

/// Whom a job is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketPurpose {
    /// A listening socket is bound.
    Bind(ListenerKey),
    /// An end connects to its peer.
    Connect(EndId),
    /// The files of the listening sockets of one directory are looked for.
    Check(Arc<[ListenerKey]>),
    /// A listening socket is closed, for which a wire may wait.
    Close(WireKey, ListenerKey),
}

/// A job that its directory does not answer: whom it was for, and where.
pub struct Unanswered {
    /// The job.
    pub id: SocketJobId,
    /// Whom it was for.
    pub purpose: SocketPurpose,
    /// Where.
    pub address: SocketAddress,
}

/// Jobs that are not done yet, by directory.
#[derive(Default)]
pub struct SocketJobs {
    jobs: HashMap<SocketJobId, SocketJob>,
    directories: HashMap<PathBuf, Directory>,
    unanswered: VecDeque<Unanswered>,
    last: u64,
}

struct SocketJob {
    /// None: it was given up.
    purpose: Option<SocketPurpose>,
    address: SocketAddress,
    directory: PathBuf,
    is_overdue: bool,
}

#[derive(Default)]
struct Directory {
    running: usize,
    overdue: usize,
    waiting: VecDeque<(SocketJobId, SocketTask)>,
}

impl SocketJobs {
    /// One more job. What is to be begun now.
    pub fn submit(
        &mut self,
        purpose: SocketPurpose,
        address: &ListenAddress,
        task: SocketTask,
    ) -> (SocketJobId, Vec<(SocketJobId, SocketTask)>) {
        self.last += 1;
        let (id, path) = (SocketJobId(self.last), directory(address));
        let directory = self.directories.entry(path.clone()).or_default();
        let address = address.address.clone();
        let is_closing = matches!(purpose, SocketPurpose::Close(..));
        let mut purpose = Some(purpose);
        if directory.overdue > 0
            && let Some(purpose) = purpose.take()
        {
            self.unanswered.push_back(Unanswered { id, purpose, address: address.clone() });
        }
        // What is to be closed is closed some day; dropped here, it would look its path up here.
        if purpose.is_some() || is_closing {
            directory.waiting.push_back((id, task));
            self.jobs.insert(id, SocketJob { purpose, address, directory: path.clone(), is_overdue: false });
        }
        (id, self.begin(&path))
    }

    /// A job has come to its end. Whom it was for, unless it was given up; and what is to be begun now.
    pub fn finish(&mut self, id: SocketJobId) -> (Option<SocketPurpose>, Vec<(SocketJobId, SocketTask)>) {
        let Some(job) = self.jobs.remove(&id) else { return (None, Vec::new()) };
        if let Some(directory) = self.directories.get_mut(&job.directory) {
            directory.running -= 1;
            directory.overdue -= usize::from(job.is_overdue);
        }
        (job.purpose, self.begin(&job.directory))
    }

    /// A job that was begun takes too long. It is given up, with those that wait behind it.
    pub fn give_up(&mut self, id: SocketJobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.is_overdue = true;
        let Some(directory) = self.directories.get_mut(&job.directory) else { return };
        directory.overdue += 1;
        let waiting: Vec<_> = directory.waiting.iter().map(|&(id, _)| id).collect();
        for id in [id].into_iter().chain(waiting) {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let Some(purpose) = job.purpose.take() else { continue };
            let (is_kept, address) =
                (job.is_overdue || matches!(purpose, SocketPurpose::Close(..)), job.address.clone());
            self.unanswered.push_back(Unanswered { id, purpose, address });
            if !is_kept {
                self.jobs.remove(&id);
            }
        }
        directory.waiting.retain(|(id, _)| self.jobs.contains_key(id));
    }

    /// Where a job is done.
    pub fn address(&self, id: SocketJobId) -> Option<SocketAddress> {
        self.jobs.get(&id).map(|job| job.address.clone())
    }

    /// The next job that was given up and whose end or listening socket does not know it yet.
    pub fn next_unanswered(&mut self) -> Option<Unanswered> {
        self.unanswered.pop_front()
    }

    /// Whether everybody knows.
    pub fn is_told(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// Whether a job at this address would not be begun.
    pub fn is_stuck(&self, address: &ListenAddress) -> bool {
        self.directories.get(&directory(address)).is_some_and(|directory| directory.overdue > 0)
    }

    /// Every task that was not begun.
    pub fn take_waiting(&mut self) -> Vec<SocketTask> {
        self.directories.values_mut().flat_map(|place| place.waiting.drain(..)).map(|(_, task)| task).collect()
    }

    fn begin(&mut self, path: &Path) -> Vec<(SocketJobId, SocketTask)> {
        let Some(directory) = self.directories.get_mut(path) else { return Vec::new() };
        if directory.overdue > 0 {
            return Vec::new();
        }
        let count = (DIRECTORY_THREADS_MAX - directory.running).min(directory.waiting.len());
        directory.running += count;
        let begun = directory.waiting.drain(..count).collect();
        if directory.running == 0 {
            self.directories.remove(path);
        }
        begun
    }
}

/// What a lookup of this address can be held up by.
pub(super) fn directory(address: &ListenAddress) -> PathBuf {
    match (&address.address, &address.netns) {
        (SocketAddress::Path(path), _) => path.parent().map(Path::to_path_buf).unwrap_or_default(),
        (SocketAddress::Abstract(_), Some(netns)) => PathBuf::from(netns.to_string()),
        // Nothing is looked up, and nobody waits for another name.
        (SocketAddress::Abstract(name), None) => PathBuf::from(format!("@{name}")),
    }
}

impl State {
    /// Has a job done at a socket's address.
    pub(super) fn at_socket(
        &mut self,
        purpose: SocketPurpose,
        address: &ListenAddress,
        task: impl FnOnce() -> SocketOutcome + Send + 'static,
    ) -> SocketJobId {
        let (id, begun) = self.sockets.submit(purpose, address, Box::new(task));
        self.begin_socket_jobs(begun);
        id
    }

    /// Closes a listening socket, of which a wire was the last.
    pub(super) fn close_listener(
        &mut self,
        wire: WireKey,
        key: ListenerKey,
        address: &ListenAddress,
        listener: Listener,
    ) {
        self.at_socket(SocketPurpose::Close(wire, key), address, || SocketOutcome::Closed(listener.close()));
    }

    /// A job at a socket's address has come to its end.
    pub(super) fn socket_job_done(&mut self, id: SocketJobId, outcome: SocketOutcome) {
        self.poller.timers.set(Timer::SocketJob(id), None);
        let (purpose, begun) = self.sockets.finish(id);
        self.begin_socket_jobs(begun);
        match (purpose, outcome) {
            (Some(SocketPurpose::Bind(key)), SocketOutcome::Bound(_, bound)) if self.listeners.contains_key(key) => {
                self.listener_bound(key, bound);
            }
            (Some(SocketPurpose::Connect(end)), SocketOutcome::Connected(connected)) => {
                self.connected(end, id, connected);
            }
            (Some(SocketPurpose::Check(keys)), SocketOutcome::Checked(lead_here)) => {
                for (&key, leads_here) in keys.iter().zip(lead_here) {
                    self.socket_file_checked(key, leads_here);
                }
            }
            (Some(SocketPurpose::Close(wire, key)), outcome) => {
                if let SocketOutcome::Closed(socket) = outcome {
                    self.jobs.reap(&ReapAccount::default(), socket);
                }
                self.listener_closed(key);
                self.part_closed(wire);
            }
            // It was given up before.
            (None | Some(SocketPurpose::Bind(_)), SocketOutcome::Bound(address, bound)) => {
                if let Ok(listener) = bound {
                    self.close_listener(WireKey::null(), ListenerKey::null(), &address, listener);
                }
            }
            (None, SocketOutcome::Connected(socket)) => self.jobs.reap(&ReapAccount::default(), socket),
            (None, SocketOutcome::Closed(socket)) => self.jobs.reap(&ReapAccount::default(), socket),
            (Some(purpose), SocketOutcome::Panicked(address)) => {
                self.socket_job_failed(id, purpose, address, |address| SocketError::Panicked { address });
            }
            (None, _) => {}
            (Some(_), _) => unreachable!("a job has the outcome of its kind"),
        }
    }

    /// A job at a socket's address has taken too long.
    pub(super) fn socket_job_is_late(&mut self, id: SocketJobId) {
        self.sockets.give_up(id);
    }

    /// Tells whoever waits for a directory that does not answer.
    pub(super) fn tell_unanswered(&mut self) {
        while let Some(Unanswered { id, purpose, address }) = self.sockets.next_unanswered() {
            let seconds = ANSWER_MAX.as_secs();
            self.socket_job_failed(id, purpose, address, |address| SocketError::Unanswered { address, seconds });
        }
    }

    fn socket_job_failed(
        &mut self,
        id: SocketJobId,
        purpose: SocketPurpose,
        address: SocketAddress,
        error: impl Fn(SocketAddress) -> SocketError,
    ) {
        match purpose {
            SocketPurpose::Bind(key) => self.listener_bound(key, Err(error(address))),
            SocketPurpose::Connect(end) => self.connected(end, id, Err(error(address))),
            SocketPurpose::Check(keys) => {
                for &key in keys.iter() {
                    let address = self.listeners.get(key).map(|listener| listener.address.address.clone());
                    if let Some(address) = address {
                        self.socket_file_unknown(key, &error(address).to_string());
                    }
                }
            }
            SocketPurpose::Close(wire, key) => {
                let error = error(address);
                tracing::warn!(%error, "the socket's file is removed when that is over");
                self.listener_closed(key);
                self.part_closed(wire);
            }
        }
    }

    fn begin_socket_jobs(&mut self, begun: Vec<(SocketJobId, SocketTask)>) {
        for (id, task) in begun {
            self.poller.timers.set(Timer::SocketJob(id), Some(Instant::now() + ANSWER_MAX));
            if let Some(address) = self.sockets.address(id) {
                self.jobs.at_socket(id, address, task);
            }
        }
    }
}

/// How long a directory may take to answer. A removal waits longer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Threads that one directory can hold up.
const DIRECTORY_THREADS_MAX: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> ListenAddress {
        ListenAddress { address: path.parse().unwrap(), netns: None }
    }

    fn task() -> SocketTask {
        Box::new(|| SocketOutcome::Checked(Vec::new()))
    }

    fn bind() -> SocketPurpose {
        SocketPurpose::Bind(ListenerKey::null())
    }

    #[test]
    fn a_directory_that_does_not_answer_has_few_threads_and_holds_up_no_other() {
        let mut jobs = SocketJobs::default();
        let stuck: Vec<_> =
            (0..10).map(|number| jobs.submit(bind(), &at(&format!("/stuck/{number}")), task())).collect();
        let begun: Vec<_> = stuck.iter().flat_map(|(_, begun)| begun).map(|&(id, _)| id).collect();
        assert_eq!(begun, [stuck[0].0, stuck[1].0]);
        let (other, begun) = jobs.submit(bind(), &at("/other/0"), task());
        assert_eq!(begun.len(), 1);
        assert!(jobs.is_told());

        jobs.give_up(stuck[0].0);
        let told: Vec<_> = std::iter::from_fn(|| jobs.next_unanswered()).map(|job| job.id).collect();
        let expected: Vec<_> = [0].into_iter().chain(2..10).map(|number: usize| stuck[number].0).collect();
        assert_eq!(told, expected, "and those that waited");
        // Nothing new is begun there, and nobody waits for it.
        let (late, begun) = jobs.submit(bind(), &at("/stuck/11"), task());
        assert!(begun.is_empty() && jobs.is_stuck(&at("/stuck/12")) && !jobs.is_stuck(&at("/other/1")));
        assert_eq!(jobs.next_unanswered().map(|job| job.id), Some(late));
        assert_eq!(jobs.finish(other).0, Some(bind()));

        // It answers again.
        assert_eq!(jobs.finish(stuck[0].0).0, None);
        assert_eq!(jobs.submit(bind(), &at("/stuck/13"), task()).1.len(), 1);
        assert_eq!(jobs.finish(stuck[1].0).0, Some(bind()));
    }

    #[test]
    fn what_is_to_be_closed_where_nothing_answers_is_closed_later_and_nobody_waits() {
        let mut jobs = SocketJobs::default();
        let close = || SocketPurpose::Close(WireKey::null(), ListenerKey::null());
        let ids: Vec<_> = (0..3).map(|_| jobs.submit(close(), &at("/stuck/0"), task()).0).collect();
        jobs.give_up(ids[0]);
        let (last, _) = jobs.submit(close(), &at("/stuck/1"), task());
        assert_eq!(std::iter::from_fn(|| jobs.next_unanswered()).count(), 3);
        assert!(jobs.finish(ids[1]).1.is_empty(), "the directory is stuck");
        let begun: Vec<_> = jobs.finish(ids[0]).1.into_iter().map(|(id, _)| id).collect();
        assert_eq!(begun, [ids[2], last]);
        assert_eq!((jobs.finish(ids[2]).0, jobs.finish(last).0), (None, None));
        assert!(jobs.jobs.is_empty() && jobs.directories.is_empty());
    }
}
