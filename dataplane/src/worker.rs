//! A worker: one pinned thread that moves the frames of its lanes.
//!
//! It never waits, locks, logs or allocates on behalf of a lane. Control meets it in one mailbox and
//! gets lanes back through another. A lane is in one of three places:
//!
//! ```text
//!   polled ---- quiet for a while, eventfds wanted, looked once more ----> asleep
//!      ^  \                                                              |
//!      |   `--- its target full for a while ----> stalled                |
//!      |                                            |                    |
//!      |<-------- another try is due (1 ms) --------'                    |
//!      `<-------- a eventfd, or the look after 200 ms ----------------------'
//! ```
//! Only polled lanes cost anything per round, so a thousand quiet wires do not slow one busy wire.
//! When no lane is polled, the thread sleeps in epoll. A lane with a peer that cannot ring is looked at every
//! millisecond while it sleeps.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ferrule_ffi::notifier::Notifier;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::Pid;

use crate::control::health::ThreadGuard;
use crate::engine::Idle;
use crate::lane::Lane;
use crate::link::{Scratch, Visit};
use crate::mailbox::Mailbox;
use crate::port::{BURST, Fault};
use crate::spec::RING_MAX;

/// Where a lane is in its worker; control picks it, and it is free again once the lane came back.
pub type Slot = u16;

/// What control asks of a worker.
pub enum Command {
    /// Serve a lane.
    Serve(Slot, Box<Lane>),
    /// Hand a lane back, after the frames that its peers have already published; a full target is waited for
    /// so long.
    Return(Slot, Duration),
    /// Hand all lanes back and end.
    Stop,
}

/// A lane handed back.
pub struct Returned {
    /// The worker that had it.
    pub worker: usize,
    /// Its slot there, free from now on.
    pub slot: Slot,
    /// The lane; nobody else touches it any more.
    pub lane: Box<Lane>,
    /// Which end broke its protocol, if one did.
    pub fault: Option<(usize, Fault)>,
}

/// Control's side of a worker.
pub struct WorkerHandle {
    cpu: usize,
    busy_ns: Arc<AtomicU64>,
    commands: Arc<Mailbox<Command>>,
    epoll: Arc<Epoll>,
    thread: Option<JoinHandle<()>>,
    free: Vec<Slot>,
}

impl WorkerHandle {
    /// Starts worker `number` on `cpu`. It hands lanes back through `returned`; `guard` says so if it panics.
    pub fn start(
        number: usize,
        cpu: usize,
        idle: Idle,
        returned: Arc<Mailbox<Returned>>,
        guard: ThreadGuard,
    ) -> io::Result<Self> {
        let commands = Arc::new(Mailbox::new(COMMANDS_MAX)?);
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        epoll.add(commands.notify_fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, MAILBOX))?;
        let mut cpus = CpuSet::new();
        cpus.set(cpu)?;
        let busy_ns = Arc::<AtomicU64>::default();
        let worker = Worker {
            number,
            busy_ns: Arc::clone(&busy_ns),
            idle,
            commands: Arc::clone(&commands),
            returned,
            epoll: Arc::clone(&epoll),
            lanes: std::iter::repeat_with(|| None).take(LANES_MAX).collect(),
            polled: Vec::with_capacity(LANES_MAX),
            stalled: Vec::with_capacity(LANES_MAX),
            unrung: Vec::with_capacity(LANES_MAX),
            scratch: Scratch::new(Notifier::new()?),
        };
        // The thread pins itself, and says whether it could before anything depends on it.
        let (pinned, outcome) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("worker-{cpu}")).spawn(move || {
            let _guard = guard;
            let result = sched_setaffinity(Pid::from_raw(0), &cpus);
            let go = result.is_ok();
            let _ = pinned.send(result);
            if go {
                worker.run();
            }
        })?;
        match outcome.recv() {
            Ok(Ok(())) => {}
            Ok(Err(errno)) => {
                let _ = thread.join();
                let text = format!("pin a worker to CPU {cpu}: {errno} (is it online, and in this process's cpuset?)");
                return Err(io::Error::new(io::Error::from(errno).kind(), text));
            }
            Err(_) => return Err(io::Error::other("a worker ended before it began")),
        }
        let free = (0..LANES_MAX as Slot).rev().collect();
        Ok(Self { cpu, busy_ns, commands, epoll, thread: Some(thread), free })
    }

    /// The CPU that it is pinned to, and where it counts the time spent on moving frames.
    pub fn meter(&self) -> (usize, Arc<AtomicU64>) {
        (self.cpu, Arc::clone(&self.busy_ns))
    }

    /// How many lanes it has.
    pub fn lanes(&self) -> usize {
        LANES_MAX - self.free.len()
    }

    /// How many lanes it can still take.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Gives the worker a lane; the slot says which it is from now on.
    ///
    /// # Errors
    /// The lane comes back if the worker has no room, or one of its eventfds cannot be waited for.
    pub fn serve(&mut self, lane: Box<Lane>) -> Result<Slot, (io::Error, Box<Lane>)> {
        let Some(slot) = self.free.pop() else {
            let text = format!("a worker serves at most {LANES_MAX} queues; give the forwarder more workers");
            return Err((io::Error::other(text), lane));
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, u64::from(slot));
        let listening = lane.notify_fds().try_for_each(|eventfd| self.epoll.add(eventfd, event));
        if let Err(errno) = listening {
            self.forget(slot, &lane);
            return Err((errno.into(), lane));
        }
        self.commands.post(Command::Serve(slot, lane));
        Ok(slot)
    }

    /// Asks for a lane back, with so much patience for targets that are full. It comes through the box given to
    /// [`Self::start`].
    pub fn recall(&self, slot: Slot, patience: Duration) {
        self.commands.post(Command::Return(slot, patience));
    }

    /// Says that a lane came back: its slot is free, its eventfds ring for nobody.
    pub fn forget(&mut self, slot: Slot, lane: &Lane) {
        for eventfd in lane.notify_fds() {
            // Not there, if adding it was what failed.
            let _ = self.epoll.delete(eventfd);
        }
        self.free.push(slot);
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.commands.post(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's own side.
struct Worker {
    number: usize,
    /// Time spent in rounds that moved frames.
    busy_ns: Arc<AtomicU64>,
    idle: Idle,
    commands: Arc<Mailbox<Command>>,
    returned: Arc<Mailbox<Returned>>,
    epoll: Arc<Epoll>,
    lanes: Box<[Option<Served>]>,
    polled: Vec<Slot>,
    stalled: Vec<Slot>,
    /// Lanes that not every peer can ring for, wherever they are.
    unrung: Vec<Slot>,
    scratch: Scratch,
}

/// A lane and what is known of it.
struct Served {
    lane: Box<Lane>,
    asleep: bool,
    /// What the last visit did.
    visit: Visit,
    /// When a frame was last moved, as far as the clock was looked at.
    last_moved: Instant,
    /// How it leaves, once it was asked for.
    leaving: Option<Leaving>,
}

/// How a lane leaves: with the frames that were published before, but not for ever.
struct Leaving {
    visits: u16,
    until: Instant,
}

impl Leaving {
    /// Whether the lane goes, now that it was visited.
    fn is_over(&mut self, visit: Visit, now: Instant) -> bool {
        let late = now >= self.until;
        match visit {
            Visit::Quiet => true,
            Visit::Stalled => late,
            Visit::Moved => {
                self.visits = self.visits.saturating_add(1);
                self.visits >= if late { VISITS_LATE } else { VISITS_LEAVING }
            }
        }
    }
}

/// When things were last done, by a clock that is not looked at in every round.
struct Clock {
    now: Instant,
    /// Whether a round has moved frames since then.
    busy: bool,
    moved: Instant,
    retried: Instant,
    looked: Instant,
    listened: Instant,
    nap: Duration,
}

impl Worker {
    fn run(mut self) {
        // Naps are meant in microseconds; the default slack of 50 us would double them.
        let _ = nix::sys::prctl::set_timerslack(1);
        let now = Instant::now();
        let mut clock = Clock { now, busy: false, moved: now, retried: now, looked: now, listened: now, nap: NAP_MIN };
        let mut rounds = 0u32;
        while self.take_commands() {
            let moved = self.round(&clock);
            rounds = rounds.wrapping_add(1);
            clock.busy |= moved;
            if moved && !rounds.is_multiple_of(ROUNDS_PER_CLOCK) {
                continue;
            }
            self.look_at(&mut clock);
            if moved {
                clock.moved = clock.now;
                clock.nap = NAP_MIN;
            }
            if self.idle == Idle::Poll {
                continue;
            }
            self.rest_lanes(&clock);
            let woken = self.wake_lanes(&mut clock);
            if !moved && !woken {
                self.rest(&mut clock);
                // What comes next did not take the time that was slept.
                clock.now = Instant::now();
            }
        }
    }

    /// Reads the clock, and counts what was spent on frames since it was last read.
    fn look_at(&self, clock: &mut Clock) {
        let before = std::mem::replace(&mut clock.now, Instant::now());
        if std::mem::take(&mut clock.busy) {
            let spent = clock.now.saturating_duration_since(before);
            // Nobody else writes it. 2^64 ns are 584 years.
            let busy_ns = self.busy_ns.load(Ordering::Relaxed) + spent.as_nanos() as u64;
            self.busy_ns.store(busy_ns, Ordering::Relaxed);
        }
    }

    /// Takes what control has asked for. `false`: the end.
    fn take_commands(&mut self) -> bool {
        while let Some(command) = self.commands.take() {
            match command {
                Command::Serve(slot, lane) => {
                    let last_moved = Instant::now();
                    if !lane.has_notify_fds() {
                        self.unrung.push(slot);
                    }
                    let served = Served { lane, asleep: false, visit: Visit::Quiet, last_moved, leaving: None };
                    self.lanes[usize::from(slot)] = Some(served);
                    self.polled.push(slot);
                }
                Command::Return(slot, patience) => {
                    let now = Instant::now();
                    self.wake(slot, now);
                    // Not there any more, if it broke in the meantime.
                    if let Some(served) = &mut self.lanes[usize::from(slot)] {
                        served.leaving = Some(Leaving { visits: 0, until: now + patience });
                    }
                }
                Command::Stop => {
                    (0..LANES_MAX as Slot).for_each(|slot| self.hand_back(slot, None));
                    return false;
                }
            }
        }
        true
    }

    /// Visits every polled lane once. Whether any frame was moved.
    fn round(&mut self, clock: &Clock) -> bool {
        let mut moved = false;
        let mut at = 0;
        while let Some(&slot) = self.polled.get(at) {
            let Some(served) = &mut self.lanes[usize::from(slot)] else {
                self.polled.swap_remove(at);
                continue;
            };
            let visit = served.lane.visit(&mut self.scratch);
            let fault = match visit {
                Ok(visit) => {
                    served.visit = visit;
                    if visit == Visit::Moved {
                        served.last_moved = clock.now;
                        moved = true;
                    }
                    None
                }
                Err(fault) => Some(fault),
            };
            let leaves = served.leaving.as_mut().is_some_and(|leaving| leaving.is_over(served.visit, clock.now));
            if leaves || fault.is_some() {
                self.polled.swap_remove(at);
                self.hand_back(slot, fault);
            } else {
                at += 1;
            }
        }
        moved
    }

    /// Takes the lanes that had no work for a while out of the rounds.
    fn rest_lanes(&mut self, clock: &Clock) {
        let mut at = 0;
        while let Some(&slot) = self.polled.get(at) {
            let served = self.lanes[usize::from(slot)].as_mut();
            let quiet = served.filter(|served| clock.now.saturating_duration_since(served.last_moved) >= QUIET);
            let Some(served) = quiet else {
                at += 1;
                continue;
            };
            if served.visit == Visit::Stalled {
                // Nobody rings when there is room again.
                self.stalled.push(slot);
            } else if served.leaving.is_some() {
                // The next visit sends it home; asleep, nobody would visit it.
                at += 1;
                continue;
            } else {
                served.lane.enable_notify(true);
                if served.lane.has_work() {
                    served.lane.enable_notify(false);
                    served.last_moved = clock.now;
                    at += 1;
                    continue;
                }
                served.asleep = true;
            }
            self.polled.swap_remove(at);
        }
    }

    /// Puts the lanes whose time has come back into the rounds: rung for, due for another try, or
    /// due for a look in case their peer does not ring as it should. Whether there was one.
    fn wake_lanes(&mut self, clock: &mut Clock) -> bool {
        let before = self.polled.len();
        if clock.now - clock.retried >= RETRY {
            clock.retried = clock.now;
            self.polled.append(&mut self.stalled);
            for at in 0..self.unrung.len() {
                self.look_into(self.unrung[at], clock.now);
            }
        }
        if clock.now - clock.looked >= LOOK {
            clock.looked = clock.now;
            for slot in 0..LANES_MAX as Slot {
                self.look_into(slot, clock.now);
            }
        }
        if clock.now - clock.listened >= LISTEN {
            clock.listened = clock.now;
            self.listen(EpollTimeout::ZERO, clock.now);
        }
        self.polled.len() > before
    }

    /// What the thread does after a round without work: spin, nap, sleep.
    fn rest(&mut self, clock: &mut Clock) {
        if clock.now - clock.moved < SPIN {
            std::hint::spin_loop();
        } else if !self.polled.is_empty() {
            thread::sleep(clock.nap);
            clock.nap = (clock.nap * 2).min(NAP_MAX);
        } else if self.commands.may_sleep() {
            let timeout = if self.stalled.is_empty() && self.unrung.is_empty() { LOOK } else { RETRY };
            // At most 200 ms.
            let woken = self.listen(EpollTimeout::from(timeout.as_millis() as u16), Instant::now());
            self.commands.awake();
            if woken {
                clock.moved = Instant::now();
                clock.nap = NAP_MIN;
            }
        }
    }

    /// Waits for eventfds and wakes the lanes that were rung for. Whether there was one.
    fn listen(&mut self, timeout: EpollTimeout, now: Instant) -> bool {
        let mut events = [EpollEvent::empty(); BURST];
        // Interrupted or not: what matters is which eventfds rang.
        let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        for event in &events[..count] {
            if event.data() != MAILBOX {
                // Slots are what was put into the events.
                self.wake(event.data() as Slot, now);
            }
        }
        count > 0
    }

    /// Wakes a sleeping lane that has work, though nobody rang.
    fn look_into(&mut self, slot: Slot, now: Instant) {
        let served = self.lanes[usize::from(slot)].as_mut();
        if served.is_some_and(|served| served.asleep && served.lane.has_work()) {
            self.wake(slot, now);
        }
    }

    /// Puts a sleeping lane back into the rounds.
    fn wake(&mut self, slot: Slot, now: Instant) {
        if let Some(served) = self.lanes[usize::from(slot)].as_mut().filter(|served| served.asleep) {
            served.lane.enable_notify(false);
            served.asleep = false;
            served.last_moved = now;
            self.polled.push(slot);
        }
    }

    fn hand_back(&mut self, slot: Slot, fault: Option<(usize, Fault)>) {
        if let Some(Served { lane, .. }) = self.lanes[usize::from(slot)].take() {
            self.unrung.retain(|&unrung| unrung != slot);
            let returned = Returned { worker: self.number, slot, lane, fault };
            self.returned.try_post(returned).ok().expect("the box has room for every lane of every worker");
        }
    }
}

/// Lanes of one worker.
pub const LANES_MAX: usize = 4096;
const COMMANDS_MAX: usize = 256;
/// The event of the mailbox; those of lanes are their slots.
const MAILBOX: u64 = u64::MAX;
/// Rounds with work between two looks at the clock, which costs as much as moving a frame or two.
const ROUNDS_PER_CLOCK: u32 = 16;
/// How long the thread spins without work before it naps.
const SPIN: Duration = Duration::from_micros(20);
const NAP_MIN: Duration = Duration::from_micros(5);
const NAP_MAX: Duration = Duration::from_micros(50);
/// How long a lane stays in the rounds without work.
const QUIET: Duration = Duration::from_millis(1);
/// How often a full target is tried again once its lane has left the rounds, and a sleeping lane is looked at whose
/// peer cannot ring.
const RETRY: Duration = Duration::from_millis(1);
/// How often eventfds are collected while other lanes keep the thread busy.
const LISTEN: Duration = Duration::from_micros(20);
/// How often sleeping lanes are looked at without a eventfd: DPDK and VPP load the flag without a fence
/// after storing their index, so a eventfd can be lost.
const LOOK: Duration = Duration::from_millis(200);
/// Visits with frames to a lane that is asked back: enough for everything in its longest ring, one at a time.
const VISITS_LEAVING: u16 = RING_MAX as u16;
/// The same once patience is over: enough for everything in its longest ring, a burst at a time.
const VISITS_LATE: u16 = RING_MAX as u16 / BURST as u16 + 1;
