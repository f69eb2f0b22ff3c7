//! Single frames in and out of a memif end, for tests that look at each of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::MacAddress;
use ferrule_endpoints::Responder;
use ferrule_endpoints::memif::Endpoint;

/// Sends a frame on queue 0, if there is room.
///
/// # Panics
/// The peer broke the protocol, or the frame is none.
pub fn send(end: &mut Endpoint, bytes: &[u8]) -> bool {
    let sender = &mut end.queues.senders[0];
    sender.refresh().expect("the peer of a sender keeps to the protocol");
    let frame = Frame { bytes: bytes.into(), offload: None, slots: 0 };
    let stored = match sender.put(&frame).expect("the peer of a sender keeps to the protocol") {
        Put::Stored => true,
        Put::Full => false,
        Put::Refused(reason) => panic!("a frame of {} bytes was refused: {reason:?}", bytes.len()),
    };
    if sender.publish()
        && let Some(eventfd) = sender.notify_fd()
    {
        // Full means that it rings already.
        let _ = nix::unistd::write(eventfd, &1u64.to_ne_bytes());
    }
    stored
}

/// The next frame of queue 0, if there is one.
///
/// # Panics
/// The peer broke the protocol.
pub fn receive(end: &mut Endpoint) -> Option<Vec<u8>> {
    let receiver = &mut end.queues.receivers[0];
    if !receiver.refresh().expect("the peer of a receiver keeps to the protocol") {
        return None;
    }
    let mut gather = vec![0; FRAME_MAX];
    let frame = receiver.peek(&mut gather).expect("the peer of a receiver keeps to the protocol")?;
    let mut bytes = vec![0; frame.bytes.len()];
    assert!(frame.bytes.copy_out(&mut bytes), "the copy is as long as the frame");
    let slots = frame.slots;
    receiver.advance(slots);
    receiver.release();
    Some(bytes)
}

/// A thread that serves memif ends until it is dropped. If it panics, so does the drop.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Calls `serve` again and again; when it says that there was nothing to do, the CPU is left to others.
    pub fn start(mut serve: impl FnMut() -> bool + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if !serve() {
                    thread::yield_now();
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Answers pings to every address at this end.
    pub fn responder(mut end: Endpoint) -> Self {
        let brain = Responder::new(MacAddress([2, 0, 0, 0, 0, 0xfe]), Vec::new());
        let mut reply = vec![0; FRAME_MAX];
        Self::start(move || {
            let Some(frame) = receive(&mut end) else {
                end.sleep(Duration::from_millis(20));
                return true;
            };
            if let Some(length) = brain.answer(&frame, &mut reply) {
                // A reply that finds no room is a ping lost, which the test sees.
                send(&mut end, &reply[..length]);
            }
            true
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}
