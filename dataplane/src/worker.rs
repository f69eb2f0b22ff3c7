//! A worker: one pinned thread that moves the frames of its lanes.
//!
//! This is control's side of it: a [`WorkerHandle`] posts commands to a mailbox, and lanes come back through another.
//! `thread` is the thread itself, `clock` and `share` are what it keeps of time.

mod clock;
mod share;
mod thread;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::unistd::Pid;

use crate::capture::Capture;
use crate::lane::Lane;
use crate::mailbox::Mailbox;
use crate::port::Fault;
use crate::port::vhost_user::eventfd::{EventfdExchange, EventfdRole};
use crate::settings::Settings;
use crate::worker::thread::Worker;

/// A lane of a worker; control picks the number, and it is free again once the lane came back.
pub type LaneId = u16;

/// What control asks of a worker.
pub enum Command {
    /// Serve a lane.
    Serve(LaneId, Box<Lane>),
    /// Hand a lane back, after the frames that its peers have already published; a full target is waited for
    /// so long.
    Return(LaneId, Duration),
    /// Capture the frames of a lane, or do not any more.
    Trace(LaneId, Option<Arc<Capture>>),
    /// Give a ring of this end of a lane another eventfd.
    Exchange(LaneId, usize, EventfdExchange),
    /// Hand all lanes back and end.
    Stop,
}

/// A lane handed back.
pub struct Returned {
    /// The worker that had it.
    pub worker: usize,
    /// Its number there, free from now on.
    pub id: LaneId,
    /// The lane; nobody else touches it any more.
    pub lane: Box<Lane>,
    /// Which end broke its protocol, if one did.
    pub fault: Option<(usize, Fault)>,
}

/// Control's side of a worker.
pub struct WorkerHandle {
    cpu: usize,
    /// Ticks spent on frames.
    busy: Arc<AtomicU64>,
    commands: Arc<Mailbox<Command>>,
    epoll: Arc<Epoll>,
    thread: Option<JoinHandle<()>>,
    /// It has panicked: its thread is about to end, if it has not yet.
    is_dead: bool,
    free: Vec<LaneId>,
    /// Kicks that lanes got while they were served.
    kicks: HashMap<LaneId, Vec<Arc<OwnedFd>>>,
}

impl WorkerHandle {
    /// Starts worker `number` on `cpu`. It hands lanes back through `returned`; `guard` is dropped at the
    /// end of its thread, also by a panic.
    pub fn start(
        number: usize,
        cpu: usize,
        settings: &Settings,
        returned: Arc<Mailbox<Returned>>,
        guard: impl Send + 'static,
    ) -> io::Result<Self> {
        let commands = Arc::new(Mailbox::new(COMMANDS_MAX)?);
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        epoll.add(commands.notify_fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, MAILBOX))?;
        let mut cpus = CpuSet::new();
        cpus.set(cpu)?;
        let busy = Arc::<AtomicU64>::default();
        let (idle, mail) = (settings.idle, Arc::clone(&commands));
        let worker = Worker::new(number, idle, Arc::clone(&busy), mail, returned, Arc::clone(&epoll))?;
        let hook = settings.worker_start.clone();
        let prepare = move || {
            sched_setaffinity(Pid::from_raw(0), &cpus).map_err(|errno| {
                let text = format!("pin a worker to CPU {cpu}: {errno} (is it online, and in this process's cpuset?)");
                io::Error::new(io::Error::from(errno).kind(), text)
            })?;
            hook.map_or(Ok(()), |hook| hook.run(number))
        };
        // The thread says whether it could be prepared before anything depends on it.
        let (prepared, outcome) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(thread_name(cpu)).spawn(move || {
            let _guard = guard;
            let result = prepare();
            let go = result.is_ok();
            let _ = prepared.send(result);
            if go {
                worker.run();
            }
        })?;
        match outcome.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let _ = thread.join();
                return Err(error);
            }
            Err(_) => return Err(io::Error::other("a worker ended before it began")),
        }
        let free = (0..LANES_MAX as LaneId).rev().collect();
        Ok(Self { cpu, busy, commands, epoll, thread: Some(thread), is_dead: false, free, kicks: HashMap::new() })
    }

    /// The CPU that it is pinned to, and where it counts the time spent on moving frames, in ticks.
    pub fn meter(&self) -> (usize, Arc<AtomicU64>) {
        (self.cpu, Arc::clone(&self.busy))
    }

    /// Whether this is what its thread is called.
    pub fn is_named(&self, thread: &str) -> bool {
        thread == thread_name(self.cpu)
    }

    /// It has panicked: it takes no more lanes, and gives none back.
    pub fn note_death(&mut self) {
        self.is_dead = true;
    }

    /// How many lanes it has.
    pub fn lanes(&self) -> usize {
        LANES_MAX - self.free.len()
    }

    /// How many lanes it can still take: none, once its thread has ended.
    pub fn room(&self) -> usize {
        if self.has_ended() { 0 } else { self.free.len() }
    }

    /// Gives the worker a lane; the number says which it is from now on.
    ///
    /// # Errors
    /// The lane comes back if the worker has no room or has ended, or one of its eventfds cannot be waited for.
    pub fn serve(&mut self, lane: Box<Lane>) -> Result<LaneId, (io::Error, Box<Lane>)> {
        let Some(id) = self.free.pop() else {
            let text = format!("a worker serves at most {LANES_MAX} queues; give the forwarder more workers");
            return Err((io::Error::other(text), lane));
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, u64::from(id));
        let listening = lane.notify_fds().try_for_each(|eventfd| self.epoll.add(eventfd, event));
        if let Err(errno) = listening {
            self.forget(id, &lane);
            return Err((errno.into(), lane));
        }
        if let Err(Command::Serve(id, lane)) = self.post(Command::Serve(id, lane)) {
            self.forget(id, &lane);
            let text = format!("the worker on CPU {} has ended; restart the forwarder", self.cpu);
            return Err((io::Error::other(text), lane));
        }
        Ok(id)
    }

    /// Asks for a lane back, with so long a wait for targets that are full. It comes through the box given to
    /// [`Self::start`].
    pub fn recall(&self, id: LaneId, timeout: Duration) {
        // A worker that has ended hands nothing back; the health of the engine tells of it.
        let _ = self.post(Command::Return(id, timeout));
    }

    /// Captures the frames of a lane from now on, or does not any more. Whoever reads the capture keeps it until the lane
    /// has been told to stop: a worker frees no memory.
    pub fn trace(&self, id: LaneId, capture: Option<Arc<Capture>>) {
        let _ = self.post(Command::Trace(id, capture));
    }

    /// Gives a ring of end `end` of a lane another eventfd, without asking for the lane.
    ///
    /// # Errors
    /// The eventfd cannot be waited for, and the ring keeps the former one.
    pub fn exchange(&mut self, id: LaneId, end: usize, exchange: EventfdExchange) -> io::Result<()> {
        if exchange.role == EventfdRole::Kick {
            let kicks = self.kicks.entry(id).or_default();
            if let Some(kick) = &exchange.eventfd {
                let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
                self.epoll.add(kick, EpollEvent::new(edge, u64::from(id)))?;
                kicks.push(Arc::clone(kick));
            }
            if let Some(former) = &exchange.former {
                let _ = self.epoll.delete(former);
                kicks.retain(|kick| !Arc::ptr_eq(kick, former));
            }
        }
        // The lanes of a worker that has ended are gone with it.
        let _ = self.post(Command::Exchange(id, end, exchange));
        Ok(())
    }

    /// Says that a lane came back: its number is free, its eventfds notify nobody.
    pub fn forget(&mut self, id: LaneId, lane: &Lane) {
        for kick in self.kicks.remove(&id).into_iter().flatten() {
            // One that the lane did not get any more is in no list but this one.
            let _ = self.epoll.delete(kick);
        }
        for eventfd in lane.notify_fds() {
            // Not there, if adding it was what failed.
            let _ = self.epoll.delete(eventfd);
        }
        self.free.push(id);
    }

    /// Puts a command in the worker's mailbox, and waits while that is full. Gives it back if the thread has ended,
    /// which would never make room.
    fn post(&self, mut command: Command) -> Result<(), Command> {
        while !self.has_ended() {
            match self.commands.try_post(command) {
                Ok(()) => return Ok(()),
                Err(back) => command = back,
            }
            std::thread::yield_now();
        }
        Err(command)
    }

    fn has_ended(&self) -> bool {
        self.is_dead || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

fn thread_name(cpu: usize) -> String {
    format!("worker-{cpu}")
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        let _ = self.post(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lanes of one worker.
pub const LANES_MAX: usize = 4096;
const COMMANDS_MAX: usize = 256;
/// The event of the mailbox; those of lanes are their numbers.
const MAILBOX: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_worker_that_has_ended() {
        let thread = std::thread::spawn(|| {});
        while !thread.is_finished() {
            std::thread::yield_now();
        }
        let worker = WorkerHandle {
            cpu: 0,
            busy: <_>::default(),
            commands: Arc::new(Mailbox::new(1).unwrap()),
            epoll: Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap()),
            thread: Some(thread),
            is_dead: false,
            free: vec![0],
            kicks: HashMap::new(),
        };
        assert!(worker.commands.try_post(Command::Stop).is_ok(), "the mailbox is full from now on");
        worker.recall(0, Duration::ZERO);
        assert!(worker.post(Command::Trace(0, None)).is_err());
        assert_eq!(worker.room(), 0);
        drop(worker);
    }
}
