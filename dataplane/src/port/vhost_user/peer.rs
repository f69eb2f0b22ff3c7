//! What control keeps of a vhost-user frontend.

use std::time::Instant;

use crate::port::vhost_user::channel::Channel;
use crate::port::vhost_user::session::{Message, Session, SessionError};

/// A frontend that is the peer of an end.
pub struct VhostUserPeer {
    /// Its control socket.
    pub channel: Channel,
    /// What it has said.
    pub session: Session,
    /// What it said last, if that waits for lanes to come back.
    pub held: Option<Message>,
    /// When it is given up, as long as it has said nothing.
    pub silent_until: Option<Instant>,
}

impl VhostUserPeer {
    /// What it says next; `None`: nothing now.
    pub fn receive(&mut self) -> Result<Option<Message>, SessionError> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let Some(envelope) = self.channel.receive()? else { return Ok(None) };
        self.silent_until = None;
        Message::new(envelope).map(Some)
    }
}
