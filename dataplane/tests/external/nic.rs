//! A port kind of another crate: a NIC with queues of buffers that are its own, no interrupt, and a transmit queue that keeps
//! a buffer until the frame has left.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use ferrule_dataplane::port::{BURST, FRAME_MAX, Fault, Frame, Put, Run, Source, Target};
use ferrule_ffi::span::Span;

/// The hardware: what came in, what went out, and how often the driver was called.
#[derive(Default)]
pub struct Nic {
    pub received: Mutex<VecDeque<Vec<u8>>>,
    pub sent: Mutex<Vec<Vec<u8>>>,
    /// Buffers of the transmit queue that the hardware is done with.
    pub completed: AtomicUsize,
    /// Its registers read as ones.
    pub is_gone: AtomicBool,
    pub calls: Calls,
}

#[derive(Default)]
pub struct Calls {
    pub refresh: AtomicUsize,
    pub runs: AtomicUsize,
    pub single: AtomicUsize,
    pub notify_enabled: AtomicUsize,
    pub in_flight: AtomicUsize,
}

/// The driver's side of a receive queue.
pub struct NicRx {
    nic: Arc<Nic>,
    burst: VecDeque<Vec<u8>>,
    must_poll: bool,
}

/// The driver's side of a transmit queue.
pub struct NicTx {
    nic: Arc<Nic>,
    size: usize,
    in_flight: usize,
    can_hold: bool,
    batch: Vec<Vec<u8>>,
}

impl Nic {
    /// A queue pair of it.
    pub fn queue(self: &Arc<Self>, tx: usize, must_poll: bool, can_hold: bool) -> (Box<NicRx>, Box<NicTx>) {
        let rx = NicRx { nic: Arc::clone(self), burst: VecDeque::new(), must_poll };
        let tx = NicTx { nic: Arc::clone(self), size: tx, in_flight: 0, can_hold, batch: Vec::new() };
        (Box::new(rx), Box::new(tx))
    }

    /// The hardware has sent everything.
    pub fn complete(&self) {
        self.completed.fetch_add(self.calls.in_flight.load(Relaxed), Relaxed);
    }
}

impl Source for NicRx {
    fn refresh(&mut self) -> Result<bool, Fault> {
        self.nic.calls.refresh.fetch_add(1, Relaxed);
        if self.nic.is_gone.load(Relaxed) {
            return Err(Fault::DeviceGone);
        }
        let mut received = self.nic.received.lock().unwrap();
        while self.burst.len() < BURST
            && let Some(frame) = received.pop_front()
        {
            self.burst.push_back(frame);
        }
        Ok(!self.burst.is_empty())
    }

    fn run<'a>(&'a mut self, run: &mut Run<'a>) {
        self.nic.calls.runs.fetch_add(1, Relaxed);
        run.extend(self.burst.iter().take_while(|frame| frame.len() <= FRAME_MAX).map(|frame| Span::from(&frame[..])));
    }

    fn advance_run(&mut self, count: usize) {
        self.burst.drain(..count);
    }

    fn peek<'a>(&'a mut self, _gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        let Some(frame) = self.burst.front() else { return Ok(None) };
        self.nic.calls.single.fetch_add(1, Relaxed);
        Ok(Some(Frame { bytes: frame[..].into(), offload: None, slots: 1 }))
    }

    fn advance(&mut self, _slots: u32) {
        self.burst.pop_front();
    }

    fn release(&mut self) {}

    fn enable_notify(&mut self, wanted: bool) {
        self.nic.calls.notify_enabled.fetch_add(usize::from(wanted), Relaxed);
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn must_poll(&self) -> bool {
        self.must_poll
    }
}

impl NicTx {
    fn store(&mut self, bytes: Span<'_>) -> bool {
        if self.in_flight + self.batch.len() == self.size {
            return false;
        }
        let mut buffer = vec![0; bytes.len()];
        assert!(bytes.copy_out(&mut buffer));
        self.batch.push(buffer);
        true
    }
}

impl Target for NicTx {
    fn refresh(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn put_run(&mut self, run: &[Span<'_>]) -> usize {
        run.iter().take_while(|frame| self.store(**frame)).count()
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        Ok(if self.store(frame.bytes) { Put::Stored } else { Put::Full })
    }

    fn publish(&mut self) -> bool {
        self.in_flight += self.batch.len();
        self.nic.calls.in_flight.store(self.in_flight, Relaxed);
        self.nic.sent.lock().unwrap().append(&mut self.batch);
        false
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn can_hold(&self) -> bool {
        self.can_hold
    }

    fn reclaim(&mut self) -> bool {
        self.in_flight -= self.nic.completed.swap(0, Relaxed).min(self.in_flight);
        self.nic.calls.in_flight.store(self.in_flight, Relaxed);
        self.in_flight > 0
    }
}
