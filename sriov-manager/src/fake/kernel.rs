//! The kernel of a made-up node: what it does on a write, and with which error it refuses.

use std::collections::BTreeMap;
use std::fs;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

use ferrule_ffi::netlink::NetlinkError;
use nix::errno::Errno;

use super::tree::{VF_DEVICE, link, make, netdev_name, put, vf_address, vf_group};
use super::{FakeKernel, FakeState, Scenario};
use crate::address::{PciAddress, VFIO_PCI, is_userspace_driver};
use crate::attributes::{Mac, VfChange, VfState};
use crate::holders::processes;
use crate::kernel::{EswitchMode, ForeignNetdev, Interface, Kernel, PfReport};

impl Kernel for FakeKernel {
    fn write(&self, file: &Path, value: &str) -> Result<(), NetlinkError> {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let value = value.trim();
        match name.as_str() {
            "unbind" => self.hang(Scenario::UnbindHangs),
            "sriov_numvfs" => self.hang(Scenario::CountHangs),
            _ => {}
        }
        let device = || {
            let parent = file.parent().and_then(|parent| parent.file_name()?.to_str()?.parse().ok());
            parent.ok_or(refusal(Errno::ENOENT))
        };
        let address = || value.parse().map_err(|_| refusal(Errno::ENODEV));
        let result = match name.as_str() {
            "sriov_numvfs" => self.set_count(device()?, value),
            "sriov_drivers_autoprobe" | "driver_override" => self.put_text(device()?, &name, value),
            "reset" => self.reset(device()?),
            "drivers_probe" => self.probe(address()?),
            "unbind" => {
                let driver = file.parent().and_then(|parent| parent.file_name()?.to_str()).unwrap_or_default();
                self.unbind(driver, address()?)
            }
            _ => Err(refusal(Errno::ENOENT)),
        };
        if result.is_ok() {
            let path = file.strip_prefix(self.sysfs.path("")).unwrap_or(file).display().to_string();
            self.state().log.push(format!("{path} {value}"));
        }
        result
    }

    fn pf_report(&self, pf: Interface) -> Result<PfReport, NetlinkError> {
        self.hang(Scenario::ReportHangs);
        let pf = self.device_of(pf)?;
        let state = self.state();
        let refused = state.scenarios.iter().find_map(|scenario| match scenario {
            Scenario::ReportRefused(errno) => Some(*errno),
            _ => None,
        });
        if let Some(errno) = refused {
            return Err(refusal(Errno::from_raw(errno)));
        }
        let is_left_out = |index: &u32| state.scenarios.contains(&Scenario::LeftOut(*index));
        let vfs: BTreeMap<_, _> = self.vfs_of(pf).filter(|(index, _)| !is_left_out(index)).collect();
        let guids = vfs.iter().filter_map(|(&index, vf)| Some((index, *state.guids.get(vf)?))).collect();
        let vfs =
            vfs.into_iter().map(|(index, vf)| (index, state.states.get(&vf).cloned().unwrap_or_default())).collect();
        Ok(PfReport { permanent_mac: state.permanent.get(&pf).copied(), device: Some(pf.to_string()), vfs, guids })
    }

    fn set_vf(&self, pf: Interface, index: u32, change: VfChange) -> Result<(), NetlinkError> {
        let pf = self.device_of(pf)?;
        if !self.sysfs.file(pf, &format!("virtfn{index}")).is_symlink() {
            return Err(refusal(Errno::EINVAL));
        }
        let vf = vf_address(pf, index);
        let mut state = self.state();
        let again = state.scenarios.iter().find_map(|scenario| match scenario {
            Scenario::SettingAgain(left) => Some(*left),
            _ => None,
        });
        if let Some(left) = again {
            state.scenarios.remove(&Scenario::SettingAgain(left));
            if left > 1 {
                state.scenarios.insert(Scenario::SettingAgain(left - 1));
            }
            // ice says the latter.
            return Err(refusal(if left % 2 == 0 { Errno::EAGAIN } else { Errno::EBUSY }));
        }
        let is_refused = match change {
            VfChange::Mac(mac) => {
                let refuses_zeros = state.scenarios.contains(&Scenario::ZeroMacRefused);
                state.scenarios.contains(&Scenario::MacRefused) || (refuses_zeros && mac.is_zero())
            }
            _ => false,
        };
        if is_refused {
            return Err(refusal(Errno::EINVAL));
        }
        if matches!(change, VfChange::LinkState(_)) && state.scenarios.contains(&Scenario::LinkStateUnsupported) {
            return Err(refusal(Errno::EOPNOTSUPP));
        }
        state.log.push(format!("{vf} {change}"));
        if state.scenarios.contains(&Scenario::SettingIgnored) {
            return Ok(());
        }
        state.states.entry(vf).or_default().change(change);
        Ok(())
    }

    fn set_mtu(&self, interface: Interface, mtu: u32) -> Result<(), NetlinkError> {
        let device = self.device_of(interface)?;
        let (netdev, _) = self.sysfs.interface(device).ok_or(refusal(Errno::ENODEV))?;
        put(&self.sysfs.file(device, "net").join(netdev).join("mtu"), &format!("{mtu}\n"));
        Ok(())
    }

    fn altnames(&self) -> Result<BTreeMap<String, Vec<String>>, NetlinkError> {
        self.hang(Scenario::AltnamesHang);
        if self.has(Scenario::AltnamesPanic) {
            // Without a word: to tell where it happened takes seconds on a busy machine.
            resume_unwind(Box::new(()));
        }
        Ok(self.state().altnames.clone())
    }

    fn eswitch_mode(&self, pf: PciAddress) -> Result<Option<EswitchMode>, NetlinkError> {
        Ok(self.state().eswitch_modes.get(&pf).copied())
    }

    fn host_uses(&self, interface: Interface) -> Result<Vec<String>, NetlinkError> {
        Ok(self.state().host_uses.get(&interface.index).cloned().unwrap_or_default())
    }

    fn is_vfio_open(&self, node: &Path) -> Result<Option<bool>, NetlinkError> {
        let refused = self.state().scenarios.iter().find_map(|scenario| match scenario {
            Scenario::VfioOpenRefused(errno) => Some(*errno),
            _ => None,
        });
        if let Some(errno) = refused {
            return Err(refusal(Errno::from_raw(errno)));
        }
        if self.state().hidden.contains(node) {
            return Ok(Some(true));
        }
        let shown = Path::new("/").join(node.strip_prefix(self.sysfs.path("")).unwrap_or(node));
        Ok(Some(!processes(&self.sysfs, &[shown])?.is_empty()))
    }

    fn foreign_netdevs(&self) -> Result<BTreeMap<PciAddress, ForeignNetdev>, NetlinkError> {
        let mut state = self.state();
        state.searches += 1;
        Ok(state.moved.clone())
    }

    fn foreign_netdev(&self, vf: PciAddress) -> Result<Option<ForeignNetdev>, NetlinkError> {
        self.state().searches += 1;
        if self.has(Scenario::NamespacesBusy) {
            return Err(refusal(Errno::EAGAIN));
        }
        if self.has(Scenario::NamespacesUnknown) {
            return Err(refusal(Errno::EACCES));
        }
        if self.has(Scenario::NetdevComesMeanwhile) {
            self.make_netdev(vf, &netdev_name(vf), Mac([2, 0, 0, 0, 0, 1]));
        }
        Ok(self.state().moved.get(&vf).cloned())
    }
}

impl FakeKernel {
    pub(super) fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, scenario: Scenario) -> bool {
        self.state().scenarios.contains(&scenario)
    }

    fn hang(&self, scenario: Scenario) {
        let mut state = self.state();
        while state.scenarios.contains(&scenario) {
            state = self.healed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The function that an interface is of, if it is the one that is meant.
    fn device_of(&self, interface: Interface) -> Result<PciAddress, NetlinkError> {
        let there = self.sysfs.interface(interface.device).filter(|(_, there)| there.index == interface.index);
        there.map(|_| interface.device).ok_or(refusal(Errno::ENODEV))
    }

    /// `sriov_numvfs_store` of drivers/pci/iov.c.
    fn set_count(&self, pf: PciAddress, value: &str) -> Result<(), NetlinkError> {
        let _counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let count: u32 = value.parse().map_err(|_| refusal(Errno::EINVAL))?;
        let total = self.sysfs.number(pf, "sriov_totalvfs").unwrap_or(0);
        let now = self.sysfs.virtfns(pf).len() as u32;
        if count > total {
            return Err(refusal(Errno::ERANGE));
        }
        if count == now {
            return Ok(());
        }
        if self.sysfs.driver(pf).is_none() {
            return Err(refusal(Errno::ENOENT));
        }
        if count == 0 {
            self.remove_vfs(pf);
            return Ok(());
        }
        if now != 0 {
            return Err(refusal(Errno::EBUSY));
        }
        let scenarios = self.state().scenarios.clone();
        let refused = scenarios.iter().find_map(|scenario| match scenario {
            Scenario::CountRefused(above, errno) if count > *above => Some(*errno),
            _ => None,
        });
        if let Some(errno) = refused {
            return Err(refusal(Errno::from_raw(errno)));
        }
        let made = scenarios.iter().fold(count, |made, scenario| match scenario {
            Scenario::CountAtMost(most) => made.min(*most),
            Scenario::CountOvertaken(others) => *others,
            _ => made,
        });
        for index in 0..made {
            self.make_vf(pf, index);
        }
        put(&self.sysfs.file(pf, "sriov_numvfs"), &format!("{made}\n"));
        Ok(())
    }

    /// The VFs of a PF. Where they are is known: no kernel reads hundreds of links to tell it, and what asks for it is measured.
    fn vfs_of(&self, pf: PciAddress) -> impl Iterator<Item = (u32, PciAddress)> {
        let entries = fs::read_dir(self.sysfs.file(pf, "")).into_iter().flatten().flatten();
        let index = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("virtfn")?.parse().ok();
        entries.filter_map(index).map(move |index| (index, vf_address(pf, index)))
    }

    fn make_vf(&self, pf: PciAddress, index: u32) {
        let vf = vf_address(pf, index);
        let (size, with_pf) = {
            let state = self.state();
            (state.group_size, state.pf_in_group)
        };
        let group = vf_group(pf, index / size);
        let vendor = self.sysfs.hex(pf, "vendor").unwrap_or_default();
        self.make_device(vf, [vendor, VF_DEVICE], group);
        put(&self.sysfs.file(vf, "reset"), "");
        link(&format!("../{pf}"), &self.sysfs.file(vf, "physfn"));
        link(&format!("../{vf}"), &self.sysfs.file(pf, &format!("virtfn{index}")));
        if with_pf {
            link(&format!("../../../../bus/pci/devices/{pf}"), &self.group(group).join("devices").join(pf.to_string()));
        }
        self.state().states.insert(vf, VfState { spoof_check: Some(true), trust: Some(false), ..Default::default() });
        if self.sysfs.text(pf, "sriov_drivers_autoprobe").as_deref() == Some("1") {
            let _ = self.probe(vf);
        }
    }

    pub(super) fn remove_vfs(&self, pf: PciAddress) {
        for (index, vf) in self.sysfs.virtfns(pf) {
            if let Some(group) = self.sysfs.iommu_group(vf) {
                let _ = fs::remove_dir_all(self.group(group));
            }
            self.remove_vf(pf, index, vf);
        }
        put(&self.sysfs.file(pf, "sriov_numvfs"), "0\n");
    }

    pub(super) fn remove_vf(&self, pf: PciAddress, index: u32, vf: PciAddress) {
        let _ = fs::remove_file(self.sysfs.file(pf, &format!("virtfn{index}")));
        if let Some(group) = self.sysfs.iommu_group(vf) {
            let _ = fs::remove_file(self.group(group).join("devices").join(vf.to_string()));
        }
        // Kept elsewhere, so that what comes to its place has another number, as in sysfs.
        let gone = self.sysfs.path("gone");
        make(&gone);
        let mut state = self.state();
        state.gone += 1;
        let _ = fs::rename(self.sysfs.file(vf, ""), gone.join(state.gone.to_string()));
        state.states.remove(&vf);
    }

    /// `drivers_probe_store` of drivers/base/bus.c with `pci_device_can_probe` of drivers/pci/pci-driver.c.
    fn probe(&self, function: PciAddress) -> Result<(), NetlinkError> {
        if !self.sysfs.exists(function) {
            return Err(refusal(Errno::ENODEV));
        }
        if self.sysfs.driver(function).is_some() || self.has(Scenario::NobodyProbes) {
            return Ok(());
        }
        let refused = self.state().scenarios.iter().find_map(|scenario| match scenario {
            Scenario::ProbeRefused(vf, errno) if *vf == function => Some(*errno),
            _ => None,
        });
        if let Some(errno) = refused {
            return Err(refusal(Errno::from_raw(errno)));
        }
        let reserved = self.sysfs.text(function, "driver_override").filter(|text| !text.is_empty());
        let Some(pf) = self.sysfs.physfn(function) else { return Ok(()) };
        let autoprobe = self.sysfs.text(pf, "sriov_drivers_autoprobe").as_deref() == Some("1");
        let driver = match reserved {
            Some(driver) => driver,
            None if autoprobe => "igbvf".to_owned(),
            None => return Err(refusal(Errno::ENODEV)),
        };
        if !self.sysfs.has_driver(&driver) {
            return Ok(());
        }
        // vfio-pci wants a group of which nothing else is in the kernel's executor when it is opened; binding needs one.
        if driver == VFIO_PCI && self.sysfs.iommu_group(function).is_none() {
            if !self.allows_noiommu() {
                return Err(refusal(Errno::EINVAL));
            }
            self.make_noiommu_group(function);
        }
        link(&format!("../../drivers/{driver}"), &self.sysfs.file(function, "driver"));
        if !is_userspace_driver(&driver) {
            let mut state = self.state();
            state.next_address = state.next_address.wrapping_add(1);
            let invented = Mac([0x0a, 0, 0, 0, 0, state.next_address]);
            let own = state.scenarios.contains(&Scenario::OwnAddress);
            let told = state.states.entry(function).or_default();
            let mac = if told.mac.is_zero() { invented } else { told.mac };
            if own {
                told.mac = mac;
            }
            drop(state);
            self.make_netdev(function, &netdev_name(function), mac);
        }
        Ok(())
    }

    /// `unbind_store` of drivers/base/bus.c.
    fn unbind(&self, driver: &str, function: PciAddress) -> Result<(), NetlinkError> {
        if self.sysfs.driver(function).as_deref() != Some(driver) {
            return Err(refusal(Errno::ENODEV));
        }
        let _ = fs::remove_file(self.sysfs.file(function, "driver"));
        let _ = fs::remove_dir_all(self.sysfs.file(function, "net"));
        if driver == VFIO_PCI {
            self.remove_noiommu_group(function);
        }
        self.state().moved.remove(&function);
        Ok(())
    }

    fn reset(&self, function: PciAddress) -> Result<(), NetlinkError> {
        if self.has(Scenario::ResetUnsupported) {
            Err(refusal(Errno::ENOTTY))
        } else {
            self.put_text(function, "reset", "")
        }
    }

    fn put_text(&self, function: PciAddress, file: &str, value: &str) -> Result<(), NetlinkError> {
        if !self.sysfs.exists(function) {
            return Err(refusal(Errno::ENOENT));
        }
        put(&self.sysfs.file(function, file), &format!("{value}\n"));
        Ok(())
    }
}

fn refusal(errno: Errno) -> NetlinkError {
    NetlinkError { errno, hint: None }
}
