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
        self.receive_at(source, notifier, |_, _| 0)
    }

    /// The same of a source whose frames may say when they arrived: `arrivals` stores that of those that come next, by the CPU's clock, and
    /// says of how many of the first ones. It is asked only if somebody wants to know.
    pub(crate) fn receive_at<S: Source>(
        &mut self,
        source: &mut S,
        notifier: &mut Notifier,
        mut arrivals: impl FnMut(&S, &mut [u64; BURST]) -> usize,
    ) -> Result<u32, RunError> {
        if !source.refresh()? {
            return Ok(0);
        }
        let now = if self.latency.is_some() { ticks::now() } else { 0 };
        let mut taken = 0;
        let mut arrived = [0; BURST];
        while taken < BURSTS {
            let known = if self.latency.is_some() { arrivals(source, &mut arrived) } else { 0 };
            let seen = Seen { now, arrived: &arrived[..known] };
            let shown = self.see_run(source, &seen);
            source.advance_run(shown);
            taken += shown;
            if shown > 0 {
                continue;
            }
            let Some(frame) = source.peek(&mut self.gather)? else { break };
            let slots = frame.slots;
            let at = seen.at(0);
            see(frame.bytes, self.touch, &self.payloads, &mut self.sink, &mut self.latency, &mut self.room, at);
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
    fn see_run(&mut self, source: &mut impl Source, seen: &Seen<'_>) -> usize {
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
            let at = seen.at(place);
            see(frame, self.touch, &self.payloads, &mut self.sink, &mut self.latency, &mut self.room, at);
        }
        run.len()
    }
}

/// When the frames of a burst arrived.
struct Seen<'a> {
    /// They were there by then.
    now: u64,
    /// Of the first of them, what they say themselves.
    arrived: &'a [u64],
}

impl Seen<'_> {
    #[inline(always)]
    fn at(&self, place: usize) -> Arrival {
        match self.arrived.get(place) {
            Some(&time) => Arrival::Said(time),
            None => Arrival::Seen(self.now),
        }
    }
}

/// When a frame arrived, in ticks of the CPU's clock.
#[derive(Clone, Copy)]
enum Arrival {
    /// It was seen in the ring then.
    Seen(u64),
    /// Its NIC has said so.
    Said(u64),
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
    at: Arrival,
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
        match at {
            Arrival::Seen(now) => latency.note(since(sent, now)),
            // Clocks of two devices are compared: a frame that was under way for less than their error seems to arrive before it was sent.
            Arrival::Said(time) => {
                latency.note_by_nic(Some(since(sent, time)).filter(|&ago| ago < AGO_MAX).unwrap_or(0));
            }
        }
    }
}

/// Longer ago is later: the stamp of a frame has as many bits twice.
const AGO_MAX: u64 = 1 << 47;
/// Frames taken before any is given back, as far as they are there.
const BURSTS: usize = 4 * BURST;

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::time::Duration;

    use ferrule_dataplane::port::{Fault, Frame};

    use super::*;
    use crate::load::Mix;

    /// A device that has received these.
    struct Received(Vec<Vec<u8>>);

    impl Source for Received {
        fn refresh(&mut self) -> Result<bool, Fault> {
            Ok(!self.0.is_empty())
        }

        fn peek<'a>(&'a mut self, _gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
            Ok(self.0.first().map(|bytes| Frame { bytes: bytes[..].into(), offload: None, slots: 1 }))
        }

        fn run<'a>(&'a mut self, run: &mut Run<'a>) {
            // A few are shown one by one.
            if self.0.len() > 2 {
                run.extend(self.0.iter().map(|bytes| Span::from(&bytes[..])).take(BURST));
            }
        }

        fn advance_run(&mut self, count: usize) {
            self.0.drain(..count);
        }

        fn advance(&mut self, _slots: u32) {
            self.0.remove(0);
        }

        fn release(&mut self) {}

        fn enable_notify(&mut self, _wanted: bool) {}

        fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    #[test]
    fn a_frame_that_says_when_it_arrived_was_under_way_until_then() {
        let load = Load { latency: true, ..Load::new(Mix::new([64]).unwrap(), Duration::ZERO) };
        let sent = ticks::now();
        let mut pattern = Pattern::new(64, 0, Addresses::default()).unwrap();
        let mut frames =
            |count: u64| Received((0..count).map(|number| pattern.stamp_at(number, sent).to_vec()).collect());
        let mut notifier = Notifier::new().unwrap();
        // The first two of them know; one of those is said to have arrived before it was sent.
        let mut rx = RxStream::new(&load, 0..1, Addresses::default()).unwrap();
        let said = |_: &Received, arrived: &mut [u64; BURST]| {
            arrived[..2].copy_from_slice(&[sent + 1000, sent - 5]);
            2
        };
        assert_eq!(rx.receive_at(&mut frames(4), &mut notifier, said).unwrap(), 4);
        let latency = rx.latency.as_ref().unwrap();
        assert_eq!((latency.count(), latency.by_nic()), (4, 2));
        assert_eq!(latency.min(), ticks::time(0), "before it was sent is at once");
        assert!(latency.quantile(0.5).abs_diff(ticks::time(1000)) < Duration::from_nanos(10), "{latency:?}");
        // Peeked one by one, each of them is the first.
        rx.restart([0].into_iter());
        rx.receive_at(&mut frames(2), &mut notifier, |_, arrived| {
            arrived[0] = sent + 7000;
            1
        })
        .unwrap();
        let latency = rx.latency.as_ref().unwrap();
        assert_eq!((latency.count(), latency.by_nic()), (2, 2));
        assert!(latency.max().abs_diff(ticks::time(7000)) < Duration::from_nanos(100), "{latency:?}");
    }
}
