//! Frames that arrive.

use std::ops::Range;

use ferrule_dataplane::port::{BURST, FRAME_MAX, Run, Source};
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::span::Span;
use ferrule_ffi::ticks;

use crate::generator::{PREFETCH, RunError};
use crate::latency::Latency;
use crate::load::{Load, Touch};
use crate::traffic::{Addresses, HEAD, Head, Pattern, Sink, SizeError, head_words, payload_digest, since};

/// Looks at what arrives in one direction.
pub(crate) struct RxStream {
    touch: Touch,
    pub(super) sink: Sink,
    pub(super) latency: Option<Latency>,
    /// What [`payload_digest`] says of a frame of each size that was sent.
    payloads: Box<[(usize, u64)]>,
    /// What the frames are like, if it is known of each before it comes.
    expected: Option<Expected>,
    /// Where a frame that is verified is read to.
    room: Box<[u8]>,
    gather: Box<[u8]>,
}

impl RxStream {
    pub(super) fn new(load: &Load, flows: Range<u32>, addresses: Addresses) -> Result<Self, SizeError> {
        let room = || vec![0; FRAME_MAX].into_boxed_slice();
        let payload = |&size: &usize| {
            let pattern = Pattern::new(size, 0, addresses)?;
            let frame = Span::from(pattern.frame());
            Ok((size, payload_digest(frame, &head_words(frame))))
        };
        let expected = match (load.mix.sizes(), load.touch) {
            (&[size], Touch::Whole | Touch::Stamped) if flows.len() == 1 && !load.latency => {
                Some(Expected::new(&Pattern::new(size, flows.start, addresses)?, load.touch))
            }
            _ => None,
        };
        Ok(Self {
            touch: load.touch,
            expected,
            sink: Sink::new(flows, load.touch == Touch::Verified),
            latency: load.latency.then(Latency::new),
            payloads: load.mix.sizes().iter().map(payload).collect::<Result<_, _>>()?,
            room: room(),
            gather: room(),
        })
    }

    /// Counts from 0 from now on, and expects of each flow what `next` says.
    pub(super) fn restart(&mut self, next: impl Iterator<Item = u64>) {
        self.sink.restart(next);
        if let Some(latency) = &mut self.latency {
            *latency = Latency::new();
        }
    }

    /// Takes some bursts, as far as they are there. How many frames.
    pub(crate) fn receive<S: Source>(&mut self, source: &mut S, notifier: &mut Notifier) -> Result<u32, RunError> {
        if !source.refresh()? {
            return Ok(0);
        }
        let now = if self.latency.is_some() { ticks::now() } else { 0 };
        let mut taken = 0;
        while taken < BURSTS {
            let shown = self.see_run(source, now);
            source.advance_run(shown);
            taken += shown;
            if shown > 0 {
                continue;
            }
            let Some(frame) = source.peek(&mut self.gather)? else { break };
            let slots = frame.slots;
            see(frame.bytes, self.touch, &self.payloads, &mut self.sink, &mut self.latency, &mut self.room, now);
            source.advance(slots);
            taken += 1;
        }
        source.release();
        if let Some(eventfd) = source.release_notify_fd() {
            notifier.notify(eventfd).map_err(RunError::Notifier)?;
        }
        Ok(taken as u32)
    }

    #[inline(always)]
    fn see_run(&mut self, source: &mut impl Source, now: u64) -> usize {
        let mut run = Run::new();
        source.run(&mut run);
        if self.touch == Touch::Untouched {
            self.sink.count_unseen(run.len(), run.iter().map(|frame| frame.len()).sum());
            return run.len();
        }
        run.iter().take(PREFETCH).for_each(|frame| frame.prefetch());
        let known = match (&self.expected, self.sink.expected()) {
            (Some(expected), Some(next)) => {
                let known = expected.leading(&run, next);
                self.sink.count_expected(known, known * expected.head.size as usize);
                known
            }
            _ => 0,
        };
        for (place, &frame) in run.iter().enumerate().skip(known) {
            if let Some(later) = run.get(place + PREFETCH) {
                later.prefetch();
            }
            see(frame, self.touch, &self.payloads, &mut self.sink, &mut self.latency, &mut self.room, now);
        }
        run.len()
    }
}

/// The frames of one flow with one size, which differ in what is known of the next one: nothing need be taken out of them.
struct Expected {
    head: Head,
    /// The exclusive or of what is behind the head, if that is looked at.
    payload: Option<u64>,
}

impl Expected {
    fn new(pattern: &Pattern, touch: Touch) -> Self {
        let payload = Span::from(pattern.frame()).tail(HEAD).filter(|rest| touch == Touch::Whole && !rest.is_empty());
        Self { head: pattern.head(), payload: payload.map(Span::xor) }
    }

    /// How many frames of a run are as expected, the first of them with sequence number `next`, until one is not.
    // A function of its own: inlined into the loop around it, it would not get the registers it needs.
    #[inline(never)]
    fn leading(&self, run: &Run<'_>, next: u64) -> usize {
        let head = self.head;
        let mut known = 0;
        for (place, &frame) in run.iter().enumerate() {
            if let Some(later) = run.get(place + PREFETCH) {
                later.prefetch();
            }
            let (words, expected) = (head_words(frame), head.stamp(next + place as u64, 0));
            let differ =
                words.iter().zip(&expected).fold(0, |differ, (word, expected)| differ | (word ^ expected.to_le()));
            let intact = |sent| frame.tail(HEAD).map_or(0, Span::xor) == sent;
            if differ != 0 || frame.len() != head.size as usize || !self.payload.is_none_or(intact) {
                break;
            }
            known += 1;
        }
        known
    }
}

#[inline(always)]
fn see(
    frame: Span<'_>,
    touch: Touch,
    payloads: &[(usize, u64)],
    sink: &mut Sink,
    latency: &mut Option<Latency>,
    room: &mut [u8],
    now: u64,
) {
    let length = frame.len();
    let sent = match touch {
        Touch::Untouched => {
            sink.count_unseen(1, length);
            None
        }
        Touch::Stamped => sink.see_head(&head_words(frame), length, true),
        Touch::Whole => {
            let head = head_words(frame);
            let digest = payload_digest(frame, &head);
            // A frame of another length is not ours, or is told by that.
            let intact = payloads.iter().find(|(size, _)| *size == length).is_none_or(|(_, sent)| *sent == digest);
            sink.see_head(&head, length, intact)
        }
        Touch::Verified => {
            let _ = frame.copy_out(room);
            sink.see(&room[..length])
        }
    };
    if let (Some(latency), Some(sent)) = (latency, sent) {
        latency.note(since(sent, now));
    }
}

/// Frames taken before any is given back, as far as they are there.
const BURSTS: usize = 4 * BURST;
