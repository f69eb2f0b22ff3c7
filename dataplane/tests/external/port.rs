//! What a wire says of the NIC, and what control is given of it: the whole of a port kind that the crate does not know.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use ferrule_dataplane::port::any::LaneEnd;
use ferrule_dataplane::port::device::{Device, DeviceContext, LossNotice, MadeDevice};
use ferrule_dataplane::port::external::DeviceError;
use ferrule_dataplane::spec::{EndSpec, ExternalPort, FieldError};
use ferrule_dataplane::status::{DeviceStatus, LinkState};

use crate::nic::Nic;

/// A slot of a machine, with or without a NIC.
#[derive(Default)]
pub struct Slot {
    pub nic: Arc<Nic>,
    state: Mutex<SlotState>,
    changed: Condvar,
}

/// How the slot is, and what was done with it.
#[derive(Clone, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct SlotState {
    pub is_empty: bool,
    pub link_is_down: bool,
    /// It does not answer when it is made, asked or closed.
    pub hangs: bool,
    /// It is pulled out while it is made.
    pub is_lost_at_once: bool,
    /// Somebody has it.
    pub is_open: bool,
    pub begun: usize,
    pub made: usize,
    pub closed: usize,
    /// It was closed while somebody had a ring of it.
    pub was_closed_too_early: bool,
    /// It was asked what it is doing so often.
    pub asked: usize,
    /// What it was told of its link.
    pub told: Vec<bool>,
    /// Frames that it has lost, since it was made.
    pub missed: u64,
    pub notice: Option<LossNotice>,
}

/// An end of a wire that is the NIC of a slot.
#[derive(Clone)]
pub struct NicSpec {
    pub slot: Arc<Slot>,
    pub number: u32,
    pub queues: usize,
    pub mtu: u32,
}

struct NicDevice(NicSpec);

impl Slot {
    pub fn state(&self) -> SlotState {
        self.lock().clone()
    }

    pub fn change(&self, change: impl FnOnce(&mut SlotState)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// The NIC says that it is pulled out.
    pub fn tell_loss(&self, reason: &str) {
        let notice = self.state().notice.clone().unwrap();
        notice.lost(&reason);
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap()
    }

    fn answer(&self) -> MutexGuard<'_, SlotState> {
        self.changed.wait_while(self.lock(), |state| state.hangs).unwrap()
    }
}

impl NicSpec {
    pub fn new(slot: &Arc<Slot>, number: u32) -> Self {
        Self { slot: Arc::clone(slot), number, queues: 1, mtu: 1500 }
    }

    pub fn end(&self) -> EndSpec {
        EndSpec::External(self.clone().into())
    }

    fn error(&self, tried: &str, reason: &str, cure: &str) -> DeviceError {
        let [tried, reason, cure] = [tried, reason, cure].map(str::to_owned);
        DeviceError { tried, device: format!("nic {}", self.number), reason, cure }
    }
}

impl PartialEq for NicSpec {
    fn eq(&self, other: &Self) -> bool {
        (self.number, self.queues, self.mtu) == (other.number, other.queues, other.mtu)
    }
}

impl fmt::Debug for NicSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NicSpec({} with {} queues, MTU {})", self.number, self.queues, self.mtu)
    }
}

impl fmt::Display for NicSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nic {}", self.number)
    }
}

impl ExternalPort for NicSpec {
    fn kind(&self) -> &'static str {
        "nic"
    }

    fn identity(&self) -> Option<String> {
        Some(format!("nic {}", self.number))
    }

    fn is_same(&self, other: &dyn ExternalPort) -> bool {
        other.downcast_ref() == Some(self)
    }

    fn check(&self) -> Vec<FieldError> {
        let is_good = (1..=16).contains(&self.queues);
        let error = || FieldError::new("queues", format!("{} queues; 1 to 16 are possible", self.queues));
        if is_good { Vec::new() } else { vec![error()] }
    }

    fn make(&self, context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
        self.slot.change(|state| state.begun += 1);
        let mut state = self.slot.answer();
        if state.is_empty {
            return Err(self.error("probe", "its slot is empty", "plug it in, or choose another"));
        }
        if std::mem::replace(&mut state.is_open, true) {
            return Err(self.error("open", "another wire has it", "remove that, or choose another"));
        }
        state.made += 1;
        state.missed = 0;
        state.notice = Some(context.loss.clone());
        if std::mem::take(&mut state.is_lost_at_once) {
            context.loss.lost(&"pulled out while it was made");
        }
        self.slot.nic.is_gone.store(false, Relaxed);
        let queue = |_| {
            let (rx, tx) = self.slot.nic.queue(4096, true, true);
            (rx as _, tx as _)
        };
        let rings = LaneEnd::external((0..self.queues).map(queue));
        Ok(MadeDevice { device: Arc::new(NicDevice(self.clone())), rings })
    }
}

impl Device for NicDevice {
    fn status(&self) -> Result<DeviceStatus, String> {
        let mut state = self.0.slot.answer();
        state.asked += 1;
        if state.is_empty {
            return Err("its slot is empty".to_owned());
        }
        Ok(DeviceStatus {
            words: format!("slot {}", self.0.number),
            link: if state.link_is_down { LinkState::Down } else { LinkState::Up },
            mac: Some("02:00:00:00:00:07".parse().unwrap()),
            mtu: Some(self.0.mtu),
            numa_node: Some(0),
            counters: BTreeMap::from([("rx_missed".to_owned(), state.missed)]),
        })
    }

    fn set_link(&self, up: bool) {
        self.0.slot.change(|state| state.told.push(up));
    }
}

impl Drop for NicDevice {
    fn drop(&mut self) {
        let mut state = self.0.slot.answer();
        // Only the slot itself has it then.
        state.was_closed_too_early |= Arc::strong_count(&self.0.slot.nic) > 1;
        state.closed += 1;
        state.is_open = false;
    }
}
