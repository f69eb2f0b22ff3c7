//! memif peers: clients that have finished their handshake, and the servers that our clients connect to.

use std::sync::Arc;
use std::time::Instant;

use ferrule_ffi::unix::{Kind, UnixSocket};

use super::disconnect::DisconnectReason;
use super::done::SocketOutcome;
use super::end::{ClientState, EndKind, Peer};
use super::events::WireChange;
use super::jobs::ReapAccount;
use super::keys::{EndId, SocketJobId};
use super::listen_address::ListenAddress;
use super::log_limit::if_any;
use super::poller::{SocketOwner, Token};
use super::socket_jobs::SocketPurpose;
use super::state::State;
use super::wire::Wire;
use super::{HANDSHAKE, MESSAGES_PER_EVENT};
use crate::port::memif::channel::MemifChannel;
use crate::port::memif::handshake::{Connection, HandshakeError};
use crate::port::memif::layout::Loan;
use crate::port::memif::peer::{ClientHandshake, ClientStep};
use crate::socket::{self, SocketError};
use crate::spec::{EndSpec, Prealloc};

/// What there is to listen to at an end.
enum Heard {
    Nothing,
    More,
    Connected(Box<Connection>),
}

impl State {
    /// Starts to connect a client end.
    pub(super) fn connect(&mut self, id: EndId) {
        let Some(wire) = self.wires.get(id.wire).filter(|wire| wire.removal.is_none()) else { return };
        let spec = Arc::clone(&wire.spec);
        if wire.reaping[id.end].is_full() {
            return self.not_connected(id, STILL_RELEASED);
        }
        let (kind, address) = match &spec.ends[id.end] {
            EndSpec::Memif(memif) => {
                // Before connecting: a server that is left again at once may not survive it (DPDK 22.11).
                if let Err(problem) = self.loan(id) {
                    return self.not_connected(id, problem);
                }
                (Kind::SeqPacket, ListenAddress { address: memif.socket.clone(), netns: memif.netns.clone() })
            }
            EndSpec::VhostUser(vhost) => (Kind::Stream, ListenAddress { address: vhost.socket.clone(), netns: None }),
            EndSpec::Kernel(_) => return,
        };
        let place = address.clone();
        let job = self.at_socket(SocketPurpose::Connect(id), &place, move || {
            SocketOutcome::Connected(socket::connect(kind, &address.address, address.netns.as_ref()))
        });
        if let Some(served) = self.wires.get_mut(id.wire).and_then(Wire::workers_mut) {
            served.ends[id.end].kind = EndKind::Client(ClientState::Connecting(job));
        }
    }

    /// The socket of an end's peer is reached, or cannot be.
    pub(super) fn connected(&mut self, id: EndId, job: SocketJobId, connected: Result<UnixSocket, SocketError>) {
        let wire = self.wires.get(id.wire).filter(|wire| wire.removal.is_none());
        let wire = wire.and_then(|wire| {
            let end = &wire.workers()?.ends[id.end];
            (end.connecting() == Some(job)).then_some((wire, &end.descriptors))
        });
        let Some((wire, descriptors)) = wire else {
            // Nobody wants it any more.
            return self.jobs.reap(&ReapAccount::default(), connected.ok());
        };
        let spec = Arc::clone(&wire.spec);
        let connected = connected.map(|socket| socket.charged_to(descriptors));
        match (connected, &spec.ends[id.end]) {
            (Err(error), _) => self.not_connected(id, &error.to_string()),
            (Ok(socket), EndSpec::Memif(_)) => self.greet_server(id, socket.into()),
            (Ok(socket), EndSpec::VhostUser(_)) => self.greet_frontend(id, socket.into()),
            (Ok(_), EndSpec::Kernel(_)) => {}
        }
    }

    /// The socket of an end has something to say: an answer in the handshake, a goodbye, or whatever a frontend wants.
    pub(super) fn hear_peer(&mut self, id: EndId) {
        for _ in 0..MESSAGES_PER_EVENT {
            let Some(wire) = self.wires.get_mut(id.wire) else { return };
            let spec = Arc::clone(&wire.spec);
            let Some(served) = wire.workers_mut() else { return };
            let heard = match &mut served.ends[id.end].kind {
                EndKind::Server(Some(peer)) | EndKind::Client(ClientState::Connected(peer)) => match &peer.peer {
                    Peer::Memif(peer) => peer.listen().map(|()| Heard::Nothing),
                    Peer::VhostUser(_) => return self.serve_frontend(id),
                },
                EndKind::Client(ClientState::Handshake(handshake, _)) => {
                    let EndSpec::Memif(spec) = &spec.ends[id.end] else { return };
                    handshake.step(spec).map(|step| match step {
                        ClientStep::Nothing => Heard::Nothing,
                        ClientStep::Continued => Heard::More,
                        ClientStep::Connected(connection) => Heard::Connected(connection),
                    })
                }
                EndKind::Server(None)
                | EndKind::Client(ClientState::Waiting(_) | ClientState::Connecting(_))
                | EndKind::Tap(..) => return,
            };
            match heard {
                Ok(Heard::Nothing) => return,
                Ok(Heard::More) => {}
                Ok(Heard::Connected(connection)) => {
                    let kind = &mut served.ends[id.end].kind;
                    let waiting = EndKind::Client(ClientState::Waiting(Instant::now()));
                    if let EndKind::Client(ClientState::Handshake(handshake, token)) = std::mem::replace(kind, waiting)
                    {
                        self.connect_memif(id, handshake.channel, *connection, token);
                    }
                    return;
                }
                Err(error) => return self.disconnect(id, &error.into()),
            }
        }
    }

    /// A memif peer is there.
    pub(super) fn connect_memif(&mut self, id: EndId, channel: MemifChannel, connection: Connection, token: Token) {
        let Some(wire) = self.wires.get_mut(id.wire) else { return };
        let name = wire.spec.name.clone();
        if let Some(suppressed) = wire.log_limit.allow(Instant::now()) {
            let (end, peer, suppressed) = (id.end, &connection.peer, if_any(suppressed));
            tracing::info!(wire = name, end, peer, suppressed, "peer connected");
        }
        let is_lender = connection.layout.is_lent() || connection.no_loan.is_some();
        let no_loan = connection.no_loan.clone();
        if let Some(reason) = &no_loan
            && let Some(suppressed) = wire.log_limit.allow(Instant::now())
        {
            tracing::warn!(wire = name, %reason, suppressed = if_any(suppressed), "trusted, but frames are copied");
        }
        if let EndSpec::Memif(spec) = &wire.spec.ends[id.end]
            && spec.prealloc != Prealloc::Never
        {
            self.jobs.populate(connection.layout.own_regions());
        }
        let Some(served) = wire.workers_mut() else { return };
        if is_lender {
            served.no_loan = no_loan;
        }
        self.events.note(&name, WireChange::PeerConnected { end: id.end, peer: connection.peer.clone() });
        served.ends[id.end].connect_memif(channel, connection, token);
        self.changed.insert(id.wire);
        self.set_timer(id);
        self.lend_anew(id);
        self.join(id.wire);
    }

    /// Notes why a client end is not connected, and when it is tried again.
    pub(super) fn not_connected(&mut self, id: EndId, problem: &str) {
        let Some(wire) = self.wires.get_mut(id.wire) else { return };
        let Some(served) = wire.workers_mut() else { return };
        let is_news = served.ends[id.end].last_error.as_deref() != Some(problem);
        served.ends[id.end].disconnect(problem.to_owned());
        if is_news && let Some(suppressed) = wire.log_limit.allow(Instant::now()) {
            let (wire, end, suppressed) = (&wire.spec.name, id.end, if_any(suppressed));
            tracing::info!(wire, end, problem, suppressed, "not connected; trying again");
        }
        if is_news {
            self.changed.insert(id.wire);
        }
        self.set_timer(id);
    }

    fn greet_server(&mut self, id: EndId, channel: MemifChannel) {
        // The lender may have another peer by now, or none.
        let loan = match self.loan(id) {
            Ok(loan) => loan,
            Err(problem) => return self.not_connected(id, problem),
        };
        match self.poller.watch(&channel, SocketOwner::End(id)) {
            Ok(token) => {
                let Some(wire) = self.wires.get_mut(id.wire) else { return };
                let budget = Arc::clone(&wire.budgets[id.end]);
                let Some(served) = wire.workers_mut() else { return };
                let handshake = ClientHandshake::new(channel, loan, &budget, Instant::now() + HANDSHAKE);
                served.ends[id.end].kind = EndKind::Client(ClientState::Handshake(handshake, token));
                self.set_timer(id);
            }
            Err(error) => self.not_connected(id, &format!("wait for the socket: {error}")),
        }
    }

    /// The peer at an end is new: of a trusted wire, the other end gets its memory in place of what it has.
    fn lend_anew(&mut self, lender: EndId) {
        let borrower = self.wires.get(lender.wire).and_then(|wire| wire.spec.borrower());
        let Some(end) = borrower.filter(|&borrower| borrower != lender.end) else { return };
        let borrower = EndId { wire: lender.wire, end };
        let served = self.wires.get(borrower.wire).and_then(|wire| wire.workers());
        if served.is_some_and(|served| served.ends[end].connecting().is_some()) {
            // It will find the new one.
            return;
        }
        self.disconnect(borrower, &DisconnectReason::Memif(HandshakeError::NewLender));
        if let Some(served) = self.wires.get_mut(borrower.wire).and_then(Wire::workers_mut) {
            served.ends[end].connect_now();
        }
        self.set_timer(borrower);
    }

    /// What a client end lends to its server, if it does.
    fn loan(&mut self, id: EndId) -> Result<Option<Loan>, &'static str> {
        let Some(wire) = self.wires.get_mut(id.wire) else { return Ok(None) };
        if wire.spec.borrower() != Some(id.end) {
            return Ok(None);
        }
        let Some(served) = wire.workers_mut() else { return Ok(None) };
        let Some(lender) = served.ends[1 - id.end].layout() else {
            return Err("the other end has no peer yet, whose memory is to be lent");
        };
        match lender.loan() {
            Ok(loan) => Ok(Some(loan)),
            Err(reason) => {
                served.no_loan = Some(reason);
                Ok(None)
            }
        }
    }
}

/// Why nobody is let in, or connected to, for a moment.
pub(super) const STILL_RELEASED: &str = "memory and descriptors of former peers are still being released";
