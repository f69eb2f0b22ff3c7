//! What others see of the node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use super::reasons::Obstacles;
use super::{Reason, Recovery, State, Vfs, obstacles};
use crate::address::{Driver, PciAddress};
use crate::attributes::Mac;
use crate::inventory::{Inventory, PhysicalFunction, VirtualFunction};
use crate::lease::{Claim, Cordon, Lease};
use crate::sysfs::Sysfs;
use crate::watchdog::Stuck;

/// The node at one moment.
#[derive(Clone, Debug, PartialEq)]
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
    /// Who claimed what, by the name of the owner.
    pub claims: BTreeMap<String, Claim>,
    /// How far the start is.
    pub recovery: Recovery,
    /// Where the policies come from, and how far they are.
    pub policies: PoliciesView,
    /// Counts changes: two views with the same number show the same.
    pub generation: u64,
}

/// Where the policies come from, and how far they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoliciesView {
    /// The number of those that were given over the API; 0: none were.
    pub wanted: u64,
    /// The number of those that every PF has been made to have.
    pub reached: u64,
    /// The file that is followed.
    pub file: Option<PathBuf>,
}

/// What others saw last.
#[derive(Default)]
pub(super) struct Shown {
    /// Nothing can have changed while this is the count.
    tick: u64,
    view: Option<Arc<View>>,
}

/// A PF.
#[derive(Clone, Debug, PartialEq)]
pub struct PfView {
    /// As sysfs shows it.
    pub pf: PhysicalFunction,
    /// A call about it that has not come back.
    pub stuck: Option<Stuck>,
    /// Why it has not got the number of VFs that the policies want.
    pub short: Option<String>,
    /// None of its VFs is lent to anybody new.
    pub cordon: Option<Cordon>,
    /// The address that it was made with, if it told.
    pub card: Option<Mac>,
    /// Policies say that somebody else makes its VFs.
    pub externally_managed: bool,
}

/// A VF.
#[derive(Clone, Debug, PartialEq)]
pub struct VfView {
    /// As sysfs shows it.
    pub vf: VirtualFunction,
    /// What its PF is called.
    pub pf_name: String,
    /// The interface of the PF's switch at whose other end it is.
    pub representor: Option<String>,
    /// Who has it.
    pub lease: Option<Lease>,
    /// Why the policies would not allow that lease now.
    pub forbidden: Option<String>,
    /// Pools that it is in.
    pub pools: Vec<String>,
    /// The driver that VFs of its pool are lent with to who names none; none: it is in no pool, or its pools disagree.
    pub pool_driver: Option<Driver>,
    /// Who alone lends it.
    pub owner: Option<String>,
    /// Whether its group is one without an IOMMU.
    pub noiommu: bool,
    /// Whether something is being done to it.
    pub busy: bool,
    /// Why it is not available, whatever the driver. One of them is that it is lent.
    pub reasons: Vec<Reason>,
    /// Why not by the kernel's driver.
    pub reasons_kernel: Vec<Reason>,
    /// Why not by vfio-pci.
    pub reasons_vfio: Vec<Reason>,
}

impl VfView {
    /// Why it is not available by a driver.
    pub fn reasons(&self, driver: Driver) -> &[Reason] {
        match driver {
            Driver::None => &self.reasons,
            Driver::Kernel => &self.reasons_kernel,
            Driver::VfioPci => &self.reasons_vfio,
        }
    }
}

impl View {
    /// What the tree alone shows, without a manager: nobody knows who borrowed what.
    pub fn without_manager(sysfs: &Sysfs, inventory: &Inventory) -> Self {
        let pf_view = |pf: &PhysicalFunction| PfView {
            pf: pf.clone(),
            stuck: None,
            short: None,
            cordon: None,
            card: None,
            externally_managed: false,
        };
        let pfs = inventory.pfs.values().map(pf_view).collect();
        let view = |vf: &VirtualFunction| VfView {
            vf: vf.clone(),
            pf_name: inventory.pfs.get(&vf.pf).map(PhysicalFunction::name).unwrap_or_default(),
            representor: inventory.pfs.get(&vf.pf).and_then(|pf| pf.representors.get(&vf.index).cloned()),
            lease: None,
            forbidden: None,
            pools: Vec::new(),
            pool_driver: None,
            owner: None,
            noiommu: Obstacles::new(sysfs).is_noiommu(vf),
            busy: false,
            reasons: obstacles(sysfs, inventory, vf, Driver::None),
            reasons_kernel: obstacles(sysfs, inventory, vf, Driver::Kernel),
            reasons_vfio: obstacles(sysfs, inventory, vf, Driver::VfioPci),
        };
        let of_pf = |pf: &PhysicalFunction| pf.vfs.values().filter_map(|vf| inventory.vfs.get(vf)).map(view).collect();
        let vfs = inventory.pfs.values().flat_map(|pf| -> Vec<_> { of_pf(pf) }).collect();
        Self {
            pfs,
            vfs,
            lost: Vec::new(),
            policies_refused: None,
            warnings: Vec::new(),
            claims: BTreeMap::new(),
            recovery: Recovery::Done,
            policies: PoliciesView::default(),
            generation: 0,
        }
    }
}

impl Vfs {
    /// Everything, from memory: nothing is waited for. It is made anew only when something happened since.
    pub fn view(&self) -> Arc<View> {
        let mut shown = self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let tick = *self.0.ticks.borrow();
        let before = shown.view.clone();
        if let Some(view) = before.as_ref().filter(|_| shown.tick == tick) {
            return Arc::clone(view);
        }
        let state = self.lock().clone();
        let generation = before.as_ref().map_or(1, |view| view.generation);
        let mut view = self.view_of(&state, generation);
        // What happened need not be seen by anybody.
        let view = if let Some(before) = before.filter(|before| **before == view) {
            before
        } else {
            view.generation += 1;
            Arc::new(view)
        };
        *shown = Shown { tick, view: Some(Arc::clone(&view)) };
        view
    }

    fn view_of(&self, state: &State, generation: u64) -> View {
        let inventory = &state.inventory;
        let pf_view = |pf: &PhysicalFunction| PfView {
            pf: pf.clone(),
            stuck: self.executor().watchdog.stuck(pf.address),
            short: state.short.get(&pf.address).cloned(),
            cordon: state.facts.cordons.get(&pf.address).cloned(),
            card: state.cards.get(&pf.address).copied(),
            externally_managed: state.policies.is_externally_managed(pf),
        };
        let obstacles = Obstacles::new(&self.executor().sysfs);
        let of_pf = |pf: &PhysicalFunction| -> Vec<VfView> {
            let name = pf.name();
            let view = |vf: &PciAddress| Some(self.view_of_vf(state, inventory.vfs.get(vf)?, (pf, &name), &obstacles));
            pf.vfs.values().filter_map(view).collect()
        };
        let is_there = |lease: &&Lease| inventory.vfs.get(&lease.vf).is_some_and(|vf| state.is_of(lease, vf));
        View {
            pfs: inventory.pfs.values().map(pf_view).collect(),
            vfs: inventory.pfs.values().flat_map(of_pf).collect(),
            lost: state.facts.leases.values().filter(|lease| !is_there(lease)).cloned().collect(),
            policies_refused: state.policies_refused.clone(),
            warnings: state.policies.warnings(inventory),
            claims: state.facts.claims.clone(),
            recovery: *self.0.recovery.borrow(),
            policies: PoliciesView {
                wanted: state.facts.policies.as_ref().map_or(0, |document| document.generation),
                reached: state.policies_reached,
                file: state.policies_file.clone(),
            },
            generation,
        }
    }

    fn view_of_vf(
        &self,
        state: &State,
        vf: &VirtualFunction,
        (pf, pf_name): (&PhysicalFunction, &str),
        obstacles: &Obstacles<'_>,
    ) -> VfView {
        let inventory = &state.inventory;
        let lease = state.facts.leases.get(&vf.address).filter(|lease| state.is_of(lease, vf));
        let reasons = |driver| self.reasons(state, vf, driver, None, obstacles);
        let pools: Vec<_> = state.policies.pools_of(inventory, vf).collect();
        // As an acquire from it.
        let pool_driver = pools.first().map(|pool| pool.driver.unwrap_or_default());
        VfView {
            pf_name: pf_name.to_owned(),
            representor: pf.representors.get(&vf.index).cloned(),
            lease: lease.cloned(),
            forbidden: lease.and_then(|lease| state.policies.forbids(inventory, lease)),
            pool_driver: pool_driver
                .filter(|driver| pools.iter().all(|pool| pool.driver.unwrap_or_default() == *driver)),
            pools: pools.iter().map(|pool| pool.name.clone()).collect(),
            owner: state.owner_of(vf).map(|(owner, _)| owner.clone()),
            noiommu: obstacles.is_noiommu(vf),
            busy: state.locked.contains(&vf.address),
            reasons: reasons(Driver::None),
            reasons_kernel: reasons(Driver::Kernel),
            reasons_vfio: reasons(Driver::VfioPci),
            vf: vf.clone(),
        }
    }

    /// One VF as it is now, without a look at the others, of which there may be thousands.
    pub fn vf_view(&self, vf: PciAddress) -> Option<VfView> {
        let state = self.lock().clone();
        let function = state.inventory.vfs.get(&vf)?;
        let pf = state.inventory.pfs.get(&function.pf)?;
        Some(self.view_of_vf(&state, function, (pf, &pf.name()), &Obstacles::new(&self.executor().sysfs)))
    }
}
