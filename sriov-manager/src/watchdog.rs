//! Calls into the kernel that may never come back, made so that nobody waits for them beyond a deadline.
//!
//! An unbind of `vfio-pci` waits without end for a process that holds the device, inside the kernel, where
//! nothing can interrupt it. So calls are made on threads of their own. One that is late is given up: its caller gets
//! an error, the functions it is about are called stuck, and nothing more is tried on them until the call
//! returns after all. That costs one sleeping thread for each stuck function, and nothing else: it has no file of the process
//! open, so that whoever starts after a kill finds the lock and the socket free. A thread whose call has ended waits for the
//! next one: to start one costs more than most calls.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use ferrule_ffi::netlink::NetlinkError;
use ferrule_ffi::private_files;
use nix::errno::Errno;
use thiserror::Error;

use crate::address::PciAddress;
use crate::kernel::Kernel;

/// Makes calls into a kernel.
#[derive(Clone)]
pub struct Watchdog {
    kernel: Arc<dyn Kernel>,
    threads: Arc<Threads>,
    stop: Arc<Stop>,
    stuck: Arc<Mutex<LateCalls>>,
    returned: Arc<dyn Fn() + Send + Sync>,
    /// So many may be late.
    late_max: usize,
}

/// A call that has not come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// What was asked.
    pub what: String,
    /// When.
    pub since: Instant,
}

/// The moment from which on nothing new is begun and little is waited for.
#[derive(Debug, Default)]
pub struct Stop(OnceLock<Instant>);

impl Stop {
    /// It is now.
    pub fn begin(&self) {
        let _ = self.0.set(Instant::now());
    }

    /// Whether nothing new is to be begun.
    pub fn has_begun(&self) -> bool {
        self.0.get().is_some()
    }

    /// Whether nothing is to be waited for any more: what takes moments may still end.
    pub fn is_due(&self) -> bool {
        self.0.get().is_some_and(|begun| begun.elapsed() >= STOP_GRACE)
    }
}

#[derive(Default)]
struct LateCalls {
    next: u64,
    calls: BTreeMap<u64, (Vec<PciAddress>, Stuck)>,
}

impl Watchdog {
    /// `returned` is called when a call that was given up has come back.
    pub fn new(kernel: Arc<dyn Kernel>, stop: Arc<Stop>, returned: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            kernel,
            threads: Arc::default(),
            stop,
            stuck: Arc::default(),
            returned: Arc::new(returned),
            late_max: usize::MAX,
        }
    }

    /// One of the same kernel and threads for questions that nothing depends on: a function that is stuck in one of them is not
    /// stuck for anything else.
    #[must_use]
    pub fn for_questions(&self) -> Self {
        Self { stuck: Arc::default(), returned: Arc::new(|| {}), late_max: LATE_QUESTIONS_MAX, ..self.clone() }
    }

    /// Whether nothing is to be waited for any more.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_due()
    }

    /// Makes a call, and waits for it until the deadline, or until a stop is due. `about`: the functions that are stuck if it
    /// does not come back.
    pub fn call<T: Send + 'static>(
        &self,
        what: &impl fmt::Display,
        about: &[PciAddress],
        timeout: Duration,
        work: impl FnOnce(&dyn Kernel) -> Result<T, NetlinkError> + Send + 'static,
    ) -> Result<T, CallError> {
        if let Some((function, stuck)) = about.iter().find_map(|&function| Some((function, self.stuck(function)?))) {
            return Err(CallError::Before { function, what: stuck.what, seconds: stuck.since.elapsed().as_secs() });
        }
        if self.late_calls().calls.len() >= self.late_max {
            let hint = format!("{} questions have not been answered yet", self.late_max);
            return Err(CallError::Refused(NetlinkError { errno: Errno::EAGAIN, hint: Some(hint) }));
        }
        let since = Instant::now();
        let call = Call { id: self.late_calls().take_id(), watchdog: self.clone() };
        let id = call.id;
        let (sender, receiver) = sync_channel(1);
        let started = self.threads.run(Box::new(move || {
            let result = work(&*call.watchdog.kernel);
            // The call ends, in `drop`, after its result is there: see below.
            let _ = sender.send(result);
            drop(call);
        }));
        if let Err(error) = started {
            return Err(CallError::Refused(error.into()));
        }
        let broken =
            || CallError::Refused(NetlinkError { errno: Errno::EIO, hint: Some("the call's thread died".into()) });
        match self.wait(&receiver, since + timeout) {
            Ok(result) => result.map_err(CallError::Refused),
            Err(RecvTimeoutError::Disconnected) => Err(broken()),
            Err(RecvTimeoutError::Timeout) => {
                let mut table = self.late_calls();
                // It may have come back between the deadline and the lock; once it has, it ends only under the lock.
                match receiver.try_recv() {
                    Ok(result) => result.map_err(CallError::Refused),
                    Err(TryRecvError::Disconnected) => Err(broken()),
                    Err(TryRecvError::Empty) => {
                        let what = what.to_string();
                        table.calls.insert(id, (about.to_vec(), Stuck { what: what.clone(), since }));
                        Err(CallError::Late { what, seconds: since.elapsed().as_secs() })
                    }
                }
            }
        }
    }

    /// The call that a function is stuck in.
    pub fn stuck(&self, function: PciAddress) -> Option<Stuck> {
        let table = self.late_calls();
        table.calls.values().find(|(about, _)| about.contains(&function)).map(|(_, stuck)| stuck.clone())
    }

    /// Waits for an answer, and looks now and then whether a stop is due.
    fn wait<T>(&self, receiver: &Receiver<T>, deadline: Instant) -> Result<T, RecvTimeoutError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left.min(STOP_POLL)) {
                Err(RecvTimeoutError::Timeout) if left > STOP_POLL && !self.is_stopping() => {}
                other => return other,
            }
        }
    }

    fn late_calls(&self) -> MutexGuard<'_, LateCalls> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Threads that wait for a call to make.
#[derive(Default)]
struct Threads {
    idle: Mutex<Vec<SyncSender<Job>>>,
}

type Work = Box<dyn FnOnce() + Send>;

/// Something to do, and how its thread is reached: only somebody who can give it another job keeps it.
struct Job {
    work: Work,
    thread: SyncSender<Job>,
}

impl Threads {
    /// Has a thread do something.
    fn run(self: &Arc<Self>, mut work: Work) -> io::Result<()> {
        while let Some(thread) = self.idle().pop() {
            match thread.try_send(Job { work, thread: thread.clone() }) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(job) | TrySendError::Full(job)) => work = job.work,
            }
        }
        let (thread, jobs) = sync_channel(1);
        let threads = Arc::downgrade(self);
        private_files::spawn("kernel-call", move || {
            work_for(&threads, Job { work, thread });
            for job in jobs {
                work_for(&threads, job);
            }
        })?;
        Ok(())
    }

    fn idle(&self) -> MutexGuard<'_, Vec<SyncSender<Job>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does a job, and lets the thread be found for the next one. A thread that nobody can find any more ends.
fn work_for(threads: &Weak<Threads>, Job { work, thread }: Job) {
    work();
    if let Some(threads) = threads.upgrade() {
        let mut idle = threads.idle();
        if idle.len() < IDLE_MAX {
            idle.push(thread);
        }
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").field("stuck", &self.late_calls().calls.len()).finish_non_exhaustive()
    }
}

impl LateCalls {
    fn take_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// A call under way; it ends when its thread does, also by a panic.
struct Call {
    id: u64,
    watchdog: Watchdog,
}

impl Drop for Call {
    fn drop(&mut self) {
        let was_stuck = self.watchdog.late_calls().calls.remove(&self.id).is_some();
        if was_stuck {
            (self.watchdog.returned)();
        }
    }
}

/// Why a call did not do what was asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CallError {
    /// The kernel said no.
    #[error("{0}")]
    Refused(NetlinkError),
    /// It has not come back.
    #[error("{what} has not come back after {seconds} s")]
    Late {
        /// What was asked.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// An earlier one has not come back.
    #[error("{function} is stuck: {what} has not come back for {seconds} s")]
    Before {
        /// The function.
        function: PciAddress,
        /// What was asked.
        what: String,
        /// How long ago.
        seconds: u64,
    },
}

impl CallError {
    /// What the kernel said.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refusal) => Some(refusal.errno),
            Self::Late { .. } | Self::Before { .. } => None,
        }
    }
}

/// Each is a thread that waits, and clients may name paths that never answer.
const LATE_QUESTIONS_MAX: usize = 64;
/// Threads that are kept for the next calls.
const IDLE_MAX: usize = 8;
/// What is under way when a stop begins has so long to end.
const STOP_GRACE: Duration = Duration::from_millis(400);
/// How often somebody who waits looks whether a stop is due.
const STOP_POLL: Duration = Duration::from_millis(100);
