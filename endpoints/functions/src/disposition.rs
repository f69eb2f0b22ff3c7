//! What becomes of a frame.

/// What a function makes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It leaves on the other side, as it is now.
    Forward,
    /// It goes no further.
    Drop,
}
