//! Eventfds of rings, and how one takes the place of another.

use std::os::fd::OwnedFd;
use std::sync::Arc;

/// An eventfd of a ring that a worker has, which is to take the place of another.
#[derive(Clone, Debug)]
pub struct EventfdExchange {
    /// The ring.
    pub vring: u32,
    /// Which of its eventfds.
    pub role: EventfdRole,
    /// The new one; none: the guest does not want to be notified.
    pub eventfd: Option<Arc<OwnedFd>>,
    /// The one that it replaces.
    pub former: Option<Arc<OwnedFd>>,
    /// Which of the sources, or of the targets, that were given out is the ring's.
    pub position: usize,
}

/// What an eventfd is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventfdRole {
    /// The guest notifies us.
    Kick,
    /// We notify the guest.
    Call,
}
