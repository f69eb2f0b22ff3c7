//! Ends that go to their peers: they connect, again and again.

use std::sync::Arc;

use ferrule_ffi::unix::UnixSocket;

use super::done::SocketOutcome;
use super::end::{ClientState, EndKind};
use super::jobs::ReapAccount;
use super::keys::{EndId, SocketJobId};
use super::listen_address::ListenAddress;
use super::log_limit::if_any;
use super::socket_jobs::SocketPurpose;
use super::state::State;
use super::wire::Wire;
use crate::socket::{self, SocketError};
use crate::spec::end_name;

impl State {
    /// Starts to connect a client end.
    pub(super) fn connect(&mut self, id: EndId) {
        let Some(wire) = self.wires.get(id.wire).filter(|wire| wire.removal.is_none()) else { return };
        let spec = Arc::clone(&wire.spec);
        if wire.reaping[id.end].is_full() {
            return self.not_connected(id, STILL_RELEASED);
        }
        // Before connecting: a server that is left again at once may not survive it (DPDK 22.11).
        if let Err(problem) = self.loan(id) {
            return self.not_connected(id, problem);
        }
        let Some(socket) = spec.ends[id.end].socket() else { return };
        let kind = socket.protocol.socket_kind();
        let place = ListenAddress { address: socket.address.clone(), netns: socket.netns.cloned() };
        let address = place.clone();
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
        let end = wire.and_then(|wire| Some(&wire.workers()?.ends[id.end]));
        let Some(end) = end.filter(|end| end.connecting() == Some(job)) else {
            // Nobody wants it any more.
            return self.jobs.reap(&ReapAccount::default(), connected.ok());
        };
        match connected.map(|socket| socket.charged_to(&end.descriptors)) {
            Ok(socket) => self.greet(id, socket),
            Err(error) => self.not_connected(id, &error.to_string()),
        }
    }

    /// Notes why a client end is not connected, and when it is tried again.
    pub(super) fn not_connected(&mut self, id: EndId, problem: &str) {
        let Some(wire) = self.wires.get_mut(id.wire) else { return };
        let Some(served) = wire.workers_mut() else { return };
        let is_news = served.ends[id.end].last_error.as_deref() != Some(problem);
        served.ends[id.end].disconnect(problem.to_owned());
        if let Some(suppressed) = wire.allow_line(id.end, problem) {
            let (wire, end, suppressed) = (&wire.spec.name, end_name(id.end), if_any(suppressed));
            tracing::info!(wire, end, problem, suppressed, "not connected; trying again");
        }
        if is_news {
            self.changed.insert(id.wire);
        }
        self.set_timer(id);
    }
}

/// Why nobody is let in, or connected to, for a moment.
pub(super) const STILL_RELEASED: &str = "memory and descriptors of former peers are still being released";
