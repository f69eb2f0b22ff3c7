//! Changing the number of VFs of a PF.

use std::collections::BTreeMap;
use std::thread;

use tracing::{info, warn};

use super::locks::{LockRequest, WhenBusy};
use super::{State, VfError, Vfs};
use crate::address::PciAddress;
use crate::executor::StepError;
use crate::journal::Record;
use crate::lease::Resize;
use crate::plan::{Binding, Step};

/// What becomes of VFs that the host itself uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostVfs {
    /// They forbid it.
    Kept,
    /// They go as well.
    Taken,
}

/// What became of a PF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// The PF.
    pub pf: PciAddress,
    /// Its VFs before.
    pub from: u32,
    /// Its VFs now.
    pub to: u32,
    /// The steps that were needed; none: it had as many.
    pub steps: Vec<Step>,
}

impl Vfs {
    /// Gives a PF so many VFs. An equal number is left alone; a VF that is lent or held forbids it.
    pub fn create(&self, pf: PciAddress, count: u32) -> Result<Created, VfError> {
        self.create_with(pf, count, HostVfs::Kept)
    }

    /// [`Vfs::create`], also where the host itself uses a VF, if that is wanted.
    pub fn create_with(&self, pf: PciAddress, count: u32, host: HostVfs) -> Result<Created, VfError> {
        let created = self.resize(pf, count, host)?;
        {
            let mut state = self.lock();
            state.short.remove(&pf);
            state.counts.changed_by_hand(pf);
        }
        // Who looked since the VFs were made saw it short.
        self.changed();
        Ok(created)
    }

    fn resize(&self, pf: PciAddress, count: u32, host: HostVfs) -> Result<Created, VfError> {
        let (resize, lock) = self.lock_vfs(WhenBusy::Wait, |state| self.wants_resize(state, pf, count))?;
        let steps = steps(pf, &resize);
        let created = Created { pf, from: resize.from, to: count, steps };
        if created.steps.is_empty() {
            return Ok(created);
        }
        self.nobody_holds(pf, host)?;
        self.record(&Record::Resize { pf, resize: Some(resize.clone()) })?;
        let done = self.executor().apply(&created.steps);
        let is_stuck = done.as_ref().is_err_and(|error| error.stuck);
        let outcome = match done {
            Ok(()) => self.autoprobe(pf, &resize),
            Err(error) => Err(self.back_to(pf, &resize, error)),
        };
        if is_stuck {
            // It is gone on with when the kernel has come back: whether drivers are looked for would stay off otherwise.
            return outcome.map(|()| created);
        }
        // Also after a failure that could not be undone: nothing better is known to be tried again.
        self.record(&Record::Resize { pf, resize: None })?;
        outcome?;
        info!(%pf, from = created.from, to = count, "VFs made");
        drop(lock);
        Ok(created)
    }

    /// [`Vfs::create`] for several PFs at the same time.
    pub fn create_all(
        &self,
        counts: &[(PciAddress, u32)],
        host: HostVfs,
    ) -> Vec<(PciAddress, Result<Created, VfError>)> {
        thread::scope(|scope| {
            let work = |(pf, count): (PciAddress, u32)| (pf, scope.spawn(move || self.create_with(pf, count, host)));
            let threads: Vec<_> = counts.iter().copied().map(work).collect();
            let join = |(pf, thread): (_, thread::ScopedJoinHandle<'_, _>)| match thread.join() {
                Ok(result) => (pf, result),
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(join).collect()
        })
    }

    /// What [`Vfs::create`] would do.
    pub fn plan_create(&self, pf: PciAddress, count: u32, host: HostVfs) -> Result<Created, VfError> {
        let (resize, lock) = self.lock_vfs(WhenBusy::Wait, |state| self.wants_resize(state, pf, count))?;
        let steps = steps(pf, &resize);
        if !steps.is_empty() {
            self.nobody_holds(pf, host)?;
        }
        drop(lock);
        Ok(Created { pf, from: resize.from, to: count, steps })
    }

    fn wants_resize(&self, state: &State, pf: PciAddress, count: u32) -> Result<(Resize, LockRequest), VfError> {
        let function = state.pf(pf)?;
        if count > function.total_vfs {
            return Err(VfError::Wrong(format!(
                "set the number of VFs of {} to {count}: it offers at most {}; more may need a setting of its firmware",
                function.name(),
                function.total_vfs
            )));
        }
        let from = function.vfs.len() as u32;
        let there = |vf: &PciAddress| function.vfs.values().any(|there| there == vf);
        let lent = state.facts.leases.values().find(|lease| there(&lease.vf));
        if let Some(lease) = lent.filter(|_| from != count) {
            let (id, holder) = (lease.id.clone(), lease.holder.clone());
            return Err(VfError::Lent { pf: function.name(), vf: lease.vf, id, holder });
        }
        let driver = |(&index, vf)| Some((index, state.inventory.vfs.get(vf)?.function.driver.clone()?));
        let drivers: BTreeMap<_, _> = function.vfs.iter().filter_map(driver).collect();
        let autoprobe = self.executor().sysfs.text(pf, "sriov_drivers_autoprobe").is_none_or(|text| text != "0");
        let functions = function.vfs.values().copied().chain([pf]).collect();
        let resize = Resize { from, to: count, autoprobe, drivers };
        Ok((resize, LockRequest { functions, ..LockRequest::default() }))
    }

    fn nobody_holds(&self, pf: PciAddress, host: HostVfs) -> Result<(), VfError> {
        let (name, vfs) = {
            let state = self.lock();
            let vfs: Vec<_> = state.inventory.vfs.values().filter(|vf| vf.pf == pf).cloned().collect();
            (state.pf(pf)?.name(), vfs)
        };
        let tried = format!("change the number of VFs of {name}");
        for vf in vfs {
            let holders = self.holders(&vf).map_err(|error| VfError::Ask { tried: tried.clone(), error })?;
            if let Some(holder) = holders.into_iter().next() {
                return Err(VfError::Held { tried, vf: vf.address, holder });
            }
            if host == HostVfs::Kept
                && let Some(host_use) =
                    self.host_use(&vf).map_err(|error| VfError::Ask { tried: tried.clone(), error })?
            {
                return Err(VfError::UsedByHost { tried, vf: vf.address, host_use });
            }
        }
        Ok(())
    }

    fn autoprobe(&self, pf: PciAddress, resize: &Resize) -> Result<(), VfError> {
        // Off, it would surprise whoever binds a driver by hand.
        self.executor().apply(&[Step::Autoprobe { pf, on: resize.autoprobe }]).map_err(VfError::Step)
    }

    /// Goes back to the VFs that were there, on the drivers that they had.
    fn back_to(&self, pf: PciAddress, resize: &Resize, error: StepError) -> VfError {
        let undone = self.rebuild(pf, resize.from, &resize.drivers);
        let autoprobe = self.autoprobe(pf, resize);
        match undone.and(autoprobe) {
            Ok(()) => VfError::Step(error),
            Err(undo) => VfError::NotUndone {
                error: Box::new(VfError::Step(error)),
                next: "so the PF is left as it is: see `ferrule vf list`, then ask for a number that it takes",
                undo: undo.to_string(),
            },
        }
    }

    fn rebuild(&self, pf: PciAddress, count: u32, drivers: &BTreeMap<u32, String>) -> Result<(), VfError> {
        let there = self.executor().sysfs.virtfns(pf).len() as u32;
        if there != count {
            let through_zero = [Step::Count { pf, count: 0 }, Step::Count { pf, count }];
            let steps =
                if there == 0 || count == 0 { &through_zero[usize::from(there == 0)..][..1] } else { &through_zero };
            self.executor().apply(steps).map_err(VfError::Step)?;
        }
        for (index, function) in self.executor().sysfs.virtfns(pf) {
            let wanted = drivers.get(&index).map(String::as_str);
            if self.executor().sysfs.driver(function).as_deref() != wanted
                && let Binding::To(driver) = Binding::to(wanted)
            {
                let reserve = |driver| Step::Override { function, driver };
                let steps =
                    [reserve(Some(driver.clone())), Step::Probe { function, driver: Some(driver) }, reserve(None)];
                self.executor().apply(&steps).map_err(VfError::Step)?;
            }
        }
        Ok(())
    }

    /// Finishes a change that a kill interrupted: it was allowed when it began.
    pub(super) fn finish_resize(&self, pf: PciAddress, resize: &Resize) -> Result<(), VfError> {
        let done = self.nobody_holds(pf, HostVfs::Taken).and_then(|()| {
            self.executor().apply(&[Step::Autoprobe { pf, on: false }]).map_err(VfError::Step)?;
            self.rebuild(pf, resize.to, &BTreeMap::new())
        });
        let autoprobe = self.autoprobe(pf, resize);
        if let Err(error) = done.and(autoprobe) {
            warn!(%pf, %error, "a change of its number of VFs was interrupted and could not be finished");
        }
        self.look();
        if self.is_closing() {
            // What was not waited for is finished by the next start.
            return Ok(());
        }
        self.record(&Record::Resize { pf, resize: None })
    }
}

fn steps(pf: PciAddress, resize: &Resize) -> Vec<Step> {
    let Resize { from, to, .. } = *resize;
    if from == to {
        return Vec::new();
    }
    let mut steps = vec![Step::Autoprobe { pf, on: false }];
    // The kernel refuses to go from one number to another but through zero.
    if from != 0 {
        steps.push(Step::Count { pf, count: 0 });
    }
    if to != 0 {
        steps.push(Step::Count { pf, count: to });
    }
    steps
}
