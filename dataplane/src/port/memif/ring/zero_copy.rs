//! Trusted pairs: frames stay where they are, and only their descriptors cross.
//!
//! We are the server of one peer, the *lender*, and the client of another, the *borrower*, who got the lender's
//! regions from us behind our own region of rings ([`Layout::lend`](crate::port::memif::layout::Layout::lend)). So the
//! borrower reads and writes the lender's buffers itself:
//!
//! ```text
//!   lender (client)               we                    borrower (server)
//!   S2M  filled slots ----- descriptors ----------> S2M   reads the lender's buffers
//!        given back   <---- as far as consumed ----
//!   M2S  empty buffers ---- descriptors ----------> M2S   writes into them
//!        filled       <---- lengths ---------------
//! ```
//! Towards the lender nothing is new: slots are taken and given back, and filled, in order. Every descriptor is
//! checked on its way, as for copying: a borrower may be a program that believes its client.

use serde::{Deserialize, Serialize};

use super::{Descriptor, NEXT, Receiver, SEGMENTS_MAX, Sender, Slots};
use crate::port::{BURST, FRAME_MAX, Fault, Source};
use crate::status::DropReason;
use crate::visit::{Broken, Tally, Visit};

/// Whether descriptors cross between these two, and no copies.
#[inline]
pub(crate) fn is_zero_copy(source: &Receiver, target: &Sender) -> bool {
    matches!(source.slots, Slots::ZeroCopy(_)) || matches!(target.slots, Slots::ZeroCopy(_))
}

/// Moves at most a burst between a lender's ring and a borrower's. The caller publishes and notifies.
///
/// A full borrower always holds frames back: slots go back to the lender in their order, so that one behind those that
/// the borrower still has could be dropped, but not be given back.
pub(crate) fn forward(source: &mut Receiver, target: &mut Sender, tally: &mut Tally) -> Result<Visit, Broken> {
    if matches!(target.slots, Slots::ZeroCopy(_)) {
        lender_to_borrower(source, target, tally)
    } else {
        borrower_to_lender(source, target, tally)
    }
}

/// From the lender's S2M ring to the borrower's.
fn lender_to_borrower(lender: &mut Receiver, borrower: &mut Sender, tally: &mut Tally) -> Result<Visit, Broken> {
    let quiet = !lender.refresh().map_err(Broken::Source)?;
    // The borrower's index lies in a line that it writes all the time: read only when its slots or the lender's become few.
    let held = usize::from(lender.next.wrapping_sub(lender.held));
    if quiet || usize::from(borrower.room()) < BURST || 2 * held >= lender.ring.table.len() {
        borrower.read_peer_index().map_err(Broken::Target)?;
        lender.give_back(borrower.consumed(lender));
    }
    let outcome = loop {
        let (count, bytes) = borrower.lend_run(lender, BURST - tally.taken);
        lender.next = lender.next.wrapping_add(count);
        tally.add(count.into(), bytes);
        if tally.taken == BURST || lender.next == lender.filled {
            break Ok(());
        }
        let frame = match borrower.lend(lender) {
            Ok(frame) => frame,
            Err(fault) => break Err(Broken::Source(fault)),
        };
        match frame.refused {
            None => {
                borrower.next = borrower.next.wrapping_add(frame.pieces);
                tally.add(1, frame.length.into());
            }
            Some(DropReason::Full) => {
                tally.stalled = true;
                break Ok(());
            }
            Some(reason) => {
                tally.drop(reason);
                tally.taken += 1;
            }
        }
        lender.advance(frame.pieces.into());
    };
    // Nobody rings when the borrower has consumed something.
    let waits = tally.stalled || lender.held != lender.next;
    outcome.map(|()| visit(tally, waits))
}

/// From the borrower's M2S ring to the lender's. The two run in step: the buffer in a slot of the lender's is what
/// the borrower gets offered in the same place.
fn borrower_to_lender(borrower: &mut Receiver, lender: &mut Sender, tally: &mut Tally) -> Result<Visit, Broken> {
    borrower.refresh().map_err(Broken::Source)?;
    loop {
        let (count, bytes) = borrower.hand_on_run(lender, BURST - tally.taken);
        tally.add(count.into(), bytes);
        if tally.taken == BURST || borrower.next == borrower.filled {
            break;
        }
        tally.add(1, borrower.hand_on(lender).map_err(Broken::Source)?.into());
    }
    // More than the lender's ring has cannot be offered.
    let size = borrower.ring.table.len().min(lender.ring.table.len());
    let offered = |borrower: &Receiver| usize::from(borrower.held.wrapping_sub(borrower.next));
    // As above: the lender's index is read only when what the borrower has becomes little.
    if tally.taken == 0 || 2 * offered(borrower) <= size {
        lender.read_peer_index().map_err(Broken::Target)?;
        borrower.offer_lent(lender).map_err(Broken::Target)?;
    }
    // Nobody rings when the lender offers more.
    Ok(visit(tally, offered(borrower) < size))
}

fn visit(tally: &Tally, waits: bool) -> Visit {
    match (tally.taken, waits) {
        (1.., _) => Visit::Moved,
        (0, true) => Visit::Stalled,
        (0, false) => Visit::Quiet,
    }
}

/// What a borrower's S2M ring holds of a lender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BorrowedSlots {
    /// For each slot, the lender's position behind what is in it.
    behind: Box<[u16]>,
    /// The borrower's index, when it was last looked at.
    consumed: u16,
    /// The longest piece that the borrower is given.
    piece_max: u32,
}

impl BorrowedSlots {
    /// Of a ring of `size` slots, none of them filled.
    pub(crate) fn new(size: usize, piece_max: u32) -> Self {
        Self { behind: vec![0; size].into_boxed_slice(), consumed: 0, piece_max }
    }

    /// Slots of the ring.
    pub(crate) fn len(&self) -> usize {
        self.behind.len()
    }

    fn at(&self, position: u16) -> usize {
        usize::from(position) & (self.behind.len() - 1)
    }
}

/// What a borrower's M2S ring holds of a lender: for each slot, the buffer that was offered in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OfferedBuffers(Box<[Descriptor]>);

impl OfferedBuffers {
    /// Of a ring of `size` slots, none of them offered.
    pub(crate) fn new(size: usize) -> Self {
        Self(vec![Descriptor::default(); size].into_boxed_slice())
    }

    /// Slots of the ring.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn at(&self, position: u16) -> usize {
        usize::from(position) & (self.0.len() - 1)
    }
}

/// A frame of the lender's that was written into the borrower's ring, or would have been.
struct CheckedFrame {
    pieces: u16,
    length: u32,
    /// Why the borrower does not get it.
    refused: Option<DropReason>,
}

impl Sender {
    /// To a borrower: does with the plain frames that come next, at most `most`, what [`lend`](Self::lend) does with
    /// each, in a tight loop: all of one piece, and none refused. How many, and their bytes.
    // A function of its own: inlined into the loop around it, it would not get the registers it needs.
    #[inline(never)]
    fn lend_run(&mut self, lender: &Receiver, most: usize) -> (u16, u64) {
        let room = self.room();
        let Slots::ZeroCopy(loans) = &mut self.slots else { unreachable!("asked of a borrower's ring only") };
        let (theirs, ours, regions) = (&lender.ring.table, &self.ring.table, &*lender.ring.regions);
        let (from, to) = (lender.next, self.next);
        let length_max = loans.piece_max.min(FRAME_MAX as u32);
        // A burst is far below 2^16.
        let most = room.min(lender.filled.wrapping_sub(from)).min(most as u16);
        let (mut count, mut bytes) = (0, 0);
        while count < most {
            let piece = Descriptor::parse(theirs.read(from.wrapping_add(count)));
            let region = regions.get(usize::from(piece.region));
            let inside = region.is_some_and(|region| region.span(piece.offset, piece.length).is_some());
            if !inside || piece.flags & NEXT != 0 || piece.length.wrapping_sub(1) >= length_max {
                break;
            }
            let at = loans.at(to.wrapping_add(count));
            loans.behind[at] = from.wrapping_add(count + 1);
            let lent = Descriptor { flags: 0, region: piece.region + LENT_FROM, ..piece };
            ours.write(to.wrapping_add(count), lent.emit());
            bytes += u64::from(piece.length);
            count += 1;
        }
        self.next = to.wrapping_add(count);
        (count, bytes)
    }

    /// To a borrower: writes the lender's next frame into the slots behind `next`, as far as they are free. Each of
    /// its descriptors is read once, and what was checked is what is written.
    #[inline]
    fn lend(&mut self, lender: &Receiver) -> Result<CheckedFrame, Fault> {
        let room = self.room();
        let Slots::ZeroCopy(loans) = &mut self.slots else { unreachable!("asked of a borrower's ring only") };
        let mut frame = CheckedFrame { pieces: 0, length: 0, refused: None };
        loop {
            let position = lender.next.wrapping_add(frame.pieces);
            if position == lender.filled {
                return Err(Fault::OpenChain { slot: lender.next.into() });
            }
            let piece = Descriptor::parse(lender.ring.table.read(position));
            let region = lender.ring.regions.get(usize::from(piece.region));
            if region.and_then(|region| region.span(piece.offset, piece.length)).is_none() {
                return Err(piece.fault(position));
            }
            if frame.pieces == SEGMENTS_MAX || piece.length as usize > FRAME_MAX || frame.length as usize > FRAME_MAX {
                return Err(Fault::Oversize { slot: lender.next.into() });
            }
            if frame.pieces == self.ring.size() {
                // It would find no room in an empty ring either.
                frame.refused = Some(DropReason::TooLong);
            } else if frame.pieces == room {
                frame.refused = frame.refused.or(Some(DropReason::Full));
            } else if frame.refused.is_none() {
                let own = self.next.wrapping_add(frame.pieces);
                let at = loans.at(own);
                loans.behind[at] = position.wrapping_add(1);
                let region = piece.region + LENT_FROM;
                self.ring.table.write(own, Descriptor { flags: piece.flags & NEXT, region, ..piece }.emit());
            }
            if piece.length == 0 {
                frame.refused = Some(DropReason::TooShort);
            } else if piece.length > loans.piece_max {
                frame.refused = Some(DropReason::TooLong);
            }
            frame.pieces += 1;
            frame.length += piece.length;
            if piece.flags & NEXT == 0 {
                return Ok(frame);
            }
        }
    }

    /// To a borrower: the lender's position up to which everything was consumed.
    fn consumed(&mut self, lender: &Receiver) -> u16 {
        let used = self.ring.size() - self.room();
        let Slots::ZeroCopy(loans) = &mut self.slots else { unreachable!("asked of a borrower's ring only") };
        let consumed = self.next.wrapping_sub(used);
        let position = match used {
            0 => lender.next,
            _ if consumed == loans.consumed => lender.held,
            _ => loans.behind[loans.at(consumed.wrapping_sub(1))],
        };
        loans.consumed = consumed;
        position
    }
}

impl Receiver {
    /// From a lender: gives its slots before `position` back.
    fn give_back(&mut self, position: u16) {
        if self.held != position {
            self.held = position;
            self.ring.tail.store(position);
        }
    }

    /// From a borrower: does with the plain frames that come next, at most `most`, what [`hand_on`](Self::hand_on) does
    /// with each, in a tight loop: all of one piece, and none wrong. How many, and their bytes.
    // A function of its own, as `lend_run` is.
    #[inline(never)]
    fn hand_on_run(&mut self, lender: &mut Sender, most: usize) -> (u16, u64) {
        let Slots::ZeroCopy(offers) = &self.slots else { unreachable!("asked of a borrower's ring only") };
        let (theirs, ours) = (&self.ring.table, &lender.ring.table);
        let (from, to) = (self.next, lender.next);
        let offered = self.held.wrapping_sub(from);
        // A burst is far below 2^16.
        let most = offered.min(self.filled.wrapping_sub(from)).min(most as u16);
        let (mut count, mut bytes) = (0, 0);
        while count < most {
            let filled = Descriptor::parse(theirs.read(from.wrapping_add(count)));
            let slot = offers.0[offers.at(from.wrapping_add(count))];
            let length_max = slot.length.min(FRAME_MAX as u32);
            if filled.flags & NEXT != 0 || filled.length.wrapping_sub(1) >= length_max {
                break;
            }
            ours.write_first(to.wrapping_add(count), Descriptor { flags: 0, length: filled.length, ..slot }.first());
            bytes += u64::from(filled.length);
            count += 1;
        }
        self.next = from.wrapping_add(count);
        lender.next = to.wrapping_add(count);
        (count, bytes)
    }

    /// From a borrower: hands its next frame on to the lender, into the slots whose buffers it was offered. Only
    /// flags and lengths are the borrower's to say. The length of the frame.
    #[inline]
    fn hand_on(&mut self, lender: &mut Sender) -> Result<u32, Fault> {
        let Slots::ZeroCopy(offers) = &self.slots else { unreachable!("asked of a borrower's ring only") };
        let (mut pieces, mut length) = (0, 0);
        loop {
            let position = self.next.wrapping_add(pieces);
            if position == self.filled {
                return Err(Fault::OpenChain { slot: self.next.into() });
            }
            if position == self.held {
                let size = u32::from(self.held.wrapping_sub(self.next));
                return Err(Fault::Index { from: self.next.into(), to: self.filled.into(), size });
            }
            let filled = Descriptor::parse(self.ring.table.read(position));
            let slot = offers.0[offers.at(position)];
            if !(1..=slot.length).contains(&filled.length) {
                return Err(filled.fault(position));
            }
            if pieces == SEGMENTS_MAX || filled.length as usize > FRAME_MAX || length as usize > FRAME_MAX {
                return Err(Fault::Oversize { slot: self.next.into() });
            }
            let flags = filled.flags & NEXT;
            lender.fill(lender.next.wrapping_add(pieces), slot, filled.length, flags);
            pieces += 1;
            length += filled.length;
            if flags == 0 {
                break;
            }
        }
        self.next = self.next.wrapping_add(pieces);
        lender.next = lender.next.wrapping_add(pieces);
        Ok(length)
    }

    /// To a borrower: offers what the lender has offered us since. `held` is the first slot that holds no offer.
    fn offer_lent(&mut self, lender: &Sender) -> Result<(), Fault> {
        let Slots::ZeroCopy(offers) = &mut self.slots else { unreachable!("asked of a borrower's ring only") };
        let before = self.held;
        // Both rings are as far ahead of what was handed on.
        let ahead = before.wrapping_sub(self.next);
        let first = lender.next.wrapping_add(ahead);
        // Rings have at most 2^14 slots.
        let free = (offers.0.len() as u16).wrapping_sub(ahead).min(lender.limit.wrapping_sub(first));
        let mut outcome = Ok(());
        let mut count = 0;
        while count < free {
            let position = first.wrapping_add(count);
            let slot = Descriptor::parse(lender.ring.table.read(position));
            if slot.length == 0 || lender.room_at(slot, slot.length, position).is_err() {
                outcome = Err(slot.fault(position));
                break;
            }
            let own = before.wrapping_add(count);
            let at = offers.at(own);
            offers.0[at] = slot;
            let region = slot.region + LENT_FROM;
            self.ring.table.write(own, Descriptor { flags: 0, region, ..slot }.emit());
            count += 1;
        }
        if count > 0 {
            self.held = before.wrapping_add(count);
            self.ring.head.store(self.held);
        }
        outcome
    }
}

/// The regions that a borrower gets before those of the lender: the one with our rings.
pub(crate) const LENT_FROM: u16 = 1;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use ferrule_ffi::memory_budget::MemoryBudget;

    use super::*;
    use crate::port::memif::layout::{Layout, Queues};
    use crate::port::{Frame, Put, Target};
    use crate::spec::{MemifSpec, Role};

    /// The far ends of a trusted pair, and ours between them.
    struct TrustedPair {
        lender: Queues,
        near: Queues,
        near_layout: Layout,
        far: Queues,
        borrower: Queues,
    }

    /// What a server makes of a client's layout.
    fn server_of(client: &Layout) -> (Layout, Queues) {
        let mut layout = Layout::announced_by_peer(&MemoryBudget::unlimited());
        for (region, file) in client.regions() {
            layout.add_region(region, file.try_clone_to_owned().unwrap().into()).unwrap();
        }
        for (ring, interrupt) in client.rings() {
            layout.add_ring(ring, interrupt.as_fd().try_clone_to_owned().unwrap().into()).unwrap();
        }
        let queues = layout.queues().unwrap();
        (layout, queues)
    }

    fn spec() -> MemifSpec {
        MemifSpec::new("@unused".parse().unwrap(), Role::Client)
    }

    impl TrustedPair {
        fn new(ring: u32) -> Self {
            let mut client = Layout::create(&spec(), 1, ring, &<_>::default()).unwrap();
            let (near_layout, near) = server_of(&client);
            let (far, borrower) = Self::borrow(&near_layout);
            let lender = client.queues().unwrap();
            Self { lender, near, near_layout, far, borrower }
        }

        fn borrow(near_layout: &Layout) -> (Queues, Queues) {
            Self::borrow_of(near_layout, 1 << 14)
        }

        /// To a borrower whose rings have at most so many slots.
        fn borrow_of(near_layout: &Layout, ring_max: u32) -> (Queues, Queues) {
            let loan = near_layout.loan().unwrap();
            let ring = loan.fit(64, 1, ring_max).unwrap();
            let mut lent = Layout::lend(&spec(), &loan, ring, &<_>::default()).unwrap();
            let (_, borrower) = server_of(&lent);
            (lent.queues().unwrap(), borrower)
        }

        /// Both directions, once.
        fn visit(&mut self) -> Result<[(Visit, Tally); 2], Broken> {
            let [mut out, mut home] = [Tally::default(), Tally::default()];
            let (near, far) = (&mut self.near, &mut self.far);
            let first = forward(&mut near.receivers[0], &mut far.senders[0], &mut out)?;
            far.senders[0].publish();
            let second = forward(&mut far.receivers[0], &mut near.senders[0], &mut home)?;
            near.senders[0].publish();
            Ok([(first, out), (second, home)])
        }
    }

    fn send(sender: &mut Sender, bytes: &[u8]) -> Put {
        sender.refresh().unwrap();
        let put = sender.put(&Frame { bytes: bytes.into(), offload: None, slots: 0 }).unwrap();
        sender.publish();
        put
    }

    fn receive(receiver: &mut Receiver) -> Option<Vec<u8>> {
        let mut gather = vec![0; FRAME_MAX];
        if !receiver.refresh().unwrap() {
            return None;
        }
        let (bytes, slots) = {
            let frame = receiver.peek(&mut gather).unwrap()?;
            let mut bytes = vec![0; frame.bytes.len()];
            assert!(frame.bytes.copy_out(&mut bytes));
            (bytes, frame.slots)
        };
        receiver.advance(slots);
        receiver.release();
        Some(bytes)
    }

    #[test]
    fn frames_cross_both_ways_in_order_through_many_turns_of_the_rings() {
        let mut pair = TrustedPair::new(16);
        pair.visit().unwrap();
        for number in 0..70_000u32 {
            let length = 60 + number as usize % 5000;
            let (there, back) = (vec![number as u8; length], vec![!number as u8; length]);
            assert_eq!(send(&mut pair.lender.senders[0], &there), Put::Stored);
            assert_eq!(send(&mut pair.borrower.senders[0], &back), Put::Stored);
            let [(first, out), (second, home)] = pair.visit().unwrap();
            assert_eq!((first, second), (Visit::Moved, Visit::Moved));
            assert_eq!((out.frames, out.bytes, home.frames, home.bytes), (1, length as u64, 1, length as u64));
            assert!(receive(&mut pair.borrower.receivers[0]).unwrap() == there, "frame {number}");
            assert!(receive(&mut pair.lender.receivers[0]).unwrap() == back, "frame {number}");
        }
    }

    #[test]
    fn a_slot_goes_back_to_the_lender_only_when_the_borrower_has_consumed_it() {
        let mut pair = TrustedPair::new(4);
        for number in 0..4 {
            assert_eq!(send(&mut pair.lender.senders[0], &[number; 60]), Put::Stored);
        }
        pair.visit().unwrap();
        assert_eq!(pair.visit().unwrap()[0].0, Visit::Stalled, "the worker must look again, as nobody rings");
        assert_eq!(send(&mut pair.lender.senders[0], &[4; 60]), Put::Full);
        assert_eq!(receive(&mut pair.borrower.receivers[0]).unwrap(), [0; 60]);
        pair.visit().unwrap();
        assert_eq!(send(&mut pair.lender.senders[0], &[4; 60]), Put::Stored);
        assert_eq!(send(&mut pair.lender.senders[0], &[5; 60]), Put::Full);
        for number in 1..5 {
            pair.visit().unwrap();
            assert_eq!(receive(&mut pair.borrower.receivers[0]).unwrap(), [number; 60]);
        }
        assert_eq!(pair.visit().unwrap()[0].0, Visit::Quiet);
    }

    #[test]
    fn a_borrower_that_restarts_goes_on_with_the_next_frame_and_the_same_buffers() {
        let mut pair = TrustedPair::new(8);
        for number in 0..5 {
            send(&mut pair.lender.senders[0], &[number; 60]);
        }
        pair.visit().unwrap();
        send(&mut pair.borrower.senders[0], &[9; 60]);
        pair.visit().unwrap();
        assert_eq!(receive(&mut pair.lender.receivers[0]).unwrap(), [9; 60]);
        (pair.far, pair.borrower) = TrustedPair::borrow(&pair.near_layout);
        pair.visit().unwrap();
        for number in 5..100 {
            assert_eq!(send(&mut pair.lender.senders[0], &[number; 60]), Put::Stored);
            assert_eq!(send(&mut pair.borrower.senders[0], &[!number; 60]), Put::Stored);
            pair.visit().unwrap();
            assert_eq!(receive(&mut pair.borrower.receivers[0]).unwrap(), [number; 60]);
            assert_eq!(receive(&mut pair.lender.receivers[0]).unwrap(), [!number; 60]);
        }
    }

    #[test]
    fn a_piece_longer_than_the_borrower_takes_is_dropped_and_the_others_pass() {
        let mut pair = TrustedPair::new(8);
        let Slots::ZeroCopy(loans) = &mut pair.far.senders[0].slots else { unreachable!() };
        loans.piece_max = 1500;
        for length in [60, 1600, 61] {
            send(&mut pair.lender.senders[0], &vec![7; length]);
        }
        let [(_, out), _] = pair.visit().unwrap();
        assert_eq!((out.taken, out.frames), (3, 2));
        assert_eq!(receive(&mut pair.borrower.receivers[0]).unwrap().len(), 60);
        assert_eq!(receive(&mut pair.borrower.receivers[0]).unwrap().len(), 61);
        assert_eq!(pair.visit().unwrap()[0].0, Visit::Quiet, "what was dropped has gone back too");
    }

    #[test]
    fn a_chain_longer_than_the_borrower_s_ring_is_dropped_and_the_others_pass() {
        let mut pair = TrustedPair::new(64);
        (pair.far, pair.borrower) = TrustedPair::borrow_of(&pair.near_layout, 4);
        pair.visit().unwrap();
        // Pieces of 2048 bytes: one, five, four.
        for length in [60, 4 * 2048 + 1, 4 * 2048] {
            assert_eq!(send(&mut pair.lender.senders[0], &vec![7; length]), Put::Stored);
        }
        let [(_, out), _] = pair.visit().unwrap();
        assert_eq!((out.taken, &out.drops[..]), (2, &[(DropReason::TooLong, 1)][..]));
        assert_eq!(receive(&mut pair.borrower.receivers[0]).unwrap().len(), 60);
        assert_eq!(pair.visit().unwrap()[0].0, Visit::Moved, "it has a slot for each of the four pieces");
        assert_eq!(receive(&mut pair.borrower.receivers[0]).unwrap().len(), 4 * 2048);
        assert_eq!(pair.visit().unwrap()[0].0, Visit::Quiet, "what was dropped has gone back too");
    }

    #[test]
    fn a_lender_that_lies_is_the_one_that_is_blamed() {
        for lie in [
            Descriptor { flags: 0, region: 2, length: 60, offset: 0 },
            Descriptor { flags: 0, region: 1, length: 2048, offset: u32::MAX },
            Descriptor { flags: NEXT, region: 1, length: 60, offset: 0 },
        ] {
            let mut pair = TrustedPair::new(8);
            send(&mut pair.lender.senders[0], &[7; 60]);
            pair.lender.senders[0].ring.table.write(0, lie.emit());
            assert!(matches!(pair.visit(), Err(Broken::Source(_))), "{lie:?}");
            let mut pair = TrustedPair::new(8);
            pair.lender.receivers[0].ring.table.write(0, Descriptor { flags: 0, ..lie }.emit());
            assert_eq!(lie.flags == 0, matches!(pair.visit(), Err(Broken::Target(_))), "{lie:?}");
        }
    }

    #[test]
    fn a_borrower_that_lies_is_the_one_that_is_blamed() {
        let lie = |table: &mut dyn FnMut(&mut TrustedPair)| {
            let mut pair = TrustedPair::new(8);
            pair.visit().unwrap();
            send(&mut pair.borrower.senders[0], &[7; 60]);
            table(&mut pair);
            pair.visit()
        };
        let descriptor = |length, flags| {
            move |pair: &mut TrustedPair| {
                let slot = Descriptor { flags, region: 9, length, offset: 5 };
                pair.borrower.senders[0].ring.table.write(0, slot.emit());
            }
        };
        for (length, flags) in [(0, 0), (2049, 0), (u32::MAX, 0), (60, NEXT)] {
            assert!(matches!(lie(&mut descriptor(length, flags)), Err(Broken::Source(_))), "{length} {flags}");
        }
        assert!(lie(&mut descriptor(60, 0)).is_ok(), "what it says of region and offset is not read");
        assert!(matches!(lie(&mut |pair| pair.borrower.senders[0].ring.tail.store(9)), Err(Broken::Source(_))));
        assert!(matches!(lie(&mut |pair| pair.borrower.receivers[0].ring.tail.store(1)), Err(Broken::Target(_))));
        // Slots that hold no offer: the lender has taken nothing back yet.
        let mut pair = TrustedPair::new(8);
        pair.borrower.senders[0].ring.tail.store(1);
        assert!(matches!(pair.visit(), Err(Broken::Source(Fault::Index { .. }))));
    }

    #[test]
    fn what_does_not_fit_the_borrower_is_not_lent() {
        let pair = TrustedPair::new(8);
        let loan = pair.near_layout.loan().unwrap();
        assert!(loan.fit(2, 1, 1024).is_err());
        assert!(loan.fit(3, 0, 1024).is_err());
        assert_eq!(loan.fit(3, 1, 4), Ok(4));
    }
}
