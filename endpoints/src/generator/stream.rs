//! The frames of one queue.

use ferrule_dataplane::port::{Frame, Put};
use ferrule_ffi::bell::Bell;
use ferrule_ffi::span::Span;

use crate::end::InPlace;
use crate::generator::{PREFETCH, RunError};
use crate::load::{Load, Touch};
use crate::traffic::{Addresses, HEAD, Head, Pattern, SizeError};

/// The flows of a queue, which have their turns one after the other, and all sizes of the mix, which have theirs.
pub(super) struct Stream {
    touch: Touch,
    stamp_time: bool,
    flows: Vec<Flow>,
    flow: usize,
    size: usize,
    /// Bytes of the largest frame: what lies behind a head is a part of them.
    payload: Box<[u8]>,
    /// A frame that does not fit into one buffer is put together here.
    scratch: Box<[u8]>,
    /// Buffers that do not hold the payload yet.
    unfilled: u32,
}

/// One flow.
struct Flow {
    sequence: u64,
    /// One for each size of the mix.
    heads: Box<[Head]>,
    /// If frames are verified: one for each size of the mix.
    patterns: Vec<Pattern>,
}

impl Stream {
    /// A queue of so many buffers.
    pub(super) fn new(load: &Load, flows: impl Iterator<Item = u32>, buffers: u32) -> Result<Self, SizeError> {
        let flow = |number| {
            let pattern = |&size: &usize| Pattern::new(size, number, Addresses::default());
            let mut patterns = load.mix.sizes().iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
            let heads = patterns.iter().filter_map(Pattern::head).collect();
            if load.touch != Touch::Verified {
                patterns.clear();
            }
            Ok(Flow { sequence: 0, heads, patterns })
        };
        let payload: Box<[u8]> = Pattern::new(load.mix.largest(), 0, Addresses::default())?.frame().into();
        Ok(Self {
            touch: load.touch,
            stamp_time: load.latency,
            flows: flows.map(flow).collect::<Result<_, _>>()?,
            flow: 0,
            size: 0,
            scratch: payload.clone(),
            payload,
            unfilled: buffers,
        })
    }

    pub(super) fn flows(&self) -> usize {
        self.flows.len()
    }

    /// The next sequence number of a flow, by its place.
    pub(super) fn sequence(&self, place: usize) -> u64 {
        self.flows[place].sequence
    }

    /// Sends at most `count` frames, as far as there is room. How many.
    pub(super) fn send<T: InPlace>(
        &mut self,
        target: &mut T,
        count: u32,
        now: u64,
        bell: &mut Bell,
    ) -> Result<u32, RunError> {
        target.look()?;
        let time = if self.stamp_time { now } else { 0 };
        let mut sent = 0;
        while sent < count {
            if self.touch != Touch::Untouched {
                target.prefetch(PREFETCH as u32);
            }
            if !self.send_one(target, time)? {
                break;
            }
            sent += 1;
        }
        if target.publish()
            && let Some(eventfd) = target.bell()
        {
            bell.ring(eventfd).map_err(RunError::Bell)?;
        }
        Ok(sent)
    }

    /// Whether there was room.
    #[inline(always)]
    fn send_one<T: InPlace>(&mut self, target: &mut T, time: u64) -> Result<bool, RunError> {
        let flow = &mut self.flows[self.flow];
        let head = &flow.heads[self.size];
        let size = head.size as usize;
        match target.buffer() {
            Some(mut buffer) if buffer.len() >= size && self.touch != Touch::Verified => {
                let filled = self.unfilled == 0;
                if self.touch != Touch::Untouched || !filled {
                    let _ = buffer.write_words(head.stamp(flow.sequence, time));
                }
                if !filled || self.touch == Touch::Whole {
                    let end = if filled { size } else { self.payload.len().min(buffer.len()) };
                    if let Some((_, mut rest)) = buffer.split(HEAD) {
                        let _ = Span::from(&self.payload[HEAD..end]).copy_to(&mut rest);
                    }
                    self.unfilled = self.unfilled.saturating_sub(1);
                }
                target.commit(head.size);
            }
            _ => {
                if !put(flow, self.size, &mut self.scratch, target, time)? {
                    return Ok(false);
                }
            }
        }
        flow.sequence += 1;
        self.size = if self.size + 1 == flow.heads.len() { 0 } else { self.size + 1 };
        self.flow = if self.flow + 1 == self.flows.len() { 0 } else { self.flow + 1 };
        Ok(true)
    }
}

/// Sends a frame that is made elsewhere and copied. Whether there was room.
#[inline(never)]
fn put(
    flow: &mut Flow,
    size: usize,
    scratch: &mut [u8],
    target: &mut impl InPlace,
    time: u64,
) -> Result<bool, RunError> {
    let bytes = if let Some(pattern) = flow.patterns.get_mut(size) {
        pattern.fill_at(flow.sequence, time)
    } else {
        let head = &flow.heads[size];
        scratch[..HEAD].copy_from_slice(head.stamp(flow.sequence, time).map(u64::to_le_bytes).as_flattened());
        &scratch[..head.size as usize]
    };
    match target.put(&Frame { bytes: bytes.into(), offload: None, slots: 0 })? {
        Put::Stored => Ok(true),
        Put::Full => Ok(false),
        Put::Refused(reason) => Err(RunError::Refused { size: bytes.len(), reason }),
    }
}
