//! Links: one direction of one queue, from a source to a target, in one copy.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::span::Span;

use crate::offload::{Accepts, Segments, VnetHeader, finish_checksum};
use crate::port::kernel::ring::{TapSource, TapTarget};
use crate::port::memif::ring::{Receiver, Sender, zero_copy};
use crate::port::vhost_user::vring::{GuestRx, GuestTx};
use crate::port::{BURST, FRAME_MAX, Fault, Frame, Put, Run, Source, Target};
use crate::spec::Full;
use crate::status::{DropReason, Traffic};

/// A source of any kind.
pub enum AnySource {
    /// A memif ring.
    Memif(Receiver),
    /// A virtqueue of which a guest transmits.
    Vhost(GuestTx),
    /// A kernel interface.
    Tap(TapSource),
}

impl AnySource {
    /// Whether frames of it go to the target that it is joined with.
    #[inline]
    pub fn is_enabled(&self) -> bool {
        match self {
            Self::Vhost(source) => source.is_enabled(),
            Self::Memif(_) | Self::Tap(_) => true,
        }
    }
}

/// A target of any kind.
pub enum AnyTarget {
    /// A memif ring.
    Memif(Sender),
    /// A virtqueue of which a guest receives.
    Vhost(GuestRx),
    /// A kernel interface.
    Tap(TapTarget),
}

/// What a link needs of its worker.
pub struct Scratch {
    /// Where frames that lie in pieces are put together.
    gather: Box<[u8]>,
    /// Where a frame is finished that the target does not take as it is.
    finish: Box<[u8]>,
    /// Where one segment of it is made.
    segment: Box<[u8]>,
    /// What rings the peers.
    pub notifier: Notifier,
}

impl Scratch {
    /// All memory that a worker's links will ever need.
    pub fn new(notifier: Notifier) -> Self {
        let room = || vec![0; FRAME_MAX].into_boxed_slice();
        Self { gather: room(), finish: room(), segment: room(), notifier }
    }
}

/// What one visit to a link did; of several, the last in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Visit {
    /// There was nothing.
    Quiet,
    /// Frames wait, and the target has no room.
    Stalled,
    /// Frames were moved or dropped.
    Moved,
}

/// Which end of a link broke its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The one that frames come from.
    Source(Fault),
    /// The one that frames go to.
    Target(Fault),
}

/// Moves at most a burst from `source` to `target`. `resume` is this source's own: how many segments
/// of its next frame are already with the target.
pub fn forward(
    source: &mut AnySource,
    target: &mut AnyTarget,
    full: Full,
    resume: &mut usize,
    counters: &LinkCounters,
    scratch: &mut Scratch,
) -> Result<Visit, Broken> {
    match source {
        AnySource::Memif(source) => match target {
            AnyTarget::Memif(target) if zero_copy::is_zero_copy(source, target) => {
                let mut tally = Tally::default();
                let outcome = zero_copy::forward(source, target, full, &mut tally);
                hand_over(target, &mut scratch.notifier);
                counters.add(&tally);
                outcome
            }
            target => to_any(source, target, full, resume, counters, scratch),
        },
        AnySource::Vhost(GuestTx::Split(source)) => to_any(&mut **source, target, full, resume, counters, scratch),
        AnySource::Vhost(GuestTx::Packed(source)) => to_any(&mut **source, target, full, resume, counters, scratch),
        AnySource::Tap(source) => to_any(source, target, full, resume, counters, scratch),
    }
}

/// Takes at most a burst from a source that is not enabled; nobody gets it.
#[cold]
pub fn drain(source: &mut AnySource, counters: &LinkCounters, scratch: &mut Scratch) -> Result<Visit, Broken> {
    match source {
        AnySource::Vhost(source) => pump(source, &mut Nowhere, Full::Drop, &mut 0, counters, scratch),
        AnySource::Memif(_) | AnySource::Tap(_) => Ok(Visit::Quiet),
    }
}

/// Where frames go that go nowhere.
struct Nowhere;

impl Target for Nowhere {
    fn refresh(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn put(&mut self, _frame: &Frame<'_>) -> Result<Put, Fault> {
        Ok(Put::Refused(DropReason::Disabled))
    }

    fn publish(&mut self) -> bool {
        false
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn accepts(&self) -> Accepts {
        Accepts::ALL
    }
}

fn to_any(
    source: &mut impl Source,
    target: &mut AnyTarget,
    full: Full,
    resume: &mut usize,
    counters: &LinkCounters,
    scratch: &mut Scratch,
) -> Result<Visit, Broken> {
    match target {
        AnyTarget::Memif(target) => pump(source, target, full, resume, counters, scratch),
        AnyTarget::Vhost(GuestRx::Split(target)) => pump(source, &mut **target, full, resume, counters, scratch),
        AnyTarget::Vhost(GuestRx::Packed(target)) => pump(source, &mut **target, full, resume, counters, scratch),
        AnyTarget::Tap(target) => pump(source, target, full, resume, counters, scratch),
    }
}

/// The loop that everything else is there for: compiled once for each pair of kinds.
fn pump<S: Source, T: Target>(
    source: &mut S,
    target: &mut T,
    full: Full,
    resume: &mut usize,
    counters: &LinkCounters,
    scratch: &mut Scratch,
) -> Result<Visit, Broken> {
    if !source.refresh().map_err(Broken::Source)? {
        return Ok(Visit::Quiet);
    }
    target.refresh().map_err(Broken::Target)?;
    let mut tally = Tally::default();
    let mut visit = Visit::Quiet;
    let outcome = loop {
        if tally.taken >= BURST || tally.spent() >= VISIT_BYTES {
            break Ok(());
        }
        if *resume == 0 && move_run(source, target, &mut tally) {
            continue;
        }
        let frame = match source.peek(&mut scratch.gather) {
            Ok(Some(frame)) => frame,
            Ok(None) => break Ok(()),
            Err(fault) => break Err(Broken::Source(fault)),
        };
        let (slots, length) = (frame.slots, frame.bytes.len());
        // A fault leaves by itself: a result that holds one is moved as a whole, and waits for the stores of its parts.
        let put = match frame.offload {
            Some(header) if !target.accepts().takes(header) => {
                let (whole, segment) = (&mut scratch.finish, &mut scratch.segment);
                match finish(frame.bytes, header, target, resume, &mut tally, whole, segment) {
                    Ok(put) => put,
                    Err(fault) => break Err(Broken::Target(fault)),
                }
            }
            _ => match target.put(&frame) {
                Ok(put) => {
                    tally.count(put, length);
                    put
                }
                Err(fault) => break Err(Broken::Target(fault)),
            },
        };
        tally.cost += source.cost(length, slots) + target.cost();
        match put {
            Put::Stored | Put::Refused(_) => {}
            Put::Full if full == Full::Drop => tally.drop(DropReason::Full),
            Put::Full => {
                visit = Visit::Stalled;
                break Ok(());
            }
        }
        *resume = 0;
        tally.taken += 1;
        source.advance(slots);
    };
    hand_over(target, &mut scratch.notifier);
    source.release();
    if let Some(eventfd) = source.release_notify_fd() {
        let _ = scratch.notifier.notify(eventfd);
    }
    counters.add(&tally);
    outcome.map(|()| if tally.taken > 0 { Visit::Moved } else { visit })
}

/// Lets the target's peer see what was stored, and rings it if it wants that.
fn hand_over(target: &mut (impl Target + ?Sized), notifier: &mut Notifier) {
    if target.publish()
        && let Some(eventfd) = target.notify_fd()
    {
        // It was an eventfd when the peer passed it, and it cannot become something else.
        let _ = notifier.notify(eventfd);
    }
}

/// Moves the plain frames that come next, as far as this visit may and the target takes them as they are. `false`:
/// what comes next, if anything, goes the long way.
#[inline(always)]
fn move_run(source: &mut impl Source, target: &mut impl Target, tally: &mut Tally) -> bool {
    let (shown, stored) = {
        let mut run = Run::new();
        source.run(&mut run);
        run.truncate(BURST - tally.taken);
        let run = affordable(&run, VISIT_BYTES - tally.spent());
        let stored = target.put_run(run);
        tally.frames += stored as u64;
        tally.bytes += bytes(&run[..stored]);
        (run.len(), stored)
    };
    source.advance_run(stored);
    tally.taken += stored;
    shown > 0 && stored == shown
}

/// As many frames as `budget` bytes pay for, the last of them perhaps in part.
#[inline(always)]
fn affordable<'a, 'b>(run: &'b [Span<'a>], budget: u64) -> &'b [Span<'a>] {
    if bytes(run) <= budget {
        return run;
    }
    let mut spent = 0;
    let paid = run.iter().take_while(|frame| {
        let before = spent;
        spent += frame.len() as u64;
        before < budget
    });
    &run[..paid.count()]
}

fn bytes(run: &[Span<'_>]) -> u64 {
    run.iter().map(|frame| frame.len() as u64).sum()
}

/// Stores a frame whose checksum or segmentation the target cannot take over: both are done here, on
/// our own copy. When the target is full in the middle, `resume` says where to go on.
#[cold]
fn finish(
    bytes: Span<'_>,
    header: &VnetHeader,
    target: &mut impl Target,
    resume: &mut usize,
    tally: &mut Tally,
    whole: &mut [u8],
    segment: &mut [u8],
) -> Result<Put, Fault> {
    let bad = |tally: &mut Tally| {
        tally.drop(DropReason::BadOffload);
        Ok(Put::Refused(DropReason::BadOffload))
    };
    let Some(whole) = whole.get_mut(..bytes.len()).filter(|_| header.check(bytes.len()).is_ok()) else {
        return bad(tally);
    };
    // The length is the span's own, so it fits.
    let _ = bytes.copy_out(whole);
    tally.cost += bytes.len() as u64;
    if header.gso_type == VnetHeader::GSO_NONE {
        if finish_checksum(whole, header).is_err() {
            return bad(tally);
        }
        return store(whole, target, tally);
    }
    let Ok(segments) = Segments::new(whole, header) else { return bad(tally) };
    if segments.count() > SEGMENTS_MAX {
        return bad(tally);
    }
    for index in *resume..segments.count() {
        let Some(len) = segments.write(index, segment) else { return bad(tally) };
        match store(&segment[..len], target, tally)? {
            Put::Stored => {}
            Put::Full => {
                *resume = index;
                return Ok(Put::Full);
            }
            // All are as long as this one, but for the last.
            refused @ Put::Refused(_) => return Ok(refused),
        }
    }
    Ok(Put::Stored)
}

fn store(bytes: &[u8], target: &mut impl Target, tally: &mut Tally) -> Result<Put, Fault> {
    let frame = Frame { bytes: bytes.into(), offload: None, slots: 0 };
    let put = target.put(&frame)?;
    tally.count(put, bytes.len());
    Ok(put)
}

/// Stores one finished frame that no source sent, counted as if one had.
pub fn inject(
    bytes: &[u8],
    target: &mut AnyTarget,
    counters: &LinkCounters,
    notifier: &mut Notifier,
) -> Result<Put, Fault> {
    let target: &mut dyn Target = match target {
        AnyTarget::Memif(target) => target,
        AnyTarget::Vhost(target) => target,
        AnyTarget::Tap(target) => target,
    };
    target.refresh()?;
    let put = target.put(&Frame { bytes: bytes.into(), offload: None, slots: 0 })?;
    hand_over(target, notifier);
    let mut tally = Tally::default();
    tally.count(put, bytes.len());
    counters.add(&tally);
    Ok(put)
}

/// What one visit counted.
#[derive(Default)]
pub(crate) struct Tally {
    /// Frames taken from the source, whatever became of them.
    pub(crate) taken: usize,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    /// What it took beside storing those bytes, as if it were more of them.
    cost: u64,
    /// Drops are rare: one list entry each, since a visit takes at most a burst of frames (and a
    /// frame's segments are refused for one reason at a time).
    drops: ArrayVec<(DropReason, u64), { DropReason::ALL.len() }>,
}

impl Tally {
    #[inline(always)]
    fn count(&mut self, put: Put, bytes: usize) {
        match put {
            Put::Stored => {
                self.frames += 1;
                self.bytes += bytes as u64;
            }
            Put::Full => {}
            Put::Refused(reason) => self.drop(reason),
        }
    }

    /// What the visit has cost, in bytes copied.
    #[inline(always)]
    fn spent(&self) -> u64 {
        self.bytes + self.cost
    }

    /// Frames that were taken and stored.
    #[inline(always)]
    pub(crate) fn note(&mut self, frames: usize, bytes: u64) {
        self.taken += frames;
        self.frames += frames as u64;
        self.bytes += bytes;
    }

    #[cold]
    pub(crate) fn drop(&mut self, reason: DropReason) {
        match self.drops.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => self.drops.push((reason, 1)),
        }
    }
}

/// The counters of one direction of a wire. Workers add once a visit; anybody reads.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct LinkCounters {
    frames: AtomicU64,
    bytes: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl LinkCounters {
    fn add(&self, tally: &Tally) {
        if tally.frames > 0 {
            self.frames.fetch_add(tally.frames, Ordering::Relaxed);
            self.bytes.fetch_add(tally.bytes, Ordering::Relaxed);
        }
        for &(reason, count) in &tally.drops {
            self.drops[reason as usize].fetch_add(count, Ordering::Relaxed);
        }
    }

    /// What was counted so far.
    pub fn read(&self) -> Traffic {
        Traffic {
            frames: self.frames.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            drops: self.drops.each_ref().map(|count| count.load(Ordering::Relaxed)),
        }
    }
}

/// Bytes copied in one visit, unless the last frame brings more: a burst of frames in buffers of the usual
/// size. Frames that are put together, cut, or refused after that pay for it, and each piece that is looked at counts
/// as some bytes ([`SEGMENT_COST`](crate::port::SEGMENT_COST)): a peer that sends long ones, or tiny pieces, gets no larger share of the worker.
const VISIT_BYTES: u64 = BURST as u64 * 2048;
/// Segments of one frame: 64 KiB at the smallest segment that TCP must take (RFC 9293, 3.7.1) and its
/// options leave. A peer that asks for more would make us spend a burst's time on one frame.
const SEGMENTS_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memif::ring::tests::pair;

    #[test]
    fn a_visit_pays_for_frames_until_its_bytes_are_spent() {
        let frame = [0; 1000];
        let run = [Span::from(&frame[..]); 4];
        let paid = [0, 1, 1000, 1001, 3000, 3999, 4000].map(|budget| affordable(&run, budget).len());
        assert_eq!(paid, [0, 1, 1, 2, 3, 4, 4]);
    }

    /// What each visit took of long frames that a target has no place for.
    fn visits(target_ring: u32, full: Full, filled: u16) -> Vec<u64> {
        let ((mut client, mut server), (mut far, _peer)) = (pair(2048, 1024), pair(2048, target_ring));
        let (long, counters) = (vec![7; 60_000], LinkCounters::default());
        let sender = &mut client.senders[0];
        sender.refresh().unwrap();
        for _ in 0..FRAMES {
            assert_eq!(sender.put(&Frame { bytes: long[..].into(), offload: None, slots: 0 }).unwrap(), Put::Stored);
        }
        sender.publish();
        let target = &mut far.senders[0];
        target.refresh().unwrap();
        for _ in 0..filled {
            assert_eq!(target.put(&Frame { bytes: long[..60].into(), offload: None, slots: 0 }).unwrap(), Put::Stored);
        }
        let mut source = AnySource::Memif(server.receivers.remove(0));
        let mut target = AnyTarget::Memif(far.senders.remove(0));
        let mut scratch = Scratch::new(Notifier::new().unwrap());
        let visit = || {
            let before = counters.read().dropped();
            forward(&mut source, &mut target, full, &mut 0, &counters, &mut scratch).unwrap();
            counters.read().dropped() - before
        };
        std::iter::repeat_with(visit).take_while(|&taken| taken > 0).collect()
    }

    #[test]
    fn a_visit_pays_for_frames_that_are_put_together_in_vain() {
        // 60,000 bytes and 30 pieces each; the target of 32 slots looks at 17 of its own for each of them.
        assert_eq!(visits(32, Full::Hold, 0), [2; FRAMES / 2]);
        // Stored in part before it turns out that there is no room for the rest.
        assert_eq!(visits(64, Full::Drop, 40), [2; FRAMES / 2]);
        // One that is full at once costs no more than what it takes to put the frame together.
        assert_eq!(visits(64, Full::Drop, 64), [2; FRAMES / 2]);
    }

    const FRAMES: usize = 30;
}
