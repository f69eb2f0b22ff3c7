//! What happens to wires: peers come and go, lanes are served and come back.
//!
//! - [`door`]: listening sockets, and the handshakes of memif clients;
//! - `caller`: vhost-user frontends that wait to be let in;
//! - [`frontend`]: vhost-user frontends, which say what they want at any time.

mod caller;
pub mod door;
pub mod frontend;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_ffi::notifier::Notifier;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::control::disconnect::DisconnectReason;
use crate::control::log_limit::if_any;
use crate::control::state::caller::Caller;
use crate::control::state::door::{Door, DoorKey, Handshake, reserve};
use crate::control::wire::{Body, ControlSocket, Dialling, End, EndKind, Joint, LanePlace, Live, Peer, Wire};
use crate::control::{HANDSHAKE, MESSAGES_PER_EVENT};
use crate::lane::deal;
use crate::port::Fault;
use crate::port::memif::channel::Channel;
use crate::port::memif::handshake::{Client, Connection, HandshakeError, Outbox};
use crate::port::memif::layout::Loan;
use crate::spec::{EndSpec, MemifSpec};
use crate::worker::{LaneId, Returned, WorkerHandle};

/// Everything that control knows.
pub struct State {
    /// The wires by name.
    pub wires: BTreeMap<String, Wire>,
    /// Names of wires that are being made outside the lock.
    pub making: BTreeSet<String>,
    /// The control thread shall end.
    pub stopping: bool,
    /// The workers.
    pub workers: Vec<WorkerHandle>,
    /// What the control thread waits on.
    pub epoll: Arc<Epoll>,
    doors: HashMap<DoorKey, Door>,
    /// Whose each socket in epoll is.
    sockets: HashMap<u64, Socket>,
    /// Clients in mid-handshake; a lower token is an older one.
    handshakes: BTreeMap<u64, Handshake>,
    /// Ends whose frontend has gone, for those that wait at their doors.
    vacated: Vec<(String, usize)>,
    /// Which lane of which wire is in a worker's slot.
    served: HashMap<(usize, LaneId), (String, usize)>,
    last_token: u64,
    /// What rings peers of frames that control itself sends.
    notifier: Notifier,
    /// A descriptor to give up when there is no other.
    reserve: Option<File>,
    /// No deadline is earlier; none: there is none.
    reminder: Option<Instant>,
}

/// Whose a socket is.
#[derive(Clone)]
enum Socket {
    Door(DoorKey),
    Handshake,
    Caller(DoorKey),
    End(String, usize),
}

impl State {
    /// Nothing but workers.
    pub fn new(workers: Vec<WorkerHandle>) -> io::Result<Self> {
        Ok(Self {
            wires: BTreeMap::new(),
            making: BTreeSet::new(),
            stopping: false,
            workers,
            epoll: Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?),
            doors: HashMap::new(),
            sockets: HashMap::new(),
            handshakes: BTreeMap::new(),
            vacated: Vec::new(),
            served: HashMap::new(),
            last_token: 0,
            notifier: Notifier::new()?,
            reserve: reserve(),
            reminder: None,
        })
    }

    /// Begins to remove a wire: its doors close, its lanes are asked back, with so much patience for frames that
    /// their targets have no room for yet. `false`: there is none.
    pub fn begin_removal(&mut self, name: &str, patience: Duration) -> bool {
        let Some(wire) = self.wires.get_mut(name) else { return false };
        let Body::Lanes(joint) = &mut wire.body else {
            self.wires.remove(name);
            return true;
        };
        joint.leaving = true;
        for (worker, slot) in joint.served() {
            self.workers[worker].recall(slot, patience);
        }
        for end in &wire.spec.ends.clone() {
            self.close_door(end);
        }
        self.finish_removal(name);
        true
    }

    /// Ends a removal once no lane is out.
    fn finish_removal(&mut self, name: &str) {
        let ready = |wire: &Wire| matches!(&wire.body, Body::Lanes(joint) if joint.leaving && joint.lanes.is_empty());
        if !self.wires.get(name).is_some_and(ready) {
            return;
        }
        for end in 0..2 {
            self.disconnect(name, end, &DisconnectReason::Removed, true);
        }
        self.wires.remove(name);
    }

    /// Has a wire from now on, and joins its ends if they are there already.
    pub fn insert(&mut self, name: &str, wire: Wire) {
        let ends = wire.as_joint().into_iter().flat_map(|joint| &joint.ends);
        let deadline = ends.filter_map(End::deadline).min();
        self.remind(deadline);
        for end in &wire.spec.ends {
            self.let_in(end);
        }
        self.wires.insert(name.to_owned(), wire);
        self.join(name);
    }

    /// The next moment at which something may have to be done without an event.
    pub fn deadline(&self) -> Option<Instant> {
        if self.vacated.is_empty() { self.reminder } else { Some(Instant::now()) }
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: Instant) {
        // Events are many and deadlines few: all wires are looked through only when one may have passed.
        if self.reminder.is_none_or(|reminder| now < reminder) {
            return;
        }
        let slow = self.handshakes.iter().filter(|(_, handshake)| now >= handshake.deadline());
        for token in slow.map(|(&token, _)| token).collect::<Vec<_>>() {
            self.refuse(token, &DisconnectReason::TooSlow(HANDSHAKE.as_secs()));
        }
        self.turn_slow_callers_away(now);
        let mut due = Vec::new();
        for (name, joint) in self.wires.iter().filter_map(|(name, wire)| Some((name, wire.as_joint()?))) {
            for (number, end) in joint.ends.iter().enumerate() {
                if end.deadline().is_some_and(|deadline| now >= deadline) {
                    due.push((name.clone(), number, matches!(end.kind, EndKind::Client(Dialling::Waiting(_)))));
                }
            }
        }
        for (name, end, waiting) in due {
            if waiting {
                self.dial(&name, end);
            } else {
                self.disconnect(&name, end, &DisconnectReason::TooSlow(HANDSHAKE.as_secs()), true);
            }
        }
        self.reminder = self.earliest();
    }

    /// The earliest of all deadlines.
    fn earliest(&self) -> Option<Instant> {
        let handshakes = self.handshakes.values().map(Handshake::deadline);
        let joints = self.wires.values().filter_map(Wire::as_joint);
        let ends = joints.flat_map(|joint| joint.ends.iter().filter_map(End::deadline));
        let callers = self.doors.values().flat_map(|door| door.callers.values().map(Caller::deadline));
        handshakes.chain(ends).chain(callers).min()
    }

    /// Notes a new deadline. One that is not needed any more costs no more than a look in vain.
    fn remind(&mut self, deadline: Option<Instant>) {
        self.reminder = self.reminder.into_iter().chain(deadline).min();
    }

    /// A socket has something to say.
    pub fn readable(&mut self, token: u64) {
        // Not there: closed earlier in this batch of events.
        match self.sockets.get(&token).cloned() {
            Some(Socket::Door(key)) => self.accept(&key),
            Some(Socket::Handshake) => self.converse(token),
            Some(Socket::Caller(key)) => self.hear_caller(&key, token),
            Some(Socket::End(wire, end)) => self.hear(&wire, end, token),
            None => {}
        }
    }

    /// A worker handed a lane back.
    pub fn returned(&mut self, returned: Returned) {
        let Returned { worker, id: slot, lane, fault } = returned;
        self.workers[worker].forget(slot, &lane);
        let Some((name, number)) = self.served.remove(&(worker, slot)) else { return };
        let Some(joint) = self.wires.get_mut(&name).and_then(Wire::as_joint_mut) else { return };
        // A peer that has come since then brought rings of its own, and is not to blame.
        let blamed = fault.filter(|&(end, _)| joint.ends[end].present && joint.ends[end].rings.is_none());
        // What is read where pages are missing looks like many a fault.
        let lost = |end: usize| joint.ends[end].live().and_then(|live| live.peer.memory_lost()).map(Fault::Memory);
        let blamed = blamed.map(|(end, fault)| (end, lost(end).unwrap_or(fault)));
        let done = joint.lane_back(number, lane);
        if let Some((end, fault)) = blamed {
            self.disconnect(&name, end, &DisconnectReason::Fault(fault), true);
        }
        if done {
            self.finish_removal(&name);
            self.resume(&name);
            self.join(&name);
        }
    }

    /// Joins the ends of a wire if both are there.
    pub fn join(&mut self, name: &str) {
        let Some(wire) = self.wires.get_mut(name) else { return };
        let Body::Lanes(joint) = &mut wire.body else { return };
        let Some(rings) = joint.take_rings() else { return };
        joint.problem = None;
        for (number, lane) in deal(rings, wire.spec.full, &wire.counters).into_iter().enumerate() {
            let roomiest = (0..self.workers.len()).max_by_key(|&worker| self.workers[worker].room());
            let worker = roomiest.expect("an engine has at least one worker");
            match self.workers[worker].serve(Box::new(lane)) {
                Ok(slot) => {
                    joint.lanes.push(LanePlace::Served(worker, slot));
                    self.served.insert((worker, slot), (name.to_owned(), number));
                }
                Err((error, lane)) => {
                    if let Some(suppressed) = joint.log_limit.allow(Instant::now()) {
                        tracing::error!(wire = name, %error, suppressed = if_any(suppressed), "a queue cannot be served");
                    }
                    joint.problem = Some(error.to_string());
                    joint.lanes.push(LanePlace::Back(lane));
                }
            }
        }
        joint.set_carrier(true);
        if let Some(suppressed) = joint.log_limit.allow(Instant::now()) {
            tracing::info!(wire = name, queues = joint.served().count(), suppressed = if_any(suppressed), "up");
        }
    }

    /// Ends what end `end` of a wire has with its peer. With `tell`, the peer hears why.
    fn disconnect(&mut self, name: &str, end: usize, reason: &DisconnectReason, tell: bool) {
        let Some(joint) = self.wires.get_mut(name).and_then(Wire::as_joint_mut) else { return };
        let was_live = joint.ends[end].has_peer();
        if was_live {
            if let Some(suppressed) = joint.log_limit.allow(Instant::now()) {
                tracing::info!(wire = name, end, %reason, suppressed = if_any(suppressed), "peer gone");
            }
            joint.set_carrier(false);
        }
        let closed = joint.ends[end].disconnected(reason.to_string());
        let (deadline, served) = (joint.ends[end].deadline(), joint.served().collect::<Vec<_>>());
        if closed.is_some() && served.is_empty() {
            // Lanes that no worker could take are not with one, and none will bring them back.
            joint.reunite();
        }
        self.remind(deadline);
        if let Some((channel, token)) = closed {
            if matches!(channel, ControlSocket::Vhost(_)) {
                self.vacated.push((name.to_owned(), end));
            }
            if tell {
                channel.send_disconnect(reason);
            }
            self.forget(token, &channel);
            for (worker, slot) in served {
                // What waits for the peer that is gone would wait in vain.
                self.workers[worker].recall(slot, Duration::ZERO);
            }
        }
    }

    fn attach(&mut self, name: &str, end: usize, channel: Channel, connection: Connection, token: u64) {
        let Some(joint) = self.wires.get_mut(name).and_then(Wire::as_joint_mut) else { return };
        if let Some(suppressed) = joint.log_limit.allow(Instant::now()) {
            tracing::info!(wire = name, end, peer = connection.peer, suppressed = if_any(suppressed), "peer connected");
        }
        if connection.layout.is_lent() || connection.no_loan.is_some() {
            joint.no_loan.clone_from(&connection.no_loan);
        }
        if let Some(reason) = &joint.no_loan
            && let Some(suppressed) = joint.log_limit.allow(Instant::now())
        {
            tracing::warn!(wire = name, %reason, suppressed = if_any(suppressed), "trusted, but frames are copied");
        }
        joint.ends[end].connected(channel, connection, token);
        self.lend_anew(name, end);
        self.join(name);
    }

    /// The peer at end `lender` is new: of a trusted wire, the other end gets its memory in place of what it has.
    fn lend_anew(&mut self, name: &str, lender: usize) {
        let borrower = self.wires.get(name).and_then(|wire| wire.spec.borrower());
        let Some(borrower) = borrower.filter(|&borrower| borrower != lender) else { return };
        self.disconnect(name, borrower, &HandshakeError::NewLender.into(), true);
        let Some(joint) = self.wires.get_mut(name).and_then(Wire::as_joint_mut) else { return };
        joint.ends[borrower].hurry();
        let deadline = joint.ends[borrower].deadline();
        self.remind(deadline);
    }

    /// What client end `end` of a wire lends to its server, if it does.
    fn loan(&mut self, name: &str, end: usize) -> Result<Option<Loan>, &'static str> {
        let Some(wire) = self.wires.get_mut(name) else { return Ok(None) };
        let lends = wire.spec.borrower() == Some(end);
        let Some(joint) = wire.as_joint_mut().filter(|_| lends) else { return Ok(None) };
        let Some(lender) = joint.ends[1 - end].live().and_then(Live::layout) else {
            return Err("the other end has no peer yet, whose memory is to be lent");
        };
        match lender.loan() {
            Ok(loan) => Ok(Some(loan)),
            Err(reason) => {
                joint.no_loan = Some(reason);
                Ok(None)
            }
        }
    }

    /// Starts to connect a client end.
    fn dial(&mut self, name: &str, end: usize) {
        let spec = match self.wires.get(name).map(|wire| wire.spec.ends[end].clone()) {
            Some(EndSpec::Memif(spec)) => spec,
            Some(EndSpec::VhostUser(spec)) => return self.call_on(name, end, &spec),
            _ => return,
        };
        // Before connecting: a server that is left again at once may not survive it (DPDK 22.11).
        let loan = match self.loan(name, end) {
            Ok(loan) => loan,
            Err(problem) => return self.note(name, end, problem.to_owned()),
        };
        let channel = match Channel::connect(&spec.socket, spec.netns.as_ref()) {
            Ok(channel) => channel,
            Err(error) => return self.note(name, end, error.to_string()),
        };
        match self.watch(&channel, Socket::End(name.to_owned(), end)) {
            Ok(token) => {
                let Some(joint) = self.wires.get_mut(name).and_then(Wire::as_joint_mut) else { return };
                let deadline = Instant::now() + HANDSHAKE;
                let attempt = Dialling::Attempt { channel, client: Some(Client::ExpectHello(loan)), deadline, token };
                joint.ends[end].kind = EndKind::Client(attempt);
                self.remind(Some(deadline));
            }
            Err(error) => self.note(name, end, error.to_string()),
        }
    }

    /// Notes why a client end is not connected, and when it is tried again.
    fn note(&mut self, name: &str, end: usize, problem: String) {
        if let Some(joint) = self.wires.get_mut(name).and_then(Wire::as_joint_mut) {
            if joint.ends[end].last_error.as_ref() != Some(&problem)
                && let Some(suppressed) = joint.log_limit.allow(Instant::now())
            {
                tracing::info!(
                    wire = name,
                    end,
                    problem,
                    suppressed = if_any(suppressed),
                    "not connected; trying again"
                );
            }
            joint.ends[end].disconnected(problem);
            let deadline = joint.ends[end].deadline();
            self.remind(deadline);
        }
    }

    /// The socket of an end has something to say: an answer in the handshake, a goodbye, or whatever a frontend wants.
    fn hear(&mut self, name: &str, end: usize, token: u64) {
        let joint = self.wires.get(name).and_then(Wire::as_joint);
        if joint.is_some_and(|joint| joint.ends[end].frontend().is_some()) {
            return self.serve_frontend(name, end);
        }
        for _ in 0..MESSAGES_PER_EVENT {
            let Some(wire) = self.wires.get_mut(name) else { return };
            let EndSpec::Memif(spec) = &wire.spec.ends[end] else { return };
            let Body::Lanes(joint) = &mut wire.body else { return };
            let outcome = match &mut joint.ends[end].kind {
                EndKind::Server(Some(live)) | EndKind::Client(Dialling::Connected(live)) => {
                    let Peer::Memif(channel, _) = &live.peer else { return };
                    channel.receive().and_then(|received| match received {
                        None => Ok(Heard::Nothing),
                        Some((message, _)) => Err(HandshakeError::after_connect(message)),
                    })
                }
                EndKind::Client(Dialling::Attempt { channel, client, .. }) => continue_attempt(channel, client, spec),
                _ => return,
            };
            match outcome {
                Ok(Heard::Nothing) => return,
                Ok(Heard::More) => {}
                Ok(Heard::Connected(connection)) => {
                    let kind = &mut joint.ends[end].kind;
                    let waiting = EndKind::Client(Dialling::Waiting(Instant::now()));
                    let EndKind::Client(Dialling::Attempt { channel, .. }) = std::mem::replace(kind, waiting) else {
                        return;
                    };
                    return self.attach(name, end, channel, *connection, token);
                }
                Err(refusal) => return self.disconnect(name, end, &refusal.into(), true),
            }
        }
    }

    fn watch(&mut self, socket: &impl AsFd, whose: Socket) -> io::Result<u64> {
        self.watch_for(EpollFlags::EPOLLIN, socket, whose)
    }

    fn watch_for(&mut self, events: EpollFlags, socket: &impl AsFd, whose: Socket) -> io::Result<u64> {
        let token = self.last_token + 1;
        self.epoll.add(socket, EpollEvent::new(events, token))?;
        self.last_token = token;
        self.sockets.insert(token, whose);
        Ok(token)
    }

    fn forget(&mut self, token: u64, socket: &impl AsFd) {
        self.sockets.remove(&token);
        // The caller closes it; but a peer could hold a copy of it, and keep it in epoll.
        let _ = self.epoll.delete(socket);
    }
}

/// What a client end heard from its server.
enum Heard {
    Nothing,
    More,
    Connected(Box<Connection>),
}

fn continue_attempt(channel: &Channel, client: &mut Option<Client>, spec: &MemifSpec) -> Result<Heard, HandshakeError> {
    let Some((message, files)) = channel.receive()? else { return Ok(Heard::Nothing) };
    let mut out = Outbox::default();
    let state = client.take().ok_or(HandshakeError::Closed)?;
    let next = state.handle(message, &files, spec, &mut out)?;
    channel.send(&mut out)?;
    if let Client::Connected(connection) = next {
        return Ok(Heard::Connected(connection));
    }
    *client = Some(next);
    Ok(Heard::More)
}

impl Wire {
    fn as_joint(&self) -> Option<&Joint> {
        match &self.body {
            Body::Lanes(joint) => Some(joint),
            Body::Veth(_) => None,
        }
    }

    fn as_joint_mut(&mut self) -> Option<&mut Joint> {
        match &mut self.body {
            Body::Lanes(joint) => Some(joint),
            Body::Veth(_) => None,
        }
    }
}
