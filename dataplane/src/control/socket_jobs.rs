//! Which jobs at the addresses of sockets run, and which wait.
//!
//! Each of them looks a path up, and a directory of a file system that hangs (FUSE, NFS) holds up whoever does that, for
//! ever. So a directory has few threads at a time, and none for anything new while one of them is overdue: it holds up its
//! own wires only. Each class of jobs has a share of the threads, so that a thousand directories that hang, and are looked
//! at again and again, leave some for who binds. Directories take turns; a job that has no thread in time is told why.
//!
//! ```text
//!   submit --> waits for its turn in its directory, --> runs ---- in time ----> done
//!     |        and for a thread of its class              |
//!     |           |                                       `-- deadline --> unanswered; what comes later is discarded
//!     |           |-- deadline, and overdue jobs hold every thread --> unanswered
//!     `-----------`-- another job in its directory is overdue --> unanswered
//! ```

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::jobs::{SOCKET_THREADS_MAX, SocketTask};
use super::keys::{EndId, ListenerKey, SocketJobId, WireKey};
use super::listen_address::ListenAddress;
use super::poller::Token;
use crate::socket::SocketError;
use crate::spec::SocketAddress;

/// Whom a job is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketPurpose {
    /// A listening socket is bound.
    Bind(ListenerKey),
    /// An end connects to its peer.
    Connect(EndId),
    /// The files of the listening sockets of one directory are looked for: of these sockets, not of those that listen
    /// there by the time of the answer.
    Check(Arc<[(ListenerKey, Token)]>),
    /// A listening socket is closed, for which a wire may wait.
    Close(WireKey, ListenerKey),
}

/// Jobs that share threads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum JobClass {
    /// Listening sockets are bound and closed: somebody waits for that.
    Listen,
    /// Ends connect, and try it again for as long as they are there.
    Connect,
    /// Paths are looked at, every second.
    Check,
}

impl JobClass {
    const ALL: [Self; 3] = [Self::Listen, Self::Connect, Self::Check];

    fn of(purpose: &SocketPurpose) -> Self {
        match purpose {
            SocketPurpose::Bind(_) | SocketPurpose::Close(..) => Self::Listen,
            SocketPurpose::Connect(_) => Self::Connect,
            SocketPurpose::Check(_) => Self::Check,
        }
    }

    fn threads_max(self) -> usize {
        match self {
            Self::Listen => SOCKET_THREADS_MAX,
            Self::Connect => CONNECT_THREADS_MAX,
            Self::Check => CHECK_THREADS_MAX,
        }
    }
}

/// A job that nobody waits for any more: whom it was for, and where.
pub struct Unanswered {
    /// The job.
    pub id: SocketJobId,
    /// Whom it was for.
    pub purpose: SocketPurpose,
    /// Where.
    pub address: SocketAddress,
    /// Why.
    pub delay: Delay,
}

/// What a job has waited for in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delay {
    /// Its directory does not answer.
    Directory,
    /// So many others hold every thread, of which one is named.
    Threads {
        /// How many.
        directories: usize,
        /// One of them.
        example: PathBuf,
    },
}

impl Delay {
    /// The same for whoever waited.
    pub fn error(&self, address: SocketAddress) -> SocketError {
        let seconds = ANSWER_MAX.as_secs();
        match self {
            Self::Directory => SocketError::Unanswered { address, seconds },
            Self::Threads { directories, example } => {
                SocketError::NoThread { address, seconds, directories: *directories, example: example.clone() }
            }
        }
    }
}

/// Jobs that are not done yet.
#[derive(Default)]
pub struct SocketJobs {
    jobs: HashMap<SocketJobId, SocketJob>,
    directories: HashMap<PathBuf, Directory>,
    classes: [ClassThreads; JobClass::ALL.len()],
    unanswered: VecDeque<Unanswered>,
    last: u64,
}

struct SocketJob {
    /// None: it was given up.
    purpose: Option<SocketPurpose>,
    class: JobClass,
    is_close: bool,
    address: SocketAddress,
    directory: PathBuf,
    is_running: bool,
    is_overdue: bool,
}

impl SocketJob {
    /// Whether one has to end before the other begins: a name is free once its socket is closed.
    fn excludes(&self, other: &Self) -> bool {
        (self.is_close || other.is_close)
            && self.class == JobClass::Listen
            && other.class == JobClass::Listen
            && self.address == other.address
    }
}

#[derive(Default)]
struct Directory {
    running: Vec<SocketJobId>,
    overdue: usize,
    waiting: [WaitingJobs; JobClass::ALL.len()],
}

impl Directory {
    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.iter().all(|waiting| waiting.jobs.is_empty())
    }
}

/// The jobs of one class that wait in a directory.
#[derive(Default)]
struct WaitingJobs {
    jobs: VecDeque<(SocketJobId, SocketTask)>,
    /// The directory is in [`ClassThreads::turns`].
    has_turn: bool,
}

/// The threads of one class.
#[derive(Default)]
struct ClassThreads {
    running: usize,
    overdue: usize,
    /// Directories in which one may be begun, each once.
    turns: VecDeque<PathBuf>,
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
        let (class, is_close) = (JobClass::of(&purpose), matches!(purpose, SocketPurpose::Close(..)));
        let mut purpose = Some(purpose);
        if directory.overdue > 0
            && let Some(purpose) = purpose.take()
        {
            self.unanswered.push_back(Unanswered { id, purpose, address: address.clone(), delay: Delay::Directory });
        }
        // What is to be closed is closed some day; dropped here, it would look its path up here.
        if purpose.is_some() || is_close {
            directory.waiting[class as usize].jobs.push_back((id, task));
            let directory = path.clone();
            let job = SocketJob { purpose, class, is_close, address, directory, is_running: false, is_overdue: false };
            self.jobs.insert(id, job);
        }
        self.take_turns(&path);
        (id, self.begin())
    }

    /// A job has come to its end. Whom it was for, unless it was given up; and what is to be begun now.
    pub fn finish(&mut self, id: SocketJobId) -> (Option<SocketPurpose>, Vec<(SocketJobId, SocketTask)>) {
        let Some(job) = self.jobs.remove(&id) else { return (None, Vec::new()) };
        let threads = &mut self.classes[job.class as usize];
        threads.running -= 1;
        threads.overdue -= usize::from(job.is_overdue);
        if let Some(directory) = self.directories.get_mut(&job.directory) {
            directory.running.retain(|running| *running != id);
            directory.overdue -= usize::from(job.is_overdue);
        }
        self.take_turns(&job.directory);
        self.forget_idle(&job.directory);
        (job.purpose, self.begin())
    }

    /// The time of a job is over. If it runs, its directory does not answer: it is given up, with those that wait there. If
    /// it waits for a thread, and overdue jobs have them all, it is given up alone. `true`: those before it are in time, and
    /// it waits on.
    pub fn expire(&mut self, id: SocketJobId) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else { return false };
        let (class, is_wanted, path) = (job.class, job.purpose.is_some(), job.directory.clone());
        if job.is_running {
            job.is_overdue = true;
            self.classes[class as usize].overdue += 1;
            let Some(directory) = self.directories.get_mut(&path) else { return false };
            directory.overdue += 1;
            let waiting: Vec<_> =
                directory.waiting.iter().flat_map(|waiting| &waiting.jobs).map(|&(id, _)| id).collect();
            for id in [id].into_iter().chain(waiting) {
                self.give_up(id, Delay::Directory);
            }
            self.drop_given_up(&path);
            return false;
        }
        if !is_wanted || !self.is_starved(class) {
            return is_wanted;
        }
        let stuck = self.directories.iter().filter(|(_, directory)| directory.overdue > 0).map(|(path, _)| path);
        let (directories, example) = (stuck.clone().count(), stuck.min().cloned().unwrap_or_default());
        self.give_up(id, Delay::Threads { directories, example });
        self.drop_given_up(&path);
        false
    }

    /// Where a job is done; none: there is no such job.
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
        let waiting = self.directories.values_mut().flat_map(|directory| &mut directory.waiting);
        waiting.flat_map(|waiting| waiting.jobs.drain(..)).map(|(_, task)| task).collect()
    }

    /// What there are threads for now.
    fn begin(&mut self) -> Vec<(SocketJobId, SocketTask)> {
        let mut begun = Vec::new();
        for class in JobClass::ALL {
            while self.has_thread(class)
                && let Some(path) = self.classes[class as usize].turns.pop_front()
            {
                begun.extend(self.begin_in(&path, class));
            }
        }
        begun
    }

    /// The next job of a class in a directory, if it may begin now. If not, one that runs there takes the turn when it ends.
    fn begin_in(&mut self, path: &Path, class: JobClass) -> Option<(SocketJobId, SocketTask)> {
        let directory = self.directories.get_mut(path)?;
        let threads = &mut self.classes[class as usize];
        let waiting = &mut directory.waiting[class as usize];
        waiting.has_turn = false;
        // Where threads are scarce, others have theirs first.
        let room = if threads.running < class.threads_max() / 2 { DIRECTORY_THREADS_MAX } else { 1 };
        if directory.overdue > 0 || directory.running.len() >= room {
            return None;
        }
        let next = self.jobs.get(&waiting.jobs.front()?.0)?;
        if directory.running.iter().filter_map(|running| self.jobs.get(running)).any(|running| next.excludes(running)) {
            return None;
        }
        let (id, task) = waiting.jobs.pop_front()?;
        if !waiting.jobs.is_empty() {
            waiting.has_turn = true;
            threads.turns.push_back(path.to_path_buf());
        }
        threads.running += 1;
        directory.running.push(id);
        self.jobs.get_mut(&id)?.is_running = true;
        Some((id, task))
    }

    fn has_thread(&self, class: JobClass) -> bool {
        let running: usize = self.classes.iter().map(|threads| threads.running).sum();
        running < SOCKET_THREADS_MAX && self.classes[class as usize].running < class.threads_max()
    }

    /// Whether every thread that a class may have is held by jobs that are overdue.
    fn is_starved(&self, class: JobClass) -> bool {
        let overdue: usize = self.classes.iter().map(|threads| threads.overdue).sum();
        overdue >= SOCKET_THREADS_MAX || self.classes[class as usize].overdue >= class.threads_max()
    }

    /// What waits in a directory has a turn, if it has none.
    fn take_turns(&mut self, path: &Path) {
        let Some(directory) = self.directories.get_mut(path) else { return };
        for (waiting, threads) in directory.waiting.iter_mut().zip(&mut self.classes) {
            if !waiting.jobs.is_empty() && !std::mem::replace(&mut waiting.has_turn, true) {
                threads.turns.push_back(path.to_path_buf());
            }
        }
    }

    /// Whoever waits for a job is told. It stays if it runs, or is to be closed some day.
    fn give_up(&mut self, id: SocketJobId, delay: Delay) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(purpose) = job.purpose.take() else { return };
        let (is_kept, address) = (job.is_running || job.is_close, job.address.clone());
        if !is_kept {
            self.jobs.remove(&id);
        }
        self.unanswered.push_back(Unanswered { id, purpose, address, delay });
    }

    /// The tasks of jobs that are no more.
    fn drop_given_up(&mut self, path: &Path) {
        let Some(directory) = self.directories.get_mut(path) else { return };
        for (waiting, threads) in directory.waiting.iter_mut().zip(&mut self.classes) {
            waiting.jobs.retain(|(id, _)| self.jobs.contains_key(id));
            if waiting.jobs.is_empty() && std::mem::take(&mut waiting.has_turn) {
                threads.turns.retain(|turn| turn != path);
            }
        }
        self.forget_idle(path);
    }

    fn forget_idle(&mut self, path: &Path) {
        if self.directories.get(path).is_some_and(Directory::is_idle) {
            self.directories.remove(path);
        }
    }
}

/// What a lookup of this address can be held up by.
pub fn directory(address: &ListenAddress) -> PathBuf {
    match (&address.address, &address.netns) {
        (SocketAddress::Path(path), _) => path.parent().map(Path::to_path_buf).unwrap_or_default(),
        (SocketAddress::Abstract(_), Some(netns)) => PathBuf::from(netns.to_string()),
        // Nothing is looked up, and nobody waits for another name.
        (SocketAddress::Abstract(name), None) => PathBuf::from(format!("@{name}")),
    }
}

/// How long a job may run, and wait for a thread. A removal waits longer.
pub const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Threads that one directory can hold up.
const DIRECTORY_THREADS_MAX: usize = 2;
/// Of all threads, those that may connect.
const CONNECT_THREADS_MAX: usize = SOCKET_THREADS_MAX / 4;
/// And those that may look at paths.
const CHECK_THREADS_MAX: usize = SOCKET_THREADS_MAX / 4;

#[cfg(test)]
mod tests {
    use slotmap::Key;

    use super::super::done::SocketOutcome;
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

    fn close() -> SocketPurpose {
        SocketPurpose::Close(WireKey::null(), ListenerKey::null())
    }

    fn ids(begun: &[(SocketJobId, SocketTask)]) -> Vec<SocketJobId> {
        begun.iter().map(|&(id, _)| id).collect()
    }

    /// Has a job in each of so many directories, each of which hangs. Those that were begun.
    fn hang(jobs: &mut SocketJobs, name: &str, count: usize, purpose: &SocketPurpose) -> Vec<SocketJobId> {
        let submit = |number| ids(&jobs.submit(purpose.clone(), &at(&format!("/{name}{number}/s")), task()).1);
        let begun: Vec<_> = (0..count).flat_map(submit).collect();
        for &id in &begun {
            assert!(!jobs.expire(id));
        }
        begun
    }

    fn unanswered(jobs: &mut SocketJobs) -> Vec<(SocketJobId, Delay)> {
        std::iter::from_fn(|| jobs.next_unanswered()).map(|job| (job.id, job.delay)).collect()
    }

    #[test]
    fn a_directory_that_does_not_answer_has_few_threads_and_holds_up_no_other() {
        let mut jobs = SocketJobs::default();
        let stuck: Vec<_> =
            (0..10).map(|number| jobs.submit(bind(), &at(&format!("/stuck/{number}")), task())).collect();
        let begun: Vec<_> = stuck.iter().flat_map(|(_, begun)| ids(begun)).collect();
        assert_eq!(begun, [stuck[0].0, stuck[1].0]);
        let (other, begun) = jobs.submit(bind(), &at("/other/0"), task());
        assert_eq!(begun.len(), 1);
        assert!(jobs.is_told());

        jobs.expire(stuck[0].0);
        let told: Vec<_> = unanswered(&mut jobs).into_iter().map(|(id, _)| id).collect();
        let expected: Vec<_> = [0].into_iter().chain(2..10).map(|number: usize| stuck[number].0).collect();
        assert_eq!(told, expected, "and those that waited");
        // Nothing new is begun there, and nobody waits for it.
        let (late, begun) = jobs.submit(bind(), &at("/stuck/11"), task());
        assert!(begun.is_empty() && jobs.is_stuck(&at("/stuck/12")) && !jobs.is_stuck(&at("/other/1")));
        assert_eq!(unanswered(&mut jobs), [(late, Delay::Directory)]);
        assert_eq!(jobs.finish(other).0, Some(bind()));

        // It answers again.
        assert_eq!(jobs.finish(stuck[0].0).0, None);
        assert_eq!(jobs.submit(bind(), &at("/stuck/13"), task()).1.len(), 1);
        assert_eq!(jobs.finish(stuck[1].0).0, Some(bind()));
    }

    #[test]
    fn what_is_to_be_closed_where_nothing_answers_is_closed_later_and_nobody_waits() {
        let mut jobs = SocketJobs::default();
        let submitted: Vec<_> =
            (0..3).map(|number| jobs.submit(close(), &at(&format!("/stuck/{number}")), task()).0).collect();
        jobs.expire(submitted[0]);
        let (last, _) = jobs.submit(close(), &at("/stuck/3"), task());
        assert_eq!(unanswered(&mut jobs).len(), 3);
        assert!(jobs.finish(submitted[1]).1.is_empty(), "the directory is stuck");
        assert_eq!(ids(&jobs.finish(submitted[0]).1), [submitted[2], last]);
        assert_eq!((jobs.finish(submitted[2]).0, jobs.finish(last).0), (None, None));
        assert!(jobs.jobs.is_empty() && jobs.directories.is_empty());
    }

    #[test]
    fn a_name_is_bound_once_the_socket_that_had_it_is_closed() {
        let mut jobs = SocketJobs::default();
        let (stuck, _) = jobs.submit(bind(), &at("/d/other"), task());
        let (late, _) = jobs.submit(close(), &at("/d/s"), task());
        // It is given up: nobody waits for it, and it is still under way when the name is wanted again.
        jobs.expire(late);
        jobs.expire(stuck);
        assert!(jobs.finish(stuck).1.is_empty());
        let (second, _) = jobs.submit(close(), &at("/d/s"), task());
        let told = unanswered(&mut jobs);
        assert_eq!(told.len(), 3);
        assert!(jobs.finish(late).1.len() == 1, "the directory answers again");
        let (again, begun) = jobs.submit(bind(), &at("/d/s"), task());
        assert!(begun.is_empty(), "it waits for the second");
        assert_eq!(ids(&jobs.finish(second).1), [again]);
        let (third, begun) = jobs.submit(close(), &at("/d/s"), task());
        assert!(begun.is_empty(), "and what is being bound is not closed");
        assert_eq!(ids(&jobs.finish(again).1), [third]);
        assert!(!jobs.submit(bind(), &at("/d/t"), task()).1.is_empty(), "another name is free");
    }

    #[test]
    fn directories_that_hang_while_they_are_looked_at_leave_threads_to_who_binds() {
        let mut jobs = SocketJobs::default();
        let checks = hang(&mut jobs, "check", 1000, &SocketPurpose::Check(Arc::new([])));
        assert_eq!(checks.len(), CHECK_THREADS_MAX);
        let end = EndId { wire: WireKey::null(), end: 0 };
        assert_eq!(hang(&mut jobs, "connect", 1000, &SocketPurpose::Connect(end)).len(), CONNECT_THREADS_MAX);
        let left = SOCKET_THREADS_MAX - CHECK_THREADS_MAX - CONNECT_THREADS_MAX;
        assert_eq!(hang(&mut jobs, "bind", 1000, &bind()).len(), left);
        assert_eq!(unanswered(&mut jobs).len(), SOCKET_THREADS_MAX);
    }

    #[test]
    fn a_directory_that_waits_for_a_thread_has_one_turn_however_often_it_is_asked_for() {
        let mut jobs = SocketJobs::default();
        hang(&mut jobs, "check", CHECK_THREADS_MAX, &SocketPurpose::Check(Arc::new([])));
        for _ in 0..100 {
            let (id, begun) = jobs.submit(SocketPurpose::Check(Arc::new([])), &at("/good/s"), task());
            assert!(begun.is_empty() && !jobs.expire(id));
        }
        let (_, begun) = jobs.submit(SocketPurpose::Check(Arc::new([])), &at("/good/s"), task());
        assert!(begun.is_empty());
        assert_eq!(jobs.classes[JobClass::Check as usize].turns, [Path::new("/good")]);
    }

    #[test]
    fn a_job_that_has_no_thread_in_time_is_told_why_and_others_go_on_when_one_comes_free() {
        let mut jobs = SocketJobs::default();
        // Each waits for others that are in time; nobody is blamed for that.
        let submit = |jobs: &mut SocketJobs, path: &str| jobs.submit(bind(), &at(path), task());
        let first: Vec<_> =
            (0..SOCKET_THREADS_MAX).map(|number| submit(&mut jobs, &format!("/hung{number:02}/s")).0).collect();
        let (one, begun) = submit(&mut jobs, "/good/1");
        let (other, _) = submit(&mut jobs, "/good/2");
        assert!(begun.is_empty() && jobs.expire(one) && jobs.is_told());
        for &id in &first {
            assert!(!jobs.expire(id));
        }
        assert_eq!(unanswered(&mut jobs).len(), SOCKET_THREADS_MAX);
        assert!(!jobs.is_stuck(&at("/good/1")));
        assert!(!jobs.expire(one));
        let delay = Delay::Threads { directories: SOCKET_THREADS_MAX, example: "/hung00".into() };
        assert_eq!(unanswered(&mut jobs), [(one, delay.clone())]);
        let error = delay.error(at("/good/1").address).to_string();
        for part in ["/good/1", "64 directories", "/hung00"] {
            assert!(error.contains(part), "{error}");
        }
        // What is to be closed stays.
        let (closing, _) = jobs.submit(close(), &at("/good/1"), task());
        assert!(!jobs.expire(closing) && !jobs.expire(closing));
        assert_eq!(unanswered(&mut jobs).len(), 1);
        assert_eq!(ids(&jobs.finish(first[0]).1), [other]);
        assert_eq!(ids(&jobs.finish(other).1), [closing]);
        assert!(jobs.finish(closing).0.is_none() && !jobs.directories.contains_key(Path::new("/good")));
    }
}
