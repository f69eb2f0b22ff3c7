//! What other threads tell the control thread: requests of callers, and what became of jobs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::time::Duration;

use ferrule_ffi::notifier::eventfd;
use nix::sys::eventfd::EventFd;

use super::done::Done;
use super::events::Subscriber;
use crate::capture::Capture;
use crate::engine::{Applied, EngineError};
use crate::spec::WireSpec;

/// A message to the control thread.
#[expect(clippy::large_enum_variant, reason = "a few lie in the inbox for a moment")]
pub enum ControlMessage {
    /// Somebody wants something.
    Request(EngineRequest),
    /// A job is done.
    Done(Done),
    /// A thread of the engine has panicked.
    Panicked(String),
    /// Nobody is interested any more: the thread ends.
    Stop,
}

/// What callers of the engine ask for. Each is answered once, or never if the control thread ends.
pub enum EngineRequest {
    /// Make a wire what this says.
    Apply {
        /// What it should be.
        spec: Box<WireSpec>,
        /// Whether there may be one of that name already.
        must_be_new: bool,
        /// The answer.
        reply: Reply<Result<Applied, EngineError>>,
    },
    /// Remove a wire.
    Remove {
        /// Its name.
        name: String,
        /// How long frames under way may take to leave it.
        timeout: Duration,
        /// The answer, once it is gone.
        reply: Reply<Result<(), EngineError>>,
    },
    /// Remove every wire, and make no more.
    Drain {
        /// How long frames under way may take to leave.
        timeout: Duration,
        /// The answer, once all are gone.
        reply: Reply<()>,
    },
    /// Read the counters of kernel interfaces now.
    Look {
        /// The answer, once they are published.
        reply: Reply<()>,
    },
    /// Read those of one wire. Who asks while they are being read is answered with that.
    LookAt {
        /// Its name.
        name: String,
        /// The answer, once they are published. At once if there is nothing to be read.
        reply: Reply<()>,
    },
    /// Capture the frames of a wire from now on, or do not any more.
    Trace {
        /// Its name.
        name: String,
        /// Where copies go.
        capture: Option<Arc<Capture>>,
        /// The answer.
        reply: Reply<Result<(), EngineError>>,
    },
    /// Tell of every event from now on.
    Subscribe {
        /// Whom.
        subscriber: Subscriber,
        /// The answer, once the snapshot shows all that was not told.
        reply: Reply<()>,
    },
}

/// Where one answer goes.
pub type Reply<T> = SyncSender<T>;

/// The way to the control thread.
#[derive(Clone)]
pub struct Inbox {
    messages: Sender<ControlMessage>,
    wake: Arc<EventFd>,
}

impl Inbox {
    /// The way, and its end.
    pub fn new() -> io::Result<(Self, Receiver<ControlMessage>)> {
        let (messages, receiver) = channel();
        Ok((Self { messages, wake: Arc::new(eventfd()?) }, receiver))
    }

    /// Sends a message; once the control thread has ended, nobody gets it.
    pub fn post(&self, message: ControlMessage) {
        if self.messages.send(message).is_ok() {
            // Our own, non-blocking: it fails only when it was written to 2^64 times, which nobody reads.
            let _ = self.wake.write(1);
        }
    }

    /// What becomes readable, edge by edge, with each message.
    pub fn notify_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
