//! Interfaces and other devices are looked at, now and then and when somebody asks.
//!
//! Interfaces of all wires are asked together, by one job. That an interface is gone is noticed by its lane too, if that is with a worker.

use std::sync::Arc;
use std::time::Instant;

use super::done::{DeviceNews, Look};
use super::end::{End, EndKind};
use super::events::WireChange;
use super::inbox::Reply;
use super::keys::{EndId, WireKey};
use super::log_limit::if_any;
use super::poller::Timer;
use super::snapshot::KernelCounters;
use super::state::{DEVICE_LOOK_INTERVAL, LOOK_INTERVAL, State};
use super::wire::{Body, Wire};
use crate::port::kernel::{PairEnd, PairStatus};
use crate::spec::end_name;

impl State {
    /// Has interfaces looked at: counters are read, and those that are gone are found. One look at a time: who asks meanwhile
    /// waits for the next one.
    pub(super) fn look_at_interfaces(&mut self) {
        if std::mem::replace(&mut self.look_in_flight, true) {
            return;
        }
        self.looking = std::mem::take(&mut self.want_look);
        let (mut pairs, mut devices) = (Vec::new(), Vec::new());
        for (key, wire) in &mut self.wires {
            match &mut wire.body {
                Body::Kernel(kernel) => pairs.push((key, Arc::clone(&kernel.pair))),
                Body::Workers(served) => {
                    for (number, end) in served.ends.iter_mut().enumerate() {
                        let id = EndId { wire: key, end: number };
                        let End { kind: EndKind::Device(device), rings, .. } = end else { continue };
                        // The others are asked more often.
                        if rings.is_some()
                            && device.answers_at_once()
                            && let Some((number, device)) = device.begin_look()
                        {
                            devices.push((id, number, device));
                        }
                    }
                }
                Body::Making(_) | Body::Closed => {}
            }
        }
        self.jobs.look(pairs, devices);
    }

    /// Has every device looked at that may take its time to answer, each by a job of its own.
    pub(super) fn look_at_devices(&mut self) {
        for (key, wire) in &mut self.wires {
            let Body::Workers(served) = &mut wire.body else { continue };
            for (number, end) in served.ends.iter_mut().enumerate() {
                let EndKind::Device(device) = &mut end.kind else { continue };
                if !device.answers_at_once()
                    && let Some((device_number, device)) = device.begin_look()
                {
                    self.jobs.look_at_device(EndId { wire: key, end: number }, device_number, &device);
                }
            }
        }
        if self.wires.values().any(Wire::has_slow_device) {
            self.poller.timers.set(Timer::Devices, Some(Instant::now() + DEVICE_LOOK_INTERVAL));
        }
    }

    /// Interfaces were looked at.
    pub(super) fn interfaces_looked_at(&mut self, look: Look) {
        for (key, status) in look.pairs {
            self.hear_of_pair(key, status);
        }
        for (id, number, status) in look.devices {
            self.hear_of_device(id, number, DeviceNews::Status(status));
        }
        for reply in std::mem::take(&mut self.looking) {
            self.answer(reply, ());
        }
        if self.wires.values().any(Wire::has_device) {
            self.poller.timers.set(Timer::Interfaces, Some(Instant::now() + LOOK_INTERVAL));
        }
        self.look_in_flight = false;
        if !self.want_look.is_empty() {
            self.look_at_interfaces();
        }
    }

    /// Has the counters of one wire's interfaces read. Of very many wires that costs no more than of one.
    pub(super) fn look_at_wire(&mut self, name: &str, reply: Reply<()>) {
        let key = self.names.get(name).copied();
        let Some((key, Body::Kernel(kernel))) = key.map(|key| (key, &self.wires[key].body)) else {
            return self.answer(reply, ());
        };
        let waiting = self.looking_at.entry(key).or_default();
        waiting.push(reply);
        if waiting.len() == 1 {
            self.jobs.look_at_pair(key, Arc::clone(&kernel.pair));
        }
    }

    /// They were read, or could not be.
    pub(super) fn wire_looked_at(&mut self, key: WireKey, status: Option<PairStatus>) {
        if let Some(status) = status {
            self.hear_of_pair(key, status);
        }
        for reply in self.looking_at.remove(&key).unwrap_or_default() {
            self.answer(reply, ());
        }
    }

    fn hear_of_pair(&mut self, key: WireKey, PairStatus { traffic, ends }: PairStatus) {
        let Some(wire) = self.wires.get_mut(key) else { return };
        let Body::Kernel(kernel) = &mut wire.body else { return };
        self.changed.insert(key);
        kernel.counters = KernelCounters { read: Instant::now(), directions: traffic };
        for (end, state) in ends.into_iter().enumerate() {
            match state {
                PairEnd::Up => {}
                PairEnd::Gone(_) if kernel.gone[end].is_some() => {}
                PairEnd::Gone(error) => {
                    let reason = error.to_string();
                    tracing::warn!(wire = wire.spec.name, end = end_name(end), reason, "interface gone");
                    let change = WireChange::Failed { end: Some(end), reason: reason.clone() };
                    self.events.note(&wire.spec.name, change);
                    kernel.gone[end] = Some(reason);
                }
                // What could not be asked is not gone.
                PairEnd::Unknown(error) => {
                    if let Some(suppressed) = wire.log_limit.allow(Instant::now()) {
                        let (wire, suppressed) = (&wire.spec.name, if_any(suppressed));
                        let end = end_name(end);
                        tracing::warn!(wire, end, %error, suppressed, "an interface cannot be looked at now");
                    }
                }
            }
        }
    }
}
