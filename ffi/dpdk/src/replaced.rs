//! For tests: environments over the one DPDK, of which some functions are replaced.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferrule_dpdk_sys::Dpdk;

use crate::config::PortConfig;
use crate::eal::{Eal, EalSettings};
use crate::error::PortError;
use crate::library;
use crate::open::QueuePairs;
use crate::port::Port;

/// One test at a time: ports are few, and what replaces a function is there once.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of which `replace` has replaced functions.
pub fn eal_with(replace: impl FnOnce(&mut Dpdk)) -> &'static Eal {
    Eal::start(EalSettings::default()).unwrap();
    let mut dpdk = library::load().unwrap();
    replace(&mut dpdk);
    Box::leak(Box::new(Eal::new(dpdk, false)))
}

pub fn open(eal: &'static Eal, device: &str) -> Result<(Arc<Port>, QueuePairs), PortError> {
    Port::open(eal, device, &PortConfig::default(), Arc::new(|_| {}))
}
