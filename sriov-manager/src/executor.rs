//! Does the steps of a plan, reads back after each, and says what went wrong and the cure.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::slice;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use thiserror::Error;
use tracing::{debug, warn};

use crate::address::{PciAddress, VFIO_PCI, is_userspace_driver};
use crate::attributes::{Mac, VfChange, VfReport};
use crate::inventory::VirtualFunction;
use crate::journal::Record;
use crate::kernel::{Interface, PfReport};
use crate::plan::{Current, Step};
use crate::sysfs::Sysfs;
use crate::watchdog::{CallError, Watchdog};

/// What touches the node.
#[derive(Clone)]
pub struct Executor {
    /// The tree.
    pub sysfs: Sysfs,
    /// How the kernel is called.
    pub watchdog: Watchdog,
    /// How long anything may take.
    pub timeouts: Timeouts,
    /// Who is told of every step: tests, which stop there.
    pub observer: Option<Observer>,
}

/// How long anything may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// One call into the kernel.
    pub call: Duration,
    /// A change of the number of VFs.
    pub count: Duration,
    /// A link or an interface that appears after the call that makes it.
    pub appear: Duration,
    /// A VF in reset, of which its PF says so.
    pub settle: Duration,
    /// Another operation on the same VF.
    pub busy: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(15),
            // A PF with 64 VFs was seen to take 22 s, and a VF of a NIC in fault takes 120 s alone.
            count: Duration::from_mins(2),
            appear: Duration::from_secs(10),
            settle: Duration::from_secs(5),
            busy: Duration::from_secs(30),
        }
    }
}

/// Is told of every point at which a kill would leave something half done.
pub type Observer = Arc<dyn Fn(&Point<'_>) + Send + Sync>;

/// A point between two things that last.
#[derive(Clone, Copy, Debug)]
pub enum Point<'a> {
    /// The journal has the record.
    Recorded(&'a Record),
    /// The step comes next.
    Before(&'a Step),
    /// The step was done or refused.
    After(&'a Step),
}

impl Executor {
    /// Does the steps in order, up to the first that fails.
    pub fn apply(&self, steps: &[Step]) -> Result<(), StepError> {
        for step in steps {
            self.observe(Point::Before(step));
            let began = Instant::now();
            let result = self.perform(step);
            self.observe(Point::After(step));
            debug!(%step, milliseconds = began.elapsed().as_millis(), done = result.is_ok());
            result?;
        }
        Ok(())
    }

    /// Does steps that only tell a PF something, through the interface that it had a moment ago, and asks it in the same call what it
    /// says after the last of them; none: it did not answer that, or not at once.
    pub fn tell(&self, steps: &[Step], interface: Interface) -> Result<Option<PfReport>, StepError> {
        let mut report = None;
        for (number, step) in steps.iter().enumerate() {
            let Step::Set { function, index, change, .. } = *step else {
                self.apply(slice::from_ref(step))?;
                continue;
            };
            let is_last = number + 1 == steps.len();
            self.observe(Point::Before(step));
            let told = self.watchdog.call(step, &[function], self.timeouts.call, move |kernel| {
                kernel.set_vf(interface, index, change)?;
                Ok(is_last.then(|| kernel.pf_report(interface).ok()).flatten())
            });
            let done = match told {
                Ok(told) => {
                    report = told;
                    Ok(())
                }
                // It is in reset, or has another interface by now.
                Err(CallError::Refused(refusal)) if NOT_NOW.contains(&refusal.errno) => self.perform(step),
                Err(error) => {
                    let cure = set_cure(change, error.errno());
                    Err(StepError::new(step, error, cure))
                }
            };
            self.observe(Point::After(step));
            debug!(%step, done = done.is_ok());
            done?;
        }
        Ok(report)
    }

    /// Does as many of the steps as can be done, for a way back: what is refused is told in the end. A function that stays
    /// on its driver, or that the kernel is stuck with, is left alone from there on.
    pub fn apply_all(&self, steps: &[Step]) -> Vec<StepError> {
        let mut errors = Vec::new();
        for step in steps {
            let Err(error) = self.apply(slice::from_ref(step)) else { continue };
            let is_over = error.stuck || matches!(step, Step::Unbind { .. });
            errors.push(error);
            if is_over {
                break;
            }
        }
        errors
    }

    /// Tells the observer.
    pub fn observe(&self, point: Point<'_>) {
        if let Some(observer) = &self.observer {
            observer(&point);
        }
    }

    /// A VF as it is now. A PF that does not tell of it, because the VF is in reset say, is asked again for a while.
    pub fn current(&self, vf: &VirtualFunction) -> Result<Current, CallError> {
        let deadline = Instant::now() + self.timeouts.settle;
        loop {
            let current = self.current_at_once(vf)?;
            if !matches!(current.report, VfReport::LeftOut(_) | VfReport::Untold(_)) || self.is_over(deadline) {
                return Ok(current);
            }
            sleep(POLL);
        }
    }

    /// A VF as it is now; its PF is asked once.
    pub fn current_at_once(&self, vf: &VirtualFunction) -> Result<Current, CallError> {
        let VirtualFunction { address, index, .. } = *vf;
        let began = Instant::now();
        let Asked { report, interface, permanent_mac, made_from } = self.report(vf)?;
        debug!(microseconds = began.elapsed().as_micros(), "asked the PF");
        // What cannot be asked is not "none": a VF would be taken for unbound.
        let seen = || -> io::Result<_> {
            let vfs = vf.group_with.iter().filter(|member| self.sysfs.physfn(**member).is_some());
            let members = vfs.map(|&member| Ok((member, self.sysfs.read_driver(member)?)));
            let netdev = self.sysfs.read_netdevs(address)?.into_iter().next();
            Ok((self.sysfs.read_driver(address)?, netdev, members.collect::<io::Result<BTreeMap<_, _>>>()?))
        };
        let (driver, netdev, members) = seen().map_err(|error| CallError::Refused(error.into()))?;
        Ok(Current {
            vf: address,
            pf: vf.pf,
            index,
            driver,
            report,
            derived_mac: made_from.map(|mac| mac.derived(index)),
            card: permanent_mac,
            mtu: netdev.and_then(|netdev| self.sysfs.mtu(address, &netdev)),
            interface,
            members,
        })
    }

    /// The address that a PF was made with; none: it does not tell now.
    pub fn permanent_mac(&self, pf: PciAddress) -> Option<Mac> {
        let (netdev, interface) = self.sysfs.interface(pf)?;
        let what = format!("ask {netdev} about itself");
        let asked = self.watchdog.call(&what, &[pf], self.timeouts.call, move |kernel| kernel.pf_report(interface));
        asked.ok()?.permanent_mac
    }

    /// What the PF says of a VF and of itself.
    fn report(&self, vf: &VirtualFunction) -> Result<Asked, CallError> {
        let nothing = |report, interface| Asked { report, interface, permanent_mac: None, made_from: None };
        let (netdev, interface) = match self.sysfs.read_interface(vf.pf) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(nothing(VfReport::NoInterface, None)),
            Err(error) => {
                let why = format!("look for the interface of {}: {error}", vf.pf);
                return Ok(nothing(VfReport::Untold(why), None));
            }
        };
        let what = format!("ask {netdev} about its VFs");
        let asked =
            self.watchdog.call(&what, &[vf.address], self.timeouts.call, move |kernel| kernel.pf_report(interface));
        Ok(match asked {
            Ok(mut report) => {
                let state = report.vfs.remove(&vf.index).map(VfReport::Told);
                let left_out =
                    || VfReport::LeftOut(format!("{netdev} left it out, as it does while the VF is in reset"));
                Asked {
                    report: state.unwrap_or_else(left_out),
                    interface: Some(interface),
                    permanent_mac: report.permanent_mac,
                    made_from: report.permanent_mac.or_else(|| self.sysfs.mac(vf.pf, &netdev)),
                }
            }
            Err(CallError::Refused(refusal)) => {
                nothing(VfReport::Untold(format!("{what}: {refusal}")), Some(interface))
            }
            Err(stuck) => return Err(stuck),
        })
    }

    fn perform(&self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::Unbind { function, driver } => self.unbind(step, *function, driver),
            Step::Reset { function } => self.reset(step, *function),
            Step::Override { function, driver } => self.reserve(step, *function, driver.as_deref()),
            Step::Probe { function, driver } => self.probe(step, *function, driver.as_deref()),
            Step::Set { function, pf, index, change } => self.set(step, *function, *pf, *index, *change),
            Step::ClearMac { function, pf, index, instead } => self.clear_mac(step, *function, *pf, *index, *instead),
            Step::Mtu { function, mtu } => self.mtu(step, *function, *mtu),
            Step::Autoprobe { pf, on } => {
                let value = if *on { "1" } else { "0" };
                let file = self.sysfs.file(*pf, "sriov_drivers_autoprobe");
                self.write(step, &[*pf], file, value).map_err(|error| StepError::new(step, error, SEE_LOG))
            }
            Step::Count { pf, count } => self.count(step, *pf, *count),
        }
    }

    fn write(&self, step: &Step, about: &[PciAddress], file: std::path::PathBuf, value: &str) -> Result<(), CallError> {
        let timeout = if matches!(step, Step::Count { .. }) { self.timeouts.count } else { self.timeouts.call };
        let value = value.to_owned();
        self.watchdog.call(step, about, timeout, move |kernel| kernel.write(&file, &value))
    }

    fn unbind(&self, step: &Step, function: PciAddress, driver: &str) -> Result<(), StepError> {
        match self.write(step, &[function], self.sysfs.unbind_file(driver), &function.to_string()) {
            Ok(()) => {}
            // It is what we wanted, if it is not bound to another one by now.
            Err(error)
                if error.errno() == Some(Errno::ENODEV) && matches!(self.sysfs.read_driver(function), Ok(None)) => {}
            Err(error @ CallError::Late { .. }) => return Err(StepError::new(step, error, CURE_UNBIND)),
            Err(error) => return Err(StepError::new(step, error, SEE_LOG)),
        }
        let driver = self.sysfs.read_driver(function);
        match driver.map_err(|error| StepError::new(step, unknown_driver(&error), SEE_LOG))? {
            None => Ok(()),
            Some(driver) => Err(StepError::new(step, format!("it is bound to {driver} all the same"), SEE_LOG)),
        }
    }

    fn reset(&self, step: &Step, function: PciAddress) -> Result<(), StepError> {
        let file = self.sysfs.file(function, "reset");
        let unable = [Errno::ENOTTY, Errno::EINVAL, Errno::EOPNOTSUPP, Errno::ENOENT];
        match self.write(step, &[function], file, "1") {
            Err(error) if error.errno().is_some_and(|errno| unable.contains(&errno)) => {
                warn!(vf = %function, "it cannot be reset alone, and goes on with what its last user left in it");
                Ok(())
            }
            other => other.map_err(|error| StepError::new(step, error, SEE_LOG)),
        }
    }

    fn reserve(&self, step: &Step, function: PciAddress, driver: Option<&str>) -> Result<(), StepError> {
        // An empty line clears it.
        let value = format!("{}\n", driver.unwrap_or_default());
        self.write(step, &[function], self.sysfs.file(function, "driver_override"), &value)
            .map_err(|error| StepError::new(step, error, SEE_LOG))
    }

    fn probe(&self, step: &Step, function: PciAddress, wanted: Option<&str>) -> Result<(), StepError> {
        let result = self.write(step, &[function], self.sysfs.probe_file(), &function.to_string());
        if let Err(error) = result {
            let cure = self.probe_cure(function, wanted, error.errno());
            return Err(StepError::new(step, error, cure));
        }
        // The kernel calls it a success when no driver took it.
        let bound = self.appears(|| self.sysfs.driver(function), self.probe_timeout());
        let right = match (&bound, wanted) {
            (Some(bound), Some(wanted)) => bound == wanted,
            (Some(bound), None) => !is_userspace_driver(bound),
            (None, _) => false,
        };
        if !right {
            let problem =
                bound.map_or_else(|| "no driver took it".to_owned(), |bound| format!("it is bound to {bound} instead"));
            return Err(StepError::new(step, problem, self.probe_cure(function, wanted, None)));
        }
        let is_interface = !wanted.is_some_and(is_userspace_driver);
        let interface = || self.sysfs.netdevs(function).into_iter().next();
        if is_interface && self.appears(interface, self.timeouts.appear).is_none() {
            let problem = format!("no network interface appeared within {:?}", self.timeouts.appear);
            return Err(StepError::new(step, problem, SEE_LOG));
        }
        Ok(())
    }

    /// The kernel binds before it answers; only drivers that ask for it start later.
    fn probe_timeout(&self) -> Duration {
        self.timeouts.appear.min(Duration::from_secs(1))
    }

    fn probe_cure(&self, function: PciAddress, wanted: Option<&str>, errno: Option<Errno>) -> String {
        match wanted {
            Some(driver) if !self.sysfs.has_driver(driver) => {
                format!("the driver {driver} is not loaded: `modprobe {driver}`")
            }
            Some(VFIO_PCI) if matches!(self.sysfs.read_iommu_group(function), Ok(None)) => {
                "there is no IOMMU: turn it on (kernel \
                arguments `intel_iommu=on iommu=pt`), or for trials `enable_unsafe_noiommu_mode=1` of the module vfio"
                    .to_owned()
            }
            None if errno == Some(Errno::ENODEV) => "with `sriov_drivers_autoprobe` off only a named driver binds: \
                name it in the policies as `kernel_driver`"
                .to_owned(),
            _ => SEE_LOG.to_owned(),
        }
    }

    fn set(
        &self,
        step: &Step,
        function: PciAddress,
        pf: PciAddress,
        index: u32,
        change: VfChange,
    ) -> Result<(), StepError> {
        let deadline = Instant::now() + self.timeouts.settle;
        loop {
            // Looked for each time: an interface can be renamed, and another one can have its name.
            let found = self.sysfs.read_interface(pf);
            let found = found.map_err(|error| StepError::new(step, unknown_interface(&error), SEE_LOG))?;
            let Some((_, interface)) = found else {
                return Err(StepError::new(step, "the PF has no interface here", CURE_INTERFACE));
            };
            let result = self
                .watchdog
                .call(step, &[function], self.timeouts.call, move |kernel| kernel.set_vf(interface, index, change));
            let Err(error) = result else { return Ok(()) };
            // Drivers refuse while the VF is in reset, and say so in one of these ways.
            let is_busy = matches!(error.errno(), Some(Errno::EAGAIN | Errno::EBUSY));
            if is_busy && !self.is_over(deadline) {
                sleep(POLL);
                continue;
            }
            let cure = set_cure(change, error.errno());
            return Err(StepError::new(step, error, cure));
        }
    }

    /// qede, cxgb4 and otx2 refuse zeros: there an address that nobody chose says the same.
    fn clear_mac(
        &self,
        step: &Step,
        function: PciAddress,
        pf: PciAddress,
        index: u32,
        instead: Option<Mac>,
    ) -> Result<(), StepError> {
        match (self.set(step, function, pf, index, VfChange::Mac(Mac::default())), instead) {
            (Err(error), Some(instead)) if error.is_final() => {
                debug!(vf = %function, %error, mac = %instead, "an address of nobody takes the place of none");
                self.set(step, function, pf, index, VfChange::Mac(instead))
            }
            (result, _) => result,
        }
    }

    fn mtu(&self, step: &Step, function: PciAddress, mtu: u32) -> Result<(), StepError> {
        let found = self.sysfs.read_interface(function);
        let found = found.map_err(|error| StepError::new(step, unknown_interface(&error), SEE_LOG))?;
        let Some((_, interface)) = found else {
            return Err(StepError::new(step, "it has no interface here", "an MTU needs the driver `kernel`"));
        };
        let what = step.clone();
        self.watchdog
            .call(&what, &[function], self.timeouts.call, move |kernel| kernel.set_mtu(interface, mtu))
            .map_err(|error| StepError::new(step, error, "the MTU of a VF is limited by its driver and its PF"))
    }

    fn count(&self, step: &Step, pf: PciAddress, count: u32) -> Result<(), StepError> {
        let before = self.sysfs.virtfns(pf);
        let about: Vec<_> = before.values().copied().chain([pf]).collect();
        let file = self.sysfs.file(pf, "sriov_numvfs");
        if let Err(error) = self.write(step, &about, file, &count.to_string()) {
            let cure = match error.errno() {
                Some(Errno::ENOENT) => "the PF has no driver, or one that cannot do SR-IOV: bind it to its driver",
                Some(Errno::ERANGE) => "`sriov_totalvfs` is the most that the PF offers",
                Some(Errno::ENOMEM) => {
                    "no address space or bus numbers for them: kernel argument `pci=realloc`, or a setting of the firmware"
                }
                Some(Errno::EBUSY) => CURE_COUNTED,
                _ => SEE_LOG,
            };
            return Err(StepError::new(step, error, cure));
        }
        // A driver may enable fewer and call it a success.
        let complete = || {
            let vfs = self.sysfs.virtfns(pf);
            let linked = vfs.values().all(|&vf| self.sysfs.physfn(vf) == Some(pf));
            (linked && vfs.len() == count as usize).then_some(())
        };
        if self.appears(complete, self.timeouts.appear).is_none() {
            let there = self.sysfs.virtfns(pf).len();
            // A driver makes fewer and never more: somebody else was at work as well.
            let errno = (there > count as usize).then_some(Errno::EBUSY);
            let cure = if errno.is_some() { CURE_COUNTED } else { SEE_LOG };
            return Err(StepError { errno, ..StepError::new(step, format!("there are {there}"), cure) });
        }
        Ok(())
    }

    /// Looks again and again until something is there.
    pub fn appears<T>(&self, look: impl Fn() -> Option<T>, timeout: Duration) -> Option<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let found = look();
            if found.is_some() || self.is_over(deadline) {
                return found;
            }
            sleep(POLL);
        }
    }

    /// Nothing is waited for beyond its deadline, nor by a manager that stops.
    fn is_over(&self, deadline: Instant) -> bool {
        Instant::now() >= deadline || self.watchdog.is_stopping()
    }
}

/// What a PF says that may take the same a moment later, or through another interface.
const NOT_NOW: [Errno; 3] = [Errno::EAGAIN, Errno::EBUSY, Errno::ENODEV];

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("sysfs", &self.sysfs).finish_non_exhaustive()
    }
}

/// What a PF answered.
struct Asked {
    /// About the VF.
    report: VfReport,
    /// Through which interface it was asked.
    interface: Option<Interface>,
    /// The address that the PF was made with.
    permanent_mac: Option<Mac>,
    /// The address that those of its VFs are made from.
    made_from: Option<Mac>,
}

/// A step that failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{step}: {problem}; {cure}")]
pub struct StepError {
    /// What was tried, on what.
    pub step: Step,
    /// Why not.
    pub problem: String,
    /// What to do.
    pub cure: String,
    /// What the kernel said.
    pub errno: Option<Errno>,
    /// Whether it, or one before it, has not come back.
    pub stuck: bool,
}

impl StepError {
    /// Whether the same again would be refused again, as far as anybody knows.
    pub fn is_final(&self) -> bool {
        !self.stuck && !matches!(self.errno, Some(Errno::EAGAIN | Errno::EBUSY | Errno::ENODEV | Errno::ENOENT))
    }

    fn new(step: &Step, problem: impl Into<Problem>, cure: impl Into<String>) -> Self {
        let Problem { text, errno, stuck } = problem.into();
        let cure = if stuck { CURE_UNBIND.to_owned() } else { cure.into() };
        Self { step: step.clone(), problem: text, cure, errno, stuck }
    }
}

fn unknown_driver(error: &io::Error) -> Problem {
    cannot_be_asked("its driver", error)
}

fn unknown_interface(error: &io::Error) -> Problem {
    cannot_be_asked("the interface", error)
}

/// It may be asked the next time, so that nothing is final.
fn cannot_be_asked(what: &str, error: &io::Error) -> Problem {
    Problem { text: format!("look for {what}: {error}"), errno: Some(Errno::EAGAIN), stuck: false }
}

/// What to do about a refusal of the PF's driver.
fn set_cure(change: VfChange, errno: Option<Errno>) -> &'static str {
    match (errno, change) {
        (Some(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT), _) => {
            "the driver of the PF cannot do that: ask for the VF without it"
        }
        (Some(Errno::EINVAL | Errno::EADDRNOTAVAIL), VfChange::Mac(mac)) if mac.is_zero() => {
            "the driver of the PF takes no zeros for an address, so the VF keeps one"
        }
        (Some(Errno::EINVAL | Errno::EADDRNOTAVAIL), VfChange::Mac(_)) => {
            "the driver of the PF does not take this address: choose another"
        }
        (Some(Errno::EINVAL), VfChange::Rate(_)) => {
            "the driver of the PF refuses this rate: it needs a link that is up, and less than its speed"
        }
        (Some(Errno::EINVAL), _) => "the driver of the PF refuses this value",
        (Some(Errno::EPERM), _) => {
            "CAP_NET_ADMIN is needed; or the PF's driver forbids it, as some do for a VF that is not trusted"
        }
        (Some(Errno::EAGAIN | Errno::EBUSY), _) => "the VF is still in reset: ask again, or see the kernel's log",
        _ => SEE_LOG,
    }
}

struct Problem {
    text: String,
    errno: Option<Errno>,
    stuck: bool,
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        let stuck = !matches!(error, CallError::Refused(_));
        let text = match &error {
            // The step is named already.
            CallError::Late { seconds, .. } => format!("it has not come back after {seconds} s"),
            other => other.to_string(),
        };
        Self { text, errno: error.errno(), stuck }
    }
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self { text, errno: None, stuck: false }
    }
}

impl From<&str> for Problem {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), errno: None, stuck: false }
    }
}

/// How often something is looked for that has no event.
const POLL: Duration = Duration::from_millis(5);
const SEE_LOG: &str = "the kernel's log (`dmesg`) says more";
const CURE_COUNTED: &str = "somebody else changed the number meanwhile: look with `ferrule vf list`, ask again";
/// What lets a PF be asked.
pub(crate) const CURE_INTERFACE: &str = "bring its interface back into this network namespace (`ip -n NAMESPACE link set NAME netns 1`): VFs are set through it";
/// What ends a call that hangs in the kernel.
pub(crate) const CURE_UNBIND: &str =
    "a process may hold the device (`ls -l /proc/*/fd | grep vfio`): end it, and the VF comes back by itself";
