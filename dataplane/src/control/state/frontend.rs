//! vhost-user frontends: they come, say things while frames flow, and go.
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
//! So a reply to GET_VRING_BASE means that nobody touches the ring any more.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::{Socket, State};
use crate::control::disconnect::DisconnectReason;
use crate::control::log_limit::if_any;
use crate::control::wire::{Body, Wire};
use crate::control::{HANDSHAKE, MESSAGES_PER_EVENT};
use crate::port::Put;
use crate::port::any::inject;
use crate::port::vhost_user::channel::Channel;
use crate::port::vhost_user::peer::VhostUserPeer;
use crate::port::vhost_user::rarp;
use crate::port::vhost_user::session::error::SessionError;
use crate::port::vhost_user::session::offer::Offer;
use crate::port::vhost_user::session::{Message, Response, Session};
use crate::spec::{EndSpec, VhostUserSpec};

impl State {
    /// Connects to a frontend that listens.
    pub(super) fn call_on(&mut self, name: &str, end: usize, spec: &VhostUserSpec) {
        let channel = match Channel::connect(&spec.socket) {
            Ok(channel) => channel,
            Err(error) => return self.note(name, end, error.to_string()),
        };
        match self.watch(&channel, Socket::End(name.to_owned(), end)) {
            Ok(token) => self.attach_frontend(name, end, channel, token, None),
            Err(error) => self.note(name, end, format!("wait for the socket: {error}")),
        }
    }

    /// A frontend is the peer of an end from now on: one that has `said` something, or one that we have called on.
    pub(super) fn attach_frontend(
        &mut self,
        name: &str,
        end: usize,
        channel: Channel,
        token: u64,
        said: Option<Message>,
    ) {
        let Some(wire) = self.wires.get_mut(name) else { return };
        let (near, far) = (&wire.spec.ends[end], &wire.spec.ends[1 - end]);
        let (EndSpec::VhostUser(spec), Body::Lanes(joint)) = (near, &mut wire.body) else { return };
        let session = Session::new(Offer::new(spec, far), &joint.ends[end].memory);
        let peer = process_name(&channel);
        if let Some(suppressed) = joint.log_limit.allow(Instant::now()) {
            tracing::info!(wire = name, end, peer, suppressed = if_any(suppressed), "peer connected");
        }
        let silent_until = said.is_none().then(|| Instant::now() + HANDSHAKE);
        joint.ends[end].approached(VhostUserPeer { channel, session, held: said, silent_until }, peer, token);
        self.remind(silent_until);
    }

    /// Does what a frontend asks for, as far as it has asked, and joins the wire again when that was all.
    pub(super) fn serve_frontend(&mut self, name: &str, end: usize) {
        for _ in 0..MESSAGES_PER_EVENT {
            match self.serve_request(name, end) {
                Ok(Served::Done) => {}
                Ok(Served::Nothing) => return self.settle(name, end),
                Ok(Served::Held) => return,
                Err(refusal) => return self.disconnect(name, end, &refusal.into(), true),
            }
        }
        // Others have their turn. If it has more to say, there will be another event, and if not, there will be none.
        if !self.has_more_to_say(name, end) {
            self.settle(name, end);
        }
    }

    /// Goes on with the requests that waited for lanes which are back now.
    pub(super) fn resume(&mut self, name: &str) {
        for end in 0..2 {
            let Some(joint) = self.wires.get(name).and_then(Wire::as_joint) else { return };
            let Some(live) = joint.ends[end].live() else { continue };
            if !joint.lanes.is_empty() || joint.ends[end].frontend().is_none_or(|frontend| frontend.held.is_none()) {
                continue;
            }
            // It was there before, and there is room for it again.
            let _ = self.epoll.add(&live.peer, EpollEvent::new(EpollFlags::EPOLLIN, live.token));
            self.serve_frontend(name, end);
        }
    }

    fn serve_request(&mut self, name: &str, end: usize) -> Result<Served, SessionError> {
        let Some(joint) = self.wires.get_mut(name).and_then(Wire::as_joint_mut) else { return Ok(Served::Held) };
        let Some(frontend) = joint.ends[end].frontend_mut() else { return Ok(Served::Held) };
        let Some(message) = frontend.receive()? else { return Ok(Served::Nothing) };
        if message.request.needs_quiesce() {
            if !joint.lanes.is_empty() {
                return Ok(self.hold(name, end, message));
            }
            if let Some(rings) = joint.ends[end].park()
                && let Some(frontend) = joint.ends[end].frontend_mut()
            {
                frontend.session.park(rings);
            }
        }
        let Some(frontend) = joint.ends[end].frontend_mut() else { return Ok(Served::Held) };
        let Response { reply, announce, .. } = frontend.session.handle(message)?;
        if let Some((reply, file)) = reply {
            let files: Vec<_> = file.iter().map(AsFd::as_fd).collect();
            frontend.channel.send(&reply.emit(), &files)?;
        }
        if let Some(mac) = announce {
            self.announce(name, end, mac);
        }
        Ok(Served::Done)
    }

    /// Keeps a request until all lanes of its wire are back, and recalls them.
    fn hold(&mut self, name: &str, end: usize, message: Message) -> Served {
        let Some(joint) = self.wires.get_mut(name).and_then(Wire::as_joint_mut) else { return Served::Held };
        let served: Vec<_> = joint.served().collect();
        let Some(frontend) = joint.ends[end].frontend_mut() else { return Served::Held };
        frontend.held = Some(message);
        if served.is_empty() {
            // Lanes that no worker could take are not with one.
            joint.reunite();
            return Served::Done;
        }
        // More that it says would wake this thread again and again, and wait all the same.
        let _ = self.epoll.delete(&frontend.channel);
        for (worker, slot) in served {
            self.workers[worker].recall(slot, Duration::ZERO);
        }
        Served::Held
    }

    /// Makes the rings that a frontend has described, and joins the wire.
    fn settle(&mut self, name: &str, end: usize) {
        let Some(joint) = self.wires.get_mut(name).and_then(Wire::as_joint_mut) else { return };
        if !joint.ends[end].present && joint.lanes.is_empty() {
            let Some(frontend) = joint.ends[end].frontend_mut() else { return };
            match frontend.session.rings() {
                Ok(Some(rings)) => {
                    let pairs = frontend.session.pairs();
                    joint.ends[end].described(rings);
                    tracing::debug!(wire = name, end, pairs, "rings are there");
                    self.turn_callers_away(name, end);
                }
                Ok(None) => joint.set_carrier(false),
                Err(error) => return self.disconnect(name, end, &SessionError::from(error).into(), true),
            }
        }
        self.join(name);
    }

    fn has_more_to_say(&self, name: &str, end: usize) -> bool {
        let joint = self.wires.get(name).and_then(Wire::as_joint);
        let Some(frontend) = joint.and_then(|joint| joint.ends[end].frontend()) else { return false };
        let mut socket = [PollFd::new(frontend.channel.as_fd(), PollFlags::POLLIN)];
        poll(&mut socket, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Lets the network at the other end of the wire know where a guest is now, if somebody is there.
    fn announce(&mut self, name: &str, end: usize, mac: [u8; 6]) {
        let Some(wire) = self.wires.get_mut(name) else { return };
        let Body::Lanes(joint) = &mut wire.body else { return };
        let far = 1 - end;
        let target = joint.ends[far].rings.as_mut().and_then(|rings| rings.targets.first_mut());
        let Some(target) = target else {
            return tracing::debug!(wire = name, end, "SEND_RARP: nobody is at the other end");
        };
        match inject(&rarp::announcement(mac), target, wire.counters[end].control(), &mut self.notifier) {
            Ok(Put::Stored) => {}
            Ok(put) => tracing::debug!(wire = name, end, ?put, "SEND_RARP: the other end did not take it"),
            Err(fault) => self.disconnect(name, far, &DisconnectReason::Fault(fault), true),
        }
    }
}

/// What came of a look at what a frontend says.
enum Served {
    /// A request was handled; there may be more.
    Done,
    /// There was none.
    Nothing,
    /// It waits for lanes, or its frontend has gone.
    Held,
}

/// The process at the other end of a socket, as the kernel knows it.
fn process_name(channel: &Channel) -> String {
    let Ok(credentials) = getsockopt(channel, PeerCredentials) else { return "unknown".to_owned() };
    let pid = credentials.pid();
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // What a process calls itself ends in logs.
    let name: String = name.trim_end().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if name.is_empty() { format!("pid {pid}") } else { format!("{name} (pid {pid})") }
}
