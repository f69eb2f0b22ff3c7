//! What happens to frames that find no room.

/// What a link does with a frame when its target is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Full {
    /// Leave it in the source's ring: back-pressure, nothing lost.
    #[default]
    Hold,
    /// Drop it and count it.
    Drop,
}
