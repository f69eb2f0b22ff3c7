//! Peers that come to a listening socket are let in, and what they may hold before an end has them is bounded.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use super::disconnect::DisconnectReason;
use super::keys::ListenerKey;
use super::listener::{ListenSocket, SharedListener};
use super::log_limit::if_any;
use super::poller::Timer;
use super::state::State;
use crate::port::MESSAGES_PER_EVENT;

/// What peers that no end has taken yet may hold: descriptors, each of which can be a mapping too.
pub struct Unfinished {
    /// What they hold now.
    pub held: usize,
    /// What they may hold together.
    pub most: usize,
}

impl Unfinished {
    /// A share of the descriptors that this process may have.
    pub fn new(descriptors_max: u64) -> Self {
        let share = usize::try_from(descriptors_max / 4).unwrap_or(usize::MAX);
        Self { held: 0, most: share.clamp(UNFINISHED_MIN, UNFINISHED_MAX) }
    }

    /// What those of one listening socket may hold.
    pub fn most_of_listener(&self) -> usize {
        self.most / 2
    }
}

/// What is given up for a moment when there are no descriptors left.
pub(super) fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

impl State {
    /// Peers have come to a listening socket.
    pub(super) fn accept(&mut self, key: ListenerKey) {
        for _ in 0..MESSAGES_PER_EVENT {
            let Some(listener) = self.listeners.get(key) else { return };
            let ListenSocket::Open(socket, token) = &listener.socket else { return };
            if !socket.has_room() || listener.reaping.is_full() {
                self.poller.listen(socket, *token, false);
                self.poller.timers.set(Timer::Accept(key), Some(Instant::now() + ACCEPT_AGAIN));
                return self.make_room_to_accept(key);
            }
            let accepted = match socket.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.cannot_accept(key, &error),
            };
            let protocol = listener.ends.protocol();
            if let Err(error) = self.welcome(key, protocol, accepted) {
                self.say_refused(key, &error);
            }
        }
    }

    /// A listening socket whose peers held too much is tried again.
    pub(super) fn accept_again(&mut self, key: ListenerKey) {
        if let Some(ListenSocket::Open(socket, token)) = self.listeners.get(key).map(|listener| &listener.socket) {
            self.poller.listen(socket, *token, true);
        }
    }

    /// Peers that came to a listening socket hold as much as they may: others wait there until that is closed. One that
    /// holds much of it, and is nobody's peer yet, goes.
    fn make_room_to_accept(&mut self, key: ListenerKey) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if let Some(suppressed) = listener.log_limit.allow(Instant::now()) {
            let (socket, suppressed) = (&listener.address.address, if_any(suppressed));
            tracing::warn!(%socket, suppressed, "clients wait: what those before them sent is not closed yet");
        }
        let Some((held, std::cmp::Reverse(token))) = listener.largest_holder() else { return };
        if held > HOLDER_MIN {
            self.refuse_handshake(key, token, &DisconnectReason::Crowded);
            self.refuse_frontend(key, token, &DisconnectReason::Crowded);
        }
    }

    /// Out of descriptors. What peers without an end hold is what can be spared; without any, the client is
    /// accepted by the reserve and closed, or it would wake this thread for ever.
    fn cannot_accept(&mut self, key: ListenerKey, error: &io::Error) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if let Some(suppressed) = listener.log_limit.allow(Instant::now()) {
            let socket = &listener.address.address;
            tracing::warn!(%socket, %error, suppressed = if_any(suppressed), "a client cannot be accepted");
        }
        if self.unfinished.held == 0 {
            drop(self.reserve.take());
            if let ListenSocket::Open(socket, _) = &listener.socket {
                drop(socket.accept());
            }
            self.reserve = reserve();
            return;
        }
        let unfinished = |(key, listener): (ListenerKey, &SharedListener)| {
            let handshakes = listener.handshakes.iter().map(|(&token, _)| token).collect::<Vec<_>>();
            let pending = listener.pending.keys().copied().collect::<Vec<_>>();
            (key, handshakes, pending)
        };
        for (key, handshakes, pending) in self.listeners.iter().map(unfinished).collect::<Vec<_>>() {
            for token in handshakes {
                self.refuse_handshake(key, token, &DisconnectReason::Crowded);
            }
            for token in pending {
                self.refuse_frontend(key, token, &DisconnectReason::Crowded);
            }
        }
    }

    /// Has peers without an end hold no more than they may, at this listening socket and at all of them: the oldest of
    /// those that hold most goes.
    pub(super) fn keep_within_quota(&mut self, key: ListenerKey) {
        loop {
            let of_listener = self.listeners.get(key).map_or(0, SharedListener::held);
            let everywhere = self.unfinished.held > self.unfinished.most;
            if !everywhere && of_listener <= self.unfinished.most_of_listener() {
                return;
            }
            let holders = self.listeners.iter().filter(|(other, _)| everywhere || *other == key);
            let largest = holders.filter_map(|(key, listener)| {
                let (held, token) = listener.largest_holder()?;
                Some((held, token, key))
            });
            let Some((_, std::cmp::Reverse(token), key)) = largest.max() else { return };
            self.refuse_handshake(key, token, &DisconnectReason::Crowded);
            self.refuse_frontend(key, token, &DisconnectReason::Crowded);
        }
    }

    /// Says that a peer was refused.
    pub(super) fn say_refused(&mut self, key: ListenerKey, reason: &dyn Display) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if let Some(suppressed) = listener.log_limit.allow(Instant::now()) {
            let socket = &listener.address.address;
            tracing::warn!(%socket, %reason, suppressed = if_any(suppressed), "refused a peer");
        }
    }
}

/// How soon a listening socket is tried again whose peers held too much.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);
/// Who holds no more is left alone when others wait.
const HOLDER_MIN: usize = 16;
/// Enough for a client of the usual kind beside one with all the regions that there can be.
const UNFINISHED_MIN: usize = 256;
/// Far from the 65,530 mappings that a process may have, and from its descriptors where there are many.
const UNFINISHED_MAX: usize = 4096;
