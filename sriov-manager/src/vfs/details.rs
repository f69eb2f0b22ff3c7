//! What only the kernel can be asked, for lists that want it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::debug;

use super::Vfs;
use super::parallel::for_each_parallel;
use crate::address::PciAddress;
use crate::kernel::{EswitchMode, PfReport};

/// What a PF, its driver and its card say. What they do not tell is not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PfDetails {
    /// Mbit/s.
    pub link_speed: Option<u32>,
    /// What its switch does.
    pub eswitch_mode: Option<EswitchMode>,
    /// What it says of itself and of its VFs.
    pub report: PfReport,
}

impl Vfs {
    /// Asks some PFs, all at the same time. One that has not answered when its time is over tells nothing, and is not asked
    /// again before it has; its VFs are lent all the same.
    pub fn details(&self, pfs: &[PciAddress]) -> BTreeMap<PciAddress, PfDetails> {
        let told = Mutex::new(BTreeMap::new());
        for_each_parallel(pfs, |&pf| {
            if let Some(details) = self.details_of(pf) {
                told.lock().unwrap_or_else(PoisonError::into_inner).insert(pf, details);
            }
        });
        told.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn details_of(&self, pf: PciAddress) -> Option<PfDetails> {
        let sysfs = self.executor().sysfs.clone();
        let asked = self.0.questions.call(&"ask for details", &[pf], TIMEOUT, move |kernel| {
            let interface = sysfs.interface(pf);
            let report = interface.as_ref().and_then(|(_, interface)| kernel.pf_report(*interface).ok());
            Ok(PfDetails {
                link_speed: interface.and_then(|(netdev, _)| sysfs.link_speed(pf, &netdev)),
                eswitch_mode: kernel.eswitch_mode(pf).unwrap_or_default(),
                report: report.unwrap_or_default(),
            })
        });
        asked.inspect_err(|error| debug!(%pf, %error, "no details")).ok()
    }
}

/// So long a PF is waited for. Firmware that is asked takes some milliseconds.
const TIMEOUT: Duration = Duration::from_secs(2);
