//! One ring as far as its frontend has described it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::port::saved::{FileId, RestoreError, SavedFiles};
use crate::port::vhost_user::features::Features;
use crate::port::vhost_user::message::VringAddress;

/// A ring's description. It is complete once it is started, sized and placed.
#[derive(Default)]
pub struct VringConfig {
    stage: Stage,
    /// SET_VRING_NUM.
    pub size: Option<u32>,
    /// SET_VRING_ADDR.
    address: Option<VringAddress>,
    /// SET_VRING_BASE, or where our own end of the ring was left.
    base: Option<u32>,
    /// Segments of the frame at the base that its target has already, if that frame is cut on its way.
    segments: usize,
    /// Memory came or went since the ring was placed: the frontend may have more to say.
    is_moving: bool,
    /// SET_VRING_CALL.
    pub call: Option<Arc<OwnedFd>>,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
}

/// The same, written down for a successor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedVring {
    is_started: bool,
    kick: Option<FileId>,
    call: Option<FileId>,
    size: Option<u32>,
    address: Option<VringAddress>,
    base: Option<u32>,
    segments: usize,
    is_moving: bool,
    enabled: bool,
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
    /// SET_VRING_KICK. What the guest notified us by before.
    pub fn start(&mut self, kick: Option<Arc<OwnedFd>>) -> Option<Arc<OwnedFd>> {
        match std::mem::replace(&mut self.stage, Stage::Started { kick }) {
            Stage::Started { kick } => kick,
            Stage::Stopped => None,
        }
    }

    /// What the guest notifies us by, if the ring is started.
    pub fn kick(&self) -> Option<&Arc<OwnedFd>> {
        match &self.stage {
            Stage::Started { kick } => kick.as_ref(),
            Stage::Stopped => None,
        }
    }

    /// GET_VRING_BASE, and every reset: nothing of the ring is touched, and nobody rings.
    pub fn stop(&mut self) {
        self.stage = Stage::Stopped;
        self.call = None;
    }

    /// SET_STATUS 0: its driver begins anew, wherever the ring was.
    pub fn reset(&mut self) {
        self.stop();
        (self.base, self.segments) = (None, 0);
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

    /// Writes it down.
    pub(crate) fn save(&self, files: &mut SavedFiles) -> io::Result<SavedVring> {
        Ok(SavedVring {
            is_started: self.is_started(),
            kick: files.push_eventfd(self.kick())?,
            call: files.push_eventfd(self.call.as_ref())?,
            size: self.size,
            address: self.address,
            base: self.base,
            segments: self.segments,
            is_moving: self.is_moving,
            enabled: self.enabled,
        })
    }

    /// The ring that was written down takes the place of this one.
    pub(crate) fn restore(&mut self, saved: &SavedVring, files: &mut SavedFiles) -> Result<(), RestoreError> {
        let SavedVring { is_started, kick, call, size, address, base, segments, is_moving, enabled } = *saved;
        let kick = files.take_eventfd(kick)?;
        let stage = if is_started { Stage::Started { kick } } else { Stage::Stopped };
        *self = Self { stage, size, address, base, segments, is_moving, call: files.take_eventfd(call)?, enabled };
        Ok(())
    }

    /// Where it begins.
    pub fn base(&self, features: Features) -> u32 {
        // A packed ring begins with both wrap counters at 1 (virtio 1.2, 2.8.1).
        let first = if features.has(Features::RING_PACKED) { WRAP_COUNTERS } else { 0 };
        self.base.unwrap_or(first)
    }

    /// SET_VRING_BASE. A ring that is only stopped and started again goes on in the middle of a frame.
    pub fn set_base(&mut self, base: u32) {
        if self.base.replace(base) != Some(base) {
            self.segments = 0;
        }
    }

    /// Our own end of the ring came back from its worker, where it was left.
    pub fn left_at(&mut self, base: u32, segments: usize) {
        (self.base, self.segments) = (Some(base), segments);
    }

    /// Segments of the next frame that its target has already.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// SET_VRING_ADDR.
    pub fn set_address(&mut self, address: VringAddress) {
        (self.address, self.is_moving) = (Some(address), false);
    }

    /// SET_MEM_TABLE and its like: until the next SET_VRING_ADDR, a ring that does not lie in the memory is no lie.
    pub fn memory_changed(&mut self) {
        self.is_moving = true;
    }

    /// Whether the frontend may still say where in its new memory the ring lies.
    pub fn is_moving(&self) -> bool {
        self.is_moving
    }
}

/// Bit 15 of the available half and of the used half.
const WRAP_COUNTERS: u32 = 0x8000_8000;
