//! Devices: made by jobs, looked after, and made again when they are lost.
//!
//! ```text
//!   made --- lost ---> its lanes come back ---> closed by a job ---> comes back by itself: waits, longer each time
//!    ^                                                         |                     |
//!    |                                                         `--> does not: waits until somebody asks
//!    '------------------------------- made by a job <----------------'---------------'
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::disconnect::DisconnectReason;
use super::done::{DeviceNews, NewDevice};
use super::end::{Due, End, EndKind};
use super::events::WireChange;
use super::jobs::Ticket;
use super::keys::{EndId, WireKey};
use super::log_limit::if_any;
use super::state::State;
use super::wire::Body;
use crate::engine::{Applied, EngineError};
use crate::port::any::LaneEnd;
use crate::port::device::{Device, DeviceLink, DeviceSpec, LossNotice};
use crate::spec::end_name;
use crate::status::{DeviceStatus, EndState, LinkState};

/// The device of an end, and how far it is.
pub struct DeviceEnd {
    spec: Arc<dyn DeviceSpec>,
    state: DeviceState,
    /// Which of the devices that this end has had one after the other: news of a former one are told by it.
    number: u64,
    /// How long the next try waits.
    delay: Duration,
    /// What it last said of itself.
    status: DeviceStatus,
    /// What those before it have counted.
    carried: DeviceCounters,
    /// A job asks it what it is doing.
    is_looked_at: bool,
}

/// What devices of an end have counted, one after the other.
pub type DeviceCounters = BTreeMap<String, u64>;

enum DeviceState {
    Up {
        device: Arc<dyn Device>,
        link: Arc<DeviceLink>,
        loss: LossNotice,
        since: Instant,
    },
    /// Its lanes are not all back yet.
    Lost(Arc<dyn Device>),
    Closing,
    /// To be made then; `None`: when somebody asks.
    Waiting(Option<Instant>),
    Making(Ticket),
}

impl DeviceEnd {
    /// The device that has just been made, of an end that has had none.
    pub(super) fn new(spec: Arc<dyn DeviceSpec>, made: NewDevice, carried: DeviceCounters) -> (Self, LaneEnd) {
        let mut end = Self {
            spec,
            state: DeviceState::Waiting(None),
            number: FIRST_DEVICE,
            delay: DELAY_MIN,
            status: DeviceStatus::default(),
            carried,
            is_looked_at: false,
        };
        let rings = end.set(made);
        (end, rings)
    }

    fn set(&mut self, NewDevice { device, rings, status, loss }: NewDevice) -> LaneEnd {
        let link = Arc::new(DeviceLink::new(Arc::clone(&device)));
        self.state = DeviceState::Up { device, link, loss, since: Instant::now() };
        self.status = status;
        self.is_looked_at = false;
        rings
    }

    /// Whether it is there.
    pub fn is_up(&self) -> bool {
        matches!(self.state, DeviceState::Up { .. })
    }

    /// Why one that was just made is lost, if its notice says so: that may have come too early.
    fn lost_already(&self) -> Option<String> {
        match &self.state {
            DeviceState::Up { loss, .. } => loss.reason().map(str::to_owned),
            DeviceState::Lost(_) | DeviceState::Closing | DeviceState::Waiting(_) | DeviceState::Making(_) => None,
        }
    }

    /// Whether it is gone and cannot come back by itself.
    pub fn is_failed(&self) -> bool {
        !self.is_up() && !self.spec.comes_back()
    }

    /// Whether a job makes or closes it, which its wire waits for before it is gone.
    pub fn is_busy(&self) -> bool {
        matches!(self.state, DeviceState::Making(_) | DeviceState::Closing)
    }

    /// Whether frames can leave by it, as far as it knows.
    pub fn has_link(&self) -> bool {
        self.is_up() && self.status.link != LinkState::Down
    }

    /// The device that is there, to be asked what it is doing, and its number; `None`: not now. That an interface is
    /// gone is noticed by its lane, if that is with a worker.
    pub(super) fn begin_look(&mut self, is_idle: bool) -> Option<(u64, Arc<dyn Device>)> {
        match &self.state {
            DeviceState::Up { device, .. } if !self.is_looked_at && (is_idle || !device.answers_at_once()) => {
                // Those that answer at once are asked together, one such job at a time: if it ends without an answer,
                // they are asked again.
                self.is_looked_at = !device.answers_at_once();
                Some((self.number, Arc::clone(device)))
            }
            DeviceState::Up { .. }
            | DeviceState::Lost(_)
            | DeviceState::Closing
            | DeviceState::Waiting(_)
            | DeviceState::Making(_) => None,
        }
    }

    /// Notes whether somebody is at the other end of its wire. The way to tell it, if that is news.
    pub(super) fn want_link(&self, up: bool) -> Option<Arc<DeviceLink>> {
        match &self.state {
            DeviceState::Up { link, .. } => link.want(up).then(|| Arc::clone(link)),
            DeviceState::Lost(_) | DeviceState::Closing | DeviceState::Waiting(_) | DeviceState::Making(_) => None,
        }
    }

    /// It is lost. It is closed once its rings are back.
    pub fn lose(&mut self) {
        let state = std::mem::replace(&mut self.state, DeviceState::Waiting(None));
        self.state = match state {
            DeviceState::Up { device, since, loss, .. } => {
                // One that is lost again at once is no reason to begin anew.
                if since.elapsed() > DELAY_MAX {
                    self.delay = DELAY_MIN;
                }
                self.delay = self.delay.max(loss.pause());
                self.carried = self.counters();
                self.status = DeviceStatus::default();
                DeviceState::Lost(device)
            }
            other => other,
        };
    }

    /// The device, if it is lost, to be closed.
    fn begin_closing(&mut self) -> Option<Arc<dyn Device>> {
        match std::mem::replace(&mut self.state, DeviceState::Closing) {
            DeviceState::Lost(device) => Some(device),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// All that was counted so far.
    pub fn counters(&self) -> DeviceCounters {
        let mut sums = self.carried.clone();
        for (name, count) in &self.status.counters {
            *sums.entry(name.clone()).or_default() += count;
        }
        sums
    }

    /// When it is to be made again.
    pub fn deadline(&self) -> Option<(Instant, Due)> {
        match self.state {
            DeviceState::Waiting(at) => at.map(|at| (at, Due::Make)),
            DeviceState::Up { .. } | DeviceState::Lost(_) | DeviceState::Closing | DeviceState::Making(_) => None,
        }
    }

    /// The device, to be closed with the wire.
    pub(super) fn into_device(self) -> Option<Arc<dyn Device>> {
        match self.state {
            DeviceState::Up { device, .. } | DeviceState::Lost(device) => Some(device),
            DeviceState::Closing | DeviceState::Waiting(_) | DeviceState::Making(_) => None,
        }
    }

    /// It is not wanted any more: a job that has not begun to make it will not.
    pub(super) fn cancel(&mut self) {
        if let DeviceState::Making(ticket) = &self.state
            && ticket.cancel()
        {
            self.state = DeviceState::Waiting(None);
        }
    }

    /// What readers see of its state.
    pub fn state(&self, last_error: Option<&String>) -> EndState {
        let reason = || last_error.cloned().unwrap_or_default();
        match (self.is_up(), self.spec.comes_back()) {
            (true, _) => EndState::Up,
            (false, true) => EndState::Lost { reason: reason() },
            (false, false) => EndState::Failed { reason: reason() },
        }
    }

    /// What readers see of what it says.
    pub fn status(&self) -> DeviceStatus {
        DeviceStatus { counters: self.counters(), ..self.status.clone() }
    }

    /// The next try waits twice as long as this one.
    fn wait(&mut self) {
        let until = self.spec.comes_back().then(|| Instant::now() + self.delay);
        self.delay = (2 * self.delay).min(DELAY_MAX);
        self.state = DeviceState::Waiting(until);
    }
}

impl End {
    /// Its device is there again, or cannot be made.
    fn set_device(&mut self, made: Result<NewDevice, String>) -> Result<(), String> {
        let EndKind::Device(device) = &mut self.kind else { return Ok(()) };
        match made {
            Ok(made) => {
                self.rings = Some(device.set(made));
                self.present = true;
                (self.last_error, self.logged) = (None, None);
                Ok(())
            }
            Err(problem) => {
                device.wait();
                Err(problem)
            }
        }
    }
}

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
        let Some(device) = self.device_mut(id).filter(|device| device.number == number) else {
            if let DeviceNews::Made(Ok(made)) = news {
                self.jobs.discard_device(made);
            }
            return;
        };
        match news {
            DeviceNews::Made(made) => self.device_made_again(id, made),
            DeviceNews::Closed => self.device_closed(id),
            DeviceNews::Status(status) => {
                device.is_looked_at = false;
                self.device_says(id, status);
            }
            DeviceNews::Lost => self.check_loss(id),
        }
    }

    /// A device was asked what it is doing.
    pub(super) fn device_says(&mut self, id: EndId, status: Result<DeviceStatus, String>) {
        let Some(device) = self.device_mut(id).filter(|device| device.is_up()) else { return };
        match status {
            Ok(status) if device.status == status => {}
            Ok(status) => {
                device.status = status;
                self.changed.insert(id.wire);
                self.tell_links(id.wire);
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
            if let Some(lost) = device.begin_closing() {
                let id = EndId { wire: key, end: number };
                self.jobs.close_lost(id, device.number, std::mem::take(stale), lost);
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
        if let Some(lost) = device.begin_closing() {
            making.outstanding += 1;
            self.jobs.close_lost(id, device.number, std::mem::take(stale), lost);
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
        if matches!(device.state, DeviceState::Waiting(_)) {
            device.number += 1;
            let ticket = self.jobs.make_device(id, device.number, &spec, Arc::clone(&device.spec));
            device.state = DeviceState::Making(ticket);
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

/// The first device of an end.
pub(super) const FIRST_DEVICE: u64 = 1;
/// How long a device that was lost is not tried again at first.
const DELAY_MIN: Duration = Duration::from_millis(100);
/// And in the end. A device that was there for longer begins anew.
const DELAY_MAX: Duration = Duration::from_secs(5);
