//! vhost-user frontends at a door, before one of them is let in.
//!
//! A socket has one frontend, and many may want to be it. They wait at the door side by side: the first that says
//! something whole and sensible becomes the peer, so a silent one, or one that stammers, keeps nobody out.
//!
//! ```text
//!   accepted --- first message ---> the end is free: let in
//!      |                            its frontend has rings: turned away
//!      |                            its frontend has none yet: waits, and is next when that one goes
//!      `--- closed, nonsense, 5 s, or too many others: turned away
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use ferrule_ffi::unix::UnixSocket;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::door::{Door, DoorKey};
use super::{Socket, State};
use crate::control::disconnect::DisconnectReason;
use crate::control::wire::Wire;
use crate::control::{CALLERS_MAX, HANDSHAKE, MESSAGES_PER_EVENT};
use crate::port::vhost_user::channel::Channel;
use crate::port::vhost_user::session::Message;
use crate::port::vhost_user::session::error::SessionError;

/// A frontend that has not been let in.
pub(super) struct Caller {
    channel: Channel,
    since: Instant,
    /// What it said first, if it waits for its turn. It is not listened to meanwhile.
    said: Option<Message>,
}

impl Caller {
    /// When it is given up.
    pub(super) fn deadline(&self) -> Instant {
        self.since + HANDSHAKE
    }
}

impl AsFd for Caller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl State {
    /// A frontend has come to a door.
    pub(super) fn welcome(&mut self, key: &DoorKey, socket: UnixSocket) -> io::Result<()> {
        let channel = Channel::from(socket);
        let token = self.watch(&channel, Socket::Caller(key.clone()))?;
        let Some(door) = self.doors.get_mut(key) else { return Ok(()) };
        let caller = Caller { channel, since: Instant::now(), said: None };
        let deadline = caller.deadline();
        door.callers.insert(token, caller);
        self.remind(Some(deadline));
        self.make_room_for_callers(key);
        // Most have said something by the time that they are accepted.
        self.hear_caller(key, token);
        Ok(())
    }

    /// A frontend at a door may have said something.
    pub(super) fn hear_caller(&mut self, key: &DoorKey, token: u64) {
        let Some(door) = self.doors.get_mut(key) else { return };
        let Some(place) = door.of_frontends() else { return };
        let Some(caller) = door.callers.get_mut(&token).filter(|caller| caller.said.is_none()) else { return };
        match caller.listen() {
            Ok(None) => return,
            Ok(Some(message)) => caller.said = Some(message),
            Err(refusal) => return self.turn_away(key, token, &refusal.into()),
        }
        let (name, end) = place;
        self.notice_loss(&name, end);
        match self.vacancy(&name, end) {
            Vacancy::Free => self.let_caller_in(key, token),
            Vacancy::Undecided => {
                // What it says next would wake this thread again and again.
                if let Some(caller) = self.doors.get(key).and_then(|door| door.callers.get(&token)) {
                    let _ = self.epoll.delete(&caller.channel);
                }
            }
            Vacancy::Taken => self.turn_away(key, token, &DisconnectReason::Occupied),
        }
    }

    /// Lets those that wait for an end in whose frontend has gone, one after the other until one stays. More than come
    /// in a round of events, so that those who do not stay do not pile up.
    pub fn let_callers_in(&mut self) {
        for _ in 0..4 * MESSAGES_PER_EVENT {
            if self.vacated.is_empty() {
                return;
            }
            self.let_next_callers_in();
        }
    }

    fn let_next_callers_in(&mut self) {
        for (name, end) in std::mem::take(&mut self.vacated) {
            let Some(key) = self.wires.get(&name).and_then(|wire| DoorKey::of(&wire.spec.ends[end])) else { continue };
            if self.vacancy(&name, end) != Vacancy::Free {
                continue;
            }
            let Some(door) = self.doors.get(&key).filter(|door| door.of_frontends().is_some()) else { continue };
            let next = door.callers.iter().find(|(_, caller)| caller.said.is_some());
            if let Some((&token, caller)) = next {
                // It was there before, and there is room for it again.
                let _ = self.epoll.add(&caller.channel, EpollEvent::new(EpollFlags::EPOLLIN, token));
                self.let_caller_in(&key, token);
            }
        }
    }

    /// The end's frontend has rings: nobody needs to wait for anything.
    pub(super) fn turn_callers_away(&mut self, name: &str, end: usize) {
        let Some(key) = self.wires.get(name).and_then(|wire| DoorKey::of(&wire.spec.ends[end])) else { return };
        let Some(door) = self.doors.get(&key) else { return };
        for token in door.callers.keys().copied().collect::<Vec<_>>() {
            self.turn_away(&key, token, &DisconnectReason::Occupied);
        }
    }

    /// Turns those away whose time is over.
    pub(super) fn turn_slow_callers_away(&mut self, now: Instant) {
        let late = |(token, caller): (&u64, &Caller)| {
            // One that has spoken has waited for another to go.
            let reason = if caller.said.is_some() {
                DisconnectReason::Occupied
            } else {
                DisconnectReason::TooSlow(HANDSHAKE.as_secs())
            };
            (now >= caller.deadline()).then_some((*token, reason))
        };
        let of_door = |(key, door): (&DoorKey, &Door)| {
            let late: Vec<_> = door.callers.iter().filter_map(late).collect();
            (!late.is_empty()).then(|| (key.clone(), late))
        };
        for (key, late) in self.doors.iter().filter_map(of_door).collect::<Vec<_>>() {
            for (token, reason) in late {
                self.turn_away(&key, token, &reason);
            }
        }
    }

    /// Closes the connection of one that waits; the end says why, if it has nobody else.
    pub(super) fn turn_away(&mut self, key: &DoorKey, token: u64, reason: &DisconnectReason) {
        let Some(door) = self.doors.get_mut(key) else { return };
        let Some(caller) = door.callers.remove(&token) else { return };
        let place = door.of_frontends();
        self.forget(token, &caller.channel);
        self.turned_away(key, reason);
        let Some((name, end)) = place else { return };
        if let Some(joint) = self.wires.get_mut(&name).and_then(Wire::as_joint_mut)
            && joint.ends[end].live().is_none()
        {
            joint.ends[end].last_error = Some(reason.to_string());
        }
    }

    fn let_caller_in(&mut self, key: &DoorKey, token: u64) {
        let Some(door) = self.doors.get_mut(key) else { return };
        let Some((name, end)) = door.of_frontends() else { return };
        let Some(Caller { channel, said, .. }) = door.callers.remove(&token) else { return };
        self.sockets.insert(token, Socket::End(name.clone(), end));
        self.attach_frontend(&name, end, channel, token, said);
        self.serve_frontend(&name, end);
    }

    /// Whether an end has room for a frontend.
    pub(super) fn vacancy(&self, name: &str, end: usize) -> Vacancy {
        let Some(joint) = self.wires.get(name).and_then(Wire::as_joint) else { return Vacancy::Taken };
        match joint.ends[end].live() {
            _ if joint.leaving => Vacancy::Taken,
            None => Vacancy::Free,
            Some(_) if joint.ends[end].present => Vacancy::Taken,
            Some(_) => Vacancy::Undecided,
        }
    }

    /// Turns one away when too many wait: the one that has been silent for the longest, or else the oldest. A flood of them has to be fast
    /// to push out an honest one between its `connect` and its first words.
    fn make_room_for_callers(&mut self, key: &DoorKey) {
        let Some(door) = self.doors.get(key).filter(|door| door.callers.len() > CALLERS_MAX) else { return };
        let silent = door.callers.iter().find(|(_, caller)| caller.said.is_none());
        if let Some((&token, _)) = silent.or(door.callers.first_key_value()) {
            self.turn_away(key, token, &DisconnectReason::Crowded);
        }
    }
}

impl Caller {
    /// Its first message, once it is whole.
    fn listen(&mut self) -> Result<Option<Message>, SessionError> {
        match self.channel.receive()? {
            Some(envelope) => Message::new(envelope).map(Some),
            // Nobody begins with files. So many as can wait would have all our descriptors.
            None if self.channel.holds_files() => Err(SessionError::FilesFirst),
            None => Ok(None),
        }
    }
}

/// Whether an end has room for a frontend.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Vacancy {
    /// Nobody is there.
    Free,
    /// Somebody is there whose rings are not.
    Undecided,
    /// Somebody is there, or the wire is going.
    Taken,
}
