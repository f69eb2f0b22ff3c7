//! The loop: one direction of one queue, from a source to a target, in one copy.
//!
//! It knows no kind of port: `port::any` compiles it for each pair of them.

use std::os::fd::BorrowedFd;

use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::span::Span;
use ferrule_ffi::ticks;

use crate::capture::{Capture, TracedSource};
use crate::counters::LaneCounters;
use crate::offload::{Accepts, Segments, VnetHeader, finish_checksum};
use crate::port::pieces::Pieces;
use crate::port::{BURST, FRAME_MAX, Fault, Frame, Put, Run, Source, Target};
use crate::spec::Full;
use crate::status::DropReason;
use crate::visit::{Broken, Tally, Visit};

/// What a link needs of its worker.
pub struct Scratch {
    /// Where frames that lie in pieces are put together.
    gather: Box<[u8]>,
    /// Where a frame is finished that the target does not take as it is.
    finish: Box<[u8]>,
    /// Where one segment of it is made.
    segment: Box<[u8]>,
    /// Where a frame is copied that is captured too.
    traced: Box<[u8]>,
    /// What notifies the peers; whoever visits lanes flushes it.
    pub notifier: Notifier,
}

impl Scratch {
    /// All memory that a worker's links will ever need.
    pub fn new(notifier: Notifier) -> Self {
        let room = || vec![0; FRAME_MAX].into_boxed_slice();
        Self { gather: room(), finish: room(), segment: room(), traced: room(), notifier }
    }
}

/// Moves at most a burst as [`pump`] does, and captures it: the frames of end `from`.
#[cold]
pub(crate) fn pump_traced(
    source: &mut dyn Source,
    target: &mut dyn Target,
    full: Full,
    resume: &mut usize,
    counters: &LaneCounters,
    scratch: &mut Scratch,
    (capture, from): (&Capture, usize),
) -> Result<Visit, Broken> {
    let mut copy = std::mem::take(&mut scratch.traced);
    let ticks = ticks::now();
    let begun = *resume > 0;
    let mut source = TracedSource { source, capture, from, ticks, copy: &mut copy, length: 0, offload: None, begun };
    let outcome = pump(&mut source, target, full, resume, counters, scratch);
    scratch.traced = copy;
    outcome
}

/// Where frames go that go nowhere.
pub(crate) struct Nowhere;

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

/// The loop that everything else is there for: compiled once for each pair of kinds.
pub(crate) fn pump<S: Source + ?Sized, T: Target + ?Sized>(
    source: &mut S,
    target: &mut T,
    full: Full,
    resume: &mut usize,
    counters: &LaneCounters,
    scratch: &mut Scratch,
) -> Result<Visit, Broken> {
    // Sent buffers come back also while there is nothing to send.
    let reclaims = target.reclaim();
    if !source.refresh().map_err(Broken::Source)? {
        return Ok(if reclaims { Visit::Stalled } else { Visit::Quiet });
    }
    target.refresh().map_err(Broken::Target)?;
    let full = if target.can_hold() { full } else { Full::Drop };
    let own = source.owns_frames();
    let mut tally = Tally::default();
    let outcome = loop {
        if tally.taken >= BURST || tally.spent() >= VISIT_BYTES {
            break Ok(());
        }
        if *resume == 0 && move_run(source, target, &mut tally) {
            continue;
        }
        let in_pieces = if *resume == 0 && target.takes_pieces() {
            match move_pieces(source, target, &mut tally) {
                Ok(moved) => moved,
                Err(broken) => break Err(broken),
            }
        } else {
            None
        };
        let (put, slots, length) = if let Some(moved) = in_pieces {
            moved
        } else {
            let frame = match source.peek(&mut scratch.gather) {
                Ok(Some(frame)) => frame,
                Ok(None) => break Ok(()),
                Err(fault) => break Err(Broken::Source(fault)),
            };
            let (slots, length) = (frame.slots, frame.bytes.len());
            // A fault leaves by itself: a result that holds one is moved as a whole, and waits for the stores of its parts.
            let put = match frame.offload {
                // What was begun in segments goes on so, whoever the target is by now.
                Some(header) if *resume > 0 || !target.takes(header) => {
                    let header = *header;
                    let whole = if own && header.gso_type != VnetHeader::GSO_NONE {
                        source.own_frame()
                    } else {
                        tally.cost += length as u64;
                        copied(frame.bytes, &mut scratch.finish)
                    };
                    match finish(whole, &header, target, resume, &mut tally, &mut scratch.segment) {
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
            (put, slots, length)
        };
        tally.cost += source.cost(length, slots) + target.cost();
        match put {
            Put::Stored | Put::Refused(_) => {}
            Put::Full if full == Full::Drop => tally.drop(DropReason::Full),
            Put::Full => {
                tally.stalled = true;
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
        scratch.notifier.queue(eventfd);
    }
    counters.add(&tally);
    outcome.map(|()| match tally.taken {
        1.. => Visit::Moved,
        0 if tally.stalled || reclaims => Visit::Stalled,
        0 => Visit::Quiet,
    })
}

/// Lets the target's peer see what was stored, and has it notified if it wants that.
pub(crate) fn hand_over(target: &mut (impl Target + ?Sized), notifier: &mut Notifier) {
    if target.publish()
        && let Some(eventfd) = target.notify_fd()
    {
        notifier.queue(eventfd);
    }
}

/// Moves the plain frames that come next, as far as this visit may and the target takes them as they are. `false`:
/// what comes next, if anything, goes the long way.
#[inline(always)]
fn move_run<S: Source + ?Sized, T: Target + ?Sized>(source: &mut S, target: &mut T, tally: &mut Tally) -> bool {
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

/// Moves the next frame from the pieces that it lies in. What became of it, its slots and its bytes; `None`: it goes the
/// long way, by `peek`.
#[cold]
#[inline(never)]
fn move_pieces<S: Source + ?Sized, T: Target + ?Sized>(
    source: &mut S,
    target: &mut T,
    tally: &mut Tally,
) -> Result<Option<(Put, u32, usize)>, Broken> {
    let mut pieces = Pieces::new();
    let Some(frame) = source.peek_pieces(&mut pieces).map_err(Broken::Source)? else { return Ok(None) };
    if frame.offload.is_some_and(|header| !target.takes(header)) {
        return Ok(None);
    }
    let length = pieces.iter().map(|piece| piece.len()).sum();
    let put = target.put_pieces(&pieces, frame.offload).map_err(Broken::Target)?;
    tally.count(put, length);
    Ok(Some((put, frame.slots, length)))
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

/// A copy of a frame; empty if it is longer than any.
#[cold]
fn copied<'a>(bytes: Span<'_>, scratch: &'a mut [u8]) -> &'a mut [u8] {
    let whole = scratch.get_mut(..bytes.len()).unwrap_or_default();
    // The length is the span's own, so it fits.
    let _ = bytes.copy_out(whole);
    whole
}

/// Stores a frame whose checksum or segmentation the target cannot take over: both are done here, on
/// our own memory. When the target is full in the middle, `resume` says where to go on.
#[cold]
fn finish(
    whole: &mut [u8],
    header: &VnetHeader,
    target: &mut (impl Target + ?Sized),
    resume: &mut usize,
    tally: &mut Tally,
    scratch: &mut [u8],
) -> Result<Put, Fault> {
    let bad = |tally: &mut Tally| {
        tally.drop(DropReason::BadOffload);
        Ok(Put::Refused(DropReason::BadOffload))
    };
    if header.gso_type == VnetHeader::GSO_NONE {
        if finish_checksum(whole, header).is_err() {
            return bad(tally);
        }
        return store(whole, target, tally);
    }
    let Ok(mut segments) = Segments::new(whole, header) else { return bad(tally) };
    if segments.count() > SEGMENTS_MAX {
        return bad(tally);
    }
    // One that has not so many is another frame than the one that was begun: its driver has begun anew.
    let begin = if *resume < segments.count() { *resume } else { 0 };
    for index in begin..segments.count() {
        let Some(segment) = segments.make(index, scratch) else { return bad(tally) };
        match store(segment, target, tally)? {
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

fn store(bytes: &[u8], target: &mut (impl Target + ?Sized), tally: &mut Tally) -> Result<Put, Fault> {
    let frame = Frame { bytes: bytes.into(), offload: None, slots: 0 };
    let put = target.put(&frame)?;
    tally.count(put, bytes.len());
    Ok(put)
}

/// Bytes copied in one visit, unless the last frame brings more: a burst of frames in buffers of the usual
/// size. Frames that are put together, cut, or refused after that pay for it, and each piece that is looked at counts
/// as some bytes ([`SEGMENT_COST`](crate::port::SEGMENT_COST)): a peer that sends long ones, or tiny pieces, makes no visit longer. The TSC,
/// which shares the worker's time between lanes, is read behind visits. To end one in time it would have to be read before each
/// frame that goes the long way, for 27 cycles; adding up bytes takes one or two.
const VISIT_BYTES: u64 = BURST as u64 * 2048;
/// Segments of one frame: 64 KiB at the smallest segment that TCP must take (RFC 9293, 3.7.1) and its
/// options leave. A peer that asks for more would make us spend a burst's time on one frame.
const SEGMENTS_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::LinkCounters;
    use crate::port::any::{AnySource, AnyTarget, LaneSource, drain, forward};
    use crate::port::memif::ring::tests::pair;

    #[test]
    fn a_visit_pays_for_frames_until_its_bytes_are_spent() {
        let frame = [0; 1000];
        let run = [Span::from(&frame[..]); 4];
        let paid = [0, 1, 1000, 1001, 3000, 3999, 4000].map(|budget| affordable(&run, budget).len());
        assert_eq!(paid, [0, 1, 1, 2, 3, 4, 4]);
    }

    #[test]
    fn a_frame_that_is_thrown_away_in_the_middle_takes_nothing_of_the_next_one_along() {
        let (mut client, mut server) = pair(2048, 32);
        let sender = &mut client.senders[0];
        sender.refresh().unwrap();
        assert_eq!(sender.put(&Frame { bytes: [7; 60][..].into(), offload: None, slots: 0 }).unwrap(), Put::Stored);
        sender.publish();
        let mut source = LaneSource { source: AnySource::Memif(server.receivers.remove(0)), resume: 5 };
        let (counters, mut scratch) = (LinkCounters::default(), Scratch::new(Notifier::new().unwrap()));
        assert_eq!(drain(&mut source, &counters.lane(0), &mut scratch).unwrap(), Visit::Moved);
        assert_eq!((source.resume, counters.read().dropped()), (0, 1));
    }

    #[test]
    fn a_frame_of_fewer_segments_than_were_stored_is_another_one_and_stored_whole() {
        let ((mut client, mut server), mut scratch) = (pair(2048, 32), vec![0; FRAME_MAX]);
        // TCP over IPv4, of three segments.
        let mut frame = vec![0; 54 + 300];
        frame[12..18].copy_from_slice(&[8, 0, 0x45, 0, 1, 84]);
        (frame[23], frame[46]) = (6, 0x50);
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_TCPV4,
            hdr_len: 54,
            gso_size: 100,
            csum_start: 34,
            csum_offset: 16,
            ..VnetHeader::default()
        };
        let mut stored_of = |begun: usize| {
            let (mut tally, mut resume) = (Tally::default(), begun);
            let target = &mut client.senders[0];
            target.refresh().unwrap();
            let put = finish(&mut frame.clone(), &header, target, &mut resume, &mut tally, &mut scratch);
            assert_eq!(put, Ok(Put::Stored));
            tally.frames
        };
        assert_eq!([0, 1, 2, 3, 9].map(&mut stored_of), [3, 2, 1, 3, 3]);
        client.senders[0].publish();
        assert!(server.receivers[0].refresh().unwrap());
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
            forward(&mut source, &mut target, full, &mut 0, &counters.lane(0), &mut scratch).unwrap();
            counters.read().dropped() - before
        };
        std::iter::repeat_with(visit).take_while(|&taken| taken > 0).collect()
    }

    #[test]
    fn a_visit_pays_for_frames_that_are_looked_at_and_copied_in_vain() {
        // 60,000 bytes in 30 pieces each; the target of 32 slots fills 17 of its own for each of them.
        assert_eq!(visits(32, Full::Hold, 0), [3; FRAMES / 3]);
        // Stored in part before it turns out that there is no room for the rest.
        assert_eq!(visits(64, Full::Drop, 40), [3; FRAMES / 3]);
        // One that is full at once costs no more than what it takes to look at the pieces.
        assert_eq!(visits(64, Full::Drop, 64), [18, 12]);
    }

    #[test]
    fn a_frame_in_pieces_is_copied_from_where_it_lies() {
        let ((mut client, mut server), (mut far, mut peer)) = (pair(2048, 64), pair(2048, 64));
        let long: Vec<u8> = (0..60_000u32).map(|at| (at % 251) as u8).collect();
        let sender = &mut client.senders[0];
        sender.refresh().unwrap();
        assert_eq!(sender.put(&Frame { bytes: long[..].into(), offload: None, slots: 0 }).unwrap(), Put::Stored);
        sender.publish();
        let mut source = AnySource::Memif(server.receivers.remove(0));
        let mut target = AnyTarget::Memif(far.senders.remove(0));
        let (counters, mut scratch) = (LinkCounters::default(), Scratch::new(Notifier::new().unwrap()));
        // No room to put it together.
        scratch.gather = Box::default();
        let visit = forward(&mut source, &mut target, Full::Hold, &mut 0, &counters.lane(0), &mut scratch);
        assert_eq!((visit.unwrap(), counters.read().frames), (Visit::Moved, 1));
        let receiver = &mut peer.receivers[0];
        assert!(receiver.refresh().unwrap());
        let mut gather = vec![0; FRAME_MAX];
        let mut arrived = vec![0; long.len()];
        assert!(receiver.peek(&mut gather).unwrap().unwrap().bytes.copy_out(&mut arrived));
        assert!(arrived == long);
    }

    const FRAMES: usize = 30;
}
