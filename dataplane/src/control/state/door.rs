//! Doors: listening sockets, and the handshakes of the memif clients that come in by them. Frontends wait at theirs as
//! `caller`s.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use ferrule_ffi::unix::Kind;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::caller::{Caller, Vacancy};
use super::{Socket, State};
use crate::control::disconnect::DisconnectReason;
use crate::control::log_limit::{LogLimit, if_any};
use crate::control::wire::Wire;
use crate::control::{HANDSHAKE, HANDSHAKES_MAX, MESSAGES_PER_EVENT};
use crate::port::memif::channel::Channel;
use crate::port::memif::handshake::{Connection, HandshakeError, Offer, Outbox, Server};
use crate::socket::{Listener, SocketError};
use crate::spec::{EndSpec, NetNs, Role, SocketAddress};

/// A listening socket and who is behind it.
pub(super) struct Door {
    listener: Listener,
    token: u64,
    behind: Behind,
    /// Frontends that were not let in yet, the oldest first; memif clients are in mid-handshake instead.
    pub(super) callers: BTreeMap<u64, Caller>,
    /// What is said of the clients that were turned away.
    log_limit: LogLimit,
}

/// Who is behind a door: the wire and which end of it.
enum Behind {
    /// Memif interfaces, by their ids.
    Memif(HashMap<u32, (String, usize)>),
    /// A vhost-user end.
    Vhost(String, usize),
}

impl Behind {
    fn new(name: &str, number: usize, end: &EndSpec) -> Self {
        let place = (name.to_owned(), number);
        match end {
            EndSpec::Memif(spec) => Self::Memif(HashMap::from([(spec.id, place)])),
            _ => Self::Vhost(place.0, place.1),
        }
    }
}

impl Door {
    /// One more end behind a door that is there.
    fn add(&mut self, name: &str, number: usize, end: &EndSpec) -> Result<(), DoorError> {
        match (&mut self.behind, end) {
            (Behind::Memif(ids), EndSpec::Memif(spec)) => match ids.entry(spec.id) {
                Entry::Vacant(free) => {
                    free.insert((name.to_owned(), number));
                    Ok(())
                }
                Entry::Occupied(taken) => {
                    let wire = taken.get().0.clone();
                    Err(DoorError::IdTaken { id: spec.id, address: spec.socket.clone(), wire })
                }
            },
            (Behind::Memif(ids), _) => {
                let wire = ids.values().next().map(|(wire, _)| wire.clone()).unwrap_or_default();
                Err(DoorError::SocketTaken { wire })
            }
            (Behind::Vhost(wire, _), _) => Err(DoorError::SocketTaken { wire: wire.clone() }),
        }
    }

    /// The end that frontends come to, if they do.
    pub(super) fn of_frontends(&self) -> Option<(String, usize)> {
        match &self.behind {
            Behind::Memif(_) => None,
            Behind::Vhost(name, end) => Some((name.clone(), *end)),
        }
    }

    /// The end of a memif interface.
    fn of_id(&self, id: u32) -> Option<&(String, usize)> {
        match &self.behind {
            Behind::Memif(ids) => ids.get(&id),
            Behind::Vhost(..) => None,
        }
    }
}

/// A listening socket is known by its address and, if abstract, its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DoorKey {
    address: SocketAddress,
    netns: Option<NetNs>,
}

impl DoorKey {
    /// Where an end listens; `None`: it does not.
    pub fn of(end: &EndSpec) -> Option<Self> {
        let (address, netns) = match end {
            EndSpec::Memif(spec) if spec.role == Role::Server => (&spec.socket, spec.netns.as_ref()),
            EndSpec::VhostUser(spec) if spec.role == Role::Server => (&spec.socket, None),
            _ => return None,
        };
        let netns = netns.filter(|_| matches!(address, SocketAddress::Abstract(_))).cloned();
        Some(Self { address: address.clone(), netns })
    }
}

/// A client that has not finished its handshake.
pub(super) struct Handshake {
    door: DoorKey,
    channel: Channel,
    server: Server,
    since: Instant,
    /// When it last said something.
    heard: Instant,
    /// The interface id that it wants, once it has said so.
    asked: Option<u32>,
}

impl Handshake {
    /// When it is given up.
    pub(super) fn deadline(&self) -> Instant {
        self.since + HANDSHAKE
    }
}

impl State {
    /// Listens for end `number` of wire `name`, if it is one that listens. Nobody is let in before the wire is there.
    pub fn open_door(&mut self, name: &str, number: usize, end: &EndSpec) -> Result<(), DoorError> {
        let Some(key) = DoorKey::of(end) else { return Ok(()) };
        if let Some(door) = self.doors.get_mut(&key) {
            return door.add(name, number, end);
        }
        let (kind, netns, access) = match end {
            EndSpec::Memif(spec) => (Kind::SeqPacket, key.netns.as_ref(), &spec.access),
            EndSpec::VhostUser(spec) => (Kind::Stream, None, &spec.access),
            EndSpec::Kernel(_) => return Ok(()),
        };
        let listener = Listener::bind(kind, &key.address, netns, access)?;
        let token = self.watch_for(EpollFlags::empty(), &listener, Socket::Door(key.clone()))?;
        let behind = Behind::new(name, number, end);
        let (callers, log_limit) = (BTreeMap::new(), LogLimit::default());
        self.doors.insert(key, Door { listener, token, behind, callers, log_limit });
        Ok(())
    }

    /// Lets the peers of an end in, now that there is a wire for them. Those that came before have waited.
    pub(super) fn let_in(&mut self, end: &EndSpec) {
        let Some(door) = DoorKey::of(end).and_then(|key| self.doors.get(&key)) else { return };
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN, door.token);
        // It is in epoll, since `open_door`.
        let _ = self.epoll.modify(&door.listener, &mut event);
    }

    /// Does not listen for that end any more.
    pub fn close_door(&mut self, end: &EndSpec) {
        let Some(key) = DoorKey::of(end) else { return };
        let Some(door) = self.doors.get_mut(&key) else { return };
        if let (Behind::Memif(ids), EndSpec::Memif(spec)) = (&mut door.behind, end) {
            ids.remove(&spec.id);
            if !ids.is_empty() {
                return;
            }
        }
        if let Some(door) = self.doors.remove(&key) {
            self.forget(door.token, &door.listener);
            for (token, caller) in door.callers {
                self.forget(token, &caller);
            }
        }
    }

    pub(super) fn accept(&mut self, key: &DoorKey) {
        for _ in 0..MESSAGES_PER_EVENT {
            let Some(door) = self.doors.get(key) else { return };
            let socket = match door.listener.accept() {
                Ok(socket) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.cannot_accept(key, &error),
            };
            if let Some((name, end)) = door.of_frontends() {
                self.notice_loss(&name, end);
                if self.vacancy(&name, end) == Vacancy::Taken {
                    self.turned_away(key, &DisconnectReason::Occupied);
                } else if let Err(error) = self.welcome(key, socket) {
                    self.turned_away(key, &error);
                }
                continue;
            }
            let channel = Channel::from(socket);
            let mut out = Outbox::default();
            let server = Server::greet(&mut out);
            if channel.send(&mut out).is_err() {
                continue;
            }
            let Ok(token) = self.watch(&channel, Socket::Handshake) else { continue };
            let now = Instant::now();
            let handshake = Handshake { door: key.clone(), channel, server, since: now, heard: now, asked: None };
            self.handshakes.insert(token, handshake);
            self.remind(Some(now + HANDSHAKE));
            self.make_room(key);
        }
    }

    /// Out of descriptors. The unfinished handshakes are what can be spared; without any, the client
    /// is let in by the reserve and shown out, or it would wake this thread for ever.
    fn cannot_accept(&mut self, key: &DoorKey, error: &io::Error) {
        let spare: Vec<_> = self.handshakes.keys().copied().collect();
        let of_door = |(key, door): (&DoorKey, &Door)| (key.clone(), door.callers.keys().copied().collect::<Vec<_>>());
        let callers: Vec<_> = self.doors.iter().map(of_door).filter(|(_, callers)| !callers.is_empty()).collect();
        let Some(door) = self.doors.get_mut(key) else { return };
        if let Some(suppressed) = door.log_limit.allow(Instant::now()) {
            tracing::warn!(socket = %key.address, %error, suppressed = if_any(suppressed), "a client cannot be accepted");
        }
        if spare.is_empty() && callers.is_empty() {
            drop(self.reserve.take());
            drop(door.listener.accept());
            self.reserve = reserve();
        }
        for token in spare {
            self.refuse(token, &DisconnectReason::Crowded);
        }
        for (key, callers) in callers {
            for token in callers {
                self.turn_away(&key, token, &DisconnectReason::Crowded);
            }
        }
    }

    /// Turns a client of a door away when too many are in mid-handshake, so that a flood does not push
    /// out an honest one: first the oldest that had its time and never said whom it wants, or else the
    /// one that has been quiet for the longest.
    fn make_room(&mut self, key: &DoorKey) {
        let of_door = || self.handshakes.iter().filter(|(_, handshake)| handshake.door == *key);
        let count = of_door().count();
        if count <= HANDSHAKES_MAX {
            return;
        }
        let silent = of_door().take(count / 2).find(|(_, handshake)| handshake.asked.is_none());
        let turned_away = silent.or_else(|| of_door().min_by_key(|(_, handshake)| handshake.heard));
        if let Some(token) = turned_away.map(|(&token, _)| token) {
            self.refuse(token, &DisconnectReason::Crowded);
        }
    }

    /// Leads the conversation with a client in mid-handshake.
    pub(super) fn converse(&mut self, token: u64) {
        for _ in 0..MESSAGES_PER_EVENT {
            let Some(handshake) = self.handshakes.get_mut(&token) else { return };
            let (message, files) = match handshake.channel.receive() {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(refusal) => return self.refuse(token, &refusal.into()),
            };
            if let crate::port::memif::message::Message::Init(init) = &message {
                handshake.asked.get_or_insert(init.id);
                let holder = self.doors.get(&handshake.door).and_then(|door| door.of_id(init.id)).cloned();
                if let Some((wire, end)) = holder {
                    self.notice_loss(&wire, end);
                }
            }
            let Some(Handshake { door, channel, server, since, asked, .. }) = self.handshakes.remove(&token) else {
                return;
            };
            let heard = Instant::now();
            let mut out = Outbox::default();
            let result = server.handle(message, files, |id| self.offer(&door, id), &mut out);
            match result.and_then(|server| channel.send(&mut out).map(|()| server)) {
                Ok(Server::Connected(connection)) => return self.admit(&door, channel, *connection, token),
                Ok(server) => {
                    self.handshakes.insert(token, Handshake { door, channel, server, since, heard, asked });
                }
                Err(refusal) => {
                    let server = Server::ExpectInit;
                    self.handshakes.insert(token, Handshake { door, channel, server, since, heard, asked });
                    return self.refuse(token, &refusal.into());
                }
            }
        }
    }

    /// The interface of an id, if it is free.
    fn offer(&self, door: &DoorKey, id: u32) -> Result<Offer<'_>, HandshakeError> {
        let (wire, end) = self.doors.get(door).and_then(|door| door.of_id(id)).ok_or(HandshakeError::UnknownId(id))?;
        let wire = self.wires.get(wire).ok_or(HandshakeError::UnknownId(id))?;
        let EndSpec::Memif(spec) = &wire.spec.ends[*end] else { return Err(HandshakeError::UnknownId(id)) };
        let joint = wire.as_joint().ok_or(HandshakeError::UnknownId(id))?;
        if joint.ends[*end].live().is_some() {
            return Err(HandshakeError::AlreadyConnected(id));
        }
        Ok(Offer { mode: spec.mode, secret: spec.secret.as_ref(), memory: &joint.ends[*end].memory })
    }

    /// A peer that has just died may not have been noticed yet; it must not keep its successor out.
    pub(super) fn notice_loss(&mut self, name: &str, end: usize) {
        let live = self.wires.get(name).and_then(Wire::as_joint).and_then(|joint| joint.ends[end].live());
        let gone = live.is_some_and(|live| {
            let mut socket = [PollFd::new(live.peer.as_fd(), PollFlags::empty())];
            let _ = poll(&mut socket, PollTimeout::ZERO);
            socket[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
        });
        if gone {
            self.disconnect(name, end, &DisconnectReason::Closed, false);
        }
    }

    /// A client has finished its handshake.
    fn admit(&mut self, door: &DoorKey, channel: Channel, connection: Connection, token: u64) {
        let place = self.doors.get(door).and_then(|door| door.of_id(connection.id)).cloned();
        let Some((name, end)) = place else { return self.forget(token, &channel) };
        self.sockets.insert(token, Socket::End(name.clone(), end));
        self.attach(&name, end, channel, connection, token);
    }

    /// Turns a client in mid-handshake away. The end that it wanted says why, if it has nobody else.
    pub(super) fn refuse(&mut self, token: u64, reason: &DisconnectReason) {
        let Some(Handshake { door, channel, asked, .. }) = self.handshakes.remove(&token) else { return };
        if reason.should_tell_peer() {
            channel.send_disconnect(reason);
        }
        self.forget(token, &channel);
        self.turned_away(&door, reason);
        let Some(state) = self.doors.get(&door) else { return };
        let Some((wire, end)) = asked.and_then(|id| state.of_id(id)) else { return };
        if let Some(joint) = self.wires.get_mut(wire).and_then(Wire::as_joint_mut)
            && joint.ends[*end].live().is_none()
        {
            joint.ends[*end].last_error = Some(reason.to_string());
        }
    }

    /// Says that a peer was not let in.
    pub(super) fn turned_away(&mut self, key: &DoorKey, reason: &dyn Display) {
        let Some(door) = self.doors.get_mut(key) else { return };
        if let Some(suppressed) = door.log_limit.allow(Instant::now()) {
            tracing::warn!(socket = %key.address, %reason, suppressed = if_any(suppressed), "refused a peer");
        }
    }
}

/// What is given up for a moment when there are no descriptors left.
pub(super) fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Why an end cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Another wire has it.
    #[error("listen on {address} for interface id {id}: wire `{wire}` has that id; choose another")]
    IdTaken {
        /// The id.
        id: u32,
        /// The socket.
        address: SocketAddress,
        /// The other wire.
        wire: String,
    },
    /// Another wire listens there, for peers that it cannot be told apart from.
    #[error("its socket is the one of wire `{wire}`; choose another")]
    SocketTaken {
        /// The other wire.
        wire: String,
    },
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// It cannot be waited for.
    #[error("wait for the socket: {0}")]
    Epoll(#[from] io::Error),
}
