//! The VFs as Prometheus reads them, made anew for every scrape.

use std::fmt;
use std::sync::Arc;

use ferrule_daemon::metrics::{self, Process, gauges};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::vfs::{VfView, Vfs, View};

/// Everything that one scrape tells.
#[derive(Debug)]
pub struct Snapshot {
    view: Arc<View>,
    process: Option<Process>,
}

impl Snapshot {
    /// The node as it is known now, and this process.
    pub fn take(vfs: &Vfs) -> Self {
        Self { view: vfs.view(), process: Process::read() }
    }

    /// In the `OpenMetrics` text format.
    pub fn render(self) -> Result<String, fmt::Error> {
        metrics::render(self)
    }

    fn vfs(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = |view: &VfView| vec![("pf", view.pf_name.clone()), ("vf", view.vf.address.to_string())];
        gauges(
            encoder,
            ("ferrule_vf_lent", "Whether the VF is lent"),
            self.view.vfs.iter().map(|view| (labels(view), u64::from(view.lease.is_some()))),
        )?;
        let fault = |view: &VfView| view.lease.as_ref().is_some_and(|lease| lease.fault.is_some());
        gauges(
            encoder,
            ("ferrule_vf_faulty", "Whether something is wrong with the lease of the VF"),
            self.view.vfs.iter().map(|view| (labels(view), u64::from(fault(view)))),
        )?;
        gauges(
            encoder,
            ("ferrule_vf_blocked", "Whether something but a lease keeps the VF from being lent"),
            self.view.vfs.iter().map(|view| {
                let lent = usize::from(view.lease.is_some());
                (labels(view), u64::from(view.reasons.len() > lent))
            }),
        )?;
        let driver = self.view.vfs.iter().filter_map(|view| {
            let mut labels = labels(view);
            labels.push(("driver", view.vf.function.driver.clone()?));
            Some((labels, 1_u64))
        });
        gauges(encoder, ("ferrule_vf_driver", "The driver that the VF is bound to"), driver)
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauges(encoder, ("ferrule_build_info", "The manager that runs"), [(build, 1_u64)])?;
        let pf = |view: &crate::vfs::PfView| vec![("pf", view.pf.name())];
        let pfs = || self.view.pfs.iter();
        gauges(encoder, ("ferrule_pf_vfs", "VFs of the PF"), pfs().map(|v| (pf(v), v.pf.vfs.len() as u64)))?;
        gauges(
            encoder,
            ("ferrule_pf_total_vfs", "The most VFs that the PF offers"),
            pfs().map(|v| (pf(v), u64::from(v.pf.total_vfs))),
        )?;
        gauges(
            encoder,
            ("ferrule_pf_stuck", "Whether a call into the kernel about the PF has not come back"),
            pfs().map(|v| (pf(v), u64::from(v.stuck.is_some()))),
        )?;
        gauges(
            encoder,
            ("ferrule_pf_short", "Whether the PF has not got the number of VFs that the policies want"),
            pfs().map(|v| (pf(v), u64::from(v.short.is_some()))),
        )?;
        self.vfs(encoder)?;
        let lost = [(Vec::new(), self.view.lost.len() as u64)];
        gauges(encoder, ("ferrule_leases_lost", "Leases whose VF is not there"), lost)?;
        let forbidden = self.view.vfs.iter().filter(|view| view.forbidden.is_some()).count() as u64;
        let help = "Leases that the policies would not allow now";
        gauges(encoder, ("ferrule_leases_forbidden", help), [(Vec::new(), forbidden)])?;
        let refused = u64::from(self.view.policies_refused.is_some());
        let help = "Whether the policies file as it is now is not used";
        gauges(encoder, ("ferrule_policies_refused", help), [(Vec::new(), refused)])?;
        self.process.as_ref().map_or(Ok(()), |process| process.encode(encoder))
    }
}
