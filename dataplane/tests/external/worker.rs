//! A worker with lanes that tests make themselves, and memif peers of them.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::Settings;
use ferrule_dataplane::counters::LinkCounters;
use ferrule_dataplane::lane::deal;
use ferrule_dataplane::mailbox::Mailbox;
use ferrule_dataplane::port::any::LaneEnd;
use ferrule_dataplane::port::memif::layout::{Layout, Queues};
use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{Full, MemifSpec, Role};
use ferrule_dataplane::worker::{LaneId, Returned, WorkerHandle};
use ferrule_ffi::memory_budget::MemoryBudget;

use crate::common::DEADLINE;

/// A worker, and what it serves.
pub struct Bench {
    pub worker: WorkerHandle,
    pub lanes: Vec<LaneId>,
    returned: Arc<Mailbox<Returned>>,
}

impl Bench {
    pub fn start() -> Self {
        let returned = Arc::new(Mailbox::new(64).unwrap());
        let worker = WorkerHandle::start(0, 0, &Settings::new(vec![0]), Arc::clone(&returned), ()).unwrap();
        Self { worker, lanes: Vec::new(), returned }
    }

    /// Serves the lane of two ends. Its counters.
    pub fn serve(&mut self, ends: [LaneEnd; 2], full: Full) -> Arc<[LinkCounters; 2]> {
        let counters = Arc::<[LinkCounters; 2]>::default();
        let lane = deal(ends, full, &counters).remove(0);
        let id = self.worker.serve(Box::new(lane)).map_err(|(error, _)| error).unwrap();
        self.lanes.push(id);
        counters
    }

    /// Takes all lanes back.
    pub fn stop(mut self) {
        for &id in &self.lanes {
            self.worker.recall(id, Duration::ZERO);
        }
        let deadline = Instant::now() + DEADLINE;
        let mut back = 0;
        while back < self.lanes.len() {
            if let Some(Returned { id, lane, fault, .. }) = self.returned.take() {
                assert_eq!(fault, None);
                self.worker.forget(id, &lane);
                back += 1;
            }
            assert!(Instant::now() < deadline, "lanes did not come back");
            thread::yield_now();
        }
    }
}

/// The client of a memif connection.
pub struct Peer {
    queues: Queues,
    _layout: Layout,
}

/// A memif client with rings of so many slots, and the server's end.
pub fn memif(ring: u32) -> (Peer, LaneEnd) {
    let spec = MemifSpec::new("@unused".parse().unwrap(), Role::Client);
    let mut client = Layout::create(&spec, 1, ring, &<_>::default()).unwrap();
    let mut server = Layout::announced_by_peer(&MemoryBudget::unlimited());
    for (region, file) in client.regions() {
        server.add_region(region, file.try_clone_to_owned().unwrap().into()).unwrap();
    }
    for (ring, interrupt) in client.rings() {
        server.add_ring(ring, interrupt.as_fd().try_clone_to_owned().unwrap().into()).unwrap();
    }
    let end = LaneEnd::memif(server.queues().unwrap());
    (Peer { queues: client.queues().unwrap(), _layout: client }, end)
}

impl Peer {
    pub fn send(&mut self, bytes: &[u8]) {
        let sender = &mut self.queues.senders[0];
        let deadline = Instant::now() + DEADLINE;
        loop {
            sender.refresh().unwrap();
            if sender.put(&Frame { bytes: bytes.into(), offload: None, slots: 0 }).unwrap() == Put::Stored {
                break;
            }
            assert!(Instant::now() < deadline, "no room to send a frame");
            thread::yield_now();
        }
        if sender.publish() {
            nix::unistd::write(sender.notify_fd().unwrap(), &1u64.to_ne_bytes()).unwrap();
        }
    }

    pub fn receive(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(frame) = self.poll() {
                return frame;
            }
            assert!(Instant::now() < deadline, "no frame came");
            thread::yield_now();
        }
    }

    pub fn poll(&mut self) -> Option<Vec<u8>> {
        let receiver = &mut self.queues.receivers[0];
        if !receiver.refresh().unwrap() {
            return None;
        }
        let mut gather = vec![0; FRAME_MAX];
        let frame = receiver.peek(&mut gather).unwrap()?;
        let mut bytes = vec![0; frame.bytes.len()];
        assert!(frame.bytes.copy_out(&mut bytes));
        let slots = frame.slots;
        receiver.advance(slots);
        receiver.release();
        Some(bytes)
    }
}
