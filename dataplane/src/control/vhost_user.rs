//! vhost-user frontends that are peers: they say things while frames flow.
//!
//! What may change rings is not done under a worker's hands:
//!
//! ```text
//!   request --- needs_quiesce, lanes are out ---> held; lanes recalled, socket not listened to
//!      |                                         |
//!      |  <------- all lanes are back -----------'
//!      v
//!   rings parked, request handled, reply sent ---> next request ... none left ---> new rings, lanes joined
//! ```
//! So a reply to GET_VRING_BASE means that nobody touches the ring any more. Requests that quiesce rings too often wait:
//! frames flow meanwhile, and the socket is not listened to.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ferrule_ffi::health::MemoryLost;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::any::PeerConnection;
use super::disconnect::DisconnectReason;
use super::events::WireChange;
use super::keys::{EndId, WireKey};
use super::log_limit::if_any;
use super::poller::{SocketOwner, Token};
use super::state::State;
use super::wire::{LanePlace, Wire};
use super::{HANDSHAKE, MESSAGES_PER_EVENT};
use crate::port::Put;
use crate::port::any::inject;
use crate::port::vhost_user::channel::VhostUserChannel;
use crate::port::vhost_user::eventfd::EventfdExchange;
use crate::port::vhost_user::message::VhostUserRequest;
use crate::port::vhost_user::peer::VhostUserPeer;
use crate::port::vhost_user::rarp;
use crate::port::vhost_user::session::error::SessionError;
use crate::port::vhost_user::session::offer::VhostUserOffer;
use crate::port::vhost_user::session::{Response, Session, VhostUserMessage};
use crate::spec::end_name;

/// What came of a look at what a frontend says.
enum RequestOutcome {
    /// A request was handled; there may be more.
    Handled,
    /// There was none.
    Nothing,
    /// It waits, or its frontend has gone.
    Waits,
}

impl PeerConnection for VhostUserPeer {
    fn memory_lost(&self) -> Option<MemoryLost> {
        self.session.memory_lost()
    }

    fn has_queue(&self) -> bool {
        true
    }

    // The protocol has no words for it.
    fn send_disconnect(&self, _reason: &DisconnectReason) {}
}

impl AsFd for VhostUserPeer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl State {
    /// We have connected to a frontend.
    pub(super) fn greet_frontend(&mut self, id: EndId, channel: VhostUserChannel) {
        match self.poller.watch(&channel, SocketOwner::End(id)) {
            Ok(token) => self.connect_frontend(id, channel, token, None),
            Err(error) => self.not_connected(id, &format!("wait for the socket: {error}")),
        }
    }

    /// A frontend is the peer of an end from now on: one that has said its `first` message, or one that we have
    /// connected to.
    pub(super) fn connect_frontend(
        &mut self,
        id: EndId,
        channel: VhostUserChannel,
        token: Token,
        first: Option<VhostUserMessage>,
    ) {
        let Some(wire) = self.wires.get_mut(id.wire) else { return };
        let Some(spec) = wire.spec.ends[id.end].as_vhost_user() else { return };
        let session = Session::new(VhostUserOffer::new(spec, &wire.spec.ends[1 - id.end]), &wire.budgets[id.end]);
        let peer = process_name(&channel);
        if let Some(suppressed) = wire.log_limit.allow(Instant::now()) {
            let (wire, end, suppressed) = (&wire.spec.name, end_name(id.end), if_any(suppressed));
            tracing::info!(wire, end, peer, suppressed, "peer connected");
        }
        self.events.note(&wire.spec.name, WireChange::PeerConnected { end: id.end, peer: peer.clone() });
        let silent_until = first.is_none().then(|| Instant::now() + HANDSHAKE);
        let Some(served) = wire.workers_mut() else { return };
        let frontend = VhostUserPeer { channel, session, held: first, silent_until };
        served.ends[id.end].connect_frontend(frontend, peer, token);
        self.changed.insert(id.wire);
        self.set_timer(id);
    }

    /// Does what a frontend asks for, as far as it has asked, and joins the wire again when that was all.
    pub(super) fn serve_frontend(&mut self, id: EndId) {
        for _ in 0..MESSAGES_PER_EVENT {
            match self.serve_request(id) {
                Ok(RequestOutcome::Handled) => {}
                Ok(RequestOutcome::Nothing) => return self.settle(id),
                Ok(RequestOutcome::Waits) => return,
                Err(error) => return self.disconnect(id, &error.into()),
            }
        }
        // Others have their turn. If it has more to say, there will be another event, and if not, there will be none.
        if !self.has_more_to_say(id) {
            self.settle(id);
        }
    }

    /// Goes on with the requests that waited for lanes which are back now.
    pub(super) fn lanes_are_back(&mut self, key: WireKey) {
        for end in 0..2 {
            let id = EndId { wire: key, end };
            let Some(served) = self.wires.get(key).and_then(|wire| wire.workers()) else { return };
            if !served.lanes.is_empty() || !served.ends[end].has_request() {
                continue;
            }
            if let Some(peer) = served.ends[end].peer() {
                self.poller.resume(&peer.peer, peer.token);
            }
            self.serve_frontend(id);
        }
    }

    /// Goes on with a frontend whose requests came too fast.
    pub(super) fn resume_paused(&mut self, id: EndId) {
        let Some(served) = self.wires.get_mut(id.wire).and_then(Wire::workers_mut) else { return };
        served.ends[id.end].paused_until = None;
        if let Some(peer) = served.ends[id.end].peer() {
            self.poller.resume(&peer.peer, peer.token);
            self.serve_frontend(id);
        }
    }

    fn serve_request(&mut self, id: EndId) -> Result<RequestOutcome, SessionError> {
        let Some(served) = self.wires.get_mut(id.wire).and_then(Wire::workers_mut) else {
            return Ok(RequestOutcome::Waits);
        };
        let lanes_are_out = !served.lanes.is_empty();
        let end = &mut served.ends[id.end];
        let rings_are_made = end.present;
        let Some(frontend) = end.frontend_mut() else { return Ok(RequestOutcome::Waits) };
        let Some(message) = frontend.receive()? else { return Ok(RequestOutcome::Nothing) };
        let needs_quiesce = frontend.session.needs_quiesce(&message.request);
        // An exchange leaves the rings where they are, but it is no way to keep a worker busy either.
        let names_eventfd = message.request.names_eventfd();
        self.set_timer(id);
        if (lanes_are_out || rings_are_made) && (needs_quiesce || names_eventfd) && !self.may_quiesce(id) {
            self.pause(id, message);
            return Ok(RequestOutcome::Waits);
        }
        if needs_quiesce && self.wires.get(id.wire).is_some_and(|wire| wire.reaping[id.end].is_full()) {
            self.pause_until(id, Instant::now() + RELEASE_AGAIN);
            self.pause(id, message);
            return Ok(RequestOutcome::Waits);
        }
        if needs_quiesce && lanes_are_out {
            return Ok(self.hold(id, message));
        }
        self.handle_request(id, message, needs_quiesce)
    }

    /// Handles a request while no worker has what it may change.
    fn handle_request(
        &mut self,
        id: EndId,
        message: VhostUserMessage,
        needs_quiesce: bool,
    ) -> Result<RequestOutcome, SessionError> {
        let Some(served) = self.wires.get_mut(id.wire).and_then(Wire::workers_mut) else {
            return Ok(RequestOutcome::Waits);
        };
        let end = &mut served.ends[id.end];
        end.is_counted = false;
        let parked = if needs_quiesce { end.park() } else { None };
        let Some(frontend) = end.frontend_mut() else { return Ok(RequestOutcome::Waits) };
        if let Some(rings) = parked {
            frontend.session.park(rings);
        }
        let names_call = match &message.request {
            VhostUserRequest::SetVringCall(ring) => Some(usize::from(ring.index)),
            _ => None,
        };
        // What a request replaces is unmapped where nobody waits for it.
        let before = needs_quiesce.then(|| frontend.session.mapped());
        let answer = frontend.session.handle(message);
        let replaced = before.filter(|before| !before.is_same(&frontend.session.mapped()));
        if let Some(replaced) = replaced {
            self.reap(id, replaced);
        }
        let Response { reply, exchange, announce } = answer?;
        if let Some(exchange) = exchange {
            self.exchange(id, exchange);
        }
        let Some(served) = self.wires.get_mut(id.wire).and_then(Wire::workers_mut) else {
            return Ok(RequestOutcome::Waits);
        };
        let Some(frontend) = served.ends[id.end].frontend_mut() else { return Ok(RequestOutcome::Waits) };
        // The guest may have been told something by the former one, when it listened to this one already. A worker that
        // still has the ring notifies it once more when it has taken it over.
        let named = names_call.and_then(|index| frontend.session.vrings.get(index)?.call.as_ref());
        if let Some(call) = named {
            let _ = self.notifier.notify(call.as_fd());
        }
        if let Some((reply, file)) = reply {
            let files: Vec<_> = file.iter().map(AsFd::as_fd).collect();
            frontend.channel.send(&reply.emit(), &files)?;
        }
        if needs_quiesce {
            self.changed.insert(id.wire);
        }
        if let Some(mac) = announce {
            self.announce(id, mac);
        }
        Ok(RequestOutcome::Handled)
    }

    /// Has an eventfd of a ring exchanged, wherever the ring is.
    fn exchange(&mut self, id: EndId, exchange: EventfdExchange) {
        let Some(served) = self.wires.get_mut(id.wire).and_then(Wire::workers_mut) else { return };
        let lanes = served.lanes.len();
        if lanes == 0 {
            if let Some(rings) = &mut served.ends[id.end].rings {
                rings.exchange(&exchange);
            }
            return;
        }
        // As rings are dealt out to lanes.
        match &mut served.lanes[exchange.position % lanes] {
            LanePlace::Served(worker, lane) => {
                if let Err(error) = self.workers[*worker].exchange(*lane, id.end, exchange) {
                    tracing::debug!(%error, "an eventfd cannot be exchanged in its ring, which is recalled");
                    self.recall(id.wire, Duration::ZERO);
                }
            }
            LanePlace::Unserved(lane) | LanePlace::Back(lane) => lane.ends[id.end].exchange(&exchange),
            LanePlace::Lost => {}
        }
    }

    /// Whether the frontend of an end may have rings quiesced now. Asked once for each request.
    fn may_quiesce(&mut self, id: EndId) -> bool {
        let Some(served) = self.wires.get_mut(id.wire).and_then(Wire::workers_mut) else { return false };
        let end = &mut served.ends[id.end];
        if !end.is_counted {
            match end.quiesces.take(Instant::now()) {
                Ok(()) => end.is_counted = true,
                Err(until) => end.paused_until = Some(until),
            }
        }
        end.is_counted
    }

    fn pause_until(&mut self, id: EndId, until: Instant) {
        if let Some(served) = self.wires.get_mut(id.wire).and_then(Wire::workers_mut) {
            served.ends[id.end].paused_until = Some(until);
        }
    }

    /// Keeps a request that came too soon. Frames flow meanwhile.
    fn pause(&mut self, id: EndId, message: VhostUserMessage) {
        let Some(served) = self.wires.get_mut(id.wire).and_then(Wire::workers_mut) else { return };
        let Some(frontend) = served.ends[id.end].frontend_mut() else { return };
        frontend.held = Some(message);
        self.poller.pause(&frontend.channel);
        self.set_timer(id);
        self.join(id.wire);
    }

    /// Keeps a request until all lanes of its wire are back, and recalls them.
    fn hold(&mut self, id: EndId, message: VhostUserMessage) -> RequestOutcome {
        let Some(served) = self.wires.get_mut(id.wire).and_then(Wire::workers_mut) else {
            return RequestOutcome::Waits;
        };
        let Some(frontend) = served.ends[id.end].frontend_mut() else { return RequestOutcome::Waits };
        frontend.held = Some(message);
        let channel = frontend.channel.as_fd();
        // More that it says would wake this thread again and again, and wait all the same.
        self.poller.pause(&channel);
        if self.recall(id.wire, Duration::ZERO) {
            self.lanes_are_back(id.wire);
        }
        RequestOutcome::Waits
    }

    /// Makes the rings that a frontend has described, and joins the wire.
    fn settle(&mut self, id: EndId) {
        let Some(wire) = self.wires.get_mut(id.wire) else { return };
        let name = wire.spec.name.clone();
        let Some(served) = wire.workers_mut() else { return };
        if !served.ends[id.end].present && served.lanes.is_empty() {
            let Some(frontend) = served.ends[id.end].frontend_mut() else { return };
            match frontend.session.rings() {
                Ok(Some(rings)) => {
                    let pairs = frontend.session.pairs();
                    served.ends[id.end].set_rings(rings);
                    self.changed.insert(id.wire);
                    tracing::debug!(wire = name, end = end_name(id.end), pairs, "rings are there");
                    self.refuse_frontends(id, &DisconnectReason::Occupied);
                }
                Ok(None) => self.set_joined(id.wire, false),
                Err(error) => return self.disconnect(id, &SessionError::from(error).into()),
            }
        }
        self.join(id.wire);
    }

    fn has_more_to_say(&self, id: EndId) -> bool {
        let served = self.wires.get(id.wire).and_then(|wire| wire.workers());
        let Some(frontend) = served.and_then(|served| served.ends[id.end].frontend()) else { return false };
        let mut socket = [PollFd::new(frontend.channel.as_fd(), PollFlags::POLLIN)];
        poll(&mut socket, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Lets the network at the other end of the wire know where a guest is now, if somebody is there.
    fn announce(&mut self, id: EndId, mac: [u8; 6]) {
        let Some(wire) = self.wires.get_mut(id.wire) else { return };
        let (name, counters) = (wire.spec.name.clone(), std::sync::Arc::clone(&wire.counters));
        let Some(served) = wire.workers_mut() else { return };
        let far = EndId { end: 1 - id.end, ..id };
        let target = served.ends[far.end].rings.as_mut().and_then(|rings| rings.targets.first_mut());
        let Some(target) = target else {
            return tracing::debug!(wire = name, end = end_name(id.end), "SEND_RARP: nobody is at the other end");
        };
        match inject(&rarp::announcement(mac), target, counters[id.end].control(), &mut self.notifier) {
            Ok(Put::Stored) => {}
            Ok(put) => {
                tracing::debug!(wire = name, end = end_name(id.end), ?put, "SEND_RARP: the other end did not take it");
            }
            Err(fault) => self.disconnect(far, &DisconnectReason::Fault(fault)),
        }
    }
}

/// How soon a frontend is listened to again that has had more replaced than is unmapped yet.
const RELEASE_AGAIN: Duration = Duration::from_millis(10);

/// The process at the other end of a socket, as the kernel knows it.
fn process_name(channel: &VhostUserChannel) -> String {
    let Ok(credentials) = getsockopt(channel, PeerCredentials) else { return "unknown".to_owned() };
    let pid = credentials.pid();
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // What a process calls itself ends in logs.
    let name: String = name.trim_end().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if name.is_empty() { format!("pid {pid}") } else { format!("{name} (pid {pid})") }
}
