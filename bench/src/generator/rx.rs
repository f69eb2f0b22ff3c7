//! Frames that arrive.

use std::ops::Range;

use ferrule_dataplane::port::{BURST, FRAME_MAX, Run, Source};
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::span::Span;
use ferrule_ffi::ticks;

use crate::generator::{PREFETCH, RunError};
use crate::latency::Latency;
use crate::load::{Load, Touch};
use crate::traffic::{Addresses, Pattern, Sink, SizeError, head_words, payload_digest, since};

/// Looks at what arrives in one direction.
pub(super) struct RxStream {
    touch: Touch,
    pub(super) sink: Sink,
    pub(super) latency: Option<Latency>,
    /// What [`payload_digest`] says of a frame of each size that was sent.
    payloads: Box<[(usize, u64)]>,
    /// Where a frame that is verified is read to.
    room: Box<[u8]>,
    gather: Box<[u8]>,
}

impl RxStream {
    pub(super) fn new(load: &Load, flows: Range<u32>) -> Result<Self, SizeError> {
        let room = || vec![0; FRAME_MAX].into_boxed_slice();
        let payload = |&size: &usize| {
            let pattern = Pattern::new(size, 0, Addresses::default())?;
            let frame = Span::from(pattern.frame());
            Ok((size, payload_digest(frame, &head_words(frame))))
        };
        Ok(Self {
            touch: load.touch,
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
    pub(super) fn receive<S: Source>(&mut self, source: &mut S, notifier: &mut Notifier) -> Result<u32, RunError> {
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
        for (place, &frame) in run.iter().enumerate() {
            if self.touch != Touch::Untouched
                && let Some(later) = run.get(place + PREFETCH)
            {
                later.prefetch();
            }
            see(frame, self.touch, &self.payloads, &mut self.sink, &mut self.latency, &mut self.room, now);
        }
        run.len()
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
            sink.count_unseen(length);
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
