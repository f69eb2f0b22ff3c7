//! What a call has made. A call may end while threads still make what it asked for: whatever comes of that belongs to nobody, and is
//! removed again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::spawn_blocking;
use tonic::Status;

use super::joint::{Joint, SharedWires};

/// The connections that something is made for now.
#[derive(Clone, Default)]
pub(super) struct Makings(Arc<Mutex<BTreeSet<String>>>);

impl Makings {
    /// One call makes something for a connection, until what this returns is dropped.
    pub(super) fn begin(&self, id: &str) -> Result<Making, Status> {
        let is_free = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
        let busy = || Status::aborted("what an earlier call has asked for is still being made: ask again");
        is_free.then(|| Making { all: self.clone(), id: id.to_owned() }).ok_or_else(busy)
    }
}

/// Something is made.
pub(super) struct Making {
    all: Makings,
    id: String,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// What was made. A new one that nobody claims is removed.
pub(super) struct MadeJoint {
    pub(super) joint: Joint,
    /// Where to remove it; none: it was there before.
    pub(super) unclaimed: Option<SharedWires>,
    pub(super) turn: Option<Making>,
}

impl MadeJoint {
    /// It belongs to a connection from now on.
    pub(super) fn claim(mut self) -> Joint {
        self.unclaimed = None;
        self.joint.clone()
    }
}

impl Drop for MadeJoint {
    fn drop(&mut self) {
        let Some(wires) = self.unclaimed.take() else { return };
        let (joint, turn) = (self.joint.clone(), self.turn.take());
        // Without anybody to wait for it.
        drop(spawn_blocking(move || {
            if let Err(status) = joint.remove(&wires) {
                tracing::warn!(%status, "what a call has made that is over is not removed");
            }
            drop(turn);
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_at_a_time_makes_something_for_a_connection() {
        let makings = Makings::default();
        let first = makings.begin("a").unwrap_or_else(|status| panic!("{status}"));
        assert_eq!(makings.begin("a").err().map(|status| status.code()), Some(tonic::Code::Aborted));
        assert!(makings.begin("b").is_ok());
        drop(first);
        assert!(makings.begin("a").is_ok());
    }
}
