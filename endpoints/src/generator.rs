//! A generator and a sink on the two ends of a wire, driven by one thread.
//!
//! Every byte of every frame is written at one end and read at the other: a rate measured here is that
//! of frames that somebody made and somebody looked at.

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use ferrule_dataplane::memif::endpoint::Endpoint;
use ferrule_dataplane::memif::layout::Queues;
use ferrule_dataplane::port::{BURST, FRAME_MAX, Fault, Frame, Put, Source, Target};
use ferrule_ffi::bell::Bell;
use thiserror::Error;

use crate::traffic::{Addresses, Pattern, Sink, SizeError, Tally};

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Bytes of each frame, without FCS.
    pub size: usize,
    /// Send in both directions at once.
    pub both_ways: bool,
    /// Whether checksums and payload are verified, which costs far more than receiving.
    pub verify: bool,
    /// When to stop sending.
    pub stop: Stop,
}

/// When to stop sending.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// After this time.
    After(Duration),
    /// After this many frames in each direction.
    Frames(u64),
}

/// What came of it, for each direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Frames sent.
    pub sent: u64,
    /// What arrived.
    pub received: Tally,
    /// From the first frame sent until the last one arrived.
    pub elapsed: Duration,
}

impl Outcome {
    /// Frames that arrived, per second.
    pub fn frames_per_second(&self) -> f64 {
        self.received.frames as f64 / self.elapsed.as_secs_f64()
    }

    /// Whether every frame arrived once, in order and intact.
    pub fn is_perfect(&self) -> bool {
        self.received == Tally { frames: self.sent, bytes: self.received.bytes, ..Tally::default() }
    }
}

/// Sends from `a` to `b`, and back if the load says so, until the load is over and what was under way
/// has arrived or `GRACE` has passed. The first outcome is that of `a` to `b`.
pub fn run(load: &Load, a: &mut Endpoint, b: &mut Endpoint) -> Result<[Outcome; 2], RunError> {
    let mut bell = Bell::new().map_err(RunError::Bell)?;
    let mut there = Flow::new(load, 0)?;
    let mut back = load.both_ways.then(|| Flow::new(load, 1)).transpose()?;
    let started = Instant::now();
    let mut last_arrival = started;
    let mut last_sent = started;
    let mut sending = true;
    // Since the last look at the clock.
    let mut arrivals = false;
    for round in 0u64.. {
        let mut moved = there.round(sending, &mut a.queues, &mut b.queues, &mut bell)?;
        if let Some(back) = &mut back {
            moved |= back.round(sending, &mut b.queues, &mut a.queues, &mut bell)?;
        }
        arrivals |= moved;
        if !round.is_multiple_of(ROUNDS_PER_CLOCK) && (sending || moved) {
            continue;
        }
        let now = Instant::now();
        if std::mem::take(&mut arrivals) {
            last_arrival = now;
        }
        if sending {
            last_sent = now;
        }
        let flows = || [Some(&there), back.as_ref()].into_iter().flatten();
        sending = sending
            && match load.stop {
                Stop::After(time) => now - started < time,
                Stop::Frames(count) => flows().any(|flow| flow.sent < count),
            };
        let arrived = flows().all(|flow| flow.sink.tally().frames >= flow.sent);
        if !sending && (arrived || now - last_arrival.max(last_sent) > GRACE) {
            break;
        }
    }
    let elapsed = last_arrival - started;
    let outcome = |flow: &Flow| Outcome { sent: flow.sent, received: flow.sink.tally(), elapsed };
    Ok([outcome(&there), back.as_ref().map(outcome).unwrap_or_default()])
}

/// One direction.
struct Flow {
    /// Frames of one group: all are stamped before the first is copied, and all copied before the first
    /// is looked at, since a load that overlaps a store still under way stalls the CPU.
    patterns: [Pattern; GROUP],
    sink: Sink,
    verify: bool,
    sent: u64,
    limit: u64,
    /// Where a group of frames is read to.
    frames: [Box<[u8]>; GROUP],
    gather: Box<[u8]>,
}

impl Flow {
    fn new(load: &Load, number: u32) -> Result<Self, SizeError> {
        let room = || vec![0; FRAME_MAX].into_boxed_slice();
        let limit = match load.stop {
            Stop::After(_) => u64::MAX,
            Stop::Frames(count) => count,
        };
        let pattern = Pattern::new(load.size, number, Addresses::default())?;
        let patterns = std::array::from_fn(|_| pattern.clone());
        let sink = Sink::new(number + 1, load.verify);
        let frames = std::array::from_fn(|_| room());
        Ok(Self { patterns, sink, verify: load.verify, sent: 0, limit, frames, gather: room() })
    }

    /// Sends a burst on each queue, as far as there is room, and takes what has arrived. Whether
    /// anything has.
    fn round(&mut self, sending: bool, from: &mut Queues, to: &mut Queues, bell: &mut Bell) -> Result<bool, RunError> {
        if sending {
            // One flow takes one queue, so that its frames stay in order.
            if let Some(sender) = from.senders.first_mut() {
                self.send(sender, bell)?;
            }
        }
        let mut moved = false;
        for receiver in &mut to.receivers {
            moved |= self.receive(receiver)?;
        }
        Ok(moved)
    }

    fn send(&mut self, sender: &mut impl Target, bell: &mut Bell) -> Result<(), RunError> {
        sender.look()?;
        for _ in 0..BURST / GROUP {
            for (ahead, pattern) in self.patterns.iter_mut().enumerate() {
                let sequence = self.sent + ahead as u64;
                if self.verify {
                    pattern.fill(sequence)
                } else {
                    pattern.stamp(sequence)
                };
            }
            for pattern in &self.patterns {
                let frame = Frame { bytes: pattern.frame().into(), offload: None, slots: 0 };
                if self.sent == self.limit || sender.put(&frame)? != Put::Stored {
                    break;
                }
                self.sent += 1;
            }
        }
        if sender.publish()
            && let Some(eventfd) = sender.bell()
        {
            bell.ring(eventfd).map_err(RunError::Bell)?;
        }
        Ok(())
    }

    fn receive(&mut self, receiver: &mut impl Source) -> Result<bool, RunError> {
        if !receiver.look()? {
            return Ok(false);
        }
        for _ in 0..BURST / GROUP {
            let mut lengths = ArrayVec::<usize, GROUP>::new();
            for room in &mut self.frames {
                let Some(frame) = receiver.peek(&mut self.gather)? else { break };
                let (len, slots) = (frame.bytes.len(), frame.slots);
                // A frame is never longer than FRAME_MAX.
                let _ = frame.bytes.copy_out(room);
                receiver.advance(slots);
                lengths.push(len);
            }
            for (frame, &len) in self.frames.iter().zip(&lengths) {
                self.sink.see(&frame[..len]);
            }
        }
        receiver.release();
        Ok(true)
    }
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
    /// No bell could be rung.
    #[error("ring the peer: {0}")]
    Bell(std::io::Error),
}

/// How long to wait for frames under way when nothing arrives any more.
const GRACE: Duration = Duration::from_secs(1);
const ROUNDS_PER_CLOCK: u64 = 64;
/// Frames stamped, copied or looked at together; a divisor of the burst.
const GROUP: usize = 8;
