//! What a device says of its own end: it is removed, it is asked for by the kernel, it was reset.
//!
//! DPDK tells that on its interrupt thread, and closes nothing by itself. Whoever is told must not close the port there: DPDK would wait for
//! its own thread.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt;
use std::ptr::without_provenance_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use ferrule_dpdk_sys::{
    Dpdk, RTE_DEV_EVENT_REMOVE, RTE_ETH_EVENT_INTR_RESET, RTE_ETH_EVENT_INTR_RMV, rte_dev_event_type,
    rte_eth_event_type,
};
use nix::errno::Errno;

/// Told why a device is lost, on a thread of DPDK's. It may be told more than once.
pub type LossFn = Arc<dyn Fn(LossCause) + Send + Sync>;

/// Why a device is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// It was removed.
    Removed,
    /// The kernel asks for it, and waits.
    AskedBack,
    /// Its PF was reset. It can be used again when the PF is done.
    Reset,
}

impl fmt::Display for LossCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "the device was removed",
            Self::AskedBack => "the kernel asks for the device back",
            Self::Reset => "the PF reset the device",
        })
    }
}

/// A port that is watched, until it is dropped. None of its watcher's functions is called afterwards.
pub(crate) struct Watch {
    dpdk: &'static Dpdk,
    port: u16,
    /// The name of its device.
    device: CString,
    number: usize,
}

impl Watch {
    /// Has `lost` called when the port is lost. An error is a negative errno: nothing is watched then.
    pub fn new(dpdk: &'static Dpdk, port: u16, device: CString, lost: LossFn) -> Result<Self, c_int> {
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        watchers().insert(number, lost);
        let watch = Self { dpdk, port, device, number };
        for event in PORT_EVENTS {
            // SAFETY: the function has the type that is wanted and is there as long as the program; its argument is a number.
            let status = unsafe { dpdk.rte_eth_dev_callback_register(port, event, Some(port_event), watch.argument()) };
            if status < 0 {
                return Err(status);
            }
        }
        // SAFETY: as above; DPDK keeps a copy of the name.
        let status = unsafe {
            dpdk.rte_dev_event_callback_register(watch.device.as_ptr(), Some(device_event), watch.argument())
        };
        if status < 0 { Err(status) } else { Ok(watch) }
    }

    fn argument(&self) -> *mut c_void {
        without_provenance_mut(self.number)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        watchers().remove(&self.number);
        let (dpdk, port, argument) = (self.dpdk, self.port, self.argument());
        for event in PORT_EVENTS {
            // SAFETY: as they were registered.
            until_not_called(|| unsafe {
                dpdk.rte_eth_dev_callback_unregister(port, event, Some(port_event), argument)
            });
        }
        // SAFETY: as it was registered.
        until_not_called(|| unsafe {
            dpdk.rte_dev_event_callback_unregister(self.device.as_ptr(), Some(device_event), argument)
        });
    }
}

/// DPDK does not take out what it is just calling. That calls nobody any more, so it is over soon.
fn until_not_called(mut unregister: impl FnMut() -> c_int) {
    while unregister() == -(Errno::EAGAIN as c_int) {
        thread::sleep(Duration::from_millis(1));
    }
}

extern "C" fn port_event(_port: u16, event: rte_eth_event_type, argument: *mut c_void, _answer: *mut c_void) -> c_int {
    tell(argument, if event == RTE_ETH_EVENT_INTR_RESET { LossCause::Reset } else { LossCause::Removed });
    0
}

extern "C" fn device_event(_name: *const c_char, event: rte_dev_event_type, argument: *mut c_void) {
    if event == RTE_DEV_EVENT_REMOVE {
        tell(argument, LossCause::AskedBack);
    }
}

fn tell(argument: *mut c_void, why: LossCause) {
    let watcher = watchers().get(&argument.addr()).cloned();
    // Not under the lock: it may take others.
    if let Some(lost) = watcher {
        lost(why);
    }
}

fn watchers() -> MutexGuard<'static, BTreeMap<usize, LossFn>> {
    WATCHERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// By number, since DPDK may call with the argument of a port that has gone meanwhile.
static WATCHERS: Mutex<BTreeMap<usize, LossFn>> = Mutex::new(BTreeMap::new());
static LAST: AtomicUsize = AtomicUsize::new(0);
const PORT_EVENTS: [rte_eth_event_type; 2] = [RTE_ETH_EVENT_INTR_RMV, RTE_ETH_EVENT_INTR_RESET];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_watches_is_told_until_it_does_not_any_more() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let lost: LossFn = Arc::new({
            let told = Arc::clone(&told);
            move |why| told.lock().unwrap().push(why)
        });
        let argument = without_provenance_mut(usize::MAX);
        watchers().insert(usize::MAX, lost);
        port_event(0, RTE_ETH_EVENT_INTR_RMV, argument, std::ptr::null_mut());
        port_event(0, RTE_ETH_EVENT_INTR_RESET, argument, std::ptr::null_mut());
        device_event(std::ptr::null(), RTE_DEV_EVENT_REMOVE + 1, argument);
        device_event(std::ptr::null(), RTE_DEV_EVENT_REMOVE, argument);
        watchers().remove(&usize::MAX);
        device_event(std::ptr::null(), RTE_DEV_EVENT_REMOVE, argument);
        assert_eq!(*told.lock().unwrap(), [LossCause::Removed, LossCause::Reset, LossCause::AskedBack]);
    }
}
