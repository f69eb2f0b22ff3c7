//! vhost-user frontends at a listening socket, before one of them is the peer of its end.
//!
//! A socket has one frontend, and many may want to be it. They wait side by side: the first that says something whole
//! and sensible becomes the peer, so a silent one, or one that stammers, keeps nobody out.
//!
//! ```text
//!   accepted --- first message ---> the end is free: becomes the peer
//!      |                            its frontend has rings: refused
//!      |                            its frontend has none yet: waits, and is next when that one goes
//!      `--- closed, nonsense, 5 s, or too many others: refused
//! ```

use std::io;
use std::time::Instant;

use ferrule_ffi::unix::UnixSocket;

use super::disconnect::DisconnectReason;
use super::keys::{EndId, ListenerKey};
use super::poller::{SocketOwner, Timer, Token};
use super::state::State;
use super::{HANDSHAKE, MESSAGES_PER_EVENT, PENDING_MAX};
use crate::port::vhost_user::channel::VhostUserChannel;
use crate::port::vhost_user::session::VhostUserMessage;
use crate::port::vhost_user::session::error::SessionError;

/// A frontend that is not the peer of an end yet.
pub struct PendingFrontend {
    channel: VhostUserChannel,
    /// What it said first, if it waits for its turn. It is not listened to meanwhile.
    first: Option<VhostUserMessage>,
    /// Descriptors that came with that.
    files: usize,
}

impl PendingFrontend {
    /// Descriptors that it holds.
    pub fn held(&self) -> usize {
        1 + self.files
    }

    /// Its first message, once it is whole.
    fn listen(&mut self) -> Result<bool, SessionError> {
        let Some(envelope) = self.channel.receive()? else {
            // Nobody begins with files. So many as can wait would have all our descriptors.
            return if self.channel.holds_files() { Err(SessionError::FilesFirst) } else { Ok(false) };
        };
        self.files = envelope.files.len();
        self.first = Some(VhostUserMessage::new(envelope)?);
        Ok(true)
    }
}

/// Whether an end has room for a frontend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occupancy {
    /// Nobody is there.
    Free,
    /// Somebody is there whose rings are not.
    Starting,
    /// Somebody is there, or the wire is going.
    Occupied,
    /// Nobody is there, and what others left is still being dropped.
    Releasing,
}

impl State {
    /// A frontend has come to a listening socket.
    pub(super) fn add_pending_frontend(&mut self, key: ListenerKey, socket: UnixSocket) -> io::Result<()> {
        let channel = VhostUserChannel::from(socket);
        let Some(listener) = self.listeners.get(key) else { return Ok(()) };
        if let Some(end) = listener.ends.get(None) {
            self.notice_loss(end);
            if self.occupancy(end) == Occupancy::Occupied {
                self.say_refused(key, &DisconnectReason::Occupied);
                self.reap_of_listener(key, channel);
                return Ok(());
            }
        }
        let token = self.poller.watch(&channel, SocketOwner::PendingFrontend(key))?;
        let Some(listener) = self.listeners.get_mut(key) else { return Ok(()) };
        listener.pending.insert(token, PendingFrontend { channel, first: None, files: 0 });
        self.unfinished.held += 1;
        self.poller.timers.set(Timer::PendingFrontend(token), Some(Instant::now() + HANDSHAKE));
        self.make_room_for_frontends(key);
        // Most have said something by the time that they are accepted.
        self.hear_pending_frontend(key, token);
        Ok(())
    }

    /// A frontend that is no peer yet may have said something.
    pub(super) fn hear_pending_frontend(&mut self, key: ListenerKey, token: Token) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let Some(end) = listener.ends.get(None) else { return };
        let Some(frontend) = listener.pending.get_mut(&token).filter(|frontend| frontend.first.is_none()) else {
            return;
        };
        let heard = frontend.listen();
        self.unfinished.held += frontend.files;
        match heard {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => return self.refuse_frontend(key, token, &error.into()),
        }
        self.notice_loss(end);
        match self.occupancy(end) {
            Occupancy::Free => self.admit_frontend(key, token),
            Occupancy::Starting => {
                // What it says next would wake this thread again and again.
                if let Some(frontend) = self.listeners.get(key).and_then(|listener| listener.pending.get(&token)) {
                    self.poller.pause(&frontend.channel);
                }
                self.keep_within_quota(key);
            }
            Occupancy::Occupied => self.refuse_frontend(key, token, &DisconnectReason::Occupied),
            Occupancy::Releasing => self.refuse_frontend(key, token, &DisconnectReason::Releasing),
        }
    }

    /// Lets those that wait for an end in whose frontend has gone, one after the other until one stays. More than come
    /// in a round of events, so that those who do not stay do not pile up.
    pub(super) fn admit_frontends(&mut self) {
        for _ in 0..4 * MESSAGES_PER_EVENT {
            if self.vacated.is_empty() {
                return;
            }
            for end in std::mem::take(&mut self.vacated) {
                self.admit_next_frontend(end);
            }
        }
    }

    fn admit_next_frontend(&mut self, end: EndId) {
        let Some(key) = self.listener_of(end) else { return };
        match self.occupancy(end) {
            Occupancy::Free => {}
            Occupancy::Releasing => return self.refuse_frontends(end, &DisconnectReason::Releasing),
            Occupancy::Starting | Occupancy::Occupied => return,
        }
        let next = self.listeners[key].pending.iter().find(|(_, frontend)| frontend.first.is_some());
        if let Some((&token, frontend)) = next {
            self.poller.resume(&frontend.channel, token);
            self.admit_frontend(key, token);
        }
    }

    /// Nobody who has come to this end needs to wait for anything.
    pub(super) fn refuse_frontends(&mut self, end: EndId, reason: &DisconnectReason) {
        let Some(key) = self.listener_of(end) else { return };
        for token in self.listeners[key].pending.keys().copied().collect::<Vec<_>>() {
            self.refuse_frontend(key, token, reason);
        }
    }

    /// The time of one that waits is over.
    pub(super) fn frontend_is_late(&mut self, key: ListenerKey, token: Token) {
        let frontend = self.listeners.get(key).and_then(|listener| listener.pending.get(&token));
        // One that has spoken has waited for another to go.
        let reason = match frontend.map(|frontend| frontend.first.is_some()) {
            Some(true) => DisconnectReason::Occupied,
            Some(false) | None => DisconnectReason::TooSlow(HANDSHAKE.as_secs()),
        };
        self.refuse_frontend(key, token, &reason);
    }

    /// Closes the connection of one that waits; the end says why, if it has nobody else.
    pub(super) fn refuse_frontend(&mut self, key: ListenerKey, token: Token, reason: &DisconnectReason) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let Some(frontend) = listener.pending.remove(&token) else { return };
        let end = listener.ends.get(None);
        self.forget_frontend(token, &frontend);
        self.reap_of_listener(key, frontend);
        self.say_refused(key, reason);
        if let Some(end) = end {
            self.note_refusal(end, reason);
        }
    }

    /// Forgets all but the frontend itself, which somebody else drops.
    pub(super) fn forget_frontend(&mut self, token: Token, frontend: &PendingFrontend) {
        self.unfinished.held -= frontend.held();
        self.poller.timers.set(Timer::PendingFrontend(token), None);
        self.poller.forget(token, &frontend.channel);
    }

    fn admit_frontend(&mut self, key: ListenerKey, token: Token) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let Some(end) = listener.ends.get(None) else { return };
        let Some(frontend) = listener.pending.remove(&token) else { return };
        self.unfinished.held -= frontend.held();
        self.poller.timers.set(Timer::PendingFrontend(token), None);
        self.poller.set_owner(token, SocketOwner::End(end));
        self.connect_frontend(end, frontend.channel, token, frontend.first);
        self.serve_frontend(end);
    }

    fn occupancy(&self, end: EndId) -> Occupancy {
        let wire = self.wires.get(end.wire).filter(|wire| wire.removal.is_none());
        let Some((wire, served)) = wire.and_then(|wire| Some((wire, wire.workers()?))) else {
            return Occupancy::Occupied;
        };
        let is_releasing = wire.reaping[end.end].is_full();
        let end = &served.ends[end.end];
        match end.peer() {
            None if is_releasing => Occupancy::Releasing,
            None => Occupancy::Free,
            Some(_) if end.present => Occupancy::Occupied,
            Some(_) => Occupancy::Starting,
        }
    }

    /// Refuses one when too many wait: the one that has been silent for the longest, or else the oldest. A flood of them
    /// has to be fast to push out an honest one between its `connect` and its first words.
    fn make_room_for_frontends(&mut self, key: ListenerKey) {
        let Some(listener) = self.listeners.get(key).filter(|listener| listener.pending.len() > PENDING_MAX) else {
            return self.keep_within_quota(key);
        };
        let silent = listener.pending.iter().find(|(_, frontend)| frontend.first.is_none());
        if let Some((&token, _)) = silent.or(listener.pending.first_key_value()) {
            self.refuse_frontend(key, token, &DisconnectReason::Crowded);
        }
        self.keep_within_quota(key);
    }
}
