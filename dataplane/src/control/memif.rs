//! memif peers: clients that have finished their handshake, and the servers that our clients connect to.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use ferrule_ffi::health::MemoryLost;

use super::any::PeerConnection;
use super::disconnect::DisconnectReason;
use super::end::{ClientState, EndKind};
use super::events::WireChange;
use super::keys::EndId;
use super::log_limit::if_any;
use super::poller::{SocketOwner, Token};
use super::state::State;
use super::wire::Wire;
use super::{HANDSHAKE, MESSAGES_PER_EVENT};
use crate::port::memif::channel::MemifChannel;
use crate::port::memif::handshake::{Connection, HandshakeError};
use crate::port::memif::layout::Loan;
use crate::port::memif::peer::{ClientHandshake, ClientStep, MemifPeer};
use crate::spec::{Prealloc, end_name};

impl PeerConnection for MemifPeer {
    fn memory_lost(&self) -> Option<MemoryLost> {
        self.layout.memory_lost()
    }

    fn has_queue(&self) -> bool {
        false
    }

    fn send_disconnect(&self, reason: &DisconnectReason) {
        self.channel.send_disconnect(reason);
    }
}

impl AsFd for MemifPeer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl State {
    /// The socket of a memif end has something to say.
    pub(super) fn hear_memif(&mut self, id: EndId) {
        for _ in 0..MESSAGES_PER_EVENT {
            let Some(wire) = self.wires.get_mut(id.wire) else { return };
            let wire_spec = Arc::clone(&wire.spec);
            let Some(spec) = wire_spec.ends[id.end].as_memif() else { return };
            let Some(served) = wire.workers_mut() else { return };
            if let Some(peer) = served.ends[id.end].memif() {
                // One message is as good as many: none leaves it connected.
                if let Err(error) = peer.listen() {
                    self.disconnect(id, &error.into());
                }
                return;
            }
            let kind = &mut served.ends[id.end].kind;
            let EndKind::Client(ClientState::Handshake(handshake, _)) = kind else { return };
            let connection = match handshake.step(spec) {
                Ok(ClientStep::Nothing) => return,
                Ok(ClientStep::Continued) => continue,
                Ok(ClientStep::Connected(connection)) => connection,
                Err(error) => return self.disconnect(id, &error.into()),
            };
            let waiting = EndKind::Client(ClientState::Waiting(Instant::now()));
            if let EndKind::Client(ClientState::Handshake(handshake, token)) = std::mem::replace(kind, waiting) {
                self.connect_memif(id, handshake.channel, *connection, token);
            }
            return;
        }
    }

    /// A memif peer is there.
    pub(super) fn connect_memif(&mut self, id: EndId, channel: MemifChannel, connection: Connection, token: Token) {
        let Some(wire) = self.wires.get_mut(id.wire) else { return };
        let name = wire.spec.name.clone();
        if let Some(suppressed) = wire.log_limit.allow(Instant::now()) {
            let (end, peer, suppressed) = (end_name(id.end), &connection.peer, if_any(suppressed));
            tracing::info!(wire = name, end, peer, suppressed, "peer connected");
        }
        let is_lender = connection.layout.is_lent() || connection.no_loan.is_some();
        let no_loan = connection.no_loan.clone();
        if let Some(reason) = &no_loan
            && let Some(suppressed) = wire.log_limit.allow(Instant::now())
        {
            tracing::warn!(wire = name, %reason, suppressed = if_any(suppressed), "trusted, but frames are copied");
        }
        if let Some(spec) = wire.spec.ends[id.end].as_memif()
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

    /// We have connected to a server.
    pub(super) fn greet_server(&mut self, id: EndId, channel: MemifChannel) {
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
    pub(super) fn loan(&mut self, id: EndId) -> Result<Option<Loan>, &'static str> {
        let Some(wire) = self.wires.get_mut(id.wire) else { return Ok(None) };
        if wire.spec.borrower() != Some(id.end) {
            return Ok(None);
        }
        let Some(served) = wire.workers_mut() else { return Ok(None) };
        let Some(lender) = served.ends[1 - id.end].memif() else {
            return Err("the other end has no peer yet, whose memory is to be lent");
        };
        match lender.layout.loan() {
            Ok(loan) => Ok(Some(loan)),
            Err(reason) => {
                served.no_loan = Some(reason);
                Ok(None)
            }
        }
    }
}
