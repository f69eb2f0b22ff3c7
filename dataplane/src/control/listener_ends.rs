//! The ends that share a listening socket.

use std::collections::HashMap;

use super::keys::EndId;
use crate::spec::{PeerProtocol, PeerSocket};

/// Whose peers come to a listening socket: ends of one protocol, told apart by what their peers ask for.
pub struct ListenerEnds {
    protocol: PeerProtocol,
    ends: HashMap<Option<u32>, EndId>,
}

impl ListenerEnds {
    /// One end.
    pub(super) fn new(id: EndId, socket: &PeerSocket<'_>) -> Self {
        Self { protocol: socket.protocol, ends: HashMap::from([(socket.id, id)]) }
    }

    /// One more. What is spoken changes with the first that comes when all have gone.
    pub(super) fn add(&mut self, id: EndId, socket: &PeerSocket<'_>) {
        if self.ends.is_empty() {
            self.protocol = socket.protocol;
        }
        self.ends.insert(socket.id, id);
    }

    /// One less.
    pub fn remove(&mut self, id: EndId) {
        self.ends.retain(|_, end| *end != id);
    }

    /// What their peers speak.
    pub(super) fn protocol(&self) -> PeerProtocol {
        self.protocol
    }

    /// The end that is in the way of one that wants this socket too.
    pub(super) fn holder(&self, socket: &PeerSocket<'_>) -> Option<EndId> {
        if self.protocol == socket.protocol { self.get(socket.id) } else { self.all().next() }
    }

    /// The end whose peers ask for `id`, or for nothing.
    pub fn get(&self, id: Option<u32>) -> Option<EndId> {
        self.ends.get(&id).copied()
    }

    /// Each of them.
    pub fn all(&self) -> impl Iterator<Item = EndId> {
        self.ends.values().copied()
    }

    /// Whether all have gone.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}
