//! Frames that are written where they are sent from, by programs whose frames differ in a few bytes only.

use ferrule_ffi::span::SpanMut;

use super::{Descriptor, Sender, Slots};

/// Frames of one length that are written one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Alike {
    /// At most so many.
    pub count: u32,
    /// Bytes of each.
    pub length: u32,
    /// Bytes that are written of each, which may be more.
    pub room: u32,
    /// While one is written, the line of the one so many after it is asked for; 0: none.
    pub prefetch: u32,
}

impl Sender {
    /// Slots of the ring: after so many frames each buffer has had one.
    pub fn slots(&self) -> u16 {
        self.ring.size()
    }

    /// The buffer that the frame after `ahead` others goes to, with what an earlier frame left in it; none, if those that
    /// are known to be free end before it, or the peer offers none there: [`put`](crate::port::Target::put) tells which.
    #[inline(always)]
    pub fn buffer(&mut self, ahead: u32) -> Option<SpanMut<'_>> {
        let position = self.ahead(ahead)?;
        let slot = self.slot(position);
        self.room_at(slot, slot.length, position).ok()
    }

    /// Makes the first `length` bytes of it a frame, once that and the `ahead` others before it are committed.
    #[inline(always)]
    pub fn describe(&mut self, ahead: u32, length: u32) {
        if let Some(position) = self.ahead(ahead) {
            let slot = self.slot(position);
            self.fill(position, slot, length.min(slot.length), 0);
        }
    }

    /// Sends the next `count` frames, all of which were described in their order, with the next
    /// [`publish`](crate::port::Target::publish).
    #[inline(always)]
    pub fn commit(&mut self, count: u32) {
        // No more than there is room for.
        self.next = self.next.wrapping_add(count.min(self.room().into()) as u16);
    }

    /// As client: sends frames as far as free buffers are known, each after `write` was shown its buffer and its number. How
    /// many; they leave with the next [`publish`](crate::port::Target::publish). `None`: the buffers are the peer's, or
    /// too short.
    #[inline(always)]
    pub fn write_own(&mut self, alike: Alike, mut write: impl FnMut(u32, &mut SpanMut<'_>)) -> Option<u32> {
        let Slots::Own(buffers) = self.slots else { return None };
        let region = self.ring.regions.get(usize::from(buffers.region))?;
        if alike.length.max(alike.room) > buffers.size {
            return None;
        }
        let (table, first, mask) = (&self.ring.table, self.next, self.ring.size() - 1);
        let later = alike.prefetch as usize * buffers.size as usize;
        let count = alike.count.min(self.room().into()) as u16;
        let mut written = 0;
        while written < count {
            let slot = first.wrapping_add(written) & mask;
            let descriptor = buffers.descriptor(slot);
            let Some(mut buffer) = region.span_mut(descriptor.offset, buffers.size) else { break };
            if later > 0 {
                buffer.prefetch_at(later);
            }
            write(written.into(), &mut buffer);
            let words = Descriptor { length: alike.length, ..descriptor }.emit();
            // A server only reads it: left alone, its line stays with both.
            if table.read(slot) != words {
                table.write(slot, words);
            }
            written += 1;
        }
        self.next = first.wrapping_add(written);
        Some(written.into())
    }

    /// The position `ahead` of the next one, if it is free.
    #[inline(always)]
    fn ahead(&self, ahead: u32) -> Option<u16> {
        (ahead < self.room().into()).then(|| self.next.wrapping_add(ahead as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::Alike;
    use crate::port::memif::ring::tests::pair;
    use crate::port::{FRAME_MAX, Source, Target};
    use ferrule_ffi::span::Span;

    #[test]
    fn a_frame_written_in_place_arrives_and_its_buffer_keeps_it() {
        let (mut client, mut server) = pair(2048, 64);
        for (sender, receiver) in
            [(&mut client.senders[0], &mut server.receivers[0]), (&mut server.senders[0], &mut client.receivers[0])]
        {
            assert!(sender.buffer(0).is_none(), "before the first look");
            for round in 0..2u8 {
                let mut gather = vec![0; FRAME_MAX];
                for number in 0..64 {
                    sender.refresh().unwrap();
                    let mut buffer = sender.buffer(0).unwrap();
                    assert_eq!(buffer.len(), 2048);
                    let text = if round == 0 { &b"ferrule at its place"[..] } else { &b"FERR"[..] };
                    assert!(Span::from(text).copy_to(&mut buffer));
                    sender.describe(0, if number == 0 { 9000 } else { 20 });
                    sender.commit(1);
                    sender.publish();
                    assert!(receiver.refresh().unwrap());
                    let frame = receiver.peek(&mut gather).unwrap().unwrap();
                    assert_eq!(frame.bytes.len(), if number == 0 { 2048 } else { 20 });
                    let expected = if round == 0 { b"ferrule at its place" } else { b"FERRule at its place" };
                    let mut arrived = [0; 20];
                    assert!(frame.bytes.head(20).unwrap().copy_out(&mut arrived));
                    assert_eq!(&arrived, expected);
                    receiver.advance(1);
                    receiver.release();
                }
            }
        }
    }

    #[test]
    fn frames_of_one_size_are_written_as_far_as_there_are_buffers() {
        let alike = Alike { count: 100, length: 60, room: 64, prefetch: 8 };
        let (mut client, mut server) = pair(2048, 64);
        let (sender, receiver) = (&mut client.senders[0], &mut server.receivers[0]);
        for round in 0..5u8 {
            sender.refresh().unwrap();
            let mut numbers = Vec::new();
            let sent = sender.write_own(alike, |number, buffer| {
                numbers.push(number);
                assert!(Span::from(&[round, number as u8][..]).copy_to(buffer));
            });
            assert_eq!((sent, sender.room()), (Some(64), 0));
            assert!(numbers.into_iter().eq(0..64));
            sender.publish();
            assert!(receiver.refresh().unwrap());
            let mut gather = vec![0; FRAME_MAX];
            for number in 0..64 {
                let frame = receiver.peek(&mut gather).unwrap().unwrap();
                let mut bytes = [0; 60];
                assert!(frame.bytes.len() == 60 && frame.bytes.copy_out(&mut bytes));
                assert_eq!(bytes[..2], [round, number]);
                receiver.advance(1);
            }
            receiver.release();
        }
        sender.refresh().unwrap();
        assert_eq!(sender.write_own(Alike { length: 2049, ..alike }, |_, _| ()), None, "longer than a buffer");
        let sender = &mut server.senders[0];
        sender.refresh().unwrap();
        assert_eq!(sender.write_own(alike, |_, _| ()), None, "the buffers are the client's");
    }

    #[test]
    fn no_more_buffers_are_shown_than_are_free() {
        let (mut client, _server) = pair(2048, 64);
        let sender = &mut client.senders[0];
        sender.refresh().unwrap();
        assert!(sender.buffer(63).is_some() && sender.buffer(64).is_none());
        for ahead in 0..65 {
            sender.describe(ahead, 60);
        }
        sender.commit(65);
        assert_eq!((sender.room(), sender.slots()), (0, 64));
        assert!(sender.buffer(0).is_none());
    }
}
