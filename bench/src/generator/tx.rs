//! The frames of one queue.

use ferrule_dataplane::port::{BURST, Frame, Put, Run, Target};
use ferrule_endpoints::{Alike, InPlace};
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::span::{Span, SpanMut};

use crate::generator::{PREFETCH, RunError};
use crate::load::{Load, Touch};
use crate::traffic::{Addresses, HEAD, Head, Pattern, SizeError};

/// The flows of a queue, which have their turns one after the other, and all sizes of the mix, which have theirs.
pub(crate) struct TxStream {
    touch: Touch,
    stamp_time: bool,
    flows: Vec<TxFlow>,
    flow: usize,
    size: usize,
    /// Bytes of the largest frame: what lies behind a head is a part of them.
    payload: Box<[u8]>,
    /// A frame that does not fit into one buffer is put together here.
    scratch: Box<[u8]>,
    /// Buffers that do not hold the payload yet.
    unfilled: u32,
    copies: Copies,
}

/// A burst of frames of which copies are sent: what is behind their heads stays.
struct Copies {
    bytes: Box<[u8]>,
    stride: usize,
}

impl Copies {
    /// With this payload in each; none, if no copies are sent.
    fn new(payload: &[u8], are_wanted: bool) -> Self {
        let stride = payload.len().next_multiple_of(HEAD);
        let mut bytes = vec![0; if are_wanted { stride * BURST } else { 0 }].into_boxed_slice();
        bytes.chunks_exact_mut(stride).for_each(|room| room[..payload.len()].copy_from_slice(payload));
        Self { bytes, stride }
    }

    fn frames(&mut self, count: usize) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_exact_mut(self.stride).take(count)
    }
}

/// One flow.
struct TxFlow {
    sequence: u64,
    /// One for each size of the mix.
    heads: Box<[Head]>,
    /// If frames are verified: one for each size of the mix.
    patterns: Vec<Pattern>,
}

impl TxStream {
    /// A queue of so many buffers.
    pub(super) fn new(
        load: &Load,
        flows: impl Iterator<Item = u32>,
        addresses: Addresses,
        buffers: u32,
    ) -> Result<Self, SizeError> {
        let flow = |number| {
            let pattern = |&size: &usize| Pattern::new(size, number, addresses);
            let mut patterns = load.mix.sizes().iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
            let heads = patterns.iter().map(Pattern::head).collect();
            if load.touch != Touch::Verified {
                patterns.clear();
            }
            Ok(TxFlow { sequence: 0, heads, patterns })
        };
        let payload: Box<[u8]> = Pattern::new(load.mix.largest(), 0, addresses)?.frame().into();
        Ok(Self {
            touch: load.touch,
            stamp_time: load.latency,
            flows: flows.map(flow).collect::<Result<_, _>>()?,
            flow: 0,
            size: 0,
            // A head is written as a whole, also in front of less.
            scratch: if payload.len() < HEAD { vec![0; HEAD].into() } else { payload.clone() },
            // A side without buffers that stay filled takes copies.
            copies: Copies::new(&payload, buffers == 0),
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
    pub(crate) fn send<T: InPlace>(
        &mut self,
        target: &mut T,
        count: u32,
        now: u64,
        notifier: &mut Notifier,
    ) -> Result<u32, RunError> {
        target.refresh()?;
        let time = if self.stamp_time { now } else { 0 };
        let mut sent = self.send_alike(target, count, time);
        let mut begun = 0;
        while sent < count {
            if self.touch != Touch::Untouched {
                prefetch(target, begun);
            }
            if self.write(target, begun, time) {
                begun += 1;
            } else {
                // No room, or more than one buffer has.
                target.commit(begun);
                begun = 0;
                if !put(&mut self.flows[self.flow], self.size, &mut self.scratch, target, time)? {
                    break;
                }
            }
            sent += 1;
            let flow = &mut self.flows[self.flow];
            flow.sequence += 1;
            self.size = if self.size + 1 == flow.heads.len() { 0 } else { self.size + 1 };
            self.flow = if self.flow + 1 == self.flows.len() { 0 } else { self.flow + 1 };
        }
        target.commit(begun);
        if target.publish()
            && let Some(eventfd) = target.notify_fd()
        {
            notifier.notify(eventfd).map_err(RunError::Notifier)?;
        }
        Ok(sent)
    }

    /// The same for a target whose buffers are new each time: frames are stamped here, and copied.
    pub(crate) fn send_copies(&mut self, target: &mut impl Target, count: u32, now: u64) -> Result<u32, RunError> {
        // What it had no room for last time goes first.
        target.reclaim();
        target.refresh()?;
        let time = if self.stamp_time { now } else { 0 };
        let mut sent = 0;
        while sent < count {
            let batch = (count - sent).min(BURST as u32) as usize;
            let (stored, is_full) = self.put_batch(target, batch, time)?;
            self.skip(stored);
            sent += stored as u32;
            if is_full {
                break;
            }
        }
        target.publish();
        Ok(sent)
    }

    /// Stores the next frames. How many, and whether there is no room for more.
    fn put_batch(&mut self, target: &mut impl Target, batch: usize, time: u64) -> Result<(usize, bool), RunError> {
        let sizes = self.flows[0].heads.len();
        let mut lengths = [0; BURST];
        for (ahead, (room, length)) in self.copies.frames(batch).zip(&mut lengths).enumerate() {
            let (flow, size) = ((self.flow + ahead) % self.flows.len(), (self.size + ahead) % sizes);
            let sequence = self.flows[flow].sequence + (ahead / self.flows.len()) as u64;
            *length = self.flows[flow].heads[size].size as usize;
            if let Some(pattern) = self.flows[flow].patterns.get_mut(size) {
                room[..*length].copy_from_slice(pattern.fill_at(sequence, time));
            } else {
                let head = self.flows[flow].heads[size].stamp(sequence, time);
                room[..HEAD].copy_from_slice(head.map(u64::to_le_bytes).as_flattened());
            }
        }
        let frames = self.copies.frames(batch).zip(lengths).map(|(room, length)| Span::from(&room[..length]));
        let run: Run<'_> = frames.collect();
        let stored = target.put_run(&run);
        let Some(&bytes) = run.get(stored) else { return Ok((stored, false)) };
        match target.put(&Frame { bytes, offload: None, slots: 0 })? {
            Put::Stored => Ok((stored + 1, false)),
            Put::Full => Ok((stored, true)),
            Put::Refused(reason) => Err(RunError::Refused { size: bytes.len(), reason }),
        }
    }

    /// The next frames were sent.
    fn skip(&mut self, count: usize) {
        let (flows, sizes) = (self.flows.len(), self.flows[0].heads.len());
        if count >= flows {
            self.flows.iter_mut().for_each(|flow| flow.sequence += (count / flows) as u64);
        }
        for ahead in 0..count % flows {
            self.flows[(self.flow + ahead) % flows].sequence += 1;
        }
        (self.flow, self.size) = ((self.flow + count) % flows, (self.size + count) % sizes);
    }

    /// The usual load, one flow of one size in buffers that are filled, in a loop that has nothing else to decide. How
    /// many: what is left, if there is room for it, is no such frame.
    fn send_alike(&mut self, target: &mut impl InPlace, count: u32, time: u64) -> u32 {
        let [TxFlow { sequence, heads, .. }] = &mut self.flows[..] else { return 0 };
        let [head] = &heads[..] else { return 0 };
        if self.unfilled > 0 {
            return 0;
        }
        let (head, first) = (*head, *sequence);
        let room = head.size.max(HEAD as u32);
        let alike = Alike { count, length: head.size, room, prefetch: PREFETCH as u32 };
        let write_head = |number: u32, buffer: &mut SpanMut<'_>| {
            let _ = buffer.write_words(head.stamp(first + u64::from(number), time));
        };
        let sent = match self.touch {
            Touch::Verified => 0,
            Touch::Untouched => target.write_each(Alike { prefetch: 0, ..alike }, |_, _| ()),
            Touch::Whole if room > HEAD as u32 => {
                let payload = Span::from(self.payload.get(HEAD..).unwrap_or_default());
                target.write_each(alike, |number, buffer| {
                    write_head(number, buffer);
                    if let Some((_, mut rest)) = buffer.split(HEAD) {
                        let _ = payload.copy_to(&mut rest);
                    }
                })
            }
            Touch::Whole | Touch::Stamped => target.write_each(alike, write_head),
        };
        *sequence += u64::from(sent);
        sent
    }

    /// Writes the next frame into the next buffer. `false`: it does not fit, or there is none.
    #[inline(always)]
    fn write<T: InPlace>(&mut self, target: &mut T, begun: u32, time: u64) -> bool {
        let flow = &self.flows[self.flow];
        let head = &flow.heads[self.size];
        let size = head.size as usize;
        let fits = |buffer: &SpanMut<'_>| buffer.len() >= size.max(HEAD) && self.touch != Touch::Verified;
        let buffer = target.buffer(begun).filter(fits);
        let Some(mut buffer) = buffer else { return false };
        let filled = self.unfilled == 0;
        if self.touch != Touch::Untouched || !filled {
            let _ = buffer.write_words(head.stamp(flow.sequence, time));
        }
        if !filled || self.touch == Touch::Whole {
            let end = if filled { size } else { self.payload.len().min(buffer.len()) };
            if let (Some((_, mut rest)), Some(payload)) = (buffer.split(HEAD), self.payload.get(HEAD..end)) {
                let _ = Span::from(payload).copy_to(&mut rest);
            }
            self.unfilled = self.unfilled.saturating_sub(1);
        }
        target.describe(begun, head.size);
        true
    }
}

/// Asks for the first line of a buffer that will be written to soon.
#[inline(always)]
fn prefetch(target: &mut impl InPlace, begun: u32) {
    if let Some(buffer) = target.buffer(begun + PREFETCH as u32) {
        buffer.prefetch();
    }
}

/// Sends a frame that is made elsewhere and copied. Whether there was room.
#[inline(never)]
fn put(
    flow: &mut TxFlow,
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
