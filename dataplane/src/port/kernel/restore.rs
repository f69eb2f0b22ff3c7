//! A kernel end written down for a successor process, and taken up there.
//!
//! Of a TAP interface that is its descriptor and the frame that was read ahead: what it has in its queue stays there. The
//! interface notices nothing, since one of its descriptors is always open. A veth pair is written down in the kernel: a
//! process that goes lets go of it ([`VethPair::leave`](super::VethPair::leave)), and the next one of the same
//! [`InterfaceOwner`](super::InterfaceOwner) finds it by its aliases.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use ferrule_ffi::tap::Tap;
use serde::{Deserialize, Serialize};

use super::ring::TapSource;
use crate::port::any::{AnySource, LaneEnd, LaneSource};
use crate::port::saved::{FileId, RestoreError, SavedFiles};

/// A TAP end as it is written down. Its descriptor is named, and passed beside it.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedTap {
    tap: FileId,
    /// The frame that was read ahead, behind its virtio-net header; empty: there was none.
    read_ahead: Vec<u8>,
    /// Segments of it that the target has already.
    resume: usize,
}

impl SavedTap {
    /// Writes down the rings of a TAP end, which no worker has. The descriptor is copied: the end can go on here if
    /// nobody takes it up.
    ///
    /// # Errors
    /// They are those of another kind, or there are no more descriptors to be had.
    pub fn new(rings: &LaneEnd, files: &mut SavedFiles) -> io::Result<Self> {
        let [LaneSource { source: AnySource::Tap(source), resume }] = rings.sources.as_slice() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "these are not the rings of a TAP interface"));
        };
        let tap = files.push_copy(source.tap().as_fd())?;
        Ok(Self { tap, read_ahead: source.read_ahead().to_vec(), resume: *resume })
    }

    /// Takes the end up: the interface, and its rings.
    pub fn restore(self, files: &mut SavedFiles) -> Result<(Arc<Tap>, LaneEnd), RestoreError> {
        let tap = Tap::try_from(files.take(self.tap)?);
        let tap = Arc::new(tap.map_err(|source| RestoreError::File { what: "a TAP interface", source })?);
        let source = TapSource::with_read_ahead(Arc::clone(&tap), &self.read_ahead);
        let source =
            source.ok_or_else(|| RestoreError::Invalid("the frame that was read ahead is too long".to_owned()))?;
        let mut rings = LaneEnd::tap(&tap);
        rings.sources = vec![LaneSource { source: AnySource::Tap(source), resume: self.resume }];
        Ok((tap, rings))
    }
}
