//! A target that splits one source over many wires by a key in each frame, such as a VXLAN network identifier.
//!
//! Each key has a [frame queue](crate::port::frame_queue), whose other end a lane of a wire reads, on any worker. A queue that is full costs
//! its own wire frames and holds nobody up.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;

use crate::port::frame_queue::QueueTarget;
use crate::port::{BURST, Fault, Frame, Put, Target};
use crate::status::DropReason;

/// Which wire a frame is for, and how many bytes come before what the wire gets. It is asked of a copy of the frame's
/// first bytes, with zeros behind a shorter frame, and of the frame's length.
pub type Classify = fn(&[u8; HEAD], usize) -> Option<(u64, usize)>;

/// The target of the source's lane.
pub struct Demux {
    classify: Classify,
    routes: HashMap<u64, QueueTarget>,
    /// The keys that got frames since the last publish.
    touched: ArrayVec<u64, BURST>,
    shared: Arc<DemuxState>,
}

/// Control's side of it.
pub struct DemuxHandle(Arc<DemuxState>);

struct DemuxState {
    changes: ArrayQueue<Change>,
    /// Queues that are not used any more: control drops them, as a worker frees no memory.
    retired: ArrayQueue<QueueTarget>,
    unmatched: AtomicU64,
}

struct Change {
    key: u64,
    target: Option<QueueTarget>,
}

impl Demux {
    /// For at most so many keys.
    pub fn new(classify: Classify, keys_max: usize) -> (Self, DemuxHandle) {
        let shared = DemuxState {
            changes: ArrayQueue::new(CHANGES_MAX),
            retired: ArrayQueue::new(keys_max + CHANGES_MAX),
            unmatched: AtomicU64::new(0),
        };
        let shared = Arc::new(shared);
        // Twice the room, so that keys that come and go do not make it grow on a worker.
        let routes = HashMap::with_capacity(2 * keys_max);
        let demux = Self { classify, routes, touched: ArrayVec::new(), shared: Arc::clone(&shared) };
        (demux, DemuxHandle(shared))
    }

    fn route(&mut self, frame: &Frame<'_>) -> Option<(u64, usize)> {
        let words = frame.bytes.first_words::<{ HEAD / 8 }>().map(u64::to_ne_bytes);
        let head = std::array::from_fn(|at| words[at / 8][at % 8]);
        let (key, header) = (self.classify)(&head, frame.bytes.len())?;
        self.routes.contains_key(&key).then_some((key, header))
    }
}

impl DemuxHandle {
    /// Frames of `key` go to this queue from now on.
    ///
    /// # Errors
    /// The worker has not taken earlier changes yet: try again.
    pub fn add(&self, key: u64, target: QueueTarget) -> Result<(), QueueTarget> {
        let change = Change { key, target: Some(target) };
        self.change(change).map_err(|change| change.target.expect("it was put there"))
    }

    /// Frames of `key` are dropped from now on. `false`: the worker has not taken earlier changes yet: try again.
    pub fn remove(&self, key: u64) -> bool {
        self.change(Change { key, target: None }).is_ok()
    }

    /// Frames that were for nobody.
    pub fn unmatched(&self) -> u64 {
        self.0.unmatched.load(Ordering::Relaxed)
    }

    fn change(&self, change: Change) -> Result<(), Change> {
        while self.0.retired.pop().is_some() {}
        self.0.changes.push(change)
    }
}

impl Target for Demux {
    fn refresh(&mut self) -> Result<(), Fault> {
        while !self.shared.changes.is_empty()
            && let Some(Change { key, target }) = self.shared.changes.pop()
        {
            let replaced = match target {
                Some(target) => self.routes.insert(key, target),
                None => self.routes.remove(&key),
            };
            if let Some(replaced) = replaced {
                // Room for all of them.
                let _ = self.shared.retired.push(replaced);
            }
        }
        Ok(())
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        let routed = self.route(frame).and_then(|(key, header)| Some((key, frame.bytes.tail(header)?)));
        let Some((key, bytes)) = routed else {
            self.shared.unmatched.fetch_add(1, Ordering::Relaxed);
            return Ok(Put::Refused(DropReason::Refused));
        };
        if !self.touched.contains(&key) {
            if self.touched.is_full() {
                self.publish();
            }
            self.touched.push(key);
        }
        let target = self.routes.get_mut(&key).expect("the key was looked up");
        target.put(&Frame { bytes, offload: None, slots: 0 })
    }

    fn publish(&mut self) -> bool {
        for key in self.touched.drain(..) {
            if let Some(target) = self.routes.get_mut(&key) {
                target.publish();
            }
        }
        false
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn can_hold(&self) -> bool {
        false
    }
}

/// Bytes of a frame that its key is looked for in: Ethernet, IPv4, UDP and VXLAN headers are 50.
pub const HEAD: usize = 64;
const CHANGES_MAX: usize = 64;
