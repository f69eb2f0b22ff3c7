//! Whether a message of a wire says its secrets.

/// Whether secrets are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// They are left out.
    Hidden,
    /// They are written, for whoever has to make the wire.
    Shown,
}
