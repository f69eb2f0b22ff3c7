//! Numbered frames on their way from one memif end to another, checked on arrival.

use std::thread;
use std::time::Instant;

use ferrule_bench::traffic::{Addresses, Pattern, RxCounters, Sink};
use ferrule_dataplane::port::{BURST, FRAME_MAX, Frame, Put, Source, Target};
use ferrule_endpoints::memif::Endpoint;

use crate::TIMEOUT;

/// Frames of several sizes in turn on one queue, a bounded number of them under way at a time.
///
/// A forwarder such as testpmd drops what its output ring does not take. With no more frames under way than a
/// ring holds, it has no reason to, and a frame that is missing was lost by somebody.
pub struct Stream {
    queue: usize,
    /// One for each size; each counts for itself.
    patterns: Vec<Pattern>,
    window: u64,
    sent: u64,
    written_off: u64,
    sink: Sink,
    gather: Box<[u8]>,
}

impl Stream {
    /// A stream on queue number `queue`.
    ///
    /// # Panics
    /// A size is none of a frame.
    pub fn new(queue: usize, sizes: &[usize], window: u64) -> Self {
        let pattern = |(flow, &size): (usize, &usize)| Pattern::new(size, flow as u32, Addresses::default());
        let patterns: Result<Vec<_>, _> = sizes.iter().enumerate().map(pattern).collect();
        let sink = Sink::new(0..sizes.len() as u32, true);
        let patterns = patterns.expect("the sizes of a test are sizes of frames");
        Self { queue, patterns, window, sent: 0, written_off: 0, sink, gather: vec![0; FRAME_MAX].into() }
    }

    /// What arrived.
    pub fn tally(&self) -> RxCounters {
        self.sink.tally()
    }

    /// Frames sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Frames sent that have not arrived.
    pub fn missing(&self) -> u64 {
        self.sent.saturating_sub(self.tally().frames)
    }

    /// Does not wait any longer for those that are missing now: what carried them was killed.
    pub fn write_off(&mut self) {
        self.written_off = self.missing();
    }

    /// Sends until `total` were sent, the window is full or the ring is. Returns how many.
    ///
    /// # Panics
    /// The peer broke the protocol.
    pub fn send(&mut self, end: &mut Endpoint, total: u64) -> u64 {
        let sender = &mut end.queues.senders[self.queue];
        sender.refresh().expect("the peer of a sender keeps to the protocol");
        let before = self.sent;
        let limit = total.min(self.tally().frames + self.written_off + self.window);
        while self.sent < limit {
            let sizes = self.patterns.len() as u64;
            let frame = self.patterns[(self.sent % sizes) as usize].fill(self.sent / sizes);
            let frame = Frame { bytes: frame.into(), offload: None, slots: 0 };
            match sender.put(&frame).expect("the peer of a sender keeps to the protocol") {
                Put::Stored => self.sent += 1,
                Put::Full => break,
                Put::Refused(reason) => panic!("a frame was refused: {reason:?}"),
            }
        }
        if sender.publish()
            && let Some(eventfd) = sender.notify_fd()
        {
            // Full means that it rings already.
            let _ = nix::unistd::write(eventfd, &1u64.to_ne_bytes());
        }
        self.sent - before
    }

    /// Receives at most a burst. Returns how many.
    ///
    /// # Panics
    /// The peer broke the protocol.
    pub fn receive(&mut self, end: &mut Endpoint) -> u64 {
        let receiver = &mut end.queues.receivers[self.queue];
        receiver.refresh().expect("the peer of a receiver keeps to the protocol");
        let mut count = 0;
        while count < BURST as u64
            && let Some(frame) = receiver.peek(&mut self.gather).expect("the peer of a receiver keeps to the protocol")
        {
            // The frame may lie in shared memory, or in `gather`, which is free again once it was copied.
            let mut bytes = vec![0; frame.bytes.len()];
            assert!(frame.bytes.copy_out(&mut bytes), "the copy is as long as the frame");
            let slots = frame.slots;
            self.sink.see(&bytes);
            receiver.advance(slots);
            count += 1;
        }
        receiver.release();
        count
    }

    /// Whether everything that came is as it was sent, in order and once.
    ///
    /// # Panics
    /// It is not.
    pub fn check(&self) {
        let tally = self.tally();
        let bad = (tally.corrupt, tally.reordered, tally.duplicated, tally.foreign);
        assert_eq!(bad, (0, 0, 0, 0), "corrupt, reordered, duplicated, foreign; all: {tally:?}");
    }

    /// Whether everything that was sent came, as it was sent, in order and once.
    ///
    /// # Panics
    /// It did not.
    pub fn check_all(&self) {
        self.check();
        assert_eq!((self.missing(), self.tally().lost), (0, 0), "missing, lost; all: {:?}", self.tally());
    }
}

/// A stream and which of several ends it leads from and to.
pub struct Route {
    /// The frames.
    pub stream: Stream,
    /// Index of the end they start at.
    pub from: usize,
    /// Index of the end they arrive at.
    pub to: usize,
}

impl Route {
    /// Sends and receives what can be without waiting. Returns how many frames moved.
    pub fn step(&mut self, ends: &mut [Endpoint], total: u64) -> u64 {
        self.stream.send(&mut ends[self.from], total) + self.stream.receive(&mut ends[self.to])
    }
}

/// One stream for each of `queues` from end 0 to end 1 and back.
pub fn both_ways(queues: usize, sizes: &[usize], window: u64) -> Vec<Route> {
    let route = |queue, from, to| Route { stream: Stream::new(queue, sizes, window), from, to };
    (0..queues).flat_map(|queue| [route(queue, 0, 1), route(queue, 1, 0)]).collect()
}

/// Moves frames until each route has sent `total` and nothing is missing.
///
/// # Panics
/// Nothing moves for [`TIMEOUT`], or something came that was not sent.
pub fn carry(ends: &mut [Endpoint], routes: &mut [Route], total: u64) {
    let mut moved = Instant::now();
    while routes.iter().any(|route| route.stream.sent() < total || route.stream.missing() > 0) {
        let count: u64 = routes.iter_mut().map(|route| route.step(ends, total)).sum();
        for route in routes.iter() {
            route.stream.check();
        }
        if count > 0 {
            moved = Instant::now();
        } else if moved.elapsed() > TIMEOUT {
            let states: Vec<_> = routes.iter().map(|route| (route.stream.sent(), route.stream.tally())).collect();
            panic!("nothing moves any more; sent and arrived: {states:?}");
        } else {
            thread::yield_now();
        }
    }
    for route in routes {
        route.stream.check_all();
    }
}
