//! Which ports a device has: DPDK says so of each, on the thread that probes it.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use ferrule_dpdk_sys::{Dpdk, RTE_ETH_ALL, RTE_ETH_EVENT_NEW, rte_eth_event_type};

use crate::error::cause;

/// Has ports announced from now on.
pub(crate) fn watch(dpdk: &Dpdk) -> Result<(), String> {
    // SAFETY: the function has the type that is wanted, and is there as long as the program.
    let status = unsafe {
        dpdk.rte_eth_dev_callback_register(RTE_ETH_ALL as u16, RTE_ETH_EVENT_NEW, Some(announced), null_mut())
    };
    if status < 0 { Err(format!("ports cannot be announced: {}", cause(status, &[]))) } else { Ok(()) }
}

/// Calls `probe`, and what it answers with the ports that were announced meanwhile.
pub(crate) fn collect<T>(probe: impl FnOnce() -> T) -> (T, Vec<u16>) {
    PORTS.take();
    let answer = probe();
    (answer, PORTS.take())
}

extern "C" fn announced(port: u16, _event: rte_eth_event_type, _argument: *mut c_void, _answer: *mut c_void) -> c_int {
    // DPDK calls it with its locks held.
    PORTS.with_borrow_mut(|ports| ports.push(port));
    0
}

thread_local! {
    static PORTS: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
}
