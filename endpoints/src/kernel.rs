//! An interface of the kernel whose other end is a program of ours.
//!
//! It leaves nothing to us: the kernel finishes checksums and cuts segments before a frame comes here. So whoever judges frames sees those
//! that would be on a line.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use ferrule_dataplane::port::kernel::ring::{TapSource, TapTarget};
use ferrule_dataplane::port::kernel::{KernelError, TapInterface};
use ferrule_dataplane::spec::KernelSpec;
use ferrule_ffi::tap::Tap;
use thiserror::Error;

/// The interface. Dropping it removes it.
pub struct KernelInterface {
    /// Frames that leave by it, and frames that come in by it.
    pub queues: KernelQueues,
    tap: Arc<Tap>,
    words: String,
}

/// An interface has one queue.
pub struct KernelQueues {
    /// Where frames come from.
    pub receivers: [TapSource; 1],
    /// Where they go.
    pub senders: [TapTarget; 1],
}

impl KernelInterface {
    /// Makes the interface. It has no carrier yet.
    pub fn make(spec: &KernelSpec) -> Result<Self, KernelError> {
        let TapInterface { tap, .. } = TapInterface::create(spec)?;
        let tap = Arc::new(tap);
        let queues =
            KernelQueues { receivers: [TapSource::new(Arc::clone(&tap))], senders: [TapTarget::new(Arc::clone(&tap))] };
        Ok(Self { queues, tap, words: spec.to_string() })
    }

    /// Raises or lowers its carrier: without one, the kernel sends nothing.
    pub fn set_carrier(&self, up: bool) {
        // It fails only when the interface is gone, which the next look finds.
        let _ = self.tap.set_carrier(up);
    }

    /// What becomes readable when there is a frame, and fails when the interface goes.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }

    /// Whether it is there still.
    pub fn check(&self) -> Result<(), InterfaceGone> {
        if self.tap.is_gone() { Err(InterfaceGone(self.words.clone())) } else { Ok(()) }
    }

    /// Its name, and where it is.
    pub fn words(&self) -> &str {
        &self.words
    }
}

/// An interface went, with its namespace for example.
#[derive(Debug, Error)]
#[error("{0} is gone; its namespace may have been removed")]
pub struct InterfaceGone(String);
