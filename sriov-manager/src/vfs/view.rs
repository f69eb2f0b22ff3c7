//! What others see of the node.

use super::{Reason, Vfs, obstacles};
use crate::address::Driver;
use crate::inventory::{Inventory, PhysicalFunction, VirtualFunction};
use crate::lease::Lease;
use crate::sysfs::Sysfs;
use crate::watchdog::Stuck;

/// The node at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// By address.
    pub pfs: Vec<PfView>,
    /// By PF and number.
    pub vfs: Vec<VfView>,
    /// Leases whose VF is not there.
    pub lost: Vec<Lease>,
    /// Why the policies are not those that were wanted last.
    pub policies_refused: Option<String>,
    /// What of the policies means nothing on this node.
    pub warnings: Vec<String>,
    /// Counts changes.
    pub generation: u64,
}

/// A PF.
#[derive(Clone, Debug)]
pub struct PfView {
    /// As sysfs shows it.
    pub pf: PhysicalFunction,
    /// A call about it that has not come back.
    pub stuck: Option<Stuck>,
    /// Why it has not got the number of VFs that the policies want.
    pub short: Option<String>,
}

/// A VF.
#[derive(Clone, Debug)]
pub struct VfView {
    /// As sysfs shows it.
    pub vf: VirtualFunction,
    /// What its PF is called.
    pub pf_name: String,
    /// Who has it.
    pub lease: Option<Lease>,
    /// Why the policies would not allow that lease now.
    pub forbidden: Option<String>,
    /// Pools that it is in.
    pub pools: Vec<String>,
    /// Whether something is being done to it.
    pub busy: bool,
    /// Why it is not to be had by the kernel's driver, beside being lent.
    pub reasons: Vec<Reason>,
}

impl View {
    /// What the tree alone shows, without a manager: nobody knows who borrowed what.
    pub fn without_manager(sysfs: &Sysfs, inventory: &Inventory) -> Self {
        let pfs = inventory.pfs.values().map(|pf| PfView { pf: pf.clone(), stuck: None, short: None }).collect();
        let view = |vf: &VirtualFunction| VfView {
            vf: vf.clone(),
            pf_name: inventory.pfs.get(&vf.pf).map(PhysicalFunction::name).unwrap_or_default(),
            lease: None,
            forbidden: None,
            pools: Vec::new(),
            busy: false,
            reasons: obstacles(sysfs, inventory, vf, Driver::None),
        };
        let of_pf = |pf: &PhysicalFunction| pf.vfs.values().filter_map(|vf| inventory.vfs.get(vf)).map(view).collect();
        let vfs = inventory.pfs.values().flat_map(|pf| -> Vec<_> { of_pf(pf) }).collect();
        Self { pfs, vfs, lost: Vec::new(), policies_refused: None, warnings: Vec::new(), generation: 0 }
    }
}

impl Vfs {
    /// Everything, from memory: nothing is waited for.
    pub fn view(&self) -> View {
        let generation = *self.0.generation.borrow();
        let state = self.lock();
        let inventory = &state.inventory;
        let leases = &state.journal.facts().leases;
        let pf_view = |pf: &PhysicalFunction| PfView {
            pf: pf.clone(),
            stuck: self.executor().watchdog.stuck(pf.address),
            short: state.short.get(&pf.address).cloned(),
        };
        let pfs = inventory.pfs.values().map(pf_view).collect();
        let of_pf = |pf: &PhysicalFunction| pf.vfs.values().filter_map(|vf| inventory.vfs.get(vf)).cloned().collect();
        let view = |vf: VirtualFunction, pf: &PhysicalFunction| {
            let lease = leases.get(&vf.address).filter(|lease| lease.is_of(&vf));
            VfView {
                pf_name: pf.name(),
                lease: lease.cloned(),
                forbidden: lease.and_then(|lease| state.policies.forbids(inventory, lease)),
                pools: state.policies.pools_of(inventory, &vf).map(|pool| pool.name.clone()).collect(),
                busy: state.locked.contains(&vf.address),
                reasons: self.reasons(&state, &vf, Driver::None),
                vf,
            }
        };
        let vfs: Vec<VfView> = inventory
            .pfs
            .values()
            .flat_map(|pf| {
                let vfs: Vec<VirtualFunction> = of_pf(pf);
                vfs.into_iter().map(|vf| view(vf, pf)).collect::<Vec<_>>()
            })
            .collect();
        let is_there = |lease: &&Lease| inventory.vfs.get(&lease.vf).is_some_and(|vf| lease.is_of(vf));
        let lost = leases.values().filter(|lease| !is_there(lease)).cloned().collect();
        View {
            pfs,
            vfs,
            lost,
            policies_refused: state.policies_refused.clone(),
            warnings: state.policies.warnings(inventory),
            generation,
        }
    }
}
