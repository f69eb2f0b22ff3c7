//! How DPDK is started, for all ends.

use std::sync::OnceLock;

#[cfg(not(no_dpdk))]
use ferrule_dpdk::eal::{Eal, EalSettings};
#[cfg(not(no_dpdk))]
use ferrule_dpdk::error::StartError;

/// How DPDK is started, when the first wire asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DpdkSettings {
    /// Memory for the frames of all devices, in MiB.
    pub memory_mib: u32,
    /// Whether it lies in hugepages: then DPDK starts at once, whoever asks for it ([`configure`]).
    pub hugepages: bool,
}

impl Default for DpdkSettings {
    fn default() -> Self {
        Self { memory_mib: 1024, hugepages: false }
    }
}

/// Says how DPDK is to be started. What is said first holds, since DPDK starts once in a process. With hugepages it starts now:
/// it must not take any while memory of peers is used, so this has to be said before there is an engine. If it does not start,
/// the wires that ask for it say why.
pub fn configure(settings: DpdkSettings) {
    let is_first = SETTINGS.set(settings).is_ok();
    #[cfg(not(no_dpdk))]
    if is_first && settings.hugepages {
        let _ = start();
    }
    #[cfg(no_dpdk)]
    let _ = is_first;
}

/// Starts DPDK, if it was not started.
#[cfg(not(no_dpdk))]
pub(crate) fn start() -> Result<&'static Eal, StartError> {
    let settings = *SETTINGS.get_or_init(DpdkSettings::default);
    Eal::start(EalSettings { memory_mib: settings.memory_mib, hugepages: settings.hugepages })
}

static SETTINGS: OnceLock<DpdkSettings> = OnceLock::new();
