//! A generator and a sink on the two ends of a wire, driven by one thread, or on two ports, driven by several.
//!
//! It has to be faster than what it measures, so it leaves frames in their buffers and rewrites what differs
//! ([`Touch`] says how much of a frame that is), reads the clock once a burst, and notes how long it
//! had nothing to do: a generator that never waits measures itself.
//!
//! - `side`: what a thread sends by and receives at.
//! - `team`: what threads know of each other.
//! - `pacer`: how many frames are due.
//! - `tx`: the frames of one queue, sent.
//! - `rx`: frames received and looked at.

mod pacer;
mod rx;
mod side;
mod team;
mod tx;

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use ferrule_dataplane::port::{BURST, Fault};
use ferrule_dataplane::status::DropReason;
use ferrule_endpoints::end::{End, EndError};
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::ticks;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use thiserror::Error;

use crate::generator::pacer::Pacer;
pub(crate) use crate::generator::rx::RxStream;
pub(crate) use crate::generator::side::Side;
use crate::generator::team::{LaneProgress, Member, Team};
pub(crate) use crate::generator::tx::TxStream;
use crate::latency::Latency;
use crate::load::{Load, Pace, Stop, Touch};
use crate::traffic::{Addresses, HEAD, RxCounters, SizeError};

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

    /// What another thread did at the same time is added.
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.refused += other.refused;
        self.skipped += other.skipped;
        self.received += other.received;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.sending = self.sending.max(other.sending);
        if let Some(latency) = other.latency {
            self.latency.get_or_insert_default().add(&latency);
        }
    }

    /// Whether every frame arrived once, in order and intact.
    pub fn is_perfect(&self) -> bool {
        self.received == RxCounters { frames: self.offered(), bytes: self.received.bytes, ..RxCounters::default() }
    }
}

/// Sends from `near` to `far`, and back if the load says so, until the load is over and what was under way has arrived or
/// nothing has for [`GRACE`]; or until somebody sets `cancel`.
pub fn run(load: &Load, near: &mut End, far: &mut End, cancel: &AtomicBool) -> Result<RunResult, RunError> {
    near.check_peer().map_err(RunError::Gone)?;
    far.check_peer().map_err(RunError::Gone)?;
    let result = run_lane(load, (&mut *near, &mut *far), Team::new(load, 1, cancel).member(0))?;
    near.check_peer().map_err(RunError::Gone)?;
    far.check_peer().map_err(RunError::Gone)?;
    Ok(result.into())
}

/// The same by several threads: each has a near and a far side of its own, and a CPU. What one sends may arrive at any of them.
pub(crate) fn run_lanes<S: Side>(
    load: &Load,
    lanes: Vec<(S, S)>,
    cpus: &[usize],
    cancel: &AtomicBool,
) -> Result<RunResult, RunError> {
    let team = Team::new(load, lanes.len(), cancel);
    let results: Vec<_> = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, (lane, &cpu)) in lanes.into_iter().zip(cpus).enumerate() {
            let member = team.member(number);
            threads.push(scope.spawn(move || {
                let mut only = CpuSet::new();
                only.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &only)).map_err(RunError::Cpu)?;
                run_lane(load, lane, member)
            }));
        }
        let result = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(result).collect()
    });
    // Whoever fails has the others stop: its own error says why.
    let why = results.iter().position(|result| matches!(result, Err(error) if !matches!(error, RunError::Cancelled)));
    let mut sum = LaneResult::default();
    let count = results.len();
    for (number, result) in results.into_iter().enumerate() {
        if why.is_none_or(|why| why == number) {
            sum.add(result?);
        }
    }
    sum.idle /= count as f64;
    Ok(sum.into())
}

fn run_lane<S: Side>(load: &Load, (mut near, mut far): (S, S), member: Member<'_>) -> Result<LaneResult, RunError> {
    let [there, back] = load.addresses;
    let mut generator = Generator {
        notifier: Notifier::new().map_err(RunError::Notifier)?,
        there: Direction::new(load, 0, there, &near, &member)?,
        back: load.both_ways.then(|| Direction::new(load, load.flows, back, &far, &member)).transpose()?,
        member,
    };
    near.prepare(&there)?;
    far.prepare(&back)?;
    let mut warmed = [0; 2];
    if !load.warm_up.is_zero() {
        let pace = if load.pace == Pace::BackToBack { Pace::Saturate } else { load.pace };
        generator.phase(pace, Stop::After(load.warm_up), &mut near, &mut far)?;
        warmed = generator.moved();
    }
    let times = generator.phase(load.pace, load.stop, &mut near, &mut far)?;
    let moved = generator.moved();
    let moved = [0, 1].map(|way| warmed[way] + moved[way]);
    let there = generator.there.outcome(&times);
    let back = generator.back.map(|back| back.outcome(&times));
    generator.member.end();
    Ok(LaneResult { there, back, idle: times.idle, moved })
}

/// What came of one thread's part of a load.
#[derive(Default)]
struct LaneResult {
    there: Outcome,
    back: Option<Outcome>,
    idle: f64,
    /// Frames that arrived, by direction, while warming up too.
    moved: [u64; 2],
}

impl LaneResult {
    fn add(&mut self, other: Self) {
        self.there.add(other.there);
        if let Some(back) = other.back {
            self.back.get_or_insert_default().add(back);
        }
        self.idle += other.idle;
        self.moved = [0, 1].map(|way| self.moved[way] + other.moved[way]);
    }
}

impl From<LaneResult> for RunResult {
    fn from(LaneResult { there, back, idle, moved }: LaneResult) -> Self {
        let is_dead = |(outcome, moved): (&Outcome, u64)| outcome.sent > 0 && moved == 0;
        let has_dead_direction = std::iter::once(&there).chain(&back).zip(moved).any(is_dead);
        Self { there, back, idle, moved: moved.iter().sum(), has_dead_direction }
    }
}

struct Generator<'a> {
    notifier: Notifier,
    there: Direction,
    back: Option<Direction>,
    member: Member<'a>,
}

/// When the parts of a phase ended, from its beginning on.
struct Times {
    arrived: Duration,
    sent: Duration,
    idle: f64,
}

impl Generator<'_> {
    fn directions(&mut self) -> impl Iterator<Item = &mut Direction> {
        std::iter::once(&mut self.there).chain(&mut self.back)
    }

    /// Frames that arrived, by direction.
    fn moved(&self) -> [u64; 2] {
        [Some(&self.there), self.back.as_ref()]
            .map(|direction| direction.map_or(0, |direction| direction.rx.sink.tally().frames))
    }

    fn progress(&self, arrived: u64, sent: u64) -> LaneProgress {
        let frames = |direction: &Direction| [direction.pacer.sent, direction.rx.sink.tally().frames];
        let back = self.back.as_ref().map_or([0; 2], frames);
        LaneProgress { frames: [frames(&self.there), back], last: arrived.max(sent) }
    }

    /// Sends until `stop`, and counts from 0.
    fn phase(&mut self, pace: Pace, stop: Stop, near: &mut impl Side, far: &mut impl Side) -> Result<Times, RunError> {
        let end = match stop {
            Stop::After(time) => ticks::of(time),
            Stop::Frames(_) => u64::MAX,
        };
        let grace = ticks::of(GRACE);
        self.begin(pace, stop)?;
        let started = ticks::now();
        self.directions().for_each(|direction| direction.pacer.start(started));
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
            if !sending && self.member.is_over(&self.progress(arrived, sent), now, grace) {
                break;
            }
            if rounds.is_multiple_of(ROUNDS_PER_LOOK) {
                self.member.check()?;
            }
        }
        // The clock was read before the round in which the last frame came.
        let (arrived, sent) = (ticks::time(arrived - started), ticks::time(sent - started));
        Ok(Times { arrived, sent, idle: idle as f64 / (now - started).max(1) as f64 })
    }

    /// Has every thread know which number each flow goes on with, wherever its frames arrive, before any of them sends.
    fn begin(&mut self, pace: Pace, stop: Stop) -> Result<(), RunError> {
        let (share, members) = (self.member.share(stop), self.member.count());
        let pace = match pace {
            Pace::PerSecond(rate) => Pace::PerSecond(rate / members as f64),
            other => other,
        };
        self.directions().for_each(|direction| direction.pacer = Pacer::new(pace, share, direction.burst));
        for (way, direction) in [Some(&self.there), self.back.as_ref()].into_iter().flatten().enumerate() {
            for (flow, sequence) in direction.sequences() {
                self.member.tell_sequence(way, flow, sequence);
            }
        }
        self.member.meet()?;
        for (way, direction) in [Some(&mut self.there), self.back.as_mut()].into_iter().flatten().enumerate() {
            direction.rx.restart(self.member.sequences(way));
        }
        self.member.forget();
        self.member.meet()
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

/// One direction, as far as one thread has it.
struct Direction {
    /// One for each queue that there are flows for.
    streams: Vec<TxStream>,
    /// Flows of a stream are so far apart.
    step: usize,
    /// The first flow of the first stream.
    first: usize,
    /// The stream whose turn is first.
    turn: usize,
    pacer: Pacer,
    /// Frames sent at once without a pace.
    burst: u32,
    rx: RxStream,
}

impl Direction {
    /// Its flows count from `first` on.
    fn new(
        load: &Load,
        first: u32,
        addresses: Addresses,
        from: &impl Side,
        member: &Member<'_>,
    ) -> Result<Self, SizeError> {
        let all = load.flows.max(1);
        let step = (from.queues() * member.count()).clamp(1, all as usize);
        let place = from.queues() * member.number();
        let stream = |queue| {
            let flows = (first..first + all).skip(queue).step_by(step);
            TxStream::new(load, flows, addresses, from.buffers())
        };
        let streams = (place..step.min(place + from.queues())).map(stream).collect::<Result<_, _>>()?;
        let rx = RxStream::new(load, first..first + all, addresses)?;
        Ok(Self { streams, step, first: place, turn: 0, pacer: Pacer::default(), burst: burst(load), rx })
    }

    /// The flows that it sends, and the next number of each.
    fn sequences(&self) -> impl Iterator<Item = (usize, u64)> {
        self.streams.iter().enumerate().flat_map(move |(number, stream)| {
            (0..stream.flows()).map(move |place| (self.first + number + place * self.step, stream.sequence(place)))
        })
    }

    /// Sends what is due, at most a burst on each queue, and takes what has arrived.
    fn round(
        &mut self,
        now: u64,
        sending: bool,
        from: &mut impl Side,
        to: &mut impl Side,
        notifier: &mut Notifier,
    ) -> Result<Moved, RunError> {
        let mut moved = Moved::default();
        if sending {
            let before = self.pacer.sent;
            self.send(now, from, notifier)?;
            moved.sent = (self.pacer.sent - before) as u32;
        } else {
            from.flush();
        }
        moved.received = to.receive(&mut self.rx, notifier)?;
        Ok(moved)
    }

    fn send(&mut self, now: u64, from: &mut impl Side, notifier: &mut Notifier) -> Result<(), RunError> {
        let count = self.streams.len();
        for _ in 0..count {
            let queue = self.turn;
            self.turn = if queue + 1 == count { 0 } else { queue + 1 };
            let due = self.pacer.due(now);
            if due == 0 {
                from.flush();
                break;
            }
            let sent = from.send(queue, &mut self.streams[queue], due, now, notifier)?;
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
    /// A thread is not let onto its CPU.
    #[error("pin a generator thread: {0}")]
    Cpu(nix::errno::Errno),
    /// A port is not there any more.
    #[error("{0}")]
    Port(String),
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
