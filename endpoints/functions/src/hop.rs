//! A function between two ports: frames are taken from one, judged on copies, and put to the other.
//!
//! One thread does it, for all queues; the ends are opened by threads of their own, one for each side, and handed over. Frames are judged in
//! bursts, and leave in their order, those that the function makes in the place of what they were made by; what finds the next end full waits, and holds back those behind it;
//! what finds nobody there is dropped and counted. An end may become another one while it runs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::capture::{Capture, CapturedFrame, Remark};
use ferrule_dataplane::port::memif::ring::Sender;
use ferrule_dataplane::port::{BURST, FRAME_MAX, Fault, Frame, Put, Source, Target};
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::ticks;
use thiserror::Error;

use crate::burst::Burst;
use crate::counter::Counter;
use crate::function::{Disposition, Extra, Function, Side};
use crate::port::{HopPort, PortSpec, with_queues};

/// What a hop has counted, and whether anybody is there.
#[derive(Debug, Default)]
pub struct HopCounters {
    /// By the side that frames came in on.
    pub sides: [SideCounters; 2],
}

/// Of one side.
#[derive(Debug, Default)]
pub struct SideCounters {
    connected: AtomicBool,
    /// Frames that came in.
    pub frames: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// Frames that left on the other side.
    pub forwarded: Counter,
    /// Frames that the function let go no further.
    pub dropped: Counter,
    /// Frames that the function made itself, and sent to this side.
    pub made: Counter,
    /// Frames that found nobody on the other side, or that it cannot take.
    pub lost: Counter,
}

impl SideCounters {
    /// Whether its peer is there.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Relaxed)
    }
}

/// What is asked of the function while it works.
pub type Order<F> = Box<dyn FnOnce(&mut F) + Send>;

/// What the worker is asked for.
enum HopOrder<F> {
    Function(Order<F>),
    /// Copies of its frames go there, or nowhere.
    Tap(Option<Arc<Capture>>),
}

/// A hop that runs. Dropping it ends it.
pub struct Hop<F> {
    counters: Arc<HopCounters>,
    orders: SyncSender<HopOrder<F>>,
    wanted: [Arc<WantedEnd>; 2],
    stop: Arc<AtomicBool>,
    /// Those that open the ends, and then the worker.
    threads: Vec<thread::JoinHandle<()>>,
}

/// What an end is to be.
struct WantedEnd {
    spec: Mutex<PortSpec>,
    /// How often it was another one.
    changes: AtomicU64,
}

impl WantedEnd {
    fn now(&self) -> (u64, PortSpec) {
        let spec = self.spec.lock().unwrap_or_else(PoisonError::into_inner);
        (self.changes.load(Relaxed), spec.clone())
    }
}

/// An end that was opened, and which one that was to be.
type Opened = (u64, HopPort);

impl<F: Function + Send + 'static> Hop<F> {
    /// Starts its threads. `say` is told what a person should know.
    pub fn start(
        function: F,
        specs: [impl Into<PortSpec>; 2],
        say: impl Fn(Side, HopEvent) + Clone + Send + 'static,
    ) -> Result<Self, HopError> {
        let (counters, stop) = (Arc::new(HopCounters::default()), Arc::new(AtomicBool::new(false)));
        let (orders, ordered) = sync_channel(ORDERS_MAX);
        let wanted =
            specs.map(|spec| Arc::new(WantedEnd { spec: Mutex::new(spec.into()), changes: AtomicU64::new(0) }));
        // From here on: dropping it ends the threads that it has, also when the next one cannot be had.
        let mut hop = Self {
            counters: Arc::clone(&counters),
            orders,
            wanted: wanted.clone(),
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        let notifier = Notifier::new().map_err(HopError::Notifier)?;
        // They go first then: a thread may wait for its own.
        let mut doors = Vec::new();
        for (side, wanted) in Side::BOTH.into_iter().zip(&wanted) {
            let (opened, door) = sync_channel(0);
            let (gone, again) = sync_channel(1);
            let (wanted, say, stop) = (Arc::clone(wanted), say.clone(), Arc::clone(&stop));
            let work = move || open_again(&wanted, &opened, &again, &stop, |event| say(side, event));
            doors.push((door, gone));
            hop.spawn(&format!("open-{}", side.word()), work)?;
        }
        let worker = Worker {
            function,
            tap: None,
            ends: [None, None],
            wanted,
            opened: [0; 2],
            counters,
            notifier,
            scratch: Scratch::new(),
            room_wait: ROOM_WAIT_MIN,
            started: Instant::now(),
        };
        let work = move || worker.run(&doors, &ordered, &stop, say);
        hop.spawn("function", work)?;
        Ok(hop)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), HopError> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work).map_err(HopError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// What it counts.
    pub fn counters(&self) -> &Arc<HopCounters> {
        &self.counters
    }

    /// Has an end become another one. That it is so already changes nothing.
    pub fn set_end(&self, side: Side, spec: impl Into<PortSpec>) {
        let wanted = &self.wanted[side.index()];
        let (mut known, spec) = (wanted.spec.lock().unwrap_or_else(PoisonError::into_inner), spec.into());
        if *known != spec {
            *known = spec;
            wanted.changes.fetch_add(1, Relaxed);
        }
    }

    /// Whether all of its threads are there.
    pub fn is_alive(&self) -> bool {
        !self.threads.iter().any(thread::JoinHandle::is_finished)
    }

    /// Has the worker do something with the function between two bursts, at the latest after a nap. `false`: it is not there any more.
    pub fn order(&self, order: impl FnOnce(&mut F) + Send + 'static) -> bool {
        self.orders.send(HopOrder::Function(Box::new(order))).is_ok()
    }

    /// Has frames copied from now on, as they come in with what the function says of them, and as they leave where that is otherwise; or not any
    /// more. Whoever reads the capture keeps it until nobody else has it: the worker frees no memory. `false`: it is not there any more.
    pub fn tap(&self, capture: Option<Arc<Capture>>) -> bool {
        self.orders.send(HopOrder::Tap(capture)).is_ok()
    }
}

impl<F> Drop for Hop<F> {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // With the worker the ends go that there are.
        if let Some(worker) = self.threads.pop() {
            let _ = worker.join();
        }
        // Whoever waits for a peer may do so for a while yet: it gives up then, or lets go of it. An interface is made at once, and goes.
        for (opener, wanted) in self.threads.drain(..).zip(&self.wanted) {
            if matches!(wanted.now().1, PortSpec::Kernel(_)) {
                let _ = opener.join();
            }
        }
    }
}

/// What a person should know of an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HopEvent {
    /// Its peer is there.
    Connected {
        /// What was agreed on.
        agreement: String,
    },
    /// Its peer went; the next one is waited for.
    Gone {
        /// Why.
        reason: String,
    },
    /// There is no peer yet. Told again only with another reason.
    Waiting {
        /// Why the last try failed.
        reason: String,
    },
}

/// Why a hop does not run.
#[derive(Debug, Error)]
pub enum HopError {
    /// No thread.
    #[error("start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// No notifier.
    #[error("make a notifier: {0}")]
    Notifier(#[source] std::io::Error),
}

/// A peer that goes is followed by the next one.
fn open_again(
    wanted: &WantedEnd,
    opened: &SyncSender<Opened>,
    again: &Receiver<()>,
    stop: &AtomicBool,
    say: impl Fn(HopEvent),
) {
    let mut problem = String::new();
    while !stop.load(Relaxed) {
        let (change, spec) = wanted.now();
        let end = HopPort::open(&spec, OPEN_TIMEOUT);
        if stop.load(Relaxed) {
            return;
        }
        match end {
            Ok(end) => {
                problem.clear();
                say(HopEvent::Connected { agreement: end.agreement() });
                if opened.send((change, end)).is_err() || again.recv().is_err() {
                    return;
                }
            }
            Err(error) => {
                let reason = error.to_string();
                if reason != problem {
                    say(HopEvent::Waiting { reason: reason.clone() });
                    problem = reason;
                }
                // Some reasons are there at once.
                thread::sleep(RETRY);
            }
        }
    }
}

struct Worker<F> {
    function: F,
    tap: Option<Arc<Capture>>,
    ends: [Option<HopPort>; 2],
    wanted: [Arc<WantedEnd>; 2],
    /// Which ends those are.
    opened: [u64; 2],
    counters: Arc<HopCounters>,
    notifier: Notifier,
    scratch: Scratch,
    /// How long the next wait for room takes.
    room_wait: Duration,
    started: Instant,
}

struct Scratch {
    gather: Box<[u8]>,
    /// By the side that frames come in on.
    directions: [Direction; 2],
    /// What the function has just made.
    extras: Vec<Extra>,
}

/// Our copies of frames, of which some may still wait for room.
#[derive(Default)]
struct Direction {
    burst: Burst,
    /// What the function made for the other side, each with the number of the frame that it was made by. Empty if nothing waits.
    made: VecDeque<(usize, Vec<u8>)>,
    /// What it made for this side.
    answers: Vec<Vec<u8>>,
    waiting: Option<Waiting>,
}

/// Frames that found their queue full.
#[derive(Clone, Copy)]
struct Waiting {
    /// The first of the burst that waits, and all behind it. What was made by those before it may wait too.
    first: usize,
    /// The queue that they came in by. Those behind them wait for them, and so does every other queue: there is one burst.
    queue: usize,
}

impl Scratch {
    fn new() -> Self {
        let gather = vec![0; FRAME_MAX].into_boxed_slice();
        Self { gather, directions: Default::default(), extras: Vec::new() }
    }
}

impl<F: Function> Worker<F> {
    fn run(
        mut self,
        doors: &[(Receiver<Opened>, SyncSender<()>)],
        orders: &Receiver<HopOrder<F>>,
        stop: &AtomicBool,
        say: impl Fn(Side, HopEvent),
    ) {
        let (mut idle, mut round) = (0u32, 0u32);
        while !stop.load(Relaxed) {
            round = round.wrapping_add(1);
            match orders.try_recv() {
                Ok(HopOrder::Function(order)) => order(&mut self.function),
                Ok(HopOrder::Tap(tap)) => self.tap = tap,
                Err(TryRecvError::Empty) => {}
                // Nobody holds the hop any more.
                Err(TryRecvError::Disconnected) => return,
            }
            for (side, (door, _)) in Side::BOTH.into_iter().zip(doors) {
                if self.ends[side.index()].is_none()
                    && let Ok((change, end)) = door.try_recv()
                {
                    self.ends[side.index()] = Some(end);
                    self.opened[side.index()] = change;
                    self.counters.sides[side.index()].connected.store(true, Relaxed);
                    self.tell_links();
                }
            }
            let now_ms = self.started.elapsed().as_millis() as u64;
            let mut moved = false;
            let mut gone = None;
            for side in Side::BOTH {
                match self.burst(side, now_ms) {
                    Ok(some) => moved |= some,
                    Err((whose, fault)) => gone = Some((whose, format!("it broke the rules: {fault}"))),
                }
            }
            idle = if moved { 0 } else { idle + 1 };
            if moved {
                self.room_wait = ROOM_WAIT_MIN;
            }
            if idle > SPINS || round.is_multiple_of(ROUNDS_UNSEEN) {
                gone = gone.or_else(|| self.find_gone());
                self.function.tick(now_ms);
            }
            if let Some((side, reason)) = gone {
                self.ends[side.index()] = None;
                self.counters.sides[side.index()].connected.store(false, Relaxed);
                self.tell_links();
                say(side, HopEvent::Gone { reason });
                let _ = doors[side.index()].1.try_send(());
            } else if idle > SPINS {
                self.sleep();
            }
        }
    }

    /// Each side is told whether anybody is at the other one.
    fn tell_links(&self) {
        let [client, network] = &self.ends;
        for (end, other) in [(client, network), (network, client)] {
            if let Some(end) = end {
                end.set_link(other.is_some());
            }
        }
    }

    /// A peer that has gone or is not wanted any more, and why.
    fn find_gone(&mut self) -> Option<(Side, String)> {
        Side::BOTH.into_iter().find_map(|side| {
            let end = self.ends[side.index()].as_mut()?;
            if self.wanted[side.index()].changes.load(Relaxed) != self.opened[side.index()] {
                return Some((side, "another one is wanted".to_owned()));
            }
            let error = end.check_peer().err()?;
            Some((side, error.to_string()))
        })
    }

    /// What came in on `side`, from each queue up to a burst. Whether there was any. A fault says whose it is.
    fn burst(&mut self, side: Side, now_ms: u64) -> Result<bool, (Side, Fault)> {
        let Self { function, tap, ends: [client, network], counters, notifier, scratch, .. } = self;
        let tap = tap.as_deref().map(|capture| TapAt { capture, ticks: ticks::now() });
        let (near, far) = match side {
            Side::Client => (client.as_mut(), network.as_mut()),
            Side::Network => (network.as_mut(), client.as_mut()),
        };
        let Some(near) = near else { return Ok(false) };
        let Direction { burst, made, answers, waiting } = &mut scratch.directions[side.index()];
        let [counters, far_counters] = [side, side.other()].map(|side| &counters.sides[side.index()]);
        let mut judge = Judge {
            function,
            tap,
            side,
            now_ms,
            counters,
            far_counters,
            burst,
            made,
            answers,
            waiting,
            gather: &mut scratch.gather,
            extras: &mut scratch.extras,
            notifier,
        };
        let mut nobody: [Sender; 0] = [];
        let moved = with_queues!(near, receivers, receivers => match far {
            Some(far) => with_queues!(far, senders, senders => judge.queues(receivers, senders)),
            None => judge.queues(receivers, &mut nobody),
        })?;
        for frame in answers.drain(..) {
            if let Some(tap) = tap {
                tap.made(side, &frame);
            }
            let stored = send(near, &frame, notifier).map_err(|fault| (side, fault))?;
            if stored { counters.made.add(1) } else { counters.lost.add(1) }
        }
        Ok(moved)
    }

    fn sleep(&mut self) {
        let waits = self.scratch.directions.iter().any(|direction| direction.waiting.is_some());
        if waits || self.ends.iter().all(Option::is_none) {
            // Nobody notifies us of room.
            thread::sleep(self.room_wait);
            self.room_wait = (self.room_wait * 2).min(ROOM_WAIT_MAX);
        } else {
            HopPort::sleep(&mut self.ends, NAP);
        }
    }
}

/// Sends one frame that the function made. Whether there was room.
fn send(end: &mut HopPort, bytes: &[u8], notifier: &mut Notifier) -> Result<bool, Fault> {
    fn put(target: Option<&mut impl Target>, bytes: &[u8], notifier: &mut Notifier) -> Result<bool, Fault> {
        let Some(target) = target else { return Ok(false) };
        target.refresh()?;
        let stored = target.put(&Frame { bytes: bytes.into(), offload: None, slots: 0 })? == Put::Stored;
        publish(target, notifier);
        Ok(stored)
    }
    with_queues!(end, senders, senders => put(senders.first_mut(), bytes, notifier))
}

fn publish(target: &mut impl Target, notifier: &mut Notifier) {
    if target.publish()
        && let Some(eventfd) = target.notify_fd()
    {
        // A peer whose eventfd cannot be rung looks by itself, or goes.
        let _ = notifier.notify(eventfd);
    }
}

/// Where copies of frames go, and when that is.
#[derive(Clone, Copy)]
struct TapAt<'a> {
    capture: &'a Capture,
    ticks: u64,
}

impl TapAt<'_> {
    /// A frame that came in was judged. If it leaves otherwise than it came in, it is copied once more.
    #[cold]
    fn judged(self, seen: CapturedFrame, far: Side, bytes: &[u8], disposition: Disposition, remark: Remark<'_>) {
        let is_other = disposition == Disposition::Forward && !bytes.starts_with(seen.bytes());
        let leaving = if is_other { self.capture.take(self.ticks, far.index(), true, bytes) } else { None };
        self.capture.put(seen, remark, leaving.is_some());
        if let Some(leaving) = leaving {
            self.capture.put(leaving, remark, false);
        }
    }

    /// The function sends a frame of its own.
    #[cold]
    fn made(self, to: Side, bytes: &[u8]) {
        if let Some(frame) = self.capture.take(self.ticks, to.index(), true, bytes) {
            self.capture.put(frame, Remark { word: "made", ..Remark::default() }, false);
        }
    }
}

/// One direction at work.
struct Judge<'a, F> {
    function: &'a mut F,
    tap: Option<TapAt<'a>>,
    side: Side,
    now_ms: u64,
    counters: &'a SideCounters,
    far_counters: &'a SideCounters,
    burst: &'a mut Burst,
    made: &'a mut VecDeque<(usize, Vec<u8>)>,
    answers: &'a mut Vec<Vec<u8>>,
    waiting: &'a mut Option<Waiting>,
    gather: &'a mut Box<[u8]>,
    extras: &'a mut Vec<Extra>,
    notifier: &'a mut Notifier,
}

impl<F: Function> Judge<'_, F> {
    fn queues(&mut self, receivers: &mut [impl Source], senders: &mut [impl Target]) -> Result<bool, (Side, Fault)> {
        let mut moved = false;
        let last = receivers.len().saturating_sub(1);
        for (index, receiver) in receivers.iter_mut().enumerate() {
            // A peer that came back may have fewer queues than the one whose frame waits.
            if self.waiting.is_some_and(|waiting| waiting.queue.min(last) != index) {
                continue;
            }
            // The two sides may have agreed on different numbers of queues.
            let far = index.min(senders.len().saturating_sub(1));
            moved |= self.queue(index, receiver, senders.get_mut(far))?;
        }
        Ok(moved)
    }

    fn queue(
        &mut self,
        index: usize,
        receiver: &mut impl Source,
        mut sender: Option<&mut impl Target>,
    ) -> Result<bool, (Side, Fault)> {
        let (near, far) = (self.side, self.side.other());
        if let Some(sender) = &mut sender {
            sender.refresh().map_err(|fault| (far, fault))?;
        }
        if let Some(Waiting { first, .. }) = self.waiting.take() {
            let made = self.made.len();
            let is_any_put = self.put(first, index, sender.as_deref_mut()).map_err(|fault| (far, fault))?;
            if !is_any_put && self.made.len() == made {
                return Ok(false);
            }
        } else if !receiver.refresh().map_err(|fault| (near, fault))? {
            return Ok(false);
        }
        receiver.refresh().map_err(|fault| (near, fault))?;
        let mut taken = 0;
        while self.waiting.is_none() && taken < BURST {
            taken += self.take(receiver).map_err(|fault| (near, fault))?;
            if self.burst.is_empty() {
                break;
            }
            self.judge();
            self.put(0, index, sender.as_deref_mut()).map_err(|fault| (far, fault))?;
        }
        receiver.release();
        if let Some(eventfd) = receiver.release_notify_fd() {
            let _ = self.notifier.notify(eventfd);
        }
        if let Some(sender) = sender {
            publish(sender, self.notifier);
        }
        Ok(true)
    }

    /// Copies what came in, up to a burst. How many frames.
    fn take(&mut self, receiver: &mut impl Source) -> Result<usize, Fault> {
        self.burst.clear();
        // Some are left if the other side broke the rules meanwhile.
        self.made.clear();
        while self.burst.has_room() {
            let Some(frame) = receiver.peek(self.gather)? else { break };
            let (length, slots) = (frame.bytes.len(), frame.slots);
            self.burst.push(frame.bytes);
            receiver.advance(slots);
            self.counters.frames.add(1);
            self.counters.bytes.add(length as u64);
        }
        Ok(self.burst.len())
    }

    fn judge(&mut self) {
        let Self { function, tap, side, now_ms, burst, extras, .. } = self;
        match tap {
            None => function.burst(*side, burst, *now_ms, extras),
            Some(tap) => {
                for number in 0..burst.len() {
                    let bytes = burst.frame_mut(number);
                    let seen = tap.capture.take(tap.ticks, side.index(), false, bytes);
                    let disposition = function.frame(*side, bytes, *now_ms, extras);
                    if let Some(seen) = seen {
                        tap.judged(seen, side.other(), bytes, disposition, function.remark());
                    }
                    burst.dispose(number, disposition, extras.len());
                }
            }
        }
        if !self.extras.is_empty() {
            self.take_extras();
        }
    }

    /// What goes on leaves in the place of what it was made by, or it would be behind newer frames of its flow: parts of a packet, or those that
    /// waited for their first part. Of what goes back nothing newer can be before it: it was made, or waited, on this side.
    #[cold]
    fn take_extras(&mut self) {
        for (number, Extra { to, frame }) in self.extras.drain(..).enumerate() {
            if to == self.side {
                self.answers.push(frame);
            } else {
                self.made.push_back((self.burst.maker(number), frame));
            }
        }
    }

    /// Puts our copies to the other side, from the first of these on. `false`: that one waits for room, and so do those behind it.
    fn put(&mut self, first: usize, queue: usize, mut sender: Option<&mut impl Target>) -> Result<bool, Fault> {
        for number in first..self.burst.len() {
            if !self.made.is_empty() && !self.put_made(number, sender.as_deref_mut())? {
                *self.waiting = Some(Waiting { first: number, queue });
                return Ok(number > first);
            }
            if self.burst.disposition(number) == Disposition::Drop {
                self.counters.dropped.add(1);
                continue;
            }
            let frame = Frame { bytes: self.burst.frame(number).into(), offload: None, slots: 0 };
            match sender.as_mut().map(|sender| sender.put(&frame)).transpose()? {
                Some(Put::Stored) => self.counters.forwarded.add(1),
                Some(Put::Full) => {
                    *self.waiting = Some(Waiting { first: number, queue });
                    return Ok(number > first);
                }
                Some(Put::Refused(_)) | None => self.counters.lost.add(1),
            }
        }
        let end = self.burst.len();
        if !self.made.is_empty() && !self.put_made(end, sender)? {
            *self.waiting = Some(Waiting { first: end, queue });
            return Ok(end > first);
        }
        Ok(true)
    }

    /// Puts to the other side what was made by the frames before this one. `false`: one waits for room.
    #[cold]
    fn put_made(&mut self, before: usize, mut sender: Option<&mut impl Target>) -> Result<bool, Fault> {
        while let Some((maker, bytes)) = self.made.pop_front_if(|(maker, _)| *maker < before) {
            let frame = Frame { bytes: bytes[..].into(), offload: None, slots: 0 };
            match sender.as_mut().map(|sender| sender.put(&frame)).transpose()? {
                Some(Put::Stored) => self.far_counters.made.add(1),
                Some(Put::Full) => {
                    self.made.push_front((maker, bytes));
                    return Ok(false);
                }
                Some(Put::Refused(_)) | None => self.far_counters.lost.add(1),
            }
            if let Some(tap) = self.tap {
                tap.made(self.side.other(), &bytes);
            }
        }
        Ok(true)
    }
}

/// Rounds with work between two looks at what peers say.
const ROUNDS_UNSEEN: u32 = 256;
/// Rounds without work before the thread sleeps: hops share CPUs, and one that looks keeps those waiting that have frames.
const SPINS: u32 = 4;
/// How long to wait for room at first: a peer that works has emptied a part of its ring by then. A ring that was looked at each millisecond would carry no more than a
/// thousand times what it holds.
const ROOM_WAIT_MIN: Duration = Duration::from_micros(100);
/// And at last, if there is none.
const ROOM_WAIT_MAX: Duration = Duration::from_millis(1);
/// How long one sleep lasts at most: so often orders are looked at.
const NAP: Duration = Duration::from_millis(20);
/// How long to wait for a peer before the stop is looked at.
const OPEN_TIMEOUT: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_millis(50);
const ORDERS_MAX: usize = 16;
