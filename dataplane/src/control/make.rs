//! Wires are made, changed and removed.
//!
//! ```text
//!   apply --> making: parts are made by jobs --- all there ---> made
//!                |  one failed, or nobody wants it any more       |  remove, drain, another specification
//!                v                                                v
//!             what is there is closed by jobs <------------- lanes come back, peers are told
//!                |
//!                `--> gone: whoever waited is answered; what is wanted in its place is made
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_ffi::tap::Tap;

use super::disconnect::DisconnectReason;
use super::done::{Look, MakeError};
use super::end::{End, EndKind};
use super::events::WireChange;
use super::inbox::Reply;
use super::keys::{EndId, WireKey};
use super::log_limit::if_any;
use super::poller::Timer;
use super::snapshot::KernelCounters;
use super::state::{LOOK_INTERVAL, State, WATCH_INTERVAL};
use super::wire::{Body, KernelWire, Making, Removal, Replacement, Wire, WorkerWire, memory_limit};
use crate::engine::{Applied, DRAIN_TIMEOUT, EngineError};
use crate::port::kernel::{PairEnd, PairStatus, VethPair};
use crate::spec::{EndSpec, Role, WireSpec};

/// The answer to whoever wants a wire.
type ApplyReply = Reply<Result<Applied, EngineError>>;

/// What is different between the wire that there is and the one that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference {
    Nothing,
    /// Only what no peer sees.
    Unseen,
    /// Something that takes another wire.
    Seen,
}

fn difference(old: &WireSpec, new: &WireSpec) -> Difference {
    if old == new {
        return Difference::Nothing;
    }
    let mut unseen = WireSpec { full: new.full, owner: new.owner.clone(), labels: new.labels.clone(), ..old.clone() };
    for (old, new) in unseen.ends.iter_mut().zip(&new.ends) {
        match (old, new) {
            (EndSpec::Memif(old), EndSpec::Memif(new)) => old.memory = new.memory,
            (EndSpec::VhostUser(old), EndSpec::VhostUser(new)) => old.memory = new.memory,
            (EndSpec::Memif(_) | EndSpec::VhostUser(_) | EndSpec::Kernel(_), _) => {}
        }
    }
    if unseen == *new { Difference::Unseen } else { Difference::Seen }
}

impl State {
    /// Makes a wire what `spec` says.
    pub(super) fn apply(&mut self, spec: WireSpec, must_be_new: bool, reply: ApplyReply) {
        if self.draining {
            return self.answer(reply, Err(EngineError::Draining));
        }
        let Some(&key) = self.names.get(&spec.name) else {
            let mut wire = Wire::new(spec, Applied::Made);
            if let Some(former) = self.not_made.remove(&wire.spec.name) {
                wire.go_on(former);
            }
            wire.waiting.push(reply);
            return self.begin(wire);
        };
        let wire = &mut self.wires[key];
        if must_be_new {
            return self.answer(reply, Err(EngineError::NameTaken(spec.name)));
        }
        if wire.removal.is_some() {
            return self.replace(key, spec, false, reply);
        }
        let is_made = !matches!(wire.body, Body::Making(_));
        match difference(&wire.spec, &spec) {
            Difference::Nothing if !is_made => wire.waiting.push(reply),
            Difference::Nothing if wire.has_failed_interface() => self.mend(key, reply),
            // The other end keeps its peer.
            Difference::Unseen if wire.has_failed_interface() => {
                self.update(key, spec);
                self.mend(key, reply);
            }
            _ if wire.is_failed() => self.replace(key, spec, true, reply),
            Difference::Nothing => self.answer(reply, Ok(Applied::Unchanged)),
            Difference::Unseen if is_made => {
                self.update(key, spec);
                self.answer(reply, Ok(Applied::Updated));
            }
            Difference::Unseen | Difference::Seen => self.replace(key, spec, true, reply),
        }
    }

    /// Makes the interfaces of a wire anew that are gone. Its other end keeps its peer; while the interface cannot be
    /// made, nothing changes.
    fn mend(&mut self, key: WireKey, reply: ApplyReply) {
        let wire = &mut self.wires[key];
        let is_being_mended = !wire.waiting.is_empty();
        wire.waiting.push(reply);
        if is_being_mended {
            return;
        }
        let spec = Arc::clone(&wire.spec);
        for (end, kernel) in spec.ends.iter().enumerate() {
            if let EndSpec::Kernel(kernel) = kernel {
                // It is not cancelled: what comes for a wire that is gone is closed.
                self.jobs.make_tap(EndId { wire: key, end }, kernel.clone());
            }
        }
    }

    /// The interface of a wire that had lost it is there again, or cannot be made.
    fn mended(&mut self, id: EndId, made: Result<Tap, MakeError>) {
        let Some(wire) = self.wires.get_mut(id.wire).filter(|wire| wire.removal.is_none()) else {
            return self.jobs.discard(made.ok());
        };
        let (name, waiting) = (wire.spec.name.clone(), std::mem::take(&mut wire.waiting));
        let failed = |wire: &Wire| wire.workers().is_some_and(|served| served.ends[id.end].is_failed());
        let outcome = match made {
            Err(MakeError { end, problem }) => Err(EngineError::End { wire: name, end, problem }),
            Ok(tap) if failed(wire) => {
                tracing::info!(wire = name, end = id.end, "interface made again");
                self.events.note(&name, WireChange::Made);
                if let Some(served) = wire.workers_mut() {
                    let former = std::mem::replace(&mut served.ends[id.end], End::tap(tap));
                    served.carrier = None;
                    self.jobs.discard((former.kind, former.rings, former.stale));
                }
                self.changed.insert(id.wire);
                Ok(Applied::Mended)
            }
            Ok(tap) => {
                self.jobs.discard(tap);
                Ok(Applied::Unchanged)
            }
        };
        for reply in waiting {
            self.answer(reply, outcome.clone());
        }
        self.join(id.wire);
    }

    /// Removes a wire.
    pub(super) fn remove(&mut self, name: &str, timeout: Duration, reply: Reply<Result<(), EngineError>>) {
        let Some(&key) = self.names.get(name) else {
            self.not_made.remove(name);
            return self.answer(reply, Err(EngineError::NoSuchWire(name.to_owned())));
        };
        self.begin_removal(key, timeout);
        // It may be gone already, together with whoever waits for that.
        match self.wires.get_mut(key).and_then(|wire| wire.removal.as_mut()) {
            Some(removal) => {
                removal.replies.push(reply);
                if let Some(next) = removal.next.take() {
                    let name = name.to_owned();
                    next.replies
                        .into_iter()
                        .for_each(|reply| self.answer(reply, Err(EngineError::Cancelled(name.clone()))));
                }
            }
            None => self.answer(reply, Ok(())),
        }
    }

    /// Removes every wire, and makes no more.
    pub(super) fn drain(&mut self, timeout: Duration, reply: Reply<()>) {
        self.draining = true;
        for key in self.wires.keys().collect::<Vec<_>>() {
            self.begin_removal(key, timeout);
            let removal = self.wires.get_mut(key).and_then(|wire| wire.removal.as_mut());
            if let Some(next) = removal.and_then(|removal| removal.next.take()) {
                next.replies.into_iter().for_each(|reply| self.answer(reply, Err(EngineError::Draining)));
            }
        }
        self.drained.push(reply);
        self.answer_drained();
    }

    /// Makes what is not there yet.
    fn begin(&mut self, wire: Wire) {
        let (name, spec) = (wire.spec.name.clone(), Arc::clone(&wire.spec));
        let key = self.wires.insert(wire);
        self.names.insert(name, key);
        self.changed.insert(key);
        self.poller.timers.start(Timer::Watch, Instant::now() + WATCH_INTERVAL);
        let Body::Making(making) = &mut self.wires[key].body else { return };
        if let [EndSpec::Kernel(a), EndSpec::Kernel(b)] = &spec.ends {
            return making.await_job(self.jobs.make_veth(key, spec.name.clone(), [a.clone(), b.clone()]));
        }
        for (number, end) in spec.ends.iter().enumerate() {
            if self.wires[key].removal.is_some() {
                break;
            }
            let id = EndId { wire: key, end: number };
            match end {
                EndSpec::Kernel(kernel) => {
                    let ticket = self.jobs.make_tap(id, kernel.clone());
                    if let Some(making) = self.making(key) {
                        making.await_job(ticket);
                    }
                }
                EndSpec::Memif(memif) if memif.role == Role::Client => self.end_is_there(id, End::client()),
                EndSpec::VhostUser(vhost) if vhost.role == Role::Client => self.end_is_there(id, End::client()),
                EndSpec::Memif(_) | EndSpec::VhostUser(_) => match self.claim_listener(id, end) {
                    Ok(true) => self.end_is_there(id, End::server()),
                    Ok(false) => self.outstanding(key, 1),
                    Err(error) => self.fail(key, number, error.to_string()),
                },
            }
        }
        self.finish_making(key);
    }

    fn outstanding(&mut self, key: WireKey, more: isize) {
        if let Some(making) = self.making(key) {
            making.outstanding = making.outstanding.saturating_add_signed(more);
        }
    }

    fn making(&mut self, key: WireKey) -> Option<&mut Making> {
        match &mut self.wires.get_mut(key)?.body {
            Body::Making(making) => Some(making),
            Body::Kernel(_) | Body::Workers(_) | Body::Closed => None,
        }
    }

    fn end_is_there(&mut self, id: EndId, end: End) {
        if let Some(making) = self.making(id.wire) {
            making.ends[id.end] = Some(end);
        }
    }

    /// A part of a wire could not be made: the others are not wanted any more.
    fn fail(&mut self, key: WireKey, end: usize, problem: String) {
        let Some(wire) = self.wires.get_mut(key) else { return };
        let error = EngineError::End { wire: wire.spec.name.clone(), end, problem };
        let removal = wire.removal.get_or_insert_default();
        removal.failure.get_or_insert(error);
        if let Some(making) = self.making(key) {
            making.cancel();
        }
    }

    /// The listening socket of an end is there, or cannot be had.
    pub(super) fn end_listens(&mut self, id: EndId, problem: Option<String>) {
        match problem {
            None => self.end_is_there(id, End::server()),
            Some(problem) => self.fail(id.wire, id.end, problem),
        }
        self.outstanding(id.wire, -1);
        self.finish_making(id.wire);
    }

    /// The interface of an end is there, or cannot be made.
    pub(super) fn tap_made(&mut self, id: EndId, made: Result<Tap, MakeError>) {
        if self.making(id.wire).is_none() {
            return self.mended(id, made);
        }
        match made {
            Ok(tap) => match self.making(id.wire) {
                Some(making) => making.ends[id.end] = Some(End::tap(tap)),
                None => return self.jobs.discard(tap),
            },
            Err(error) => self.fail(id.wire, error.end, error.problem),
        }
        self.outstanding(id.wire, -1);
        self.finish_making(id.wire);
    }

    /// A veth pair is there, or cannot be made.
    pub(super) fn veth_made(&mut self, key: WireKey, made: Result<VethPair, MakeError>) {
        match made {
            Ok(pair) => match self.making(key) {
                Some(making) => making.pair = Some(pair),
                None => return self.jobs.discard(pair),
            },
            Err(error) => self.fail(key, error.end, error.problem),
        }
        self.outstanding(key, -1);
        self.finish_making(key);
    }

    /// Once every part has been made or has failed: a wire, or nothing.
    fn finish_making(&mut self, key: WireKey) {
        let Some(wire) = self.wires.get_mut(key) else { return };
        let Body::Making(making) = &mut wire.body else { return };
        if making.outstanding > 0 {
            return;
        }
        let Making { ends, pair, outcome, .. } = std::mem::replace(making, Making::nothing());
        if wire.removal.is_some() {
            wire.body = Body::Closed;
            self.close_ends(key, ends.into_iter().flatten());
            if let Some(pair) = pair {
                self.close_part(key, pair);
            }
            return self.finish_removal(key);
        }
        wire.body = match (pair, ends) {
            (Some(pair), _) => {
                let counters = KernelCounters { read: Instant::now(), directions: <_>::default() };
                Body::Kernel(KernelWire { pair: Arc::new(pair), counters, gone: [None, None] })
            }
            (None, [Some(a), Some(b)]) => Body::Workers(Box::new(WorkerWire::new([a, b]))),
            (None, _) => unreachable!("a wire without outstanding parts and without a failure has all of them"),
        };
        let waiting = std::mem::take(&mut wire.waiting);
        let spec = Arc::clone(&wire.spec);
        tracing::debug!(wire = spec.name, "wire made");
        self.events.note(&spec.name, WireChange::Made);
        for reply in waiting {
            self.answer(reply, Ok(outcome));
        }
        for (number, end) in spec.ends.iter().enumerate() {
            self.open_listener(end);
            self.set_timer(EndId { wire: key, end: number });
        }
        self.changed.insert(key);
        if spec.ends.iter().any(|end| matches!(end, EndSpec::Kernel(_))) {
            self.poller.timers.start(Timer::Interfaces, Instant::now() + LOOK_INTERVAL);
        }
        self.join(key);
    }

    /// Changes what no peer sees: lanes come back for a moment, peers stay.
    fn update(&mut self, key: WireKey, spec: WireSpec) {
        let Some(wire) = self.wires.get_mut(key) else { return };
        wire.generation += 1;
        let lanes_change = wire.spec.full != spec.full;
        wire.spec = Arc::new(spec);
        for (budget, end) in wire.budgets.iter().zip(&wire.spec.ends) {
            budget.set_limit(memory_limit(end));
        }
        self.changed.insert(key);
        tracing::info!(wire = self.wires[key].spec.name, "wire updated");
        self.events.note(&self.wires[key].spec.name, WireChange::Updated);
        if lanes_change && self.recall(key, Duration::ZERO) {
            self.join(key);
        }
    }

    /// Has another wire in place of this one once it is gone.
    fn replace(&mut self, key: WireKey, spec: WireSpec, same: bool, reply: ApplyReply) {
        let name = spec.name.clone();
        let removal = self.wires[key].removal.get_or_insert_default();
        let before = removal.next.replace(Replacement { spec, replies: vec![reply], same });
        if let Some(before) = before {
            let answer = EngineError::Cancelled(name);
            before.replies.into_iter().for_each(|reply| self.answer(reply, Err(answer.clone())));
        }
        if same {
            self.tear_down(key, DRAIN_TIMEOUT);
        }
    }

    /// Begins to remove a wire, unless that has begun: its sockets close, its lanes are recalled. They wait at most
    /// `timeout` with frames that their targets have no room for yet.
    fn begin_removal(&mut self, key: WireKey, timeout: Duration) {
        let Some(wire) = self.wires.get_mut(key) else { return };
        if wire.removal.is_some() {
            return;
        }
        wire.removal = Some(Removal::default());
        self.tear_down(key, timeout);
    }

    fn tear_down(&mut self, key: WireKey, timeout: Duration) {
        let Some(wire) = self.wires.get_mut(key) else { return };
        self.changed.insert(key);
        let spec = Arc::clone(&wire.spec);
        match &mut wire.body {
            Body::Making(making) => {
                making.cancel();
                let waiting = std::mem::take(&mut wire.waiting);
                let error =
                    if self.draining { EngineError::Draining } else { EngineError::Cancelled(spec.name.clone()) };
                for reply in waiting {
                    self.answer(reply, Err(error.clone()));
                }
                for (number, end) in spec.ends.iter().enumerate() {
                    if self.stop_waiting(EndId { wire: key, end: number }, end) {
                        self.outstanding(key, -1);
                    }
                }
                self.finish_making(key);
            }
            Body::Kernel(_) => {
                if let Body::Kernel(kernel) = std::mem::replace(&mut wire.body, Body::Closed) {
                    wire.carried = [0, 1].map(|from| wire.carried[from] + kernel.counters.directions[from]);
                    self.close_shared(key, kernel.pair);
                }
                self.finish_removal(key);
            }
            Body::Workers(_) => {
                // Whoever waits for a lost interface to be made again.
                let waiting = std::mem::take(&mut wire.waiting);
                let error = EngineError::Cancelled(spec.name.clone());
                for reply in waiting {
                    self.answer(reply, Err(error.clone()));
                }
                self.recall(key, timeout);
                for (number, end) in spec.ends.iter().enumerate() {
                    self.release_listener(EndId { wire: key, end: number }, end);
                }
                self.finish_removal(key);
            }
            Body::Closed => {}
        }
    }

    /// Ends a removal once no worker has a lane and everything is closed.
    pub(super) fn finish_removal(&mut self, key: WireKey) {
        let Some(wire) = self.wires.get_mut(key).filter(|wire| wire.removal.is_some()) else { return };
        match &mut wire.body {
            Body::Making(_) | Body::Kernel(_) => return,
            Body::Workers(served) if !served.lanes.is_empty() => return,
            Body::Workers(_) => {
                for end in 0..2 {
                    self.disconnect(EndId { wire: key, end }, &DisconnectReason::Removed);
                    self.poller.timers.set(Timer::End(EndId { wire: key, end }), None);
                }
                self.reap_stale(key);
                if let Body::Workers(served) = std::mem::replace(&mut self.wires[key].body, Body::Closed) {
                    self.close_ends(key, served.ends.into_iter());
                }
            }
            Body::Closed => {}
        }
        if self.wires[key].closing == 0 {
            self.is_gone(key);
        }
    }

    /// A part of a wire is closed.
    pub(super) fn part_closed(&mut self, key: WireKey) {
        if let Some(wire) = self.wires.get_mut(key) {
            wire.closing -= 1;
            self.finish_removal(key);
        }
    }

    fn close_part(&mut self, key: WireKey, part: impl Send + 'static) {
        if let Some(wire) = self.wires.get_mut(key) {
            wire.closing += 1;
        }
        self.jobs.close(key, part);
    }

    /// The same for what a thread may be looking at.
    fn close_shared<T: Send + Sync + 'static>(&mut self, key: WireKey, part: Arc<T>) {
        self.close_part(key, LastOwner(part));
    }

    fn close_ends(&mut self, key: WireKey, ends: impl Iterator<Item = End>) {
        // Whatever was claimed of listening sockets while it was made.
        let spec = Arc::clone(&self.wires[key].spec);
        for (number, end) in spec.ends.iter().enumerate() {
            self.release_listener(EndId { wire: key, end: number }, end);
        }
        for (number, end) in ends.enumerate() {
            let id = EndId { wire: key, end: number };
            match end.kind {
                EndKind::Tap(tap, _) => {
                    drop((end.rings, end.stale));
                    self.close_shared(key, tap);
                }
                EndKind::Server(peer) => self.reap(id, (peer, end.rings, end.stale)),
                EndKind::Client(state) => self.reap(id, (state, end.rings, end.stale)),
            }
        }
    }

    /// Nothing of a wire is left: its name is free, or taken by what is wanted in its place.
    fn is_gone(&mut self, key: WireKey) {
        let Some(mut wire) = self.wires.remove(key) else { return };
        let (spec, waiting) = (Arc::clone(&wire.spec), std::mem::take(&mut wire.waiting));
        self.names.remove(&spec.name);
        self.map_changed = true;
        let Removal { replies, failure, next } = wire.removal.take().unwrap_or_default();
        let is_made_anew = next.as_ref().is_some_and(|next| next.same);
        match &failure {
            // Nobody has asked for its end.
            Some(failure) if replies.is_empty() => {
                let (end, reason) = match failure {
                    EngineError::End { end, problem, .. } => (Some(*end), problem.clone()),
                    other => (None, other.to_string()),
                };
                self.events.note(&spec.name, WireChange::Failed { end, reason });
            }
            None if is_made_anew => tracing::info!(wire = spec.name, "wire removed, to be made anew"),
            Some(_) | None => {
                tracing::info!(wire = spec.name, "wire removed");
                self.events.note(&spec.name, WireChange::Removed);
            }
        }
        let is_kept = failure.is_some() && replies.is_empty();
        for reply in replies {
            self.answer(reply, Ok(()));
        }
        let failure = failure.unwrap_or_else(|| EngineError::Cancelled(spec.name.clone()));
        for reply in waiting {
            self.answer(reply, Err(failure.clone()));
        }
        if let Some(Replacement { spec, replies, same }) = next {
            let mut next = Wire::new(spec, if same { Applied::Remade } else { Applied::Made });
            next.waiting = replies;
            if same {
                next.go_on(wire);
            }
            self.begin(next);
        } else if is_kept {
            self.not_made.insert(spec.name.clone(), wire);
        }
        self.answer_drained();
    }

    fn answer_drained(&mut self) {
        if self.wires.is_empty() {
            for reply in std::mem::take(&mut self.drained) {
                self.answer(reply, ());
            }
        }
    }

    /// Has kernel interfaces looked at: counters are read, and those that are gone are found. One look at a time: who
    /// asks meanwhile waits for the next one.
    pub(super) fn look_at_interfaces(&mut self) {
        if std::mem::replace(&mut self.look_in_flight, true) {
            return;
        }
        self.looking = std::mem::take(&mut self.want_look);
        let (mut pairs, mut taps) = (Vec::new(), Vec::new());
        for (key, wire) in &self.wires {
            match &wire.body {
                Body::Kernel(kernel) => pairs.push((key, Arc::clone(&kernel.pair))),
                Body::Workers(served) => {
                    for (end, interface) in served.ends.iter().enumerate() {
                        // A lane finds out by itself.
                        if let Some(tap) = interface.interface().filter(|_| interface.rings.is_some()) {
                            taps.push((EndId { wire: key, end }, Arc::clone(tap)));
                        }
                    }
                }
                Body::Making(_) | Body::Closed => {}
            }
        }
        self.jobs.look(pairs, taps);
    }

    /// Kernel interfaces were looked at.
    pub(super) fn interfaces_looked_at(&mut self, look: Look) {
        for (key, PairStatus { traffic, ends }) in look.pairs {
            let Some(wire) = self.wires.get_mut(key) else { continue };
            let Body::Kernel(kernel) = &mut wire.body else { continue };
            self.changed.insert(key);
            kernel.counters = KernelCounters { read: Instant::now(), directions: traffic };
            for (end, state) in ends.into_iter().enumerate() {
                match state {
                    PairEnd::Up => {}
                    PairEnd::Gone(_) if kernel.gone[end].is_some() => {}
                    PairEnd::Gone(error) => {
                        let reason = error.to_string();
                        tracing::warn!(wire = wire.spec.name, end, reason, "interface gone");
                        let change = WireChange::Failed { end: Some(end), reason: reason.clone() };
                        self.events.note(&wire.spec.name, change);
                        kernel.gone[end] = Some(reason);
                    }
                    // What could not be asked is not gone.
                    PairEnd::Unknown(error) => {
                        if let Some(suppressed) = wire.log_limit.allow(Instant::now()) {
                            let (wire, suppressed) = (&wire.spec.name, if_any(suppressed));
                            tracing::warn!(wire, end, %error, suppressed, "an interface cannot be looked at now");
                        }
                    }
                }
            }
        }
        for id in look.gone {
            self.disconnect(id, &DisconnectReason::Fault(crate::port::Fault::InterfaceGone(libc::EBADFD)));
        }
        for reply in std::mem::take(&mut self.looking) {
            self.answer(reply, ());
        }
        let is_kernels = |wire: &Wire| wire.spec.ends.iter().any(|end| matches!(end, EndSpec::Kernel(_)));
        if self.wires.values().any(is_kernels) {
            self.poller.timers.set(Timer::Interfaces, Some(Instant::now() + LOOK_INTERVAL));
        }
        self.look_in_flight = false;
        if !self.want_look.is_empty() {
            self.look_at_interfaces();
        }
    }
}

impl Making {
    fn nothing() -> Self {
        Self { ends: [None, None], pair: None, outstanding: 0, tickets: Vec::new(), outcome: Applied::Made }
    }
}

/// Closes what a thread may still be looking at as soon as it is not.
struct LastOwner<T>(Arc<T>);

impl<T> Drop for LastOwner<T> {
    fn drop(&mut self) {
        while Arc::strong_count(&self.0) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
