//! Devices: ends without a peer, which we make, look after and close. An interface of the kernel is one, and so is every
//! port of another crate ([`super::external`]).
//!
//! ```text
//!   DeviceSpec::make --> MadeDevice { device, rings } --- rings ---> workers
//!        ^   a job            |
//!        |                    |  Device::status says so, a worker's Fault, LossNotice::lost
//!        |                    v
//!        '-- time passes -- lost: rings come back, and are dropped before the device, by a job
//! ```
//! Nothing of this is called on the control thread or on a worker: all of it may be slow.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::port::any::LaneEnd;
use crate::port::device_status::DeviceStatus;

/// A device that is there. It is dropped once it is lost or its wire goes, after all of its rings, on a thread that may
/// wait; whoever removes the wire waits for that.
pub trait Device: Send + Sync {
    /// What it is doing: asked when it is made, and then once a second, or every 400 ms if it does not answer at once. What its
    /// counters say goes on in what its wire shows when it is made again.
    ///
    /// # Errors
    /// It is lost, and why.
    fn status(&self) -> Result<DeviceStatus, String>;

    /// Somebody is at the other end of its wire, or nobody is any more. It begins without anybody.
    fn set_link(&self, _up: bool) {}

    /// Whether its calls return at once. If not, each call has one of 64 threads of its kind (made, closed, asked, told of its link) for
    /// itself: as many that hang hold up the others of that kind.
    fn answers_at_once(&self) -> bool {
        false
    }
}

/// A device that has just been made.
pub struct MadeDevice {
    /// Its queues: they refer to the device, or to what outlives it.
    pub rings: LaneEnd,
    /// The device.
    pub device: Arc<dyn Device>,
}

/// What a device is made from.
pub(crate) trait DeviceSpec: Send + Sync {
    /// Makes it. What it says when it cannot names what was tried, on what, why not, and the cure.
    fn make(&self, context: &DeviceContext) -> Result<MadeDevice, String>;

    /// Whether it is the kernel that makes it, one after the other: then more threads would only wait for each other.
    fn is_made_by_kernel(&self) -> bool;

    /// Whether one that is lost may come back: then it is made again, and again, by us. If not, whoever wants it says so.
    fn comes_back(&self) -> bool;

    /// The same, for jobs.
    fn share(&self) -> Arc<dyn DeviceSpec>;
}

/// For whom a device is made.
#[derive(Clone)]
pub struct DeviceContext {
    /// Its wire.
    pub wire: String,
    /// The end of it: 0 or 1.
    pub end: usize,
    /// Whether frames of the other end may come unfinished: whoever can have its device finish them says that it accepts them.
    pub unfinished: bool,
    /// By which the device says that it is lost.
    pub loss: LossNotice,
}

/// Tells control that a device is lost, from any thread, whenever that is noticed. Of a device that was closed, or made
/// again since, nobody takes notice.
#[derive(Clone)]
pub struct LossNotice(Arc<Loss>);

struct Loss {
    /// Why, and how long it is not to be made again.
    said: OnceLock<(String, Duration)>,
    tell: Box<dyn Fn() + Send + Sync>,
}

impl LossNotice {
    /// A notice by which `tell` is called, once.
    pub(crate) fn new(tell: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(Loss { said: OnceLock::new(), tell: Box::new(tell) }))
    }

    /// The device is lost. What is said first counts.
    pub fn lost(&self, reason: &dyn Display) {
        self.lost_for(Duration::ZERO, reason);
    }

    /// The same, and it cannot be there again before so long: until then it is not tried.
    pub fn lost_for(&self, pause: Duration, reason: &dyn Display) {
        if self.0.said.set((reason.to_string(), pause)).is_ok() {
            (self.0.tell)();
        }
    }

    /// Why it is lost, if it is.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.0.said.get().map(|(reason, _)| reason.as_str())
    }

    /// How long it is not to be made again.
    pub(crate) fn pause(&self) -> Duration {
        self.0.said.get().map_or(Duration::ZERO, |(_, pause)| *pause)
    }
}

/// What a device is told of its link. Calls may overtake each other on their threads: the last one has the last word.
pub(crate) struct DeviceLink {
    device: Arc<dyn Device>,
    wanted: AtomicBool,
    /// Somebody is going to tell it. So a device that hangs has two threads wait for it, and no more.
    is_announced: AtomicBool,
    turn: Mutex<()>,
}

impl DeviceLink {
    /// Of a device that has just been made: nobody is there.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self { device, wanted: AtomicBool::new(false), is_announced: AtomicBool::new(false), turn: Mutex::new(()) }
    }

    /// Notes what is to be told. `true`: [`Self::tell`] has to be called.
    pub fn want(&self, up: bool) -> bool {
        self.wanted.swap(up, Ordering::SeqCst) != up && !self.is_announced.swap(true, Ordering::SeqCst)
    }

    /// Tells it.
    pub fn tell(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_announced.store(false, Ordering::SeqCst);
        self.device.set_link(self.wanted.load(Ordering::SeqCst));
    }

    /// Whether that returns at once.
    pub fn answers_at_once(&self) -> bool {
        self.device.answers_at_once()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Told(Mutex<Vec<bool>>);

    impl Device for Told {
        fn status(&self) -> Result<DeviceStatus, String> {
            Ok(DeviceStatus::default())
        }

        fn set_link(&self, up: bool) {
            self.0.lock().unwrap().push(up);
        }
    }

    #[test]
    fn what_a_device_is_told_of_its_link_last_is_what_was_wanted_last() {
        let device = Arc::new(Told::default());
        let link = DeviceLink::new(Arc::clone(&device) as _);
        assert!(!link.want(false) && link.want(true) && !link.want(true));
        // Whoever tells it of one change tells it of the next too.
        assert!(!link.want(false) && !link.want(true));
        link.tell();
        assert_eq!(*device.0.lock().unwrap(), [true]);
        assert!(link.want(false));
        link.tell();
        assert_eq!(*device.0.lock().unwrap(), [true, false]);
    }

    #[test]
    fn a_loss_is_told_once_with_its_first_reason() {
        let told = Arc::new(AtomicUsize::new(0));
        let notice = LossNotice::new({
            let told = Arc::clone(&told);
            move || {
                told.fetch_add(1, Ordering::Relaxed);
            }
        });
        assert_eq!(notice.reason(), None);
        notice.lost(&"unplugged");
        notice.clone().lost(&"read error");
        assert_eq!((notice.reason(), told.load(Ordering::Relaxed)), (Some("unplugged"), 1));
    }
}
