//! The device of an end, and how far it is. Jobs make it and close it.
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

use super::done::NewDevice;
use super::jobs::Ticket;
use crate::port::any::LaneEnd;
use crate::port::device::{Device, DeviceLink, DeviceSpec, LossNotice};
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

    /// It is there again. Its rings.
    pub(super) fn set(&mut self, NewDevice { device, rings, status, loss }: NewDevice) -> LaneEnd {
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
    pub(super) fn lost_already(&self) -> Option<String> {
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

    /// Whether the device that is there, if one is, answers at once.
    pub(super) fn answers_at_once(&self) -> bool {
        match &self.state {
            DeviceState::Up { device, .. } => device.answers_at_once(),
            DeviceState::Lost(_) | DeviceState::Closing | DeviceState::Waiting(_) | DeviceState::Making(_) => false,
        }
    }

    /// The device that is there, to be asked what it is doing, and its number; `None`: not now.
    pub(super) fn begin_look(&mut self) -> Option<(u64, Arc<dyn Device>)> {
        match &self.state {
            DeviceState::Up { device, .. } if !self.is_looked_at => {
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

    /// The device and its number, if it is lost, to be closed.
    pub(super) fn begin_closing(&mut self) -> Option<(u64, Arc<dyn Device>)> {
        match std::mem::replace(&mut self.state, DeviceState::Closing) {
            DeviceState::Lost(device) => Some((self.number, device)),
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
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            DeviceState::Waiting(at) => at,
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

    /// What to make the next one of, and its number; `None`: it is there, or a job makes or closes it.
    pub(super) fn next(&self) -> Option<(u64, Arc<dyn DeviceSpec>)> {
        matches!(self.state, DeviceState::Waiting(_)).then(|| (self.number + 1, Arc::clone(&self.spec)))
    }

    /// A job makes the one with this number.
    pub(super) fn making(&mut self, number: u64, ticket: Ticket) {
        self.number = number;
        self.state = DeviceState::Making(ticket);
    }

    /// Whether news of a device with this number are of the one that is there or is being made.
    pub(super) fn is_number(&self, number: u64) -> bool {
        self.number == number
    }

    /// The job that asked what it is doing has ended.
    pub(super) fn end_look(&mut self) {
        self.is_looked_at = false;
    }

    /// Notes what it says of itself. `true`: that is news.
    pub(super) fn says(&mut self, status: DeviceStatus) -> bool {
        let is_news = self.status != status;
        self.status = status;
        is_news
    }

    /// The next try waits twice as long as this one.
    pub(super) fn wait(&mut self) {
        let until = self.spec.comes_back().then(|| Instant::now() + self.delay);
        self.delay = (2 * self.delay).min(DELAY_MAX);
        self.state = DeviceState::Waiting(until);
    }
}

/// The first device of an end.
pub(super) const FIRST_DEVICE: u64 = 1;
/// How long a device that was lost is not tried again at first.
const DELAY_MIN: Duration = Duration::from_millis(100);
/// And in the end. A device that was there for longer begins anew.
const DELAY_MAX: Duration = Duration::from_secs(5);
