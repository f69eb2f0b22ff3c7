//! A frontend as control sees it: its socket, what it has said, and what of that waits.

use std::time::Instant;

use crate::port::vhost_user::channel::VhostUserChannel;
use crate::port::vhost_user::session::error::SessionError;
use crate::port::vhost_user::session::{Session, VhostUserMessage};

/// A vhost-user frontend.
pub struct VhostUserPeer {
    /// Its socket.
    pub channel: VhostUserChannel,
    /// What it has said.
    pub session: Session,
    /// What it said last, if that waits for lanes to come back.
    pub held: Option<VhostUserMessage>,
    /// When it is given up, as long as it has said nothing.
    pub silent_until: Option<Instant>,
}

impl VhostUserPeer {
    /// What it says next; `None`: nothing now.
    pub fn receive(&mut self) -> Result<Option<VhostUserMessage>, SessionError> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let Some(envelope) = self.channel.receive()? else { return Ok(None) };
        self.silent_until = None;
        VhostUserMessage::new(envelope).map(Some)
    }
}
