//! The dirty log of a live migration: one bit for each page of guest memory that we write.

use std::sync::Arc;

use ferrule_ffi::region::Region;

/// The bitmap that SET_LOG_BASE gave us. Clones share it.
#[derive(Clone)]
pub struct DirtyLog(Arc<Region>);

impl DirtyLog {
    /// The log in `size` bytes from `offset` on of a file mapped from its beginning; `None` if they are not all there.
    pub fn new(file: &Region, offset: u64, size: u64) -> Option<Self> {
        Some(Self(Arc::new(file.part(offset, size)?)))
    }
}
