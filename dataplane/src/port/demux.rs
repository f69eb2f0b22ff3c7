//! A target that splits one source over many wires by a key in each frame, such as a VXLAN network identifier.
//!
//! Each key has a [frame queue](crate::port::frame_queue), whose other end a lane of a wire reads, on any worker. A queue that is full costs
//! its own wire frames and holds nobody up.

use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;
use thiserror::Error;

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
pub struct DemuxHandle {
    shared: Arc<DemuxState>,
    /// The keys that have a queue, once the worker has taken all changes.
    keys: Mutex<HashSet<u64>>,
    keys_max: usize,
}

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

/// Why a key gets no queue: the target comes back.
#[derive(Debug, Error)]
pub enum AddError {
    /// There are as many as it was made for.
    #[error(
        "{keys_max} keys have queues, and no more were asked for when the demultiplexer was made; make it for more"
    )]
    TooManyKeys {
        /// So many.
        keys_max: usize,
        /// The queue.
        target: QueueTarget,
    },
    /// The lane was not visited since earlier changes.
    #[error("the worker has not taken earlier changes yet; try again")]
    Busy {
        /// The queue.
        target: QueueTarget,
    },
}

impl Demux {
    /// For at most so many keys.
    pub fn new(classify: Classify, keys_max: usize) -> (Self, DemuxHandle) {
        let shared = DemuxState {
            changes: ArrayQueue::new(CHANGES_MAX),
            retired: ArrayQueue::new(CHANGES_MAX),
            unmatched: AtomicU64::new(0),
        };
        let shared = Arc::new(shared);
        // Twice the room, so that keys that come and go do not make it grow on a worker.
        let routes = HashMap::with_capacity(2 * keys_max);
        let demux = Self { classify, routes, touched: ArrayVec::new(), shared: Arc::clone(&shared) };
        (demux, DemuxHandle { shared, keys: Mutex::default(), keys_max })
    }

    fn route(&mut self, frame: &Frame<'_>) -> Option<(u64, usize)> {
        let words = frame.bytes.first_words::<{ HEAD / 8 }>().map(u64::to_ne_bytes);
        let head = std::array::from_fn(|at| words[at / 8][at % 8]);
        let (key, header) = (self.classify)(&head, frame.bytes.len())?;
        self.routes.contains_key(&key).then_some((key, header))
    }

    /// Does what control has asked for, as far as there is room for the queues that are not used any more.
    fn take_changes(&mut self) {
        while !self.shared.changes.is_empty()
            && !self.shared.retired.is_full()
            && let Some(Change { key, target }) = self.shared.changes.pop()
        {
            let replaced = match target {
                Some(target) => self.routes.insert(key, target),
                None => self.routes.remove(&key),
            };
            if let Some(replaced) = replaced {
                // There was room, and nobody else fills it.
                let _ = self.shared.retired.push(replaced);
            }
        }
    }
}

impl DemuxHandle {
    /// Frames of `key` go to this queue from now on.
    pub fn add(&self, key: u64, target: QueueTarget) -> Result<(), AddError> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if !keys.contains(&key) && keys.len() == self.keys_max {
            return Err(AddError::TooManyKeys { keys_max: self.keys_max, target });
        }
        if let Err(change) = self.change(Change { key, target: Some(target) }) {
            return Err(AddError::Busy { target: change.target.expect("it was put there") });
        }
        keys.insert(key);
        Ok(())
    }

    /// Frames of `key` are dropped from now on. `false`: the worker has not taken earlier changes yet: try again.
    pub fn remove(&self, key: u64) -> bool {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = self.change(Change { key, target: None }).is_ok();
        if removed {
            keys.remove(&key);
        }
        removed
    }

    /// Drops the queues that the worker does not use any more. Every change does so too.
    pub fn reap(&self) {
        while self.shared.retired.pop().is_some() {}
    }

    /// Frames that were for nobody.
    pub fn unmatched(&self) -> u64 {
        self.shared.unmatched.load(Ordering::Relaxed)
    }

    fn change(&self, change: Change) -> Result<(), Change> {
        self.reap();
        self.shared.changes.push(change)
    }
}

impl Target for Demux {
    fn refresh(&mut self) -> Result<(), Fault> {
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

    fn wants_visit(&self) -> bool {
        !self.shared.changes.is_empty() && !self.shared.retired.is_full()
    }

    // At every visit, also when there are no frames.
    fn reclaim(&mut self) -> bool {
        self.take_changes();
        false
    }
}

/// Bytes of a frame that its key is looked for in: Ethernet, IPv4, UDP and VXLAN headers are 50.
pub const HEAD: usize = 64;
const CHANGES_MAX: usize = 64;
