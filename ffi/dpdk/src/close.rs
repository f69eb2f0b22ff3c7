//! The end of a port: stopped and closed beside all others, its device removed in turn.
//!
//! ```text
//!   stop, close --- one lock for the process ---> remove --- refused ---> kept, with its buffers
//!   (may hang, holds up nobody)                                              |
//!                                                    tried again by the next <
//! ```

use ferrule_dpdk_sys::{Dpdk, rte_device};

use crate::error::{PortError, cause};
use crate::interface::Interface;
use crate::log;
use crate::pool::Mempool;
use crate::port::Port;

/// Devices that could not be removed. They are still this process's, and a kernel may wait for them.
#[derive(Default)]
pub(crate) struct Unclosed(Vec<UnclosedDevice>);

/// One of them.
struct UnclosedDevice {
    name: String,
    handle: *mut rte_device,
    /// It may still write to them.
    pools: Vec<Mempool>,
}

// SAFETY: the handle is used under `Eal::control` only.
unsafe impl Send for UnclosedDevice {}

impl Unclosed {
    /// Tries once more to remove all of them. The buffers of those that are gone.
    pub fn retry(&mut self, dpdk: &Dpdk) -> Vec<Mempool> {
        let mut freed = Vec::new();
        for device in std::mem::take(&mut self.0) {
            // SAFETY: DPDK has refused to remove it, so it is there. `Eal::control` is held.
            if unsafe { dpdk.rte_dev_remove(device.handle) } >= 0 {
                tracing::info!(device = device.name, "a device that could not be closed is closed now");
                freed.extend(device.pools);
            } else {
                self.0.push(device);
            }
        }
        freed
    }

    /// Whether a device of these devargs is among them.
    pub fn has(&self, devargs: &str) -> bool {
        self.0.iter().any(|device| name(&device.name) == name(devargs))
    }
}

impl Port {
    /// Stops and closes it, and removes its device. Nobody uses it any more.
    pub(crate) fn close(&mut self) {
        // Nothing is told of it afterwards.
        self.watch = None;
        if self.is_started {
            self.drain();
        }
        let mut is_closed = true;
        for id in std::mem::take(&mut self.ports) {
            // SAFETY: the port is there, and none of its queues any more.
            let stopped = self.call("rte_eth_dev_stop", |dpdk| unsafe { dpdk.rte_eth_dev_stop(id) });
            // SAFETY: as above; nobody uses its number from now on.
            let closed = self.call("rte_eth_dev_close", |dpdk| unsafe { dpdk.rte_eth_dev_close(id) });
            for error in [stopped.err(), closed.err()].into_iter().flatten() {
                is_closed = false;
                tracing::warn!("{error}");
            }
        }
        let pools = std::mem::take(&mut self.pools);
        if let Some(Err(error)) = self.interface.as_ref().map(Interface::restore) {
            tracing::warn!(device = self.device, %error, "the interface of a device is not as it was before it");
        }
        let mut unclosed = self.eal.control_to_close();
        let (device, handle) = (self.device.clone(), self.handle);
        let gone = if handle.is_null() {
            // It has not said which device it is.
            if is_closed { pools } else { Vec::new() }
        } else {
            // SAFETY: the device was made by us, and is there. A port of it that refused to be closed is closed by its driver now, or
            // it refuses this too.
            let (status, said) = log::collect(|| unsafe { self.dpdk().rte_dev_remove(handle) });
            if status >= 0 {
                pools
            } else {
                let error = PortError::new(&device, "rte_dev_remove", cause(status, &said));
                tracing::error!("{error}; it stays open until that is possible, or the forwarder is restarted");
                unclosed.0.push(UnclosedDevice { name: device, handle, pools });
                Vec::new()
            }
        };
        drop(unclosed);
        self.eal.retire(gone);
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if !self.ports.is_empty() {
            self.close();
        }
    }
}

fn name(devargs: &str) -> &str {
    devargs.split(',').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::{CStr, c_char, c_int};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Condvar, Mutex, OnceLock};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::replaced::{eal_with, open, turn};

    fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < deadline, "this did not happen: {what}");
            thread::yield_now();
        }
    }

    type Remove = unsafe extern "C" fn(*mut rte_device) -> c_int;
    static REMOVE: OnceLock<Remove> = OnceLock::new();
    static REFUSES: AtomicBool = AtomicBool::new(false);

    unsafe extern "C" fn refusing_remove(device: *mut rte_device) -> c_int {
        if REFUSES.load(Ordering::SeqCst) {
            return -16;
        }
        // SAFETY: as it is called.
        unsafe { REMOVE.get().unwrap()(device) }
    }

    #[test]
    fn a_device_that_cannot_be_removed_is_not_forgotten_and_its_buffers_are_not_used_meanwhile() {
        let _turn = turn();
        let eal = eal_with(|dpdk| {
            let _ = REMOVE.set(dpdk.rte_dev_remove);
            dpdk.rte_dev_remove = refusing_remove;
        });
        let refused = open(eal, "net_ring3").unwrap();
        REFUSES.store(true, Ordering::SeqCst);
        drop(refused);
        let error = open(eal, "net_ring3,x=1").err().unwrap().to_string();
        assert!(error.contains("could not close it before") && error.contains("restart the forwarder"), "{error}");
        let other = open(eal, "net_ring4").unwrap();
        assert_eq!(eal.pools(), 2);
        REFUSES.store(false, Ordering::SeqCst);
        drop(open(eal, "net_ring3").unwrap());
        assert_eq!(eal.pools(), 2, "its buffers are used again");
        drop(other);
    }

    type Probe = unsafe extern "C" fn(*const c_char) -> c_int;
    static PROBE: OnceLock<Probe> = OnceLock::new();
    /// Devices whose probe has begun, and whether it goes on.
    static PROBED: Mutex<(BTreeSet<String>, bool)> = Mutex::new((BTreeSet::new(), true));
    static PROBED_MORE: Condvar = Condvar::new();

    unsafe extern "C" fn slow_probe(devargs: *const c_char) -> c_int {
        // SAFETY: a string, as DPDK is given it.
        let name = unsafe { CStr::from_ptr(devargs) }.to_str().unwrap().to_owned();
        let mut probed = PROBED.lock().unwrap();
        probed.0.insert(name);
        drop(PROBED_MORE.wait_while(probed, |(_, goes_on)| !*goes_on).unwrap());
        // SAFETY: as it is called.
        unsafe { PROBE.get().unwrap()(devargs) }
    }

    #[test]
    fn a_port_is_stopped_and_closed_while_another_device_is_probed_for_long_and_removed_before_the_next_probe() {
        let _turn = turn();
        let eal = eal_with(|dpdk| {
            let _ = PROBE.set(dpdk.rte_dev_probe);
            dpdk.rte_dev_probe = slow_probe;
        });
        let is_probed = |name: &str| PROBED.lock().unwrap().0.contains(name);
        let lost = open(eal, "net_ring5").unwrap();
        let number = lost.0.id();
        PROBED.lock().unwrap().1 = false;
        thread::scope(|scope| {
            let slow = scope.spawn(|| open(eal, "net_ring6"));
            eventually("a probe hangs", || is_probed("net_ring6"));
            let next = scope.spawn(|| open(eal, "net_ring7"));
            let closing = scope.spawn(move || drop(lost));
            eventually("it is closed", || !eal.ports().contains(&number));
            assert!(!is_probed("net_ring7") && !closing.is_finished());
            PROBED.lock().unwrap().1 = true;
            PROBED_MORE.notify_all();
            closing.join().unwrap();
            // It has the number of the one that was closed.
            let slow = slow.join().unwrap().unwrap();
            assert_eq!(slow.0.id(), number);
            next.join().unwrap().unwrap();
        });
        assert!(eal.ports().is_empty());
    }
}
