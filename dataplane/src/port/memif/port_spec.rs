//! What is asked of a memif end like of every other.

use super::spec::{BUFFER_MAX, BUFFER_MIN, MemifSpec, QUEUES_MAX, RING_MAX, RING_MIN};
use crate::spec::{Attachment, EndIdentity, FieldError, Mode, PeerProtocol, PeerSocket, PortSpec, Role, check_access};

impl PortSpec for MemifSpec {
    fn kind(&self) -> &'static str {
        "memif"
    }

    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut check = |good: bool, field: &str, problem: String| {
            if !good {
                errors.push(FieldError::new(field, problem));
            }
        };
        let queues = format!("{} queues; 1 to {QUEUES_MAX} are possible", self.queues);
        check((1..=QUEUES_MAX).contains(&self.queues), "memif.queues", queues);
        let ring = format!("{} descriptors; a power of two from {RING_MIN} to {RING_MAX} is wanted", self.ring);
        check(self.ring.is_power_of_two() && (RING_MIN..=RING_MAX).contains(&self.ring), "memif.ring", ring);
        let buffer = format!("{} bytes; a multiple of 64 from {BUFFER_MIN} to {BUFFER_MAX} is wanted", self.buffer);
        let whole = self.buffer.is_multiple_of(64) && (BUFFER_MIN..=BUFFER_MAX).contains(&self.buffer);
        check(whole, "memif.buffer", buffer);
        errors.extend(check_access("memif", &self.access, &self.socket, self.role));
        errors
    }

    fn identity(&self) -> Option<EndIdentity> {
        Some(EndIdentity { netns: self.netns.clone(), words: format!("memif {} id {}", self.socket, self.id) })
    }

    fn attachment(&self) -> Attachment<'_> {
        Attachment::Socket(PeerSocket {
            address: &self.socket,
            netns: self.netns.as_ref(),
            role: self.role,
            access: &self.access,
            protocol: PeerProtocol::Memif,
            id: Some(self.id),
        })
    }

    fn mode(&self) -> Mode {
        self.mode
    }

    fn memory_limit(&self) -> u64 {
        match self.role {
            Role::Server => self.memory.as_bytes(),
            // A client has memory of its own, all of which it may populate.
            Role::Client => self.memory.as_bytes() + self.own_memory(),
        }
    }

    fn lending_role(&self) -> Option<Role> {
        Some(self.role)
    }
}
