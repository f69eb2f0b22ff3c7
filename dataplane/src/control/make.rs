//! Wires are made and changed. How they go is in `remove`.
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

use super::device::FIRST_DEVICE;
use super::done::{MakeError, NewDevice};
use super::end::End;
use super::events::WireChange;
use super::inbox::Reply;
use super::keys::{EndId, WireKey};
use super::poller::Timer;
use super::snapshot::KernelCounters;
use super::state::{DEVICE_LOOK_INTERVAL, LOOK_INTERVAL, State, WATCH_INTERVAL};
use super::wire::{Body, KernelWire, Making, Replacement, Wire, WorkerWire};
use crate::engine::{Applied, DRAIN_TIMEOUT, EngineError};
use crate::port::kernel::VethPair;
use crate::spec::{Attachment, EndSpec, Role, WireSpec};

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
        old.adopt_unseen(new);
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
            Difference::Nothing if wire.has_failed_device() => self.mend(key, reply),
            // The other end keeps its peer.
            Difference::Unseen if wire.has_failed_device() => {
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

    /// Makes the devices of a wire anew that are gone. Its other end keeps its peer; while a device cannot be made,
    /// nothing changes.
    fn mend(&mut self, key: WireKey, reply: ApplyReply) {
        self.wires[key].waiting.push(reply);
        for end in 0..2 {
            let served = self.wires[key].workers();
            if served.is_some_and(|served| served.ends[end].is_failed()) {
                self.make_again(EndId { wire: key, end });
            }
        }
    }

    /// Makes what is not there yet.
    pub(super) fn begin(&mut self, wire: Wire) {
        let (name, spec) = (wire.spec.name.clone(), Arc::clone(&wire.spec));
        let key = self.wires.insert(wire);
        self.names.insert(name, key);
        self.changed.insert(key);
        self.poller.timers.start(Timer::Watch, Instant::now() + WATCH_INTERVAL);
        let Body::Making(making) = &mut self.wires[key].body else { return };
        if let Some(pair) = EndSpec::kernel_pair(&spec.ends) {
            return making.await_job(self.jobs.make_veth(key, spec.name.clone(), pair.map(Clone::clone)));
        }
        for (number, end) in spec.ends.iter().enumerate() {
            if self.wires[key].removal.is_some() {
                break;
            }
            let id = EndId { wire: key, end: number };
            match end.attachment() {
                Attachment::Device(device) => {
                    let ticket = self.jobs.make_device(id, FIRST_DEVICE, &spec, device.share());
                    if let Some(making) = self.making(key) {
                        making.await_job(ticket);
                    }
                }
                Attachment::Socket(socket) if socket.role == Role::Client => self.end_is_there(id, End::client()),
                Attachment::Socket(_) => match self.claim_listener(id, end) {
                    Ok(true) => self.end_is_there(id, End::server()),
                    Ok(false) => self.outstanding(key, 1),
                    Err(error) => self.fail(key, number, error.to_string()),
                },
            }
        }
        self.finish_making(key);
    }

    pub(super) fn outstanding(&mut self, key: WireKey, more: isize) {
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

    /// Whether parts of a wire are still being made.
    pub(super) fn is_making(&mut self, key: WireKey) -> bool {
        self.making(key).is_some()
    }

    /// The device of an end of a wire that is being made is there, or cannot be made.
    pub(super) fn device_made(&mut self, id: EndId, made: Result<NewDevice, String>) {
        match made {
            Ok(made) => {
                let Some(wire) = self.wires.get_mut(id.wire) else { return self.jobs.discard_device(made) };
                let carried = std::mem::take(&mut wire.device_counters[id.end]);
                if let Attachment::Device(device) = wire.spec.ends[id.end].attachment() {
                    let end = End::device(device.share(), made, carried);
                    self.end_is_there(id, end);
                    // It may have said so before it was known.
                    self.lose_while_making(id);
                }
            }
            Err(problem) => self.fail(id.wire, id.end, problem),
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
    pub(super) fn finish_making(&mut self, key: WireKey) {
        let Some(wire) = self.wires.get_mut(key) else { return };
        let Body::Making(making) = &mut wire.body else { return };
        if making.outstanding > 0 {
            return;
        }
        let nothing = Making::nothing(making.outcome);
        let Making { ends, pair, outcome, .. } = std::mem::replace(making, nothing);
        if wire.removal.is_some() {
            wire.body = Body::Closed;
            self.close_ends(key, ends);
            if let Some(pair) = pair {
                self.close_pair(key, Arc::new(pair));
            }
            return self.finish_removal(key);
        }
        wire.was_made = true;
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
        if self.wires[key].has_device() {
            self.poller.timers.start(Timer::Interfaces, Instant::now() + LOOK_INTERVAL);
        }
        if self.wires[key].has_slow_device() {
            self.poller.timers.start(Timer::Devices, Instant::now() + DEVICE_LOOK_INTERVAL);
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
            budget.set_limit(end.memory_limit());
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
}
