//! Frames that are written where they are sent from, by programs whose frames differ in a few bytes only.

use ferrule_ffi::span::SpanMut;

use super::Sender;

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

    /// The position `ahead` of the next one, if it is free.
    #[inline(always)]
    fn ahead(&self, ahead: u32) -> Option<u16> {
        (ahead < self.room().into()).then(|| self.next.wrapping_add(ahead as u16))
    }
}

#[cfg(test)]
mod tests {
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
