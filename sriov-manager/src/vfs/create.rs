//! Changing the number of VFs of a PF.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use tracing::{info, warn};

use super::locks::{LockRequest, VfLock, WhenBusy};
use super::parallel::for_each_at_once;
use super::{State, VfError, Vfs};
use crate::address::PciAddress;
use crate::executor::StepError;
use crate::journal::Record;
use crate::lease::{Lease, Resize};
use crate::plan::{Binding, Step};
use crate::watchdog::CallError;

/// What becomes of VFs that the host itself uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostVfs {
    /// They forbid it.
    Kept,
    /// They go as well.
    Taken,
}

/// Who wants a number of VFs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WantedBy {
    /// The policies.
    Policies,
    /// Somebody, whatever the policies say.
    Hand,
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
        self.create_by(WantedBy::Hand, pf, count, host)
    }

    /// [`Vfs::create`] for several PFs at the same time.
    pub fn create_all(
        &self,
        counts: &[(PciAddress, u32)],
        host: HostVfs,
    ) -> Vec<(PciAddress, Result<Created, VfError>)> {
        self.create_all_by(WantedBy::Hand, counts, host)
    }

    pub(super) fn create_all_by(
        &self,
        by: WantedBy,
        counts: &[(PciAddress, u32)],
        host: HostVfs,
    ) -> Vec<(PciAddress, Result<Created, VfError>)> {
        let asked: Vec<_> = counts.iter().map(|&(pf, count)| (pf, count, OnceLock::new())).collect();
        for_each_at_once(&asked, |(pf, count, result)| {
            result.get_or_init(|| self.create_by(by, *pf, *count, host));
        });
        asked.into_iter().filter_map(|(pf, _, result)| Some((pf, result.into_inner()?))).collect()
    }

    fn create_by(&self, by: WantedBy, pf: PciAddress, count: u32, host: HostVfs) -> Result<Created, VfError> {
        let created = self.resize(by, pf, count, host);
        // Who looked since the VFs were made saw it short.
        self.changed();
        created
    }

    fn resize(&self, by: WantedBy, pf: PciAddress, count: u32, host: HostVfs) -> Result<Created, VfError> {
        let (resize, lock) = self.lock_as_it_is(by, pf, count, host)?;
        if by == WantedBy::Hand {
            let State { inventory, policies, counts, .. } = &mut *self.lock();
            counts.begins(pf, inventory.pfs.get(&pf).and_then(|pf| policies.wanted_count(pf)));
        }
        let steps = steps(pf, resize.from, count);
        let created = Created { pf, from: resize.from, to: count, steps };
        if created.steps.is_empty() {
            self.note_resized(pf, &resize)?;
            return Ok(created);
        }
        self.nobody_holds(pf, host)?;
        self.record(&Record::Resize { pf, resize: Some(resize.clone()) })?;
        let outcome = self.change_number(pf, &resize, &created.steps);
        if let Err(Unfinished { is_late: true, error }) = outcome {
            // It is gone on with when the kernel has come back: whether drivers are looked for would stay off otherwise.
            if by == WantedBy::Hand {
                self.lock().short.remove(&pf);
            }
            return Err(error);
        }
        if outcome.is_ok() {
            // Before the record: from there on the policies look at it.
            self.note_resized(pf, &resize)?;
        }
        // Also after a failure that could not be undone: nothing better is known to be tried again.
        self.record(&Record::Resize { pf, resize: None })?;
        outcome.map_err(|unfinished| unfinished.error)?;
        info!(%pf, from = created.from, to = count, "VFs made");
        drop(lock);
        Ok(created)
    }

    /// Locks a PF of which it is known which VFs it has: others make them as well, and the kernel tells of that only when all are there.
    fn lock_as_it_is(
        &self,
        by: WantedBy,
        pf: PciAddress,
        count: u32,
        host: HostVfs,
    ) -> Result<(Resize, VfLock), VfError> {
        for look in 0..LOOKS {
            if look > 0 {
                // Nobody tells when whoever makes them is ready.
                sleep(BETWEEN_LOOKS);
            }
            let (resize, lock) =
                self.lock_vfs(WhenBusy::Wait, |state| self.wants_resize(state, by, pf, count, host))?;
            let there = self.executor().sysfs.read_virtfns(pf);
            if there.is_ok_and(|there| there.len() == resize.from as usize) {
                return Ok((resize, lock));
            }
            // The node is looked at when it goes.
            drop(lock);
        }
        Err(VfError::Busy { what: format!("the number of VFs of {}", self.lock().pf(pf)?.name()) })
    }

    /// A PF has the number that was wanted. To be called before anybody else changes it.
    fn note_resized(&self, pf: PciAddress, resize: &Resize) -> Result<(), VfError> {
        {
            let mut state = self.lock();
            state.short.remove(&pf);
            state.counts.changed(pf, resize.by_hand);
        }
        self.keep_by_hand(pf)
    }

    /// What [`Vfs::create`] would do.
    pub fn plan_create(&self, pf: PciAddress, count: u32, host: HostVfs) -> Result<Created, VfError> {
        let (resize, lock) = self.lock_as_it_is(WantedBy::Hand, pf, count, host)?;
        let steps = steps(pf, resize.from, count);
        if !steps.is_empty() {
            self.nobody_holds(pf, host)?;
        }
        drop(lock);
        Ok(Created { pf, from: resize.from, to: count, steps })
    }

    fn wants_resize(
        &self,
        state: &State,
        by: WantedBy,
        pf: PciAddress,
        count: u32,
        host: HostVfs,
    ) -> Result<(Resize, LockRequest), VfError> {
        let function = state.pf(pf)?;
        // What an earlier change has found is what comes back when it has ended. One that is under way is waited for.
        if state.facts.resizes.contains_key(&pf) && !state.locked.contains(&pf) {
            return Err(VfError::Busy { what: format!("the number of VFs of {}", function.name()) });
        }
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
            let Lease { id, tenant, .. } = lease.in_force().clone();
            return Err(VfError::Lent { pf: function.name(), vf: lease.vf, id, tenant });
        }
        let driver = |(&index, vf)| Some((index, state.inventory.vfs.get(vf)?.function.driver.clone()?));
        let drivers: BTreeMap<_, _> = function.vfs.iter().filter_map(driver).collect();
        let autoprobe = self.executor().sysfs.text(pf, "sriov_drivers_autoprobe").is_none_or(|text| text != "0");
        let functions = function.vfs.values().copied().chain([pf]).collect();
        let (force, by_hand) = (host == HostVfs::Taken, by == WantedBy::Hand);
        let resize = Resize { from, to: count, autoprobe, drivers, force, by_hand };
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
                return Err(VfError::UsedByHost { tried, vf: vf.address, host_use, can_force: true });
            }
        }
        Ok(())
    }

    /// Does the steps of a change that is in the journal, or goes back to the VFs that were there, on the drivers that they had.
    fn change_number(&self, pf: PciAddress, resize: &Resize, steps: &[Step]) -> Result<(), Unfinished> {
        let refused = match self.executor().apply(steps) {
            Ok(()) => return self.autoprobe(pf, resize).map_err(Unfinished::of),
            Err(late) if late.stuck => return Err(Unfinished::of(late)),
            Err(refused) => refused,
        };
        let has_vfs = self.executor().sysfs.read_virtfns(pf).map_or(true, |there| !there.is_empty());
        let is_left = has_vfs && (leaves_vfs(&refused) || self.has_new_user(pf));
        let undone = if is_left { Ok(()) } else { self.rebuild(pf, resize) };
        let autoprobe = self.autoprobe(pf, resize);
        let is_late = autoprobe.as_ref().is_err_and(|error| error.stuck);
        let error = VfError::Step(refused);
        Err(match undone.and(autoprobe) {
            Ok(()) => Unfinished { error, is_late },
            Err(undo) => {
                let next = "so the PF is left as it is: see `ferrule vf list`, then ask for a number that it takes";
                let next = if is_late { "which is tried again when the kernel comes back" } else { next };
                let undo = undo.to_string();
                Unfinished { error: VfError::NotUndone { error: Box::new(error), next, undo }, is_late }
            }
        })
    }

    /// Whether somebody uses VFs that came to a PF this moment: those of a change of ours nobody knows yet.
    fn has_new_user(&self, pf: PciAddress) -> bool {
        self.look();
        self.nobody_holds(pf, HostVfs::Kept).is_err()
    }

    fn autoprobe(&self, pf: PciAddress, resize: &Resize) -> Result<(), StepError> {
        // Off, it would surprise whoever binds a driver by hand.
        self.executor().apply(&[Step::Autoprobe { pf, on: resize.autoprobe }])
    }

    /// Makes the VFs again that were there before a change, and binds them to the drivers that they had.
    fn rebuild(&self, pf: PciAddress, resize: &Resize) -> Result<(), StepError> {
        let there = self.executor().sysfs.virtfns(pf).len() as u32;
        self.executor().apply(&steps(pf, there, resize.from))?;
        for (index, function) in self.executor().sysfs.virtfns(pf) {
            let wanted = resize.drivers.get(&index).map(String::as_str);
            if self.executor().sysfs.driver(function).as_deref() != wanted
                && let Binding::To(driver) = Binding::to(wanted)
            {
                let reserve = |driver| Step::Override { function, driver };
                let steps =
                    [reserve(Some(driver.clone())), Step::Probe { function, driver: Some(driver) }, reserve(None)];
                self.executor().apply(&steps)?;
            }
        }
        Ok(())
    }

    /// Finishes a change that was interrupted, or goes back: it was allowed when it began, but not to take VFs from whoever came to
    /// use them since. One that the kernel is late with again is kept for later.
    pub(super) fn finish_resize(&self, pf: PciAddress, resize: &Resize) -> Result<(), VfError> {
        let there = match self.executor().sysfs.read_virtfns(pf) {
            Ok(there) => there.len() as u32,
            Err(error) => {
                warn!(%pf, %error, "which VFs it has cannot be asked; a change of its number is finished later");
                return Ok(());
            }
        };
        let host = if resize.force { HostVfs::Taken } else { HostVfs::Kept };
        let steps = steps(pf, there, resize.to);
        let free = if steps.is_empty() { Ok(()) } else { self.nobody_holds(pf, host) };
        let finished = match free {
            Ok(()) => {
                let noted = || self.note_resized(pf, resize).map_err(|error| Unfinished { error, is_late: false });
                self.change_number(pf, resize, &steps).and_then(|()| noted())
            }
            // The VFs that are there stay.
            Err(error) => {
                let is_late = self.autoprobe(pf, resize).is_err_and(|error| error.stuck);
                Err(Unfinished { is_late: is_late || is_late_answer(&error), error })
            }
        };
        self.look();
        if let Err(Unfinished { error, is_late }) = finished {
            warn!(%pf, %error, is_late, "a change of its number of VFs was interrupted and could not be finished");
            if is_late {
                return Ok(());
            }
        }
        if self.is_closing() {
            // What was not waited for is finished by the next start.
            return Ok(());
        }
        self.record(&Record::Resize { pf, resize: None })
    }
}

/// Why the number of VFs is not what was wanted.
struct Unfinished {
    error: VfError,
    /// The kernel has not come back, and whether drivers are looked for is not what it was.
    is_late: bool,
}

impl Unfinished {
    fn of(error: StepError) -> Self {
        Self { is_late: error.stuck, error: VfError::Step(error) }
    }
}

/// Whether VFs that are there after a refusal are not of the change: those of before, or somebody's who was quicker (the kernel
/// says EBUSY to another number than none).
fn leaves_vfs(refused: &StepError) -> bool {
    match (&refused.step, refused.errno) {
        (_, None) => false,
        (Step::Count { count, .. }, Some(errno)) => *count == 0 || errno == Errno::EBUSY,
        _ => true,
    }
}

fn is_late_answer(error: &VfError) -> bool {
    matches!(error, VfError::Ask { error: CallError::Late { .. } | CallError::Before { .. }, .. })
}

fn steps(pf: PciAddress, from: u32, to: u32) -> Vec<Step> {
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

/// So often it is looked again at which VFs a PF has: somebody else may be making them.
const LOOKS: usize = 3;
/// And after so long.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
