//! Frames that a device is to finish: copied like others, into as many buffers as they need.

use std::mem::zeroed;

use ferrule_dpdk_sys::{FERRULE_SEGMENTS_MAX, ferrule_frame, ferrule_offload};
use ferrule_ffi::span::{Span, SpanMut};

use crate::config::BURST;
use crate::queue::{FRAME_MIN, Stored, TxQueue, WIRE_MIN};

/// What is left to do on a frame, once it lies in memory of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Nothing any more.
    Nothing,
    /// What the device does.
    Device(DeviceFinish),
}

/// What a device does on a frame of TCP or UDP. The checksum holds the sum of the pseudo-header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFinish {
    /// Bytes in front of the IP header.
    pub link_len: u16,
    /// Bytes of the IP header.
    pub network_len: u16,
    /// Bytes of the TCP or UDP header.
    pub transport_len: u16,
    /// Whether it is IPv6.
    pub is_ipv6: bool,
    /// Whether it is UDP.
    pub is_udp: bool,
    /// Payload bytes of each TCP segment that it is cut into; none: only the checksum is missing.
    pub segment: Option<u16>,
}

impl TxQueue {
    /// Stores a copy of a frame that is not finished. `plan` is shown the first bytes of the copy, with all headers if the frame has any, or
    /// all of a frame that may be sent as one, and may change them. It says what the device has to do; `None`: the frame is bad.
    pub fn store_unfinished(&mut self, pieces: &[Span<'_>], plan: impl FnOnce(&mut [u8]) -> Option<Finish>) -> Stored {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let count = len.div_ceil(self.port.room()).max(1);
        if len < FRAME_MIN {
            return Stored::TooShort;
        }
        if count > SEGMENTS_MAX.min(self.port.cut_segments_max().into()) {
            return Stored::TooLong;
        }
        if self.stored == BURST {
            return Stored::Full;
        }
        // SAFETY: of numbers and pointers; those that are allocated are filled by DPDK.
        let mut frames: [ferrule_frame; SEGMENTS_MAX] = unsafe { zeroed() };
        let frames = &mut frames[..count];
        // SAFETY: the pool is there until the port is closed, and there is room for `count` frames.
        if unsafe { self.port.dpdk().ferrule_alloc(self.pool, frames.as_mut_ptr(), count as u16) } != 0 {
            return Stored::Full;
        }
        if !scatter(frames, pieces) {
            self.free(frames);
            return Stored::TooLong;
        }
        let Some(finish) = plan(filled(&mut frames[0])) else {
            self.free(frames);
            return Stored::Bad;
        };
        if !self.may_send(finish, len, count) {
            self.free(frames);
            return Stored::TooLong;
        }
        let (head, head_len) = (&mut frames[0], len.max(WIRE_MIN));
        if count == 1 {
            head.len = head_len as u32;
        }
        // SAFETY: `count` mbufs that are ours, each filled as far as it says.
        unsafe { self.port.dpdk().ferrule_chain(head, count as u16) };
        if let Finish::Device(finish) = finish
            && !self.leave_to_device(&frames[0], finish)
        {
            // It stands for all of them now.
            self.free(&mut frames[..1]);
            return Stored::Bad;
        }
        self.frames[self.stored] = frames[0];
        self.stored += 1;
        Stored::Yes
    }

    /// Whether the port may send what becomes of a frame of `len` bytes in so many buffers.
    fn may_send(&self, finish: Finish, len: usize, count: usize) -> bool {
        let (sent, sent_max, segments_max) = match finish {
            Finish::Device(DeviceFinish { segment: Some(segment), link_len, network_len, transport_len, .. }) => {
                let headers: usize = [link_len, network_len, transport_len].into_iter().map(usize::from).sum();
                let (_, segment_max) = self.port.finishes().segment_bounds;
                (len.min(headers + usize::from(segment)), segment_max, self.port.cut_segments_max())
            }
            Finish::Device(_) | Finish::Nothing => (len, self.port.frame_max(), self.port.segments_max()),
        };
        sent <= sent_max && count <= usize::from(segments_max)
    }

    /// `false`: its driver cannot do that.
    fn leave_to_device(&self, frame: &ferrule_frame, finish: DeviceFinish) -> bool {
        let DeviceFinish { link_len, network_len, transport_len, is_ipv6, is_udp, segment } = finish;
        let offload = ferrule_offload {
            link_len,
            network_len,
            transport_len,
            segment: segment.unwrap_or(0),
            is_ipv6: is_ipv6.into(),
            is_udp: is_udp.into(),
        };
        // SAFETY: an mbuf that is ours, and the port is started while one of its queues is there.
        let status = unsafe { self.port.dpdk().ferrule_finish(self.port.id(), self.queue, frame, &raw const offload) };
        status == 0
    }

    fn free(&self, frames: &mut [ferrule_frame]) {
        // SAFETY: mbufs that are ours, of which none is looked at again.
        unsafe { self.port.dpdk().ferrule_free(frames.as_mut_ptr(), frames.len() as u16) };
    }
}

/// Copies a frame into empty ones, in each as much as there is room for. `false`: they have not enough.
fn scatter(frames: &mut [ferrule_frame], pieces: &[Span<'_>]) -> bool {
    let mut rest = pieces.iter().copied();
    let mut piece = rest.next();
    for frame in frames {
        // SAFETY: the data of an mbuf that was just allocated for us alone, with as much room behind it.
        let room = unsafe { std::slice::from_raw_parts_mut(frame.data, usize::from(frame.first)) };
        let mut at = 0;
        while let Some(span) = piece
            && at < room.len()
        {
            let len = span.len().min(room.len() - at);
            let copied = span.head(len).is_some_and(|span| span.copy_to(&mut SpanMut::from(&mut room[at..at + len])));
            if !copied {
                return false;
            }
            at += len;
            piece = span.tail(len).filter(|left| !left.is_empty()).or_else(|| rest.next());
        }
        if at < room.len().min(WIRE_MIN) {
            room[at..WIRE_MIN].fill(0);
        }
        frame.len = at as u32;
    }
    piece.is_none()
}

/// The bytes that were stored in a frame.
fn filled(frame: &mut ferrule_frame) -> &mut [u8] {
    // SAFETY: as in `scatter`; so many were stored there.
    unsafe { std::slice::from_raw_parts_mut(frame.data, frame.len as usize) }
}

const SEGMENTS_MAX: usize = FERRULE_SEGMENTS_MAX as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_scattered_over_as_many_buffers_as_it_fills_and_not_beyond_their_room() {
        let mut memory = [[9_u8; 72]; 3];
        // SAFETY: of numbers and pointers.
        let empty: ferrule_frame = unsafe { zeroed() };
        let mut frames =
            memory.each_mut().map(|memory| ferrule_frame { data: memory.as_mut_ptr(), first: 64, ..empty });
        let bytes: Vec<u8> = (0..150).collect();
        let pieces = [&bytes[..10], &[], &bytes[10..64], &bytes[64..149], &bytes[149..]].map(Span::from);
        assert!(scatter(&mut frames, &pieces));
        assert_eq!(frames.each_ref().map(|frame| frame.len), [64, 64, 22]);
        let stored =
            [filled(&mut frames[0]).to_vec(), filled(&mut frames[1]).to_vec(), filled(&mut frames[2]).to_vec()];
        assert_eq!(stored.concat(), bytes);
        assert!(!scatter(&mut frames[..2], &pieces));
        assert!(memory.iter().all(|memory| memory[64..] == [9; 8]));
    }
}
