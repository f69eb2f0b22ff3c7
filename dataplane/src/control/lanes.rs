//! Lanes go to workers while both ends of a wire are there, and come back when one of them changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::DeviceEnd;
use super::disconnect::DisconnectReason;
use super::end::Former;
use super::events::WireChange;
use super::keys::{EndId, WireKey};
use super::log_limit::if_any;
use super::poller::Timer;
use super::state::State;
use super::wire::{LanePlace, Wire};
use crate::lane::{Lane, deal};
use crate::port::Fault;
use crate::port::any::LaneEnd;
use crate::spec::end_name;
use crate::worker::{LaneId, Returned};

impl State {
    /// Joins the ends of a wire if both are there.
    pub(super) fn join(&mut self, key: WireKey) {
        let Some(wire) = self.wires.get_mut(key).filter(|wire| wire.removal.is_none()) else { return };
        let (spec, counters) = (Arc::clone(&wire.spec), Arc::clone(&wire.counters));
        let Some(served) = wire.workers_mut() else { return };
        let Some(mut rings) = served.take_rings() else { return };
        // Not while lanes only come back for a moment.
        if !served.is_joined {
            rings.iter_mut().for_each(LaneEnd::drop_waiting);
        }
        self.changed.insert(key);
        for (number, lane) in deal(rings, spec.full, &counters).into_iter().enumerate() {
            let place = self.place(key, number, Box::new(lane));
            if let Some(served) = self.wires[key].workers_mut() {
                served.lanes.push(place);
            }
        }
        self.set_joined(key, true);
        let wire = &mut self.wires[key];
        if let Some(suppressed) = wire.log_limit.allow(Instant::now()) {
            tracing::info!(wire = spec.name, queues = wire.queues(), suppressed = if_any(suppressed), "wire up");
        }
    }

    /// Gives a lane to the worker with most room. If none takes it, it is tried again when one has room.
    fn place(&mut self, key: WireKey, number: usize, mut lane: Box<Lane>) -> LanePlace {
        lane.capture.clone_from(&self.wires[key].capture);
        let roomiest = (0..self.workers.len()).max_by_key(|&worker| self.workers[worker].room());
        let worker = roomiest.expect("an engine has at least one worker");
        match self.workers[worker].serve(lane) {
            Ok(id) => {
                self.served.insert((worker, id), (key, number));
                LanePlace::Served(worker, id)
            }
            Err((error, lane)) => {
                self.cannot_serve(key, &error.to_string());
                LanePlace::Unserved(lane)
            }
        }
    }

    fn cannot_serve(&mut self, key: WireKey, problem: &str) {
        self.unserved.insert(key);
        self.poller.timers.start(Timer::Lanes, Instant::now() + SERVE_AGAIN);
        let wire = &mut self.wires[key];
        let Some(served) = wire.workers_mut() else { return };
        if served.problem.as_deref() == Some(problem) {
            return;
        }
        served.problem = Some(problem.to_owned());
        if let Some(suppressed) = wire.log_limit.allow(Instant::now()) {
            tracing::error!(
                wire = wire.spec.name,
                problem,
                suppressed = if_any(suppressed),
                "a queue cannot be served yet"
            );
        }
        self.events.note(&wire.spec.name, WireChange::Failed { end: None, reason: problem.to_owned() });
    }

    /// Tries again to serve lanes that no worker could take.
    pub(super) fn serve_unserved_lanes(&mut self) {
        for key in std::mem::take(&mut self.unserved) {
            let has_unserved = |wire: &Wire| {
                wire.removal.is_none() && wire.workers().is_some_and(super::wire::WorkerWire::has_unserved)
            };
            if !self.wires.get(key).is_some_and(has_unserved) {
                continue;
            }
            if self.workers.iter().all(|worker| worker.room() == 0) {
                self.unserved.insert(key);
                continue;
            }
            let Some(served) = self.wires[key].workers_mut() else { continue };
            let lanes = std::mem::take(&mut served.lanes);
            let place = |(number, place)| match place {
                LanePlace::Unserved(lane) => self.place(key, number, lane),
                LanePlace::Served(..) | LanePlace::Back(_) | LanePlace::Lost => place,
            };
            let lanes: Vec<_> = lanes.into_iter().enumerate().map(place).collect();
            let Some(served) = self.wires[key].workers_mut() else { continue };
            served.lanes = lanes;
            if !served.has_unserved() {
                served.problem = None;
            }
            self.changed.insert(key);
        }
        if !self.unserved.is_empty() {
            self.poller.timers.set(Timer::Lanes, Some(Instant::now() + SERVE_AGAIN));
        }
    }

    /// Recalls the lanes of a wire, which wait at most `timeout` for targets that are full. `true`: no worker has one.
    pub(super) fn recall(&mut self, key: WireKey, timeout: Duration) -> bool {
        let Some(served) = self.wires.get_mut(key).and_then(Wire::workers_mut) else { return false };
        let lanes: Vec<(usize, LaneId)> = served.served().collect();
        self.changed.insert(key);
        if lanes.is_empty() {
            // Lanes that no worker could take are not with one, and none will bring them back.
            return served.reunite();
        }
        for (worker, id) in lanes {
            self.workers[worker].recall(id, timeout);
        }
        false
    }

    /// A worker handed a lane back.
    pub(super) fn lane_returned(&mut self, returned: Returned) {
        let Returned { worker, id, lane, fault } = returned;
        self.workers[worker].forget(id, &lane);
        let place = self.served.remove(&(worker, id));
        if !self.unserved.is_empty() {
            self.poller.timers.set(Timer::Lanes, Some(Instant::now()));
        }
        let Some((key, number)) = place else { return };
        let Some(served) = self.wires.get_mut(key).and_then(Wire::workers_mut) else { return self.jobs.discard(lane) };
        self.changed.insert(key);
        // A peer that has come since then brought rings of its own, and is not to blame.
        let blamed = fault.filter(|&(end, _)| served.ends[end].present && served.ends[end].rings.is_none());
        // What is read where pages are missing looks like many a fault.
        let lost =
            |end: usize| served.ends[end].peer().and_then(|peer| peer.peer.as_dyn().memory_lost()).map(Fault::Memory);
        let blamed = blamed.map(|(end, fault)| (end, lost(end).unwrap_or(fault)));
        let done = served.lane_back(number, lane);
        if let Some((end, fault)) = blamed {
            self.disconnect(EndId { wire: key, end }, &DisconnectReason::Fault(fault));
        }
        self.reap_stale(key);
        if done {
            self.finish_removal(key);
            self.close_lost_devices(key);
            self.lanes_are_back(key);
            self.join(key);
        }
    }

    /// A worker has panicked: its lanes went with it, and none of them is waited for.
    pub(super) fn worker_died(&mut self, worker: usize) {
        self.workers[worker].note_death();
        let lost: Vec<_> = self.served.extract_if(|&(place, _), _| place == worker).map(|(_, lane)| lane).collect();
        for (key, number) in lost {
            let Some(served) = self.wires.get_mut(key).and_then(Wire::workers_mut) else { continue };
            served.lanes[number] = LanePlace::Lost;
            served.problem = Some("the worker that had its queues has panicked; restart the forwarder".to_owned());
            self.changed.insert(key);
            if served.reunite() {
                self.reap_stale(key);
                self.finish_removal(key);
                self.close_lost_devices(key);
            }
        }
    }

    /// Ends what an end has with its peer, which hears why if there is somebody left to tell.
    pub(super) fn disconnect(&mut self, id: EndId, reason: &DisconnectReason) {
        let Some(wire) = self.wires.get_mut(id.wire) else { return };
        let is_removed = wire.removal.is_some();
        let Some(served) = wire.workers_mut() else { return };
        let end = &mut served.ends[id.end];
        let (had_peer, had_device) = (end.peer().is_some(), end.as_device().is_some_and(DeviceEnd::is_up));
        let text = reason.to_string();
        let former = end.disconnect(text.clone());
        if (had_peer || !is_removed)
            && let Some(suppressed) = wire.allow_line(id.end, &text)
        {
            let (wire, end, suppressed) = (&wire.spec.name, end_name(id.end), if_any(suppressed));
            match (had_peer, had_device) {
                (true, _) => tracing::info!(wire, end, %reason, suppressed, "peer gone"),
                (false, true) => tracing::warn!(wire, end, %reason, suppressed, "device gone"),
                (false, false) => tracing::warn!(wire, end, %reason, suppressed, "not connected; trying again"),
            }
        }
        self.changed.insert(id.wire);
        if had_peer {
            self.events.note(&wire.spec.name, WireChange::PeerGone { end: id.end, reason: text });
        } else if had_device && !is_removed {
            self.events.note(&wire.spec.name, WireChange::Failed { end: Some(id.end), reason: text });
        }
        if !is_removed {
            self.set_joined(id.wire, false);
        }
        self.set_timer(id);
        match former {
            Some(former) => self.close_former(id, former, reason),
            // Nobody can use what is left of a device.
            None if had_device => {
                self.recall(id.wire, Duration::ZERO);
                self.close_lost_devices(id.wire);
            }
            None => {}
        }
        self.reap_stale(id.wire);
    }

    fn close_former(&mut self, id: EndId, former: Former, reason: &DisconnectReason) {
        match former {
            Former::Handshake(handshake, token) => {
                if reason.should_tell_peer() {
                    handshake.channel.send_disconnect(reason);
                }
                self.poller.forget(token, &handshake.channel);
                self.reap(id, handshake);
            }
            Former::Peer(peer) => {
                if peer.peer.as_dyn().has_queue() {
                    self.vacated.push(id);
                }
                if reason.should_tell_peer() {
                    peer.peer.as_dyn().send_disconnect(reason);
                }
                self.poller.forget(peer.token, &peer.peer);
                self.reap(id, peer);
                // What waits for the peer that is gone would wait in vain.
                self.recall(id.wire, Duration::ZERO);
            }
        }
    }

    /// Drops what a peer of an end gave us where nobody waits for that.
    pub(super) fn reap(&mut self, id: EndId, what: impl Send + 'static) {
        let account = self.wires.get(id.wire).map(|wire| wire.reaping[id.end].clone()).unwrap_or_default();
        self.jobs.reap(&account, what);
    }

    /// Drops rings of former peers where nobody waits for that.
    pub(super) fn reap_stale(&mut self, key: WireKey) {
        for end in 0..2 {
            let Some(served) = self.wires.get_mut(key).and_then(Wire::workers_mut) else { return };
            if served.ends[end].as_device().is_some() {
                // They go before their device, by the same job.
                continue;
            }
            let stale = std::mem::take(&mut served.ends[end].stale);
            if !stale.is_empty() {
                self.reap(EndId { wire: key, end }, stale);
            }
        }
    }

    /// Notes whether both ends of a wire are there.
    pub(super) fn set_joined(&mut self, key: WireKey, is_joined: bool) {
        if let Some(served) = self.wires.get_mut(key).and_then(Wire::workers_mut) {
            served.is_joined = is_joined;
            self.tell_links(key);
        }
    }

    /// Tells the devices of a wire whether somebody is at the other end, if that is news: a peer can have this asked for
    /// as often as it likes.
    pub(super) fn tell_links(&self, key: WireKey) {
        let Some(served) = self.wires.get(key).and_then(|wire| wire.workers()) else { return };
        for (number, end) in served.ends.iter().enumerate() {
            let up = served.is_joined && served.ends[1 - number].has_link();
            if let Some(link) = end.as_device().and_then(|device| device.want_link(up)) {
                self.jobs.set_link(&link);
            }
        }
    }
}

/// How soon a lane that no worker could take is tried again if no other lane comes back meanwhile.
const SERVE_AGAIN: Duration = Duration::from_secs(1);
