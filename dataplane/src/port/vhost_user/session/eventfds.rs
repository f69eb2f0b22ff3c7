//! The eventfds of rings that workers have: they are exchanged there, and no ring is brought back for it.
//!
//! A worker must not close what it is given up for: the session keeps every eventfd that was replaced until the worker
//! has let go of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::error::RequestError;
use super::{Handled, Session};
use crate::port::any::LaneEnd;
use crate::port::vhost_user::eventfd::{EventfdExchange, EventfdRole};
use crate::port::vhost_user::message::{VhostUserRequest, VringFile};

impl Session {
    /// Whether no worker may have the rings while this request is handled.
    pub fn needs_quiesce(&mut self, request: &VhostUserRequest) -> bool {
        match request {
            VhostUserRequest::SetVringCall(ring) => !self.can_exchange(*ring, EventfdRole::Call),
            VhostUserRequest::SetVringKick(ring) => !self.can_exchange(*ring, EventfdRole::Kick),
            request => request.needs_quiesce(),
        }
    }

    /// Gives rings that were given out, and are with no worker now, the eventfds that were named meanwhile: an exchange may
    /// have missed them on their way.
    pub fn renew_eventfds(&self, rings: &mut LaneEnd) {
        let [sources, targets] = &self.out;
        for (position, &vring) in sources.iter().enumerate().chain(targets.iter().enumerate()) {
            let config = &self.vrings[vring as usize];
            for (role, eventfd) in [(EventfdRole::Kick, config.kick()), (EventfdRole::Call, config.call.as_ref())] {
                rings.exchange(&EventfdExchange { vring, role, eventfd: eventfd.cloned(), former: None, position });
            }
        }
    }

    /// Kicks of rings that the guest receives by, which nobody waits for, are out of it: they wait in the description.
    fn can_exchange(&mut self, ring: VringFile, role: EventfdRole) -> bool {
        self.retired.retain(|eventfd| Arc::strong_count(eventfd) > 1);
        // One that is not there is refused, and nothing changes.
        let Some(config) = self.vrings.get(usize::from(ring.index)) else { return true };
        let stays = match role {
            EventfdRole::Call => true,
            // It starts a ring, or begins or ends its being polled.
            EventfdRole::Kick => config.is_started() && config.kick().is_some() == ring.has_file,
        };
        stays && self.retired.len() < RETIRED_MAX
    }

    pub(super) fn set_call(&mut self, index: u32, call: Option<OwnedFd>) -> Result<Handled, RequestError> {
        let call = call.map(Arc::new);
        let old = std::mem::replace(&mut self.vring_config(index)?.call, call.clone());
        Ok(self.exchange(index, EventfdRole::Call, old, call))
    }

    pub(super) fn set_kick(&mut self, index: u32, kick: Option<OwnedFd>) -> Result<Handled, RequestError> {
        let kick = kick.map(Arc::new);
        let old = self.vring_config(index)?.start(kick.clone());
        Ok(self.exchange(index, EventfdRole::Kick, old, kick))
    }

    fn exchange(
        &mut self,
        vring: u32,
        role: EventfdRole,
        old: Option<Arc<OwnedFd>>,
        eventfd: Option<Arc<OwnedFd>>,
    ) -> Handled {
        let [sources, targets] = &self.out;
        let position = |rings: &[u32]| rings.iter().position(|&ring| ring == vring);
        let place = match role {
            EventfdRole::Kick => position(sources),
            EventfdRole::Call => position(sources).or_else(|| position(targets)),
        };
        self.retired.extend(old.clone().filter(|_| place.is_some()));
        let exchange = place.map(|position| EventfdExchange { vring, role, eventfd, former: old, position });
        Handled::Done { announce: None, exchange }
    }
}

/// Eventfds that workers have not let go of yet; beyond, rings are brought back, which takes as long as a flood deserves.
const RETIRED_MAX: usize = 16;
