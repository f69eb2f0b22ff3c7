//! One ring as far as its frontend has described it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::port::vhost_user::features::Features;
use crate::port::vhost_user::message::VringAddress;

/// A ring's description. It is complete once it is started, sized and placed.
#[derive(Default)]
pub struct VringConfig {
    stage: Stage,
    /// SET_VRING_NUM.
    pub size: Option<u32>,
    /// SET_VRING_ADDR.
    pub address: Option<VringAddress>,
    /// SET_VRING_BASE, or where our own end of the ring was left.
    base: Option<u32>,
    /// SET_VRING_CALL.
    pub call: Option<Arc<OwnedFd>>,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
}

/// Whether a ring may be touched ("Ring states" of the protocol).
#[derive(Default)]
enum Stage {
    /// Nothing of it may.
    #[default]
    Stopped,
    /// SET_VRING_KICK came, with what the guest rings or without.
    Started { kick: Option<Arc<OwnedFd>> },
}

impl VringConfig {
    /// SET_VRING_KICK.
    pub fn start(&mut self, kick: Option<OwnedFd>) {
        self.stage = Stage::Started { kick: kick.map(Arc::new) };
    }

    /// GET_VRING_BASE and every reset: nothing of the ring is touched, and nobody rings.
    pub fn stop(&mut self) {
        self.stage = Stage::Stopped;
        self.call = None;
    }

    /// Whether it was started and not stopped since.
    pub fn is_started(&self) -> bool {
        matches!(self.stage, Stage::Started { .. })
    }

    /// Where it was said to lie, how long it is, and what its guest rings, if everything is there to run it.
    pub fn complete(&self) -> Option<(VringAddress, u32, Option<Arc<OwnedFd>>)> {
        let Stage::Started { kick } = &self.stage else { return None };
        Some((self.address?, self.size?, kick.clone()))
    }

    /// Where it begins.
    pub fn base(&self, features: Features) -> u32 {
        // A packed ring begins with both wrap counters at 1 (virtio 1.2, 2.8.1).
        let first = if features.has(Features::RING_PACKED) { WRAP_COUNTERS } else { 0 };
        self.base.unwrap_or(first)
    }

    /// SET_VRING_BASE, or our own end of the ring came back from its worker.
    pub fn set_base(&mut self, base: u32) {
        self.base = Some(base);
    }
}

/// Bit 15 of the available half and of the used half.
const WRAP_COUNTERS: u32 = 0x8000_8000;
