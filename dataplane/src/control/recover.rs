//! Devices that are lost: closed by a job, and made again.

use std::sync::Arc;

use super::device::DeviceEnd;
use super::disconnect::DisconnectReason;
use super::done::{DeviceNews, NewDevice};
use super::end::{End, EndKind};
use super::events::WireChange;
use super::keys::{EndId, WireKey};
use super::log_limit::if_any;
use super::state::State;
use super::wire::Body;
use crate::engine::{Applied, EngineError};
use crate::spec::end_name;
use crate::status::DeviceStatus;

impl State {
    /// A job has something to say of a device that a wire has, or has had.
    pub(super) fn hear_of_device(&mut self, id: EndId, number: u64, news: DeviceNews) {
        if self.is_making(id.wire) {
            return match news {
                DeviceNews::Made(made) => self.device_made(id, made),
                DeviceNews::Lost => self.lose_while_making(id),
                DeviceNews::Closed => self.device_closed_while_making(id),
                // Nobody has asked.
                DeviceNews::Status(_) => {}
            };
        }
        let Some(device) = self.device_mut(id).filter(|device| device.is_number(number)) else {
            if let DeviceNews::Made(Ok(made)) = news {
                self.jobs.discard_device(made);
            }
            return;
        };
        match news {
            DeviceNews::Made(made) => self.device_made_again(id, made),
            DeviceNews::Closed => self.device_closed(id),
            DeviceNews::Status(status) => {
                device.end_look();
                self.device_says(id, status);
            }
            DeviceNews::Lost => self.check_loss(id),
        }
    }

    /// A device was asked what it is doing.
    pub(super) fn device_says(&mut self, id: EndId, status: Result<DeviceStatus, String>) {
        let Some(device) = self.device_mut(id).filter(|device| device.is_up()) else { return };
        match status {
            Ok(status) => {
                if device.says(status) {
                    self.changed.insert(id.wire);
                    self.tell_links(id.wire);
                }
            }
            Err(reason) => self.disconnect(id, &DisconnectReason::Device(reason)),
        }
    }

    /// Has the devices of a wire closed that are lost and whose lanes are back, unless the wire is removed with them.
    pub(super) fn close_lost_devices(&mut self, key: WireKey) {
        let Some(wire) = self.wires.get_mut(key).filter(|wire| wire.removal.is_none()) else { return };
        let Some(served) = wire.workers_mut().filter(|served| served.lanes.is_empty()) else { return };
        for (number, end) in served.ends.iter_mut().enumerate() {
            let End { kind: EndKind::Device(device), stale, .. } = end else { continue };
            if let Some((device, lost)) = device.begin_closing() {
                let id = EndId { wire: key, end: number };
                self.jobs.close_lost(id, device, std::mem::take(stale), lost);
            }
        }
    }

    /// Closes a device that is lost while its wire is still being made, since a kernel may wait for that. It is made once more when
    /// the wire is there.
    pub(super) fn lose_while_making(&mut self, id: EndId) {
        let Some(wire) = self.wires.get_mut(id.wire) else { return };
        let Body::Making(making) = &mut wire.body else { return };
        let Some(end) = &mut making.ends[id.end] else { return };
        let Some(reason) = end.as_device().and_then(DeviceEnd::lost_already) else { return };
        tracing::warn!(wire = wire.spec.name, end = id.end, reason, "device gone while its wire is made");
        // It has no peer to be told.
        end.disconnect(reason);
        let End { kind: EndKind::Device(device), stale, .. } = end else { return };
        if let Some((device, lost)) = device.begin_closing() {
            making.outstanding += 1;
            self.jobs.close_lost(id, device, std::mem::take(stale), lost);
        }
    }

    fn device_closed_while_making(&mut self, id: EndId) {
        if let Some(Body::Making(making)) = self.wires.get_mut(id.wire).map(|wire| &mut wire.body)
            && let Some(End { kind: EndKind::Device(device), .. }) = &mut making.ends[id.end]
        {
            device.wait();
        }
        self.outstanding(id.wire, -1);
        self.finish_making(id.wire);
    }

    /// A device that was lost is closed: it is made again at once if somebody waits for that, or else after a while.
    fn device_closed(&mut self, id: EndId) {
        let Some(wire) = self.wires.get_mut(id.wire) else { return };
        let (is_removed, is_awaited) = (wire.removal.is_some(), !wire.waiting.is_empty());
        let Some(device) = self.device_mut(id) else { return };
        device.wait();
        let is_wanted = device.is_failed() && is_awaited;
        if is_removed {
            return self.finish_removal(id.wire);
        }
        self.set_timer(id);
        if is_wanted {
            self.make_again(id);
        }
    }

    /// Has a device made that is not there. One that is just being made or closed is not touched.
    pub(super) fn make_again(&mut self, id: EndId) {
        let Some(wire) = self.wires.get_mut(id.wire).filter(|wire| wire.removal.is_none()) else { return };
        let spec = Arc::clone(&wire.spec);
        let Some(End { kind: EndKind::Device(device), .. }) = wire.workers_mut().map(|served| &mut served.ends[id.end])
        else {
            return;
        };
        if let Some((number, device_spec)) = device.next() {
            device.making(number, self.jobs.make_device(id, number, &spec, device_spec));
            self.set_timer(id);
        }
    }

    /// A device that was lost is there again, or cannot be made.
    fn device_made_again(&mut self, id: EndId, made: Result<NewDevice, String>) {
        let Some(wire) = self.wires.get_mut(id.wire) else { return };
        let (name, is_removed) = (wire.spec.name.clone(), wire.removal.is_some());
        // Nobody waits for one that comes back by itself.
        let is_awaited = wire.workers().is_some_and(|served| served.ends[id.end].is_failed());
        let waiting = if is_awaited { std::mem::take(&mut wire.waiting) } else { Vec::new() };
        let Some(end) = wire.workers_mut().map(|served| &mut served.ends[id.end]) else { return };
        let problem = end.set_device(made).err();
        if is_removed {
            return self.finish_removal(id.wire);
        }
        let outcome = match problem {
            None => {
                tracing::info!(wire = name, end = end_name(id.end), "device made again");
                self.events.note(&name, WireChange::Made);
                Ok(Applied::Mended)
            }
            Some(problem) => {
                end.last_error = Some(problem.clone());
                if let Some(suppressed) = wire.allow_line(id.end, &problem) {
                    let (end, suppressed) = (end_name(id.end), if_any(suppressed));
                    tracing::warn!(wire = name, end, problem, suppressed, "device cannot be made again yet");
                }
                Err(EngineError::End { wire: name, end: id.end, problem })
            }
        };
        self.changed.insert(id.wire);
        for reply in waiting {
            self.answer(reply, outcome.clone());
        }
        self.set_timer(id);
        self.check_loss(id);
        self.join(id.wire);
    }

    /// A device may have been lost between being made and being known.
    fn check_loss(&mut self, id: EndId) {
        if let Some(reason) = self.device_mut(id).and_then(|device| device.lost_already()) {
            self.disconnect(id, &DisconnectReason::Device(reason));
        }
    }

    fn device_mut(&mut self, id: EndId) -> Option<&mut DeviceEnd> {
        self.wires.get_mut(id.wire)?.device_mut(id.end)
    }
}
