//! What a daemon is doing.

/// What a daemon is doing, for everybody who answers questions about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It answers, and is still making what it was started with.
    Starting,
    /// Everything listens, everything that was to be made was made or tried.
    Serving,
    /// It takes no changes and ends what is under way.
    Draining,
    /// Nothing is left to be done: answer what was asked, then end.
    Stopped,
}
