//! The handshakes of memif clients that come to a listening socket.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use ferrule_ffi::unix::UnixSocket;

use super::disconnect::DisconnectReason;
use super::keys::ListenerKey;
use super::poller::{SocketOwner, Timer, Token};
use super::state::State;
use super::{HANDSHAKE, HANDSHAKES_MAX, MESSAGES_PER_EVENT};
use crate::port::memif::channel::MemifChannel;
use crate::port::memif::handshake::{Connection, HandshakeError, MemifOffer, Outbox, Server};
use crate::port::memif::message::MemifMessage;

/// A client that has not finished its handshake.
pub struct Handshake {
    channel: MemifChannel,
    /// Taken while it is being led.
    server: Option<Server>,
    /// When it last said something.
    heard: Instant,
    /// The interface id that it wants, once it has said so.
    wanted: Option<u32>,
    /// Descriptors that it has passed.
    files: usize,
}

impl Handshake {
    /// Descriptors that it holds.
    pub fn held(&self) -> usize {
        1 + self.files
    }
}

/// The clients of one listening socket that have not finished their handshakes, the oldest first.
#[derive(Default)]
pub struct Handshakes {
    clients: BTreeMap<Token, Handshake>,
    held: usize,
}

impl Handshakes {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Token, &Handshake)> {
        self.clients.iter()
    }

    /// Descriptors that they hold.
    pub fn held(&self) -> usize {
        self.held
    }

    fn insert(&mut self, token: Token, handshake: Handshake) {
        self.held += handshake.held();
        self.clients.insert(token, handshake);
    }

    fn remove(&mut self, token: Token) -> Option<Handshake> {
        let handshake = self.clients.remove(&token)?;
        self.held -= handshake.held();
        Some(handshake)
    }

    /// Who goes when there are too many, so that a flood does not push out an honest one: first the oldest that had
    /// its time and never said whom it wants, or else the one that has been quiet for the longest.
    fn dispensable(&self) -> Option<Token> {
        let count = self.clients.len();
        if count <= HANDSHAKES_MAX {
            return None;
        }
        let silent = self.clients.iter().take(count / 2).find(|(_, handshake)| handshake.wanted.is_none());
        let goes = silent.or_else(|| self.clients.iter().min_by_key(|(_, handshake)| handshake.heard));
        goes.map(|(&token, _)| token)
    }
}

impl State {
    /// A client has come: it is told what we take.
    pub(super) fn begin_handshake(&mut self, key: ListenerKey, socket: UnixSocket) -> io::Result<()> {
        let channel = MemifChannel::from(socket);
        let mut out = Outbox::default();
        let server = Server::greet(self.queues_offered(key), &mut out);
        if channel.send(&mut out).is_err() {
            self.reap_of_listener(key, channel);
            return Ok(());
        }
        let token = self.poller.watch(&channel, SocketOwner::Handshake(key))?;
        let Some(listener) = self.listeners.get_mut(key) else { return Ok(()) };
        let now = Instant::now();
        let handshake = Handshake { channel, server: Some(server), heard: now, wanted: None, files: 0 };
        self.unfinished.held += handshake.held();
        listener.handshakes.insert(token, handshake);
        let dispensable = listener.handshakes.dispensable();
        self.poller.timers.set(Timer::Handshake(token), Some(now + HANDSHAKE));
        if let Some(token) = dispensable {
            self.refuse_handshake(key, token, &DisconnectReason::Crowded);
        }
        self.keep_within_quota(key);
        Ok(())
    }

    /// Leads the conversation with a client in mid-handshake.
    pub(super) fn continue_handshake(&mut self, key: ListenerKey, token: Token) {
        for _ in 0..MESSAGES_PER_EVENT {
            let Some(handshake) = self.listeners.get(key).and_then(|listener| listener.handshakes.clients.get(&token))
            else {
                return;
            };
            let (message, files) = match handshake.channel.receive() {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(error) => return self.refuse_handshake(key, token, &error.into()),
            };
            if let MemifMessage::Init(init) = &message {
                self.wants(key, token, init.id);
            }
            let Some(listener) = self.listeners.get_mut(key) else { return };
            let Some(mut handshake) = listener.handshakes.remove(token) else { return };
            self.unfinished.held -= handshake.held();
            handshake.heard = Instant::now();
            handshake.files += files.len();
            let mut out = Outbox::default();
            let server = handshake.server.take().unwrap_or(Server::ExpectInit);
            let result = server.handle(message, files, |id| self.offer(key, id), &mut out);
            let failure = match result.and_then(|server| handshake.channel.send(&mut out).map(|()| server)) {
                Ok(Server::Connected(connection)) => {
                    self.poller.timers.set(Timer::Handshake(token), None);
                    return self.finish_handshake(key, handshake.channel, *connection, token);
                }
                Ok(server) => {
                    handshake.server = Some(server);
                    None
                }
                Err(error) => Some(error),
            };
            self.unfinished.held += handshake.held();
            let Some(listener) = self.listeners.get_mut(key) else { return };
            listener.handshakes.insert(token, handshake);
            if let Some(error) = failure {
                return self.refuse_handshake(key, token, &error.into());
            }
            self.keep_within_quota(key);
        }
    }

    /// Refuses a client in mid-handshake. The end that it wanted says why, if it has nobody else.
    pub(super) fn refuse_handshake(&mut self, key: ListenerKey, token: Token, reason: &DisconnectReason) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let Some(handshake) = listener.handshakes.remove(token) else { return };
        let end = handshake.wanted.and_then(|id| listener.ends.get(Some(id)));
        if reason.should_tell_peer() {
            handshake.channel.send_disconnect(reason);
        }
        self.forget_handshake(token, &handshake);
        self.reap_of_listener(key, handshake);
        self.say_refused(key, reason);
        if let Some(end) = end {
            self.note_refusal(end, reason);
        }
    }

    /// Forgets all but the client itself, which somebody else drops.
    pub(super) fn forget_handshake(&mut self, token: Token, handshake: &Handshake) {
        self.unfinished.held -= handshake.held();
        self.poller.timers.set(Timer::Handshake(token), None);
        self.poller.forget(token, &handshake.channel);
    }

    /// A client has said which interface it wants.
    fn wants(&mut self, key: ListenerKey, token: Token, id: u32) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if let Some(handshake) = listener.handshakes.clients.get_mut(&token) {
            handshake.wanted.get_or_insert(id);
        }
        if let Some(end) = listener.ends.get(Some(id)) {
            self.notice_loss(end);
        }
    }

    fn finish_handshake(&mut self, key: ListenerKey, channel: MemifChannel, connection: Connection, token: Token) {
        let end = self.listeners.get(key).and_then(|listener| listener.ends.get(Some(connection.id)));
        let Some(end) = end else {
            self.poller.forget(token, &channel);
            return self.reap_of_listener(key, (channel, connection));
        };
        self.poller.set_owner(token, SocketOwner::End(end));
        self.connect_memif(end, channel, connection, token);
    }

    /// The interface of an id, if it is free.
    fn offer(&self, key: ListenerKey, id: u32) -> Result<MemifOffer<'_>, HandshakeError> {
        let end = self.listeners.get(key).and_then(|listener| listener.ends.get(Some(id)));
        let (wire, end) =
            end.and_then(|end| Some((self.wires.get(end.wire)?, end))).ok_or(HandshakeError::UnknownId(id))?;
        let (Some(spec), Some(served)) = (wire.spec.ends[end.end].as_memif(), wire.workers()) else {
            return Err(HandshakeError::UnknownId(id));
        };
        if served.ends[end.end].peer().is_some() {
            return Err(HandshakeError::AlreadyConnected(id));
        }
        if wire.reaping[end.end].is_full() {
            return Err(HandshakeError::Releasing(id));
        }
        Ok(MemifOffer {
            mode: spec.mode,
            secret: spec.secret.as_ref(),
            queues: spec.queues,
            memory: &wire.budgets[end.end],
        })
    }

    /// The most queue pairs that any interface at a listening socket takes: HELLO is said before a client says which
    /// one it wants.
    fn queues_offered(&self, key: ListenerKey) -> u16 {
        let Some(listener) = self.listeners.get(key) else { return 1 };
        let queues = listener.ends.all().filter_map(|end| self.wires.get(end.wire)?.spec.ends[end.end].as_memif());
        queues.map(|spec| spec.queues).max().unwrap_or(1)
    }
}
