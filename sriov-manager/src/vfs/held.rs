//! Who uses a VF now: processes, network namespaces, and the host itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferrule_ffi::netlink::NetlinkError;
use nix::errno::Errno;
use tracing::debug;

use super::{HostVfs, Reason, VfError, Vfs};
use crate::address::{PciAddress, is_userspace_driver};
use crate::holders::{self, Holder, HostUse};
use crate::inventory::VirtualFunction;
use crate::plan::Step;
use crate::watchdog::CallError;

impl Vfs {
    /// Who uses a VF now: processes by their open files, then namespaces.
    pub(super) fn holders(&self, vf: &VirtualFunction) -> Result<Vec<Holder>, CallError> {
        let executor = self.executor();
        let unknown = unknown(format!("look for the nodes of {}", vf.address));
        let (vf, nodes) = self.nodes(vf).map_err(&unknown)?;
        let mut holders = self.openers(vf.address, &nodes)?;
        let makes_interface = vf.function.driver.as_deref().is_some_and(|driver| !is_userspace_driver(driver));
        if holders.is_empty()
            && makes_interface
            && executor.sysfs.read_netdevs(vf.address).map_err(&unknown)?.is_empty()
        {
            holders.extend(self.interface_elsewhere(vf.address)?);
        }
        Ok(holders)
    }

    /// A VF as it is now, and the nodes through which a process may have it.
    fn nodes(&self, vf: &VirtualFunction) -> io::Result<(VirtualFunction, Vec<PathBuf>)> {
        let sysfs = &self.executor().sysfs;
        let mut vf = vf.clone();
        vf.function.driver = sysfs.read_driver(vf.address)?;
        vf.vfio_device = sysfs.vfio_device(vf.address)?;
        vf.function.iommu_group = sysfs.read_iommu_group(vf.address)?;
        let of_members = vf.group_with.iter().map(|&member| sysfs.read_driver(member));
        if vf.function.driver.is_none() && of_members.collect::<io::Result<Vec<_>>>()?.iter().all(Option::is_none) {
            // The kernel takes a driver away before it waits for whoever has the device open.
            let nodes = holders::group_nodes(&vf).filter(|node| self.is_there(node)).collect();
            return Ok((vf, nodes));
        }
        let nodes = holders::nodes(sysfs, &vf)?;
        Ok((vf, nodes))
    }

    /// Who has the interface of a VF that is in another network namespace, as far as it is known; none: it is not there, after all.
    fn interface_elsewhere(&self, vf: PciAddress) -> Result<Option<Holder>, CallError> {
        let executor = self.executor();
        // Its folder stays while it moves from one to another. Without one there is nothing to look for, which takes long.
        if !executor.sysfs.has_netdev_elsewhere(vf) {
            return Ok(None);
        }
        let what = format!("look for the interface of {vf} in other namespaces");
        let foreign =
            executor.watchdog.call(&what, &[vf], executor.timeouts.call, move |kernel| kernel.foreign_netdev(vf));
        match foreign {
            Ok(Some(foreign)) => return Ok(Some(Holder::of_namespace(&executor.sysfs, foreign))),
            // Where there is no interface at all, it does not matter what could not be looked at.
            Err(CallError::Refused(_)) if !executor.sysfs.has_netdev_elsewhere(vf) => return Ok(None),
            // Others come and go all the time: whether it is somewhere is asked below.
            Err(CallError::Refused(refusal)) if refusal.errno == Errno::EAGAIN => {}
            Err(error) => return Err(error),
            Ok(None) => {}
        }
        // One that is being made or removed is in no namespace for a moment, or came to another one behind the search.
        let is_settled = || (!executor.sysfs.has_netdev_elsewhere(vf)).then_some(());
        Ok(executor.appears(is_settled, NETDEV_SETTLES).is_none().then_some(Holder::UnseenNamespace))
    }

    /// VFs whose interfaces are in other namespaces, as far as that is known at once.
    pub(super) fn netdevs_elsewhere(&self) -> BTreeMap<PciAddress, Vec<Reason>> {
        let executor = self.executor();
        let asked =
            executor.watchdog.call(&"look for interfaces in other namespaces", &[], executor.timeouts.call, |kernel| {
                kernel.foreign_netdevs()
            });
        let held = |foreign| vec![Reason::Held(Holder::of_namespace(&executor.sysfs, foreign))];
        asked.unwrap_or_default().into_iter().map(|(vf, foreign)| (vf, held(foreign))).collect()
    }

    /// Who has one of the nodes of a VF open. The kernel says at once whether a VFIO group is; `/proc` says by whom.
    fn openers(&self, vf: PciAddress, nodes: &[PathBuf]) -> Result<Vec<Holder>, CallError> {
        let executor = self.executor();
        let mut open = None;
        // Others may be opened more than once, and the device is told of each time.
        let is_group = |node: &&PathBuf| node.starts_with("/dev/vfio") && !node.starts_with("/dev/vfio/devices");
        for node in nodes.iter().filter(is_group) {
            if let Some(is_open) = self.is_open(vf, node)? {
                open = Some((is_open, node));
                break;
            }
        }
        // A device that has a node of its own can be open without its group.
        let has_more = nodes.iter().any(|node| !node.starts_with("/dev/vfio") || node.starts_with("/dev/vfio/devices"));
        if matches!(open, Some((false, _))) && !has_more {
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let holders = holders::processes(&executor.sysfs, nodes);
        debug!(microseconds = began.elapsed().as_micros(), "looked for processes that hold it");
        match (open, holders) {
            // Somebody has it who cannot be named, or had it: a look of somebody else takes a moment.
            (Some((true, node)), holders) if holders.as_ref().map_or(true, Vec::is_empty) => {
                let unseen = || Holder::Unseen { file: node.display().to_string() };
                Ok(if self.is_open(vf, node)? == Some(false) { Vec::new() } else { vec![unseen()] })
            }
            (_, Ok(holders)) => Ok(holders),
            (_, Err(error)) => {
                let hint =
                    format!("look for processes that have {vf} open ({error}); `/proc` and CAP_SYS_PTRACE are needed");
                Err(CallError::Refused(NetlinkError { hint: Some(hint), ..error.into() }))
            }
        }
    }

    fn is_there(&self, node: &Path) -> bool {
        self.below_root(node).exists()
    }

    fn below_root(&self, node: &Path) -> PathBuf {
        self.executor().sysfs.path(&node.strip_prefix("/").unwrap_or(node).to_string_lossy())
    }

    /// Whether a group of VFIO is open; none: it is not there, or the kernel does not say.
    fn is_open(&self, vf: PciAddress, node: &Path) -> Result<Option<bool>, CallError> {
        let executor = self.executor();
        let below = self.below_root(node);
        let what = format!("open {}", node.display());
        let asked =
            executor.watchdog.call(&what, &[vf], executor.timeouts.call, move |kernel| kernel.is_vfio_open(&below));
        match asked {
            // Whoever takes that for "no" would have a VF taken from somebody whom `/proc` does not show.
            Err(CallError::Refused(refusal)) if !OUT_OF_SOMETHING.contains(&refusal.errno) => Ok(None),
            asked => asked,
        }
    }

    /// What the host itself does with the interface of a VF.
    pub(super) fn host_use(&self, vf: &VirtualFunction) -> Result<Option<HostUse>, CallError> {
        let executor = self.executor();
        let unknown = unknown(format!("look for the interface of {}", vf.address));
        let found = executor.sysfs.read_interface(vf.address).map_err(&unknown)?;
        let Some((netdev, interface)) = found else { return Ok(None) };
        let uppers = executor.sysfs.upper_netdevs(vf.address, &netdev).map_err(&unknown)?;
        let mut uses: Vec<_> = uppers.iter().map(|upper| format!("{upper} is made of it")).collect();
        let what = format!("ask what {netdev} is used for");
        let asked = executor
            .watchdog
            .call(&what, &[vf.address], executor.timeouts.call, move |kernel| kernel.host_uses(interface));
        match asked {
            Ok(more) => uses.extend(more),
            // It went away meanwhile, and with it what was made of it.
            Err(CallError::Refused(refusal)) if refusal.errno == Errno::ENODEV => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok((!uses.is_empty()).then_some(HostUse { netdev, uses }))
    }

    /// The first function among those that steps take from their drivers, or reset, that somebody uses, and who. What the host does with the
    /// interface of the VF that a lease is of is the lease's affair; what it does with those of others counts, unless it is taken.
    pub(super) fn disturbed(
        &self,
        vf: PciAddress,
        steps: &[Step],
        host: HostVfs,
    ) -> Result<Option<(PciAddress, FunctionUser)>, CallError> {
        let touched: BTreeSet<_> = steps.iter().filter_map(Step::disturbs).collect();
        for address in touched {
            // One that came since the last look is somebody's as well.
            let known = || self.lock().inventory.vfs.get(&address).cloned();
            let looked = || {
                self.look();
                known()
            };
            let Some(function) = known().or_else(looked) else { continue };
            if let Some(holder) = self.holders(&function)?.into_iter().next() {
                return Ok(Some((address, FunctionUser::Holder(holder))));
            }
            if address != vf
                && host == HostVfs::Kept
                && let Some(host_use) = self.host_use(&function)?
            {
                return Ok(Some((address, FunctionUser::Host(host_use))));
            }
        }
        Ok(None)
    }

    /// Nobody uses what steps take from their drivers on a way back.
    pub(super) fn nobody_is_disturbed(&self, vf: PciAddress, steps: &[Step], tried: &str) -> Result<(), VfError> {
        let ask = |error| VfError::Ask { tried: tried.to_owned(), error };
        match self.disturbed(vf, steps, HostVfs::Kept).map_err(ask)? {
            Some((vf, user)) => Err(user.in_the_way(tried, vf, false)),
            None => Ok(()),
        }
    }
}

/// Who uses a function.
pub(super) enum FunctionUser {
    /// A process, or a namespace.
    Holder(Holder),
    /// The host itself.
    Host(HostUse),
}

impl FunctionUser {
    /// Why a VF is not available: another one of its IOMMU group is in use.
    pub fn in_group(self, group: u32, vf: PciAddress) -> Reason {
        match self {
            Self::Holder(holder) => Reason::GroupHeld { group, vf, holder },
            Self::Host(host_use) => Reason::GroupUsedByHost { group, vf, host_use },
        }
    }

    /// Why something was not done. With `can_force` it is done all the same if somebody asks for that.
    pub fn in_the_way(self, tried: &str, vf: PciAddress, can_force: bool) -> VfError {
        let tried = tried.to_owned();
        match self {
            Self::Holder(holder) => VfError::Held { tried, vf, holder },
            Self::Host(host_use) => VfError::UsedByHost { tried, vf, host_use, can_force },
        }
    }
}

/// What cannot be asked is not "no".
fn unknown(what: String) -> impl Fn(io::Error) -> CallError {
    move |error| {
        let hint = format!("{what} ({error}); more descriptors or memory may be needed");
        CallError::Refused(NetlinkError { hint: Some(hint), ..error.into() })
    }
}

/// What is answered where the question itself could not be asked: no thread, no descriptor, no memory.
const OUT_OF_SOMETHING: [Errno; 4] = [Errno::EAGAIN, Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM];
/// An interface that is being made or removed is in no namespace for less than this.
const NETDEV_SETTLES: Duration = Duration::from_millis(200);
