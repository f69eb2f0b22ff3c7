//! What is asked of a vhost-user end like of every other.

use super::spec::VhostUserSpec;
use crate::port::memif::spec::QUEUES_MAX;
use crate::spec::{
    Attachment, EndIdentity, FieldError, MTU_MAX, MTU_MIN, PeerProtocol, PeerSocket, PortSpec, check_access,
};

impl PortSpec for VhostUserSpec {
    fn kind(&self) -> &'static str {
        "vhost-user"
    }

    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.queues == 0 || self.queues > QUEUES_MAX {
            let problem = format!("{} queue pairs; 1 to {QUEUES_MAX} are possible", self.queues);
            errors.push(FieldError::new("vhost-user.queues", problem));
        }
        if let Some(mtu) = self.mtu
            && !(MTU_MIN..=MTU_MAX).contains(&u32::from(mtu))
        {
            let problem = format!("{mtu} bytes; {MTU_MIN} to {MTU_MAX} are possible");
            errors.push(FieldError::new("vhost-user.mtu", problem));
        }
        errors.extend(check_access("vhost-user", &self.access, &self.socket, self.role));
        errors
    }

    fn identity(&self) -> Option<EndIdentity> {
        Some(EndIdentity { netns: None, words: format!("vhost-user {}", self.socket) })
    }

    fn attachment(&self) -> Attachment<'_> {
        Attachment::Socket(PeerSocket {
            address: &self.socket,
            netns: None,
            role: self.role,
            access: &self.access,
            protocol: PeerProtocol::VhostUser,
            id: None,
        })
    }

    fn memory_limit(&self) -> u64 {
        self.memory.as_bytes()
    }

    fn takes_offloads(&self) -> bool {
        self.features.offloads
    }
}
