//! A generator and a sink on the two ends of a wire, driven by one thread.
//!
//! It has to be faster than what it measures, so it leaves frames in their buffers and rewrites what differs
//! ([`Touch`] says how much of a frame that is), reads the clock once a burst, and notes how long it
//! had nothing to do: a generator that never waits measures itself.
//!
//! - `pacer`: how many frames are due.
//! - `tx`: the frames of one queue, sent.
//! - `rx`: frames received and looked at.

mod pacer;
mod rx;
mod tx;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use ferrule_dataplane::port::{BURST, Fault};
use ferrule_dataplane::status::DropReason;
use ferrule_endpoints::end::{End, EndError};
use ferrule_endpoints::virtio::{DriverRx, DriverTx};
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::ticks;
use thiserror::Error;

use crate::generator::pacer::Pacer;
use crate::generator::rx::RxStream;
use crate::generator::tx::TxStream;
use crate::latency::Latency;
use crate::load::{Load, Pace, Stop, Touch};
use crate::traffic::{HEAD, RxCounters, SizeError};

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub struct RunResult {
    /// From the near end to the far one.
    pub there: Outcome,
    /// The other way, if the load goes both ways.
    pub back: Option<Outcome>,
    /// The share of the time in which nothing could be sent or received. Near 0 with a load that is not paced, the
    /// generator is the limit, and not what was measured.
    pub idle: f64,
    /// Frames that arrived, both ways and while warming up too.
    pub moved: u64,
    /// In a direction frames were sent and none arrived, while warming up neither.
    pub has_dead_direction: bool,
}

impl RunResult {
    /// Each direction that was sent in.
    pub fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        std::iter::once(&self.there).chain(&self.back)
    }
}

/// What came of a load in one direction.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Frames sent.
    pub sent: u64,
    /// Frames that found no room when they were due.
    pub refused: u64,
    /// Frames that the generator was too late for: they were not offered to anybody.
    pub skipped: u64,
    /// What arrived.
    pub received: RxCounters,
    /// From the first frame sent until the last one arrived.
    pub elapsed: Duration,
    /// From the first frame sent until the last one was due.
    pub sending: Duration,
    /// How long frames were under way, if that was asked for.
    pub latency: Option<Latency>,
}

impl Outcome {
    /// Frames that arrived, per second.
    pub fn frames_per_second(&self) -> f64 {
        per_second(self.received.frames, self.elapsed)
    }

    /// Frames offered, per second.
    pub fn offered_per_second(&self) -> f64 {
        per_second(self.offered(), self.sending)
    }

    /// Frames that were due and that the generator was in time for.
    pub fn offered(&self) -> u64 {
        self.sent + self.refused
    }

    /// Frames offered that did not arrive.
    pub fn lost(&self) -> u64 {
        self.offered().saturating_sub(self.received.frames - self.received.duplicated)
    }

    /// Whether every frame arrived once, in order and intact.
    pub fn is_perfect(&self) -> bool {
        self.received == RxCounters { frames: self.offered(), bytes: self.received.bytes, ..RxCounters::default() }
    }
}

/// Sends from `near` to `far`, and back if the load says so, until the load is over and what was under way has arrived or
/// nothing has for [`GRACE`]; or until somebody sets `cancel`.
pub fn run(load: &Load, near: &mut End, far: &mut End, cancel: &AtomicBool) -> Result<RunResult, RunError> {
    let mut generator = Generator {
        notifier: Notifier::new().map_err(RunError::Notifier)?,
        there: Direction::new(load, 0, near)?,
        back: load.both_ways.then(|| Direction::new(load, load.flows, far)).transpose()?,
    };
    near.check_peer().map_err(RunError::Gone)?;
    far.check_peer().map_err(RunError::Gone)?;
    let mut warmed = [0; 2];
    if !load.warm_up.is_zero() {
        let pace = if load.pace == Pace::BackToBack { Pace::Saturate } else { load.pace };
        generator.phase(pace, Stop::After(load.warm_up), near, far, cancel)?;
        warmed = generator.moved();
    }
    let times = generator.phase(load.pace, load.stop, near, far, cancel)?;
    near.check_peer().map_err(RunError::Gone)?;
    far.check_peer().map_err(RunError::Gone)?;
    let moved = generator.moved();
    let moved = [0, 1].map(|way| warmed[way] + moved[way]);
    let there = generator.there.outcome(&times);
    let back = generator.back.map(|back| back.outcome(&times));
    let is_dead = |(outcome, moved): (&Outcome, u64)| outcome.sent > 0 && moved == 0;
    let has_dead_direction = std::iter::once(&there).chain(&back).zip(moved).any(is_dead);
    Ok(RunResult { there, back, idle: times.idle, moved: moved.iter().sum(), has_dead_direction })
}

struct Generator {
    notifier: Notifier,
    there: Direction,
    back: Option<Direction>,
}

/// When the parts of a phase ended, from its beginning on.
struct Times {
    arrived: Duration,
    sent: Duration,
    idle: f64,
}

impl Generator {
    fn directions(&mut self) -> impl Iterator<Item = &mut Direction> {
        std::iter::once(&mut self.there).chain(&mut self.back)
    }

    /// Frames that arrived, by direction.
    fn moved(&self) -> [u64; 2] {
        [Some(&self.there), self.back.as_ref()]
            .map(|direction| direction.map_or(0, |direction| direction.rx.sink.tally().frames))
    }

    /// Sends until `stop`, and counts from 0.
    fn phase(
        &mut self,
        pace: Pace,
        stop: Stop,
        near: &mut End,
        far: &mut End,
        cancel: &AtomicBool,
    ) -> Result<Times, RunError> {
        let end = match stop {
            Stop::After(time) => ticks::of(time),
            Stop::Frames(_) => u64::MAX,
        };
        let grace = ticks::of(GRACE);
        let started = ticks::now();
        self.directions().for_each(|direction| direction.begin(pace, stop, started));
        let (mut arrived, mut sent, mut sending) = (started, started, true);
        let (mut rounds, mut idle) = (0u64, 0u64);
        let mut now = started;
        loop {
            if sending {
                sent = now.min(started.saturating_add(end));
                sending = now - started < end && self.directions().any(|direction| direction.pacer.is_open());
                if !sending {
                    self.directions().for_each(|direction| direction.pacer.close(sent));
                }
            }
            let mut moved = self.there.round(now, sending, near, far, &mut self.notifier)?;
            if let Some(back) = &mut self.back {
                moved = moved.and(back.round(now, sending, far, near, &mut self.notifier)?);
            }
            if moved.received > 0 {
                arrived = now;
            }
            rounds += 1;
            let before = std::mem::replace(&mut now, ticks::now());
            if moved.received + moved.sent == 0 {
                idle += now - before;
            }
            if !sending
                && (self.directions().all(|direction| direction.is_drained()) || now - arrived.max(sent) > grace)
            {
                break;
            }
            if rounds.is_multiple_of(ROUNDS_PER_LOOK) && cancel.load(Relaxed) {
                return Err(RunError::Cancelled);
            }
        }
        // The clock was read before the round in which the last frame came.
        let (arrived, sent) = (ticks::time(arrived - started), ticks::time(sent - started));
        Ok(Times { arrived, sent, idle: idle as f64 / (now - started).max(1) as f64 })
    }
}

/// Frames moved in a round.
#[derive(Clone, Copy, Default)]
struct Moved {
    sent: u32,
    received: u32,
}

impl Moved {
    fn and(self, other: Self) -> Self {
        Self { sent: self.sent + other.sent, received: self.received + other.received }
    }
}

/// One direction.
struct Direction {
    /// One for each queue that there are flows for.
    streams: Vec<TxStream>,
    /// The stream whose turn is first.
    turn: usize,
    pacer: Pacer,
    /// Frames sent at once without a pace.
    burst: u32,
    rx: RxStream,
}

impl Direction {
    /// Its flows count from `first` on.
    fn new(load: &Load, first: u32, from: &End) -> Result<Self, SizeError> {
        let queues = (from.queues() as u32).clamp(1, load.flows.max(1));
        let stream = |queue| {
            let flows = (first..first + load.flows.max(1)).skip(queue as usize).step_by(queues as usize);
            TxStream::new(load, flows, from.buffers())
        };
        let streams = (0..queues).map(stream).collect::<Result<_, _>>()?;
        let rx = RxStream::new(load, first..first + load.flows.max(1))?;
        Ok(Self { streams, turn: 0, pacer: Pacer::default(), burst: burst(load), rx })
    }

    fn begin(&mut self, pace: Pace, stop: Stop, now: u64) {
        self.pacer = Pacer::new(pace, stop, self.burst, now);
        // Flow number n is the stream's n-th, by queues.
        let (streams, flows) = (&self.streams, self.streams.iter().map(TxStream::flows).sum());
        let next = |flow: usize| streams[flow % streams.len()].sequence(flow / streams.len());
        self.rx.restart((0..flows).map(next));
    }

    fn is_drained(&self) -> bool {
        self.rx.sink.tally().frames >= self.pacer.sent
    }

    /// Sends what is due, at most a burst on each queue, and takes what has arrived.
    fn round(
        &mut self,
        now: u64,
        sending: bool,
        from: &mut End,
        to: &mut End,
        notifier: &mut Notifier,
    ) -> Result<Moved, RunError> {
        let mut moved = Moved::default();
        if sending {
            let before = self.pacer.sent;
            self.send(now, from, notifier)?;
            moved.sent = (self.pacer.sent - before) as u32;
        }
        match to {
            End::Memif(endpoint) => {
                for receiver in &mut endpoint.queues.receivers {
                    moved.received += self.rx.receive(receiver, notifier)?;
                }
            }
            End::Vhost(frontend) => {
                for receiver in &mut frontend.queues.receivers {
                    moved.received += match receiver {
                        DriverRx::Split(ring) => self.rx.receive(&mut **ring, notifier)?,
                        DriverRx::Packed(ring) => self.rx.receive(&mut **ring, notifier)?,
                    };
                }
            }
        }
        Ok(moved)
    }

    fn send(&mut self, now: u64, from: &mut End, notifier: &mut Notifier) -> Result<(), RunError> {
        let count = self.streams.len();
        for _ in 0..count {
            let queue = self.turn;
            self.turn = if queue + 1 == count { 0 } else { queue + 1 };
            let due = self.pacer.due(now);
            if due == 0 {
                break;
            }
            let stream = &mut self.streams[queue];
            let sent = match from {
                End::Memif(endpoint) => match endpoint.queues.senders.get_mut(queue) {
                    Some(sender) => stream.send(sender, due, now, notifier)?,
                    None => 0,
                },
                End::Vhost(frontend) => match frontend.queues.senders.get_mut(queue) {
                    Some(DriverTx::Split(ring)) => stream.send(&mut **ring, due, now, notifier)?,
                    Some(DriverTx::Packed(ring)) => stream.send(&mut **ring, due, now, notifier)?,
                    None => 0,
                },
            };
            self.pacer.account(due, sent);
        }
        Ok(())
    }

    fn outcome(self, times: &Times) -> Outcome {
        Outcome {
            sent: self.pacer.sent,
            refused: self.pacer.refused,
            skipped: self.pacer.skipped,
            received: self.rx.sink.tally(),
            elapsed: times.arrived,
            sending: times.sent,
            latency: self.rx.latency,
        }
    }
}

/// Each burst costs a fence, and indexes that the other side reads or writes: many frames share it, as long as the bytes that
/// are touched stay in the cache.
fn burst(load: &Load) -> u32 {
    let touched = match load.touch {
        Touch::Whole | Touch::Verified => load.mix.sizes().iter().sum::<usize>() / load.mix.sizes().len(),
        Touch::Stamped | Touch::Untouched => HEAD,
    };
    (BURST_BYTES / touched).clamp(BURST, BURST_MAX) as u32
}

fn per_second(frames: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { frames as f64 / time.as_secs_f64() }
}

/// Why a run could not be made.
#[derive(Debug, Error)]
pub enum RunError {
    /// No such frames.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The peer broke the protocol.
    #[error("the peer broke the rules: {0}")]
    Fault(#[from] Fault),
    /// The peer is not there any more.
    #[error("the peer has gone: {0}")]
    Gone(#[source] EndError),
    /// The frame can never be stored.
    #[error("a frame of {size} bytes is refused: {reason:?}")]
    Refused {
        /// Its size.
        size: usize,
        /// Why.
        reason: DropReason,
    },
    /// The peer could not be notified.
    #[error("notify the peer: {0}")]
    Notifier(std::io::Error),
    /// Somebody wanted that.
    #[error("interrupted")]
    Cancelled,
}

/// How long to wait for frames under way when nothing arrives any more.
pub const GRACE: Duration = Duration::from_millis(200);
/// A part of the second cache of any CPU.
const BURST_BYTES: usize = 96 * 1024;
const BURST_MAX: usize = 4 * BURST;
const ROUNDS_PER_LOOK: u64 = 1024;
/// Frames between one whose line is asked for and the one that is being worked on. Buffers of 2048 bytes share a few sets
/// of the first cache, which has room for 16 or 24 of their lines in all.
const PREFETCH: usize = 8;
