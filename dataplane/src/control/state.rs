//! All that control knows. One thread owns it, and nothing else touches it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ferrule_ffi::notifier::Notifier;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit};
use slotmap::SlotMap;

use super::HANDSHAKE;
use super::accept::{Unfinished, reserve};
use super::disconnect::DisconnectReason;
use super::done::Done;
use super::end::Due;
use super::events::{Events, WireChange};
use super::inbox::{ControlMessage, EngineRequest, Reply};
use super::jobs::Jobs;
use super::keys::{EndId, ListenerKey, WireKey};
use super::listen_address::ListenAddress;
use super::listener::{ListenSocket, SharedListener};
use super::poller::{Poller, SocketOwner, Timer, Token};
use super::snapshot::{Snapshot, WireCell, WireMap};
use super::socket_jobs::SocketJobs;
use super::wire::Wire;
use crate::counters::LinkCounters;
use crate::mailbox::Mailbox;
use crate::worker::{LaneId, Returned, WorkerHandle};

/// Everything that control knows.
pub struct State {
    pub(super) poller: Poller,
    pub(super) jobs: Jobs,
    pub(super) wires: SlotMap<WireKey, Wire>,
    pub(super) names: BTreeMap<String, WireKey>,
    /// What is left of wires that could not be made, until they are or somebody removes them.
    pub(super) not_made: HashMap<String, Wire>,
    pub(super) listeners: SlotMap<ListenerKey, SharedListener>,
    pub(super) sockets: SocketJobs,
    pub(super) addresses: HashMap<ListenAddress, ListenerKey>,
    /// What peers that no end has taken yet hold.
    pub(super) unfinished: Unfinished,
    /// Ends whose frontend has gone, for those that wait at their sockets.
    pub(super) vacated: Vec<EndId>,
    pub(super) workers: Vec<WorkerHandle>,
    /// Which lane of which wire each lane of a worker is.
    pub(super) served: HashMap<(usize, LaneId), (WireKey, usize)>,
    /// Wires some of whose lanes no worker could take.
    pub(super) unserved: BTreeSet<WireKey>,
    /// What rings peers of frames that control itself sends.
    pub(super) notifier: Notifier,
    /// A descriptor to give up when there is no other.
    pub(super) reserve: Option<File>,
    pub(super) events: Events,
    /// No wire is made any more.
    pub(super) draining: bool,
    /// Who waits until there is no wire.
    pub(super) drained: Vec<Reply<()>>,
    /// Kernel interfaces are being looked at.
    pub(super) look_in_flight: bool,
    /// Who waits for that.
    pub(super) looking: Vec<Reply<()>>,
    /// Who waits for the next look: what is read now may be older than what they ask for.
    pub(super) want_look: Vec<Reply<()>>,
    /// Who waits for a look at one wire.
    pub(super) looking_at: BTreeMap<WireKey, Vec<Reply<()>>>,
    /// What to say to whom once the snapshot shows it.
    pub(super) answers: Vec<Box<dyn FnOnce() + Send>>,
    /// Wires whose published state is not up to date.
    pub(super) changed: BTreeSet<WireKey>,
    /// A wire has come or gone.
    pub(super) map_changed: bool,
    pub(super) snapshot: Arc<Snapshot>,
}

impl State {
    /// Nothing but workers.
    pub fn new(poller: Poller, jobs: Jobs, workers: Vec<WorkerHandle>, snapshot: Arc<Snapshot>) -> io::Result<Self> {
        let descriptors_max = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        Ok(Self {
            poller,
            jobs,
            wires: SlotMap::with_key(),
            names: BTreeMap::new(),
            not_made: HashMap::new(),
            listeners: SlotMap::with_key(),
            sockets: SocketJobs::default(),
            addresses: HashMap::new(),
            unfinished: Unfinished::new(descriptors_max),
            vacated: Vec::new(),
            workers,
            served: HashMap::new(),
            unserved: BTreeSet::new(),
            notifier: Notifier::new()?,
            reserve: reserve(),
            events: Events::default(),
            draining: false,
            drained: Vec::new(),
            look_in_flight: false,
            looking: Vec::new(),
            want_look: Vec::new(),
            looking_at: BTreeMap::new(),
            answers: Vec::new(),
            changed: BTreeSet::new(),
            map_changed: false,
            snapshot,
        })
    }

    /// Does what other threads and sockets ask for until it is told to stop.
    pub fn run(&mut self, messages: &Receiver<ControlMessage>, returned: &Mailbox<Returned>) {
        loop {
            // The channel is looked at once more after its eventfd: whoever sends later writes to that.
            let events = self.poller.wait(self.vacated.is_empty() && self.sockets.is_told() && returned.may_sleep());
            returned.awake();
            while let Some(lane) = returned.take() {
                self.lane_returned(lane);
            }
            for message in messages.try_iter() {
                if self.handle(message).is_break() {
                    return;
                }
            }
            for token in events {
                self.readable(token);
            }
            while let Some(timer) = self.poller.timers.expired(Instant::now()) {
                self.timer_expired(timer);
            }
            self.tell_unanswered();
            self.admit_frontends();
            self.publish();
        }
    }

    /// Ends: whatever is left goes to threads that nobody waits for.
    pub fn stop(&mut self, messages: Receiver<ControlMessage>) {
        // Workers stop first, so that no lane is with one.
        drop(std::mem::take(&mut self.workers));
        let listeners: Vec<_> = std::mem::take(&mut self.listeners).into_iter().collect();
        let (mut open, mut rest) = (Vec::new(), Vec::new());
        for (_, SharedListener { address, socket, handshakes, pending, .. }) in listeners {
            if let ListenSocket::Open(socket, _) = socket {
                open.push((self.sockets.is_stuck(&address), socket));
            }
            rest.push((handshakes, pending));
        }
        // Those that can be closed come first.
        open.sort_by_key(|&(is_stuck, _)| is_stuck);
        self.jobs.close_sockets(open.into_iter().map(|(_, socket)| socket).collect());
        for task in self.sockets.take_waiting() {
            self.jobs.at_socket_unwatched(task);
        }
        // A listening socket may have come too late.
        self.jobs.discard((rest, messages));
        let wires: Vec<_> = std::mem::take(&mut self.wires).into_iter().map(|(_, wire)| wire.body).collect();
        self.jobs.discard(wires);
    }

    /// Does what a message says, or ends.
    pub(super) fn handle(&mut self, message: ControlMessage) -> ControlFlow<()> {
        match message {
            ControlMessage::Request(request) => self.serve_request_of_caller(request),
            ControlMessage::Done(done) => self.job_done(done),
            ControlMessage::Panicked(thread) => self.thread_died(thread),
            ControlMessage::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn serve_request_of_caller(&mut self, request: EngineRequest) {
        match request {
            EngineRequest::Apply { spec, must_be_new, reply } => self.apply(*spec, must_be_new, reply),
            EngineRequest::Remove { name, timeout, reply } => self.remove(&name, timeout, reply),
            EngineRequest::Drain { timeout, reply } => self.drain(timeout, reply),
            EngineRequest::Look { reply } => {
                self.want_look.push(reply);
                self.look_at_devices();
                self.look_at_interfaces();
            }
            EngineRequest::LookAt { name, reply } => self.look_at_wire(&name, reply),
            EngineRequest::Trace { name, capture, reply } => {
                let traced = self.trace(&name, capture.as_ref());
                self.answer(reply, traced);
            }
            EngineRequest::Subscribe { subscriber, reply } => {
                self.events.add(subscriber);
                self.answer(reply, ());
            }
        }
    }

    /// A thread of the engine has panicked.
    fn thread_died(&mut self, thread: String) {
        if let Some(worker) = self.workers.iter().position(|worker| worker.is_named(&thread)) {
            self.worker_died(worker);
        }
        self.events.note_death(thread);
    }

    fn job_done(&mut self, done: Done) {
        match done {
            Done::Socket(id, outcome) => self.socket_job_done(id, outcome),
            Done::Device(end, number, news) => self.hear_of_device(end, number, news),
            Done::Veth(wire, made) => self.veth_made(wire, made),
            Done::Closed(wire) => self.part_closed(wire),
            Done::Looked(look) => self.interfaces_looked_at(look),
            Done::LookedAt(wire, status) => self.wire_looked_at(wire, status),
        }
    }

    /// A socket has something to say.
    fn readable(&mut self, token: Token) {
        match self.poller.owner(token) {
            Some(SocketOwner::Listener(key)) => self.accept(key),
            Some(SocketOwner::Handshake(key)) => self.continue_handshake(key, token),
            Some(SocketOwner::PendingFrontend(key)) => self.hear_pending_frontend(key, token),
            Some(SocketOwner::End(end)) => self.hear_peer(end),
            // Closed earlier in this batch of events.
            None => {}
        }
    }

    fn timer_expired(&mut self, timer: Timer) {
        match timer {
            Timer::Handshake(token) => {
                if let Some(SocketOwner::Handshake(key)) = self.poller.owner(token) {
                    self.refuse_handshake(key, token, &DisconnectReason::TooSlow(HANDSHAKE.as_secs()));
                }
            }
            Timer::PendingFrontend(token) => {
                if let Some(SocketOwner::PendingFrontend(key)) = self.poller.owner(token) {
                    self.frontend_is_late(key, token);
                }
            }
            Timer::Accept(key) => self.accept_again(key),
            Timer::SocketJob(id) => self.socket_job_is_late(id),
            Timer::End(end) => self.end_is_due(end),
            Timer::Lanes => self.serve_unserved_lanes(),
            Timer::Interfaces => self.look_at_interfaces(),
            Timer::Devices => self.look_at_devices(),
            Timer::Watch => self.watch(),
        }
    }

    /// Looks, now and then, for what nobody tells: socket files that lead elsewhere, and wires that stand still.
    fn watch(&mut self) {
        self.check_socket_files();
        self.check_stalls();
        if !self.wires.is_empty() {
            self.poller.timers.set(Timer::Watch, Some(Instant::now() + WATCH_INTERVAL));
        }
    }

    /// Tells of directions in which nothing has crossed for a while although frames wait.
    fn check_stalls(&mut self) {
        for wire in self.wires.values_mut() {
            let now = wire.counters.each_ref().map(LinkCounters::read);
            let before = std::mem::replace(&mut wire.last_seen, now);
            for from in 0..2 {
                let stands_still = now[from].stalls > before[from].stalls && now[from].frames == before[from].frames;
                if stands_still && !wire.is_stalled[from] {
                    self.events.note(&wire.spec.name, WireChange::Stalled { from });
                }
                wire.is_stalled[from] = stands_still;
            }
        }
    }

    fn end_is_due(&mut self, id: EndId) {
        let end = self.wires.get(id.wire).and_then(|wire| wire.workers()).map(|served| &served.ends[id.end]);
        match end.and_then(super::end::End::deadline) {
            Some((at, _)) if at > Instant::now() => self.set_timer(id),
            Some((_, Due::Connect)) => self.connect(id),
            Some((_, Due::GiveUp)) => self.disconnect(id, &DisconnectReason::TooSlow(HANDSHAKE.as_secs())),
            Some((_, Due::Resume)) => self.resume_paused(id),
            Some((_, Due::Make)) => self.make_again(id),
            None => {}
        }
    }

    /// Sets the timer of an end by what it is due for.
    pub(super) fn set_timer(&mut self, id: EndId) {
        let end = self.wires.get(id.wire).and_then(|wire| wire.workers()).map(|served| &served.ends[id.end]);
        let deadline = end.and_then(super::end::End::deadline).map(|(at, _)| at);
        self.poller.timers.set(Timer::End(id), deadline);
    }

    /// The listening socket of an end, if it has one.
    pub(super) fn listener_of(&self, id: EndId) -> Option<ListenerKey> {
        let spec = &self.wires.get(id.wire)?.spec.ends[id.end];
        self.addresses.get(&ListenAddress::of(spec)?).copied()
    }

    /// A peer that has just died may not have been noticed yet; it must not keep its successor out.
    pub(super) fn notice_loss(&mut self, id: EndId) {
        let peer = self.wires.get(id.wire).and_then(|wire| wire.workers()?.ends[id.end].peer());
        let gone = peer.is_some_and(|peer| {
            let mut socket = [PollFd::new(std::os::fd::AsFd::as_fd(&peer.peer), PollFlags::empty())];
            let _ = poll(&mut socket, PollTimeout::ZERO);
            socket[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
        });
        if gone {
            self.disconnect(id, &DisconnectReason::Closed);
        }
    }

    /// An end says why somebody was refused, if it has nobody else.
    pub(super) fn note_refusal(&mut self, id: EndId, reason: &DisconnectReason) {
        if let Some(served) = self.wires.get_mut(id.wire).and_then(Wire::workers_mut)
            && served.ends[id.end].peer().is_none()
        {
            served.ends[id.end].last_error = Some(reason.to_string());
            self.changed.insert(id.wire);
        }
    }

    /// Answers a caller, once the snapshot shows what the answer says.
    pub(super) fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, answer: T) {
        self.answers.push(Box::new(move || {
            // A caller that has given up does not mind.
            let _ = reply.try_send(answer);
        }));
    }

    /// Publishes what has changed, and then tells whoever waits for it.
    pub(super) fn publish(&mut self) {
        for key in std::mem::take(&mut self.changed) {
            let Some(wire) = self.wires.get_mut(key) else { continue };
            let state = wire.state();
            let is_up = state.queues > 0;
            if is_up != wire.was_up {
                wire.was_up = is_up;
                let change = if is_up { WireChange::Up { queues: state.queues } } else { WireChange::Down };
                self.events.note(&wire.spec.name, change);
            }
            if let Some(cell) = &wire.cell {
                cell.publish(state);
            } else {
                wire.cell = Some(Arc::new(WireCell::new(state, Arc::clone(&wire.counters))));
                self.map_changed = true;
            }
        }
        if std::mem::take(&mut self.map_changed) {
            let cell =
                |(name, &key): (&String, &WireKey)| Some((name.clone(), Arc::clone(self.wires[key].cell.as_ref()?)));
            self.snapshot.wires.store(Arc::new(self.names.iter().filter_map(cell).collect::<WireMap>()));
        }
        for (worker, cell) in self.workers.iter().zip(&self.snapshot.workers) {
            cell.queues.store(worker.lanes(), Ordering::Relaxed);
        }
        self.events.tell();
        for answer in self.answers.drain(..) {
            answer();
        }
    }
}

/// How often socket files and wires are looked at.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How often interfaces are looked at when nobody asks.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The same of devices of other crates. Nobody but a look may notice that one is lost, which is to be known within a second.
pub(super) const DEVICE_LOOK_INTERVAL: Duration = Duration::from_millis(400);
