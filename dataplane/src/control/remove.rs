//! Wires are removed: lanes come back, peers are told, and what was made is closed by jobs.

use std::sync::Arc;
use std::time::Duration;

use super::device::DeviceEnd;
use super::disconnect::DisconnectReason;
use super::end::{End, EndKind};
use super::events::WireChange;
use super::inbox::Reply;
use super::keys::{EndId, WireKey};
use super::poller::Timer;
use super::state::State;
use super::wire::{Body, Removal, Replacement, Wire};
use crate::engine::{Applied, EngineError};
use crate::port::any::LaneEnd;
use crate::port::kernel::VethPair;

impl State {
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

    pub(super) fn tear_down(&mut self, key: WireKey, timeout: Duration) {
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
                    self.close_pair(key, kernel.pair);
                }
                self.finish_removal(key);
            }
            Body::Workers(_) => {
                // Whoever waits for a lost device to be made again.
                let waiting = std::mem::take(&mut wire.waiting);
                let error = EngineError::Cancelled(spec.name.clone());
                for reply in waiting {
                    self.answer(reply, Err(error.clone()));
                }
                self.recall(key, timeout);
                if let Some(served) = self.wires[key].workers_mut() {
                    served.ends.iter_mut().for_each(End::cancel_device);
                }
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
            Body::Workers(served) if !served.lanes.is_empty() || served.ends.iter().any(End::is_busy) => return,
            Body::Workers(_) => {
                for end in 0..2 {
                    self.disconnect(EndId { wire: key, end }, &DisconnectReason::Removed);
                    self.poller.timers.set(Timer::End(EndId { wire: key, end }), None);
                }
                self.reap_stale(key);
                if let Body::Workers(served) = std::mem::replace(&mut self.wires[key].body, Body::Closed) {
                    self.close_ends(key, served.ends.map(Some));
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

    pub(super) fn close_pair(&mut self, key: WireKey, pair: Arc<VethPair>) {
        if let Some(wire) = self.wires.get_mut(key) {
            wire.closing += 1;
        }
        self.jobs.close_pair(key, pair);
    }

    pub(super) fn close_ends(&mut self, key: WireKey, ends: [Option<End>; 2]) {
        // Whatever was claimed of listening sockets while it was made.
        let spec = Arc::clone(&self.wires[key].spec);
        for (number, end) in spec.ends.iter().enumerate() {
            self.release_listener(EndId { wire: key, end: number }, end);
        }
        for (number, end) in ends.into_iter().enumerate() {
            let Some(End { kind, rings, mut stale, .. }) = end else { continue };
            let id = EndId { wire: key, end: number };
            stale.extend(rings);
            match kind {
                EndKind::Device(device) => self.close_device(id, device, stale),
                EndKind::Server(peer) => self.reap(id, (peer, stale)),
                EndKind::Client(state) => self.reap(id, (state, stale)),
            }
        }
    }

    fn close_device(&mut self, id: EndId, device: DeviceEnd, rings: Vec<LaneEnd>) {
        let wire = &mut self.wires[id.wire];
        wire.device_counters[id.end] = device.counters();
        if let Some(device) = device.into_device() {
            wire.closing += 1;
            self.jobs.close_device(id.wire, rings, device);
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
        // One that was never there has nothing to go on with.
        let is_kept = failure.is_some() && replies.is_empty() && wire.was_made;
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
}
