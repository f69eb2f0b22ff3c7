//! The thread of a worker.
//!
//! It never waits, locks, logs or allocates on behalf of a lane. A lane is in one of three places:
//!
//! ```text
//!   polled ---- quiet for a while, notifications enabled, looked once more --> asleep
//!      ^  \                                                              |
//!      |   `--- its target full for a while ----> stalled                |
//!      |                                            |                    |
//!      |<-------- another try is due (1 ms) --------'                    |
//!      `<-------- a notification, or the look after 200 ms --------------'
//! ```
//! Only polled lanes cost anything per round, so a thousand quiet wires do not slow one busy wire.
//! When no lane is polled, the thread sleeps in epoll. A lane with a peer that cannot notify is looked at every
//! millisecond while it sleeps; one that [must be polled](Lane::must_poll) does not sleep.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::ticks;
use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

use crate::lane::Lane;
use crate::link::Scratch;
use crate::mailbox::Mailbox;
use crate::port::vhost_user::eventfd::EventfdRole;
use crate::port::{BURST, Fault};
use crate::settings::Idle;
use crate::spec::RING_MAX;
use crate::visit::Visit;
use crate::worker::clock::{Clock, Intervals, LOOK, NAP_MAX, NAP_MIN, RETRY};
use crate::worker::share::Shares;
use crate::worker::{Command, LANES_MAX, LaneId, MAILBOX, Returned};

/// The thread's own side of a worker.
pub(crate) struct Worker {
    number: usize,
    /// Ticks spent in rounds that moved frames.
    busy: Arc<AtomicU64>,
    idle: Idle,
    commands: Arc<Mailbox<Command>>,
    returned: Arc<Mailbox<Returned>>,
    epoll: Arc<Epoll>,
    lanes: Box<[Option<ActiveLane>]>,
    polled: Vec<LaneId>,
    stalled: Vec<LaneId>,
    /// Lanes that not every peer can notify, wherever they are.
    without_notify: Vec<LaneId>,
    /// How many lanes are asleep.
    asleep: usize,
    scratch: Scratch,
    clock: Clock,
    intervals: Intervals,
    shares: Shares,
}

/// A lane and what is known of it.
struct ActiveLane {
    lane: Box<Lane>,
    asleep: bool,
    /// What the last visit did.
    visit: Visit,
    /// When a frame was last moved, as far as the clock was read.
    last_moved: u64,
    /// What its visits took beyond its share, in ticks.
    debt: u64,
    /// How it leaves, once control has asked for it.
    recall: Option<Recall>,
}

/// How a lane leaves: with the frames that were published before, but not for ever.
struct Recall {
    visits: u16,
    until: u64,
}

impl Recall {
    /// Whether the lane goes, now that it was visited.
    fn is_over(&mut self, visit: Visit, now: u64) -> bool {
        let late = now >= self.until;
        match visit {
            Visit::Quiet => true,
            Visit::Stalled => late,
            Visit::Moved => {
                self.visits = self.visits.saturating_add(1);
                self.visits >= if late { VISITS_LATE } else { VISITS_RECALLED }
            }
        }
    }
}

impl Worker {
    pub(crate) fn new(
        number: usize,
        idle: Idle,
        busy: Arc<AtomicU64>,
        commands: Arc<Mailbox<Command>>,
        returned: Arc<Mailbox<Returned>>,
        epoll: Arc<Epoll>,
    ) -> io::Result<Self> {
        let intervals = Intervals::new();
        Ok(Self {
            number,
            busy,
            idle,
            commands,
            returned,
            epoll,
            lanes: std::iter::repeat_with(|| None).take(LANES_MAX).collect(),
            polled: Vec::with_capacity(LANES_MAX),
            stalled: Vec::with_capacity(LANES_MAX),
            without_notify: Vec::with_capacity(LANES_MAX),
            asleep: 0,
            scratch: Scratch::new(Notifier::new()?),
            clock: Clock::new(),
            shares: Shares::new(intervals.quantum),
            intervals,
        })
    }

    pub(crate) fn run(mut self) {
        // Naps are meant in microseconds; the default slack of 50 us would double them.
        let _ = nix::sys::prctl::set_timerslack(1);
        // What the way here took was no work.
        self.clock = Clock::new();
        let mut rounds = 0u32;
        while self.take_commands() {
            let moved = self.round();
            rounds = rounds.wrapping_add(1);
            self.clock.busy |= moved;
            // Right after a round with frames an empty one reads the clock, so that its time does not count as busy.
            let rounds_per_clock = match (moved, self.clock.busy, self.clock.spinning) {
                (true, _, _) => BUSY_ROUNDS_PER_CLOCK,
                (false, false, true) => EMPTY_ROUNDS_PER_CLOCK,
                (false, ..) => 1,
            };
            // Powers of two.
            if rounds & (rounds_per_clock - 1) != 0 {
                continue;
            }
            self.read_clock();
            if self.idle == Idle::Adaptive && self.clock.now >= self.clock.due {
                self.keep_lanes(moved);
            }
        }
    }

    /// Reads the clock, and counts what was spent on frames since it was last read.
    fn read_clock(&mut self) {
        let clock = &mut self.clock;
        let before = std::mem::replace(&mut clock.now, ticks::now());
        if std::mem::take(&mut clock.busy) {
            clock.moved = clock.now;
            clock.nap = NAP_MIN;
            clock.spinning = true;
            // Nobody else writes it.
            let busy = self.busy.load(Ordering::Relaxed) + clock.now.saturating_sub(before);
            self.busy.store(busy, Ordering::Relaxed);
        }
    }

    /// Takes what control has asked for. `false`: the end.
    fn take_commands(&mut self) -> bool {
        while let Some(command) = self.commands.take() {
            match command {
                Command::Serve(id, mut lane) => {
                    lane.drain_waiting(&mut self.scratch);
                    if !lane.has_notify_fds() {
                        self.without_notify.push(id);
                    }
                    let (visit, last_moved) = (Visit::Quiet, ticks::now());
                    let active = ActiveLane { lane, asleep: false, visit, last_moved, debt: 0, recall: None };
                    self.lanes[usize::from(id)] = Some(active);
                    self.polled.push(id);
                }
                Command::Return(id, timeout) => {
                    let now = ticks::now();
                    self.wake(id, now);
                    // Not there any more, if it broke in the meantime.
                    if let Some(active) = &mut self.lanes[usize::from(id)] {
                        active.recall = Some(Recall { visits: 0, until: now.saturating_add(ticks::of(timeout)) });
                    }
                }
                Command::Trace(id, capture) => {
                    if let Some(active) = &mut self.lanes[usize::from(id)] {
                        active.lane.capture = capture;
                    }
                }
                Command::Exchange(id, end, exchange) => {
                    let now = ticks::now();
                    // Not there any more, if it broke in the meantime: control gives the ring its eventfd.
                    if let Some(active) = &mut self.lanes[usize::from(id)] {
                        active.lane.ends[end].exchange(&exchange);
                    }
                    // Whoever listens to the new eventfd already has missed what the former one was told.
                    if let (EventfdRole::Call, Some(call)) = (exchange.role, &exchange.eventfd) {
                        let _ = self.scratch.notifier.notify(call.as_fd());
                    }
                    self.wake(id, now);
                }
                Command::Stop => {
                    (0..LANES_MAX as LaneId).for_each(|id| self.hand_back(id, None));
                    return false;
                }
            }
        }
        true
    }

    /// Visits every polled lane once, unless it owes too much of the others' time. Whether any frame was moved.
    fn round(&mut self) -> bool {
        let mut moved = false;
        // A lane that is alone shares the time with nobody.
        let shared = self.polled.len() > 1;
        let mut stamp = if shared { ticks::now() } else { 0 };
        let mut at = 0;
        while let Some(&id) = self.polled.get(at) {
            let Some(active) = &mut self.lanes[usize::from(id)] else {
                self.polled.swap_remove(at);
                continue;
            };
            if shared && active.recall.is_none() && !self.shares.is_turn(&mut active.debt) {
                at += 1;
                continue;
            }
            let fault = match active.lane.visit(&mut self.scratch) {
                Ok(visit) => {
                    active.visit = visit;
                    if visit == Visit::Moved {
                        active.last_moved = self.clock.now;
                        moved = true;
                    }
                    None
                }
                Err(fault) => Some(fault),
            };
            if shared {
                let before = std::mem::replace(&mut stamp, ticks::now());
                self.shares.charge(&mut active.debt, stamp.saturating_sub(before), active.visit);
            }
            let leaves = active.recall.as_mut().is_some_and(|recall| recall.is_over(active.visit, self.clock.now));
            if leaves || fault.is_some() {
                self.polled.swap_remove(at);
                self.hand_back(id, fault);
            } else {
                at += 1;
            }
        }
        self.scratch.notifier.flush();
        let passed_over = shared && self.shares.end_round();
        moved || passed_over
    }

    /// Looks after the lanes that have no work, and after those that are not in the rounds; `moved`: others have work.
    fn keep_lanes(&mut self, moved: bool) {
        let now = self.clock.now;
        self.clock.due = now + self.intervals.housekeeping;
        if Clock::is_due(now, &mut self.clock.rested, self.intervals.quiet / 4) {
            self.rest_lanes(now);
        }
        let woken = self.wake_lanes(now);
        if !moved && !woken && now.saturating_sub(self.clock.moved) >= self.intervals.spin {
            self.nap_or_sleep();
            // What comes next did not take the time that was slept.
            self.clock.now = ticks::now();
            self.clock.due = self.clock.now;
        }
    }

    /// Takes the lanes that had no work for a while out of the rounds.
    fn rest_lanes(&mut self, now: u64) {
        let mut at = 0;
        while let Some(&id) = self.polled.get(at) {
            let active = self.lanes[usize::from(id)].as_mut();
            let quiet = active.filter(|active| {
                now.saturating_sub(active.last_moved) >= self.intervals.quiet
                    // The next visit hands it back; asleep, nobody would visit it.
                    && active.recall.is_none()
                    && !active.lane.must_poll()
            });
            let Some(active) = quiet else {
                at += 1;
                continue;
            };
            if active.visit == Visit::Stalled {
                // Nobody notifies when there is room again.
                self.stalled.push(id);
            } else {
                active.lane.enable_notify(true);
                if active.lane.has_work() {
                    active.lane.enable_notify(false);
                    active.last_moved = now;
                    at += 1;
                    continue;
                }
                active.asleep = true;
                self.asleep += 1;
            }
            self.polled.swap_remove(at);
        }
    }

    /// Puts the lanes whose time has come back into the rounds: notified, due for another try, or
    /// due for a look in case their peer does not notify as it should. Whether there was one.
    fn wake_lanes(&mut self, now: u64) -> bool {
        let before = self.polled.len();
        if Clock::is_due(now, &mut self.clock.retried, self.intervals.retry) {
            self.polled.append(&mut self.stalled);
            for at in 0..self.without_notify.len() {
                self.wake_if_work(self.without_notify[at], now);
            }
        }
        if self.asleep > 0 {
            if Clock::is_due(now, &mut self.clock.looked, self.intervals.look) {
                for id in 0..LANES_MAX as LaneId {
                    self.wake_if_work(id, now);
                }
            }
            if Clock::is_due(now, &mut self.clock.listened, self.intervals.listen) {
                self.listen(EpollTimeout::ZERO);
            }
        }
        self.polled.len() > before
    }

    /// What the thread does when it had no work for a while.
    fn nap_or_sleep(&mut self) {
        self.clock.spinning = false;
        if !self.polled.is_empty() {
            std::thread::sleep(self.clock.nap);
            self.clock.nap = (self.clock.nap * 2).min(NAP_MAX);
        } else if self.commands.may_sleep() {
            let timeout = if self.stalled.is_empty() && self.without_notify.is_empty() { LOOK } else { RETRY };
            // At most 200 ms.
            let woken = self.listen(EpollTimeout::from(timeout.as_millis() as u16));
            self.commands.awake();
            if woken {
                self.clock.moved = ticks::now();
                self.clock.nap = NAP_MIN;
                self.clock.spinning = true;
            }
        }
    }

    /// Waits for eventfds and wakes the lanes that were notified. Whether there was one.
    fn listen(&mut self, timeout: EpollTimeout) -> bool {
        let mut events = [EpollEvent::empty(); BURST];
        // Interrupted or not: what matters is which eventfds are readable.
        let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        let now = ticks::now();
        for event in &events[..count] {
            if event.data() != MAILBOX {
                // Lane numbers are what was put into the events.
                self.wake(event.data() as LaneId, now);
            }
        }
        count > 0
    }

    /// Wakes a sleeping lane that has work, though nobody notified.
    fn wake_if_work(&mut self, id: LaneId, now: u64) {
        let active = self.lanes[usize::from(id)].as_mut();
        if active.is_some_and(|active| active.asleep && active.lane.has_work()) {
            self.wake(id, now);
        }
    }

    /// Puts a sleeping lane back into the rounds.
    fn wake(&mut self, id: LaneId, now: u64) {
        if let Some(active) = self.lanes[usize::from(id)].as_mut().filter(|active| active.asleep) {
            active.lane.enable_notify(false);
            active.asleep = false;
            active.last_moved = now;
            self.asleep -= 1;
            self.polled.push(id);
        }
    }

    fn hand_back(&mut self, id: LaneId, fault: Option<(usize, Fault)>) {
        if let Some(ActiveLane { lane, .. }) = self.lanes[usize::from(id)].take() {
            // Its eventfds are the peers' again once it is back.
            self.scratch.notifier.flush();
            self.without_notify.retain(|&other| other != id);
            let returned = Returned { worker: self.number, id, lane, fault };
            self.returned.try_post(returned).ok().expect("the box has room for every lane of every worker");
        }
    }
}

/// Rounds with work between two looks at the clock, which costs as much as moving a frame or two.
const BUSY_ROUNDS_PER_CLOCK: u32 = 16;
/// The same without work, while the thread spins.
const EMPTY_ROUNDS_PER_CLOCK: u32 = 4;
/// Visits with frames to a lane that is recalled: enough for everything in its longest ring, one at a time.
const VISITS_RECALLED: u16 = RING_MAX as u16;
/// The same once the timeout is over: enough for everything in its longest ring, a burst at a time.
const VISITS_LATE: u16 = RING_MAX as u16 / BURST as u16 + 1;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::sync::atomic::AtomicBool;

    use ferrule_ffi::notifier::eventfd;

    use crate::counters::LinkCounters;
    use crate::link::Nowhere;
    use crate::port::any::LaneEnd;
    use crate::port::{Frame, Source};
    use crate::spec::Full;

    /// Frames without end, once there are any.
    struct Frames {
        waiting: Arc<AtomicBool>,
        notify: Option<OwnedFd>,
    }

    impl Source for Frames {
        fn refresh(&mut self) -> Result<bool, Fault> {
            Ok(self.waiting.load(Ordering::Relaxed))
        }

        fn peek<'a>(&'a mut self, _gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
            Ok(Some(Frame { bytes: [7; 60][..].into(), offload: None, slots: 1 }))
        }

        fn advance(&mut self, _slots: u32) {}

        fn release(&mut self) {}

        fn enable_notify(&mut self, _wanted: bool) {}

        fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
            self.notify.as_ref().map(|eventfd| eventfd.as_fd())
        }
    }

    fn lane(waiting: &Arc<AtomicBool>, notify: Option<BorrowedFd<'_>>) -> Lane {
        let end = |waiting| {
            let source = Frames { waiting, notify: notify.map(|eventfd| eventfd.try_clone_to_owned().unwrap()) };
            LaneEnd::external([(Box::new(source) as _, Box::new(Nowhere) as _)])
        };
        let counters = [LinkCounters::default().lane(0), LinkCounters::default().lane(0)];
        let ends = [end(Arc::clone(waiting)), end(<_>::default())];
        Lane { ends, full: Full::Drop, counters, capture: None }
    }

    fn worker() -> Worker {
        let commands = Arc::new(Mailbox::new(8).unwrap());
        let returned = Arc::new(Mailbox::new(8).unwrap());
        let epoll = Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        Worker::new(0, Idle::Adaptive, <_>::default(), commands, returned, Arc::new(epoll)).unwrap()
    }

    #[test]
    fn a_sleeping_lane_that_nobody_notifies_is_looked_at_and_one_that_cannot_be_notified_far_sooner() {
        let waiting = Arc::<AtomicBool>::default();
        let mut worker = worker();
        let nobody_writes = eventfd().unwrap();
        for (id, notify) in [(0, None), (1, Some(nobody_writes.as_fd()))] {
            assert!(worker.commands.try_post(Command::Serve(id, Box::new(lane(&waiting, notify)))).is_ok());
        }
        assert!(worker.take_commands() && !worker.round());
        // The clock is the test's.
        let quiet = ticks::now() + worker.intervals.look;
        worker.rest_lanes(quiet);
        assert_eq!((&worker.polled[..], worker.asleep), (&[][..], 2));
        assert!(!worker.wake_lanes(quiet));
        waiting.store(true, Ordering::Relaxed);
        assert!(!worker.wake_lanes(quiet + worker.intervals.retry - 1));
        assert!(worker.wake_lanes(quiet + worker.intervals.retry));
        assert_eq!(worker.polled, [0]);
        assert!(worker.round(), "its frames are taken");
        assert!(worker.wake_lanes(quiet + worker.intervals.look));
        assert_eq!((&worker.polled[..], worker.asleep), (&[0, 1][..], 0));
    }
}
