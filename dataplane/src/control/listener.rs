//! Listening sockets. Wires with memif server ends can share one, since a client says which interface id it wants.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use ferrule_ffi::descriptor_account::DescriptorAccount;
use slotmap::Key;

use super::done::SocketOutcome;
use super::handshake::Handshakes;
use super::jobs::ReapAccount;
use super::keys::{EndId, ListenerKey, WireKey};
use super::listen_address::{ListenAddress, ListenKind};
use super::listener_ends::ListenerEnds;
use super::log_limit::LogLimit;
use super::pending::PendingFrontend;
use super::poller::{SocketOwner, Token};
use super::socket_jobs::SocketPurpose;
use super::state::State;
use crate::socket::{Listener, SocketError, USUAL_MODE};
use crate::spec::{EndSpec, SocketAccess, SocketAddress};

/// A listening socket, the ends that peers find there, and the peers that no end has taken yet.
pub struct SharedListener {
    /// Where it listens.
    pub address: ListenAddress,
    /// What its ends want it to be like.
    kind: ListenKind,
    /// What was asked of the job that binds it, or has bound it.
    asked: ListenKind,
    /// The socket itself.
    pub socket: ListenSocket,
    /// Whose peers come here.
    pub ends: ListenerEnds,
    /// Ends of wires that are being made and wait for the socket.
    waiting: Vec<EndId>,
    /// The socket of which a job looks whether its path leads here.
    pub(super) checked: Option<Token>,
    /// Why that is not known.
    pub(super) problem: Option<String>,
    /// What peers that come here hold of our descriptors. It outlives the socket: who has its path listened on again has
    /// no more room for that.
    descriptors: Arc<DescriptorAccount>,
    /// What reapers have not dropped yet of its peers without an end.
    pub reaping: ReapAccount,
    /// memif clients in mid-handshake.
    pub handshakes: Handshakes,
    /// vhost-user frontends, the oldest first.
    pub pending: BTreeMap<Token, PendingFrontend>,
    /// What is said of the peers that were refused.
    pub log_limit: LogLimit,
}

/// How far a listening socket is.
pub enum ListenSocket {
    /// It is being bound.
    Binding,
    /// It listens.
    Open(Listener, Token),
    /// It is being closed; who wants it meanwhile waits for that.
    Closing,
    /// Its path leads elsewhere, and it could not be bound again yet.
    Lost,
}

impl SharedListener {
    /// Descriptors that peers without an end hold here.
    pub fn held(&self) -> usize {
        self.handshakes.held() + self.pending.values().map(PendingFrontend::held).sum::<usize>()
    }

    /// Whether whoever may connect here is not who should. An abstract name has no file that would keep anybody out.
    fn access_differs(&self, address: &ListenAddress, wanted: &SocketAccess) -> bool {
        let said = |access: &SocketAccess| (access.owner.clone(), access.group.clone(), access.mode_or(USUAL_MODE));
        matches!(address.address, SocketAddress::Path(_)) && said(&self.kind.access) != said(wanted)
    }

    /// Whether its ends want another socket than the one that was asked for: others wanted that, and have gone meanwhile.
    fn is_of_others(&self) -> bool {
        self.asked.kind != self.kind.kind || self.access_differs(&self.address, &self.asked.access)
    }

    /// The peer without an end that holds most descriptors; of those that hold the same, the oldest.
    pub fn largest_holder(&self) -> Option<(usize, std::cmp::Reverse<Token>)> {
        let handshakes = self.handshakes.iter().map(|(&token, handshake)| (handshake.held(), token));
        let pending = self.pending.iter().map(|(&token, frontend)| (frontend.held(), token));
        handshakes.chain(pending).map(|(held, token)| (held, std::cmp::Reverse(token))).max()
    }
}

impl State {
    /// Takes a place at the listening socket of an end that listens. `false`: the socket is not there yet, and
    /// [`Self::listener_bound`] will say what became of it. No peer is let in before the wire is there.
    pub(super) fn claim_listener(&mut self, id: EndId, end: &EndSpec) -> Result<bool, ListenError> {
        let (Some(socket), Some(address)) = (end.socket(), ListenAddress::of(end)) else { return Ok(true) };
        let kind = ListenKind::of(&socket);
        let Some(&key) = self.addresses.get(&address) else {
            let listener = SharedListener {
                address: address.clone(),
                asked: kind.clone(),
                kind,
                socket: ListenSocket::Binding,
                ends: ListenerEnds::new(id, &socket),
                waiting: vec![id],
                checked: None,
                problem: None,
                descriptors: Arc::default(),
                reaping: ReapAccount::default(),
                handshakes: Handshakes::default(),
                pending: BTreeMap::new(),
                log_limit: LogLimit::default(),
            };
            let key = self.listeners.insert(listener);
            self.addresses.insert(address, key);
            self.bind(key);
            return Ok(false);
        };
        let listener = &self.listeners[key];
        if let Some(holder) = listener.ends.holder(&socket) {
            let wire = self.wires.get(holder.wire).map(|wire| wire.spec.name.clone()).unwrap_or_default();
            return Err(match socket.id.filter(|_| listener.ends.protocol() == socket.protocol) {
                Some(id) => ListenError::IdTaken { id, address: address.address, wire },
                None => ListenError::SocketTaken { wire },
            });
        }
        let other = listener.ends.all().next().and_then(|first| self.wires.get(first.wire));
        if let Some(other) = other.filter(|_| listener.access_differs(&address, &kind.access)) {
            let (wire, theirs) = (other.spec.name.clone(), listener.kind.access.clone());
            let address = address.address;
            return Err(ListenError::AccessDiffers { address, wire, theirs, ours: kind.access });
        }
        let listener = &mut self.listeners[key];
        listener.ends.add(id, &socket);
        if matches!(listener.socket, ListenSocket::Open(..)) {
            return Ok(true);
        }
        listener.kind = kind;
        listener.waiting.push(id);
        Ok(false)
    }

    /// Gives the place of an end at its listening socket up. The last one closes it, for which its wire waits.
    pub(super) fn release_listener(&mut self, id: EndId, end: &EndSpec) {
        let Some(address) = ListenAddress::of(end) else { return };
        let Some(&key) = self.addresses.get(&address) else { return };
        let listener = &mut self.listeners[key];
        listener.ends.remove(id);
        if !listener.ends.is_empty() {
            return;
        }
        self.forget_unfinished(key);
        let socket = match &mut self.listeners[key].socket {
            ListenSocket::Lost => return self.listener_closed(key),
            ListenSocket::Binding | ListenSocket::Closing => return,
            open @ ListenSocket::Open(..) => std::mem::replace(open, ListenSocket::Closing),
        };
        let ListenSocket::Open(socket, token) = socket else { return };
        self.poller.forget(token, &socket);
        if let Some(wire) = self.wires.get_mut(id.wire) {
            wire.closing += 1;
        }
        self.close_listener(id.wire, key, &address, socket);
    }

    /// Drops the peers of a listening socket that no end has taken yet: what they held is free for others.
    pub(super) fn forget_unfinished(&mut self, key: ListenerKey) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let handshakes = std::mem::take(&mut listener.handshakes);
        let pending = std::mem::take(&mut listener.pending);
        for (&token, handshake) in handshakes.iter() {
            self.forget_handshake(token, handshake);
        }
        for (&token, frontend) in &pending {
            self.forget_frontend(token, frontend);
        }
        self.reap_of_listener(key, (handshakes, pending));
    }

    /// Drops what a peer without an end gave us where nobody waits for that.
    pub(super) fn reap_of_listener(&mut self, key: ListenerKey, what: impl Send + 'static) {
        let account = self.listeners.get(key).map(|listener| listener.reaping.clone()).unwrap_or_default();
        self.jobs.reap(&account, what);
    }

    /// An end does not wait for its listening socket any more. `false`: it did not.
    pub(super) fn stop_waiting(&mut self, id: EndId, end: &EndSpec) -> bool {
        let key = ListenAddress::of(end).and_then(|address| self.addresses.get(&address).copied());
        let Some(listener) = key.and_then(|key| self.listeners.get_mut(key)) else { return false };
        let before = listener.waiting.len();
        listener.waiting.retain(|waiting| *waiting != id);
        listener.waiting.len() < before
    }

    /// A socket listens, or cannot.
    pub(super) fn listener_bound(&mut self, key: ListenerKey, bound: Result<Listener, SocketError>) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if !listener.ends.is_empty() && listener.is_of_others() {
            return self.bind_another(key, bound.ok());
        }
        let waiting = std::mem::take(&mut listener.waiting);
        let descriptors = Arc::clone(&listener.descriptors);
        let bound = bound.map(|socket| socket.charged_to(&descriptors));
        let is_in_use = listener.ends.all().any(|end| !waiting.contains(&end));
        let bound = match bound.map(|socket| (self.poller.watch_later(&socket, SocketOwner::Listener(key)), socket)) {
            Ok((Ok(token), socket)) => {
                listener.socket = ListenSocket::Open(socket, token);
                Ok(token)
            }
            Ok((Err(error), socket)) => {
                let address = listener.address.clone();
                self.close_listener(WireKey::null(), ListenerKey::null(), &address, socket);
                Err(ListenError::Epoll(error))
            }
            Err(error) => Err(ListenError::Socket(error)),
        };
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let problem = bound.as_ref().err().map(ToString::to_string);
        if is_in_use {
            // Wires are behind it that were made before: it is kept for them.
            self.listener_bound_again(key, bound.map_err(|error| error.to_string()));
        } else if problem.is_some() {
            self.addresses.remove(&listener.address);
            self.forget_unfinished(key);
            self.listeners.remove(key);
        } else if listener.ends.is_empty()
            && let ListenSocket::Open(socket, token) = std::mem::replace(&mut listener.socket, ListenSocket::Closing)
        {
            // Nobody wants it any more.
            self.poller.forget(token, &socket);
            let address = listener.address.clone();
            self.close_listener(WireKey::null(), key, &address, socket);
        }
        for id in waiting {
            self.end_listens(id, problem.clone());
        }
    }

    /// A listening socket is closed.
    pub(super) fn listener_closed(&mut self, key: ListenerKey) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if listener.ends.is_empty() {
            self.addresses.remove(&listener.address);
            self.listeners.remove(key);
            return;
        }
        // Somebody else wants it by now.
        listener.socket = ListenSocket::Binding;
        self.bind(key);
    }

    /// Those for whom a socket was bound have gone, and whoever has come in their place wants another: that one is closed
    /// before.
    fn bind_another(&mut self, key: ListenerKey, socket: Option<Listener>) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let Some(socket) = socket else { return self.bind(key) };
        listener.socket = ListenSocket::Closing;
        let address = listener.address.clone();
        self.close_listener(WireKey::null(), key, &address, socket);
    }

    fn bind(&mut self, key: ListenerKey) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        listener.asked = listener.kind.clone();
        let (kind, address) = (listener.kind.clone(), listener.address.clone());
        let place = address.clone();
        self.at_socket(SocketPurpose::Bind(key), &place, move || {
            let bound = Listener::bind(kind.kind, &address.address, address.netns.as_ref(), &kind.access);
            SocketOutcome::Bound(address, bound)
        });
    }

    /// A socket whose path had led elsewhere listens again, or cannot: every end there says so.
    fn listener_bound_again(&mut self, key: ListenerKey, bound: Result<Token, String>) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        match bound {
            Ok(token) => {
                if let ListenSocket::Open(socket, _) = &listener.socket {
                    self.poller.listen(socket, token, true);
                }
            }
            Err(problem) => {
                listener.socket = ListenSocket::Lost;
                // It is over once the socket that comes after it is found at its path.
                listener.problem = Some(problem.clone());
                self.note_socket_problem(key, Some(&problem));
            }
        }
    }

    /// Lets the peers of an end in, now that there is a wire for them. Those that came before have waited.
    pub(super) fn open_listener(&mut self, end: &EndSpec) {
        let key = ListenAddress::of(end).and_then(|address| self.addresses.get(&address));
        let listener = key.and_then(|&key| self.listeners.get(key));
        if let Some(ListenSocket::Open(socket, token)) = listener.map(|listener| &listener.socket) {
            self.poller.listen(socket, *token, true);
        }
    }
}

/// Why an end cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
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
    /// Another wire listens there, for others than this one would let in.
    #[error(
        "its socket {address} is shared with wire `{wire}`, which has {theirs} there, and this wire {ours}: \
         one file has one owner, group and mode; give both wires the same, or choose another socket"
    )]
    AccessDiffers {
        /// The socket.
        address: SocketAddress,
        /// The wire that was there first.
        wire: String,
        /// Who may connect by its wish.
        theirs: SocketAccess,
        /// And by the wish of the other.
        ours: SocketAccess,
    },
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// It cannot be waited for.
    #[error("wait for the socket: {0}")]
    Epoll(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Instant;

    use ferrule_ffi::unix::{Kind, UnixSocket};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use crate::control::tests::TestControl;
    use crate::spec::{MemifSpec, Role, VhostUserSpec};

    /// A listening socket in a state, the end of a wire there, and a client in mid-handshake.
    fn with_client(state: &mut State, socket: ListenSocket) -> (ListenerKey, EndId, EndSpec, UnixSocket) {
        let end = EndSpec::Memif(MemifSpec::new("@unused".parse().unwrap(), Role::Server));
        let id = EndId { wire: WireKey::null(), end: 0 };
        assert!(!state.claim_listener(id, &end).unwrap());
        let key = state.addresses[&ListenAddress::of(&end).unwrap()];
        state.listeners[key].socket = socket;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let packets = |socket| UnixSocket::from_fd(socket, Kind::SeqPacket).unwrap();
        state.begin_handshake(key, packets(ours)).unwrap();
        assert_eq!(state.unfinished.held, 1);
        (key, id, end, packets(theirs))
    }

    #[test]
    fn what_clients_hold_is_free_again_however_their_listening_socket_goes() {
        for socket in [ListenSocket::Lost, ListenSocket::Closing, ListenSocket::Binding] {
            let TestControl { mut state, .. } = TestControl::new();
            let (key, id, end, _client) = with_client(&mut state, socket);
            let (&token, _) = state.listeners[key].handshakes.iter().next().unwrap();
            state.release_listener(id, &end);
            assert_eq!(state.unfinished.held, 0);
            assert_eq!(state.poller.owner(token), None);
        }
    }

    #[test]
    fn what_clients_hold_is_free_again_when_their_socket_cannot_be_bound() {
        let TestControl { mut state, .. } = TestControl::new();
        let (key, _, _, _client) = with_client(&mut state, ListenSocket::Binding);
        let (&token, _) = state.listeners[key].handshakes.iter().next().unwrap();
        let address = state.listeners[key].address.address.clone();
        state.listener_bound(key, Err(SocketError::InUse { address }));
        assert_eq!(state.unfinished.held, 0);
        assert_eq!(state.poller.owner(token), None);
        assert!(state.listeners.is_empty() && state.addresses.is_empty());
    }

    fn memif_at(path: &Path) -> MemifSpec {
        MemifSpec::new(path.to_str().unwrap().parse().unwrap(), Role::Server)
    }

    /// The socket that listens for an end, once it does.
    fn listening(control: &mut TestControl, end: &EndSpec, before: Option<Token>) -> (ListenerKey, Token) {
        let address = ListenAddress::of(end).unwrap();
        control.handle_until(|state| {
            let key = *state.addresses.get(&address)?;
            match &state.listeners[key].socket {
                &ListenSocket::Open(_, token) if Some(token) != before => Some((key, token)),
                _ => None,
            }
        })
    }

    #[test]
    fn who_takes_an_address_over_while_it_is_being_bound_has_the_socket_that_he_wants() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let others = EndSpec::Memif(memif_at(&path));
        let [first, second] = [0, 1].map(|end| EndId { wire: WireKey::null(), end });
        let vhost = EndSpec::VhostUser(VhostUserSpec::new(path.to_str().unwrap().parse().unwrap(), Role::Server));
        let mut private = memif_at(&path);
        private.access.mode = Some("0700".parse().unwrap());
        for (wanted, kind, mode) in
            [(vhost, Kind::Stream, USUAL_MODE), (EndSpec::Memif(private), Kind::SeqPacket, 0o700)]
        {
            let mut control = TestControl::new();
            assert!(!control.state.claim_listener(first, &others).unwrap());
            // The wire is removed before its socket is there.
            assert!(control.state.stop_waiting(first, &others));
            control.state.release_listener(first, &others);
            assert!(!control.state.claim_listener(second, &wanted).unwrap());
            listening(&mut control, &wanted, None);
            let _client = UnixSocket::connect_path(kind, &path).unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn what_peers_hold_counts_on_when_their_path_is_listened_on_again() {
        let mut control = TestControl::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let end = EndSpec::Memif(memif_at(&path));
        assert!(!control.state.claim_listener(EndId { wire: WireKey::null(), end: 0 }, &end).unwrap());
        let (key, token) = listening(&mut control, &end, None);
        let has_room = |state: &State| match &state.listeners[key].socket {
            ListenSocket::Open(socket, _) => socket.has_room(),
            _ => panic!("it listens"),
        };
        let client = UnixSocket::connect_path(Kind::SeqPacket, &path).unwrap();
        let ListenSocket::Open(socket, _) = &control.state.listeners[key].socket else { panic!("it listens") };
        let server = socket.accept().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut files = Vec::new();
        while has_room(&control.state) {
            client.send(b"x", &[null.as_fd(); 20]).unwrap();
            files.extend(server.receive(&mut [0; 1], 20).unwrap().unwrap().files);
        }
        std::fs::remove_file(&path).unwrap();
        control.state.check_socket_files();
        listening(&mut control, &end, Some(token));
        assert!(!has_room(&control.state), "{} descriptors are held", files.len());
        drop(files);
        let deadline = Instant::now() + std::time::Duration::from_secs(20);
        while !has_room(&control.state) {
            assert!(Instant::now() < deadline, "there is room again");
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_came_by_a_path_that_leads_elsewhere_does_not_get_in() {
        let mut control = TestControl::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let end = EndSpec::Memif(memif_at(&path));
        assert!(!control.state.claim_listener(EndId { wire: WireKey::null(), end: 0 }, &end).unwrap());
        let (key, token) = listening(&mut control, &end, None);
        let client = UnixSocket::connect_path(Kind::SeqPacket, &path).unwrap();
        let ListenSocket::Open(socket, _) = &control.state.listeners[key].socket else { panic!("it listens") };
        let server = socket.accept().unwrap();
        control.state.begin_handshake(key, server).unwrap();
        std::fs::remove_file(&path).unwrap();
        control.state.check_socket_files();
        listening(&mut control, &end, Some(token));
        assert!(control.state.listeners[key].handshakes.iter().next().is_none() && control.state.unfinished.held == 0);
        drop(client);
    }

    #[test]
    fn an_answer_about_a_former_socket_does_not_close_the_one_that_listens_now() {
        let mut control = TestControl::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let end = EndSpec::Memif(memif_at(&path));
        assert!(!control.state.claim_listener(EndId { wire: WireKey::null(), end: 0 }, &end).unwrap());
        let (key, former) = listening(&mut control, &end, None);
        // Two looks are under way: the second one at the socket that has come in place of the first.
        control.state.listeners[key].checked = Some(former);
        control.state.socket_file_checked(key, former, false);
        let (_, token) = listening(&mut control, &end, Some(former));
        control.state.listeners[key].checked = Some(token);
        control.state.socket_file_checked(key, former, false);
        control.state.socket_file_unknown(key, former, "of the former");
        let listener = &control.state.listeners[key];
        assert!(matches!(listener.socket, ListenSocket::Open(_, open) if open == token));
        assert_eq!((listener.checked, &listener.problem), (Some(token), &None));
        let _client = UnixSocket::connect_path(Kind::SeqPacket, &path).unwrap();
    }
}
