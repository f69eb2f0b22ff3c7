//! A node made of files, with a kernel that behaves like the real one towards it: for tests of this crate and of
//! those that use it.
//!
//! What it does on a write, and with which error it refuses, is that of Linux 6.12: `drivers/pci/iov.c`,
//! `drivers/pci/pci-driver.c`, `drivers/base/bus.c`, `drivers/vfio/pci`. A [`Scenario`] makes it behave like hardware
//! or a driver in a mood.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrule_ffi::netlink::NetlinkError;
use nix::errno::Errno;
use tempfile::TempDir;

use crate::address::{PciAddress, VFIO_PCI};
use crate::attributes::{Mac, Setting, Settings};
use crate::hands::Timeouts;
use crate::kernel::{ForeignNetdev, Kernel};
use crate::policy::Policies;
use crate::sysfs::Sysfs;
use crate::vfs::{Options, Vfs};

/// How the kernel or a device behaves beside the rules that always hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// The driver of the PF refuses numbers of VFs above the first value, with the second as the error.
    CountRefused(u32, i32),
    /// The driver of the PF makes no more VFs than this, and calls it a success.
    CountAtMost(u32),
    /// No driver takes a VF, and the kernel calls it a success.
    NobodyProbes,
    /// The VF's function cannot be reset alone.
    ResetUnsupported,
    /// The PF's driver knows no link state.
    LinkStateUnsupported,
    /// The PF's driver says `still in reset` this many times.
    SettingAgain(u32),
    /// The PF's driver takes a setting and does nothing.
    SettingIgnored,
    /// The VF invents an address when the kernel's driver starts, as igbvf does without one of the PF.
    OwnAddress,
    /// Unbinding never comes back, until [`FakeNode::calm`].
    UnbindHangs,
}

/// A node in a temporary directory. It goes away when dropped.
pub struct FakeNode {
    directory: TempDir,
    kernel: Arc<FakeKernel>,
}

/// Its kernel.
pub struct FakeKernel {
    sysfs: Sysfs,
    state: Mutex<FakeState>,
    calmed: Condvar,
}

#[derive(Default)]
struct FakeState {
    scenarios: BTreeSet<Scenario>,
    settings: BTreeMap<PciAddress, Settings>,
    /// Namespaces that interfaces were moved to.
    moved: BTreeMap<PciAddress, ForeignNetdev>,
    /// VFs of one IOMMU group each unless told otherwise.
    group_size: u32,
    /// The PF is in the group of its VFs.
    pf_in_group: bool,
    next_address: u8,
    /// Writes and settings that were taken, as a log.
    log: Vec<String>,
}

impl FakeNode {
    /// A node with PFs `ens1f0`, `ens1f1` and so on, of `total_vfs` VFs each, and no VF.
    pub fn new(pfs: u8, total_vfs: u32) -> Self {
        let directory = TempDir::new().expect("a temporary directory can be made");
        let sysfs = Sysfs::new(directory.path());
        let node = Self {
            directory,
            kernel: Arc::new(FakeKernel {
                sysfs,
                state: Mutex::new(FakeState { group_size: 1, ..FakeState::default() }),
                calmed: Condvar::new(),
            }),
        };
        node.build(pfs, total_vfs).expect("a temporary directory can be filled");
        node
    }

    /// The tree.
    pub fn sysfs(&self) -> Sysfs {
        self.kernel.sysfs.clone()
    }

    /// The kernel.
    pub fn kernel(&self) -> Arc<FakeKernel> {
        Arc::clone(&self.kernel)
    }

    /// A directory for the state of a manager, beside the tree.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("var/lib/ferrule/vf")
    }

    /// A PF by its number.
    pub fn pf(&self, number: u8) -> PciAddress {
        PciAddress::new(0, PF_BUS + number, 0, 0)
    }

    /// A VF of a PF.
    pub fn vf(&self, pf: u8, index: u8) -> PciAddress {
        vf_address(PF_BUS + pf, u32::from(index))
    }

    /// How to own this node: with the patience of a test, which a busy machine must not exhaust.
    pub fn options(&self) -> Options {
        let patience = Timeouts {
            call: Duration::from_secs(5),
            count: Duration::from_secs(5),
            appear: Duration::from_millis(300),
            settle: Duration::from_millis(300),
            busy: Duration::from_secs(5),
        };
        Options {
            sysfs: self.sysfs(),
            kernel: self.kernel(),
            state: self.state(),
            policies: Policies::default(),
            patience,
            observer: None,
        }
    }

    /// Owns this node.
    pub fn open(&self) -> Vfs {
        Vfs::open(self.options()).expect("a made-up node can be owned")
    }

    /// From now on the node behaves so.
    pub fn set(&self, scenario: Scenario) {
        self.kernel.state().scenarios.insert(scenario);
    }

    /// The node behaves again, and what hung comes back.
    pub fn calm(&self) {
        self.kernel.state().scenarios.clear();
        self.kernel.calmed.notify_all();
    }

    /// VFs made from now on share IOMMU groups of this size.
    pub fn share_groups(&self, size: u32) {
        self.kernel.state().group_size = size.max(1);
    }

    /// VFs made from now on share their IOMMU group with their PF.
    pub fn put_pf_in_group(&self) {
        let mut state = self.kernel.state();
        state.pf_in_group = true;
        state.group_size = u32::MAX;
    }

    /// A NIC that is no VF, bound to `e1000e`, is in the IOMMU group of a VF.
    pub fn put_nic_in_group(&self, vf: PciAddress, nic: PciAddress) {
        let kernel = &self.kernel;
        kernel.make_device(nic, NIC_DEVICE, kernel.sysfs.iommu_group(vf).unwrap_or_default());
        link("../../drivers/e1000e", &kernel.sysfs.file(nic, "driver"));
    }

    /// A PF is driven by a driver of which nobody knows what drives its VFs.
    pub fn give_pf_an_odd_driver(&self, pf: PciAddress) {
        link("../../drivers/odd", &self.kernel.sysfs.file(pf, "driver"));
    }

    /// A process has the VFIO group of a VF open; it ends when the value is dropped.
    pub fn open_vfio(&self, vf: PciAddress, pid: u32, comm: &str) -> OpenFile {
        let group = self.kernel.sysfs.iommu_group(vf).unwrap_or_default();
        let directory = self.kernel.sysfs.path(&format!("proc/{pid}"));
        make(&directory.join("fd"));
        put(&directory.join("comm"), &format!("{comm}\n"));
        link(&format!("/dev/vfio/{group}"), &directory.join("fd/7"));
        OpenFile(directory)
    }

    /// The interface of a VF is in the network namespace of a process.
    pub fn move_netdev(&self, vf: PciAddress, pid: u32, comm: &str) {
        let directory = self.kernel.sysfs.path(&format!("proc/{pid}"));
        make(&directory);
        put(&directory.join("comm"), &format!("{comm}\n"));
        let netdev = self.kernel.sysfs.netdevs(vf).pop().unwrap_or_default();
        let _ = fs::remove_dir_all(self.kernel.sysfs.file(vf, "net"));
        let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
        self.kernel.state().moved.insert(vf, ForeignNetdev { netdev, namespace, pid: Some(pid) });
    }

    /// The interface of a VF comes back, as it does when a namespace ends.
    pub fn return_netdev(&self, vf: PciAddress) {
        if let Some(foreign) = self.kernel.state().moved.remove(&vf) {
            self.kernel.make_netdev(vf, &foreign.netdev, Mac([2, 0, 0, 0, 0, 1]));
        }
    }

    /// Everything about the node that must be the same after a lease as before it, in words.
    pub fn fingerprint(&self) -> String {
        let sysfs = &self.kernel.sysfs;
        let state = self.kernel.state();
        let mut out = Vec::new();
        for address in sysfs.devices().unwrap_or_default() {
            let mut settings = state.settings.get(&address).cloned();
            if let (Some(settings), true) = (&mut settings, state.scenarios.contains(&Scenario::OwnAddress)) {
                settings.mac = Mac::default();
            }
            let reserved = sysfs.text(address, "driver_override").unwrap_or_default();
            let autoprobe = sysfs.text(address, "sriov_drivers_autoprobe");
            out.push(format!(
                "{address} driver {:?} reserved {reserved:?} netdevs {:?} autoprobe {autoprobe:?} {settings:?}",
                sysfs.driver(address),
                sysfs.netdevs(address),
            ));
        }
        out.join("\n")
    }

    /// What was done so far, oldest first.
    pub fn log(&self) -> Vec<String> {
        self.kernel.state().log.clone()
    }

    /// The machine starts again: VFs are gone, settings and reservations with them.
    pub fn reboot(&self, boot: &str) {
        for number in 0..u8::MAX {
            let pf = self.pf(number);
            if !self.kernel.sysfs.exists(pf) {
                break;
            }
            self.kernel.remove_vfs(pf);
            put(&self.kernel.sysfs.file(pf, "sriov_drivers_autoprobe"), "1\n");
        }
        self.kernel.state().moved.clear();
        put(&self.kernel.sysfs.path("proc/sys/kernel/random/boot_id"), &format!("{boot}\n"));
    }

    fn build(&self, pfs: u8, total_vfs: u32) -> io::Result<()> {
        let sysfs = &self.kernel.sysfs;
        for driver in ["igb", "igbvf", VFIO_PCI] {
            fs::create_dir_all(sysfs.path(&format!("sys/bus/pci/drivers/{driver}")))?;
            fs::write(sysfs.unbind_file(driver), "")?;
        }
        fs::write(sysfs.probe_file(), "")?;
        fs::create_dir_all(sysfs.path("proc/sys/kernel/random"))?;
        fs::write(sysfs.path("proc/sys/kernel/random/boot_id"), "first\n")?;
        for number in 0..pfs {
            let pf = self.pf(number);
            self.kernel.make_device(pf, PF_DEVICE, u32::from(number));
            for (file, text) in [
                ("sriov_totalvfs", format!("{total_vfs}\n")),
                ("sriov_numvfs", "0\n".to_owned()),
                ("sriov_drivers_autoprobe", "1\n".to_owned()),
                ("sriov_vf_device", "10ca\n".to_owned()),
            ] {
                fs::write(sysfs.file(pf, file), text)?;
            }
            symlink("../../drivers/igb", sysfs.file(pf, "driver"))?;
            self.kernel.make_netdev(pf, &format!("ens{}f{number}", 1), Mac([0, 0, 0, 0, 1, number]));
        }
        Ok(())
    }
}

/// A file that a made-up process has open.
pub struct OpenFile(PathBuf);

impl Drop for OpenFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Kernel for FakeKernel {
    fn write(&self, file: &Path, value: &str) -> Result<(), NetlinkError> {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let value = value.trim();
        self.hang(&name);
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

    fn vf_settings(&self, pf: &str) -> Result<BTreeMap<u32, Settings>, NetlinkError> {
        let pf = self.pf_of(pf)?;
        let state = self.state();
        let settings = |(index, vf)| (index, state.settings.get(&vf).cloned().unwrap_or_default());
        Ok(self.sysfs.virtfns(pf).into_iter().map(settings).collect())
    }

    fn set_vf(&self, pf: &str, index: u32, setting: Setting) -> Result<(), NetlinkError> {
        let pf = self.pf_of(pf)?;
        let vf = *self.sysfs.virtfns(pf).get(&index).ok_or(refusal(Errno::EINVAL))?;
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
            return Err(refusal(Errno::EAGAIN));
        }
        if matches!(setting, Setting::LinkState(_)) && state.scenarios.contains(&Scenario::LinkStateUnsupported) {
            return Err(refusal(Errno::EOPNOTSUPP));
        }
        state.log.push(format!("{vf} {setting}"));
        if state.scenarios.contains(&Scenario::SettingIgnored) {
            return Ok(());
        }
        let settings = state.settings.entry(vf).or_default();
        match setting {
            Setting::Mac(mac) => settings.mac = mac,
            Setting::Vlan(vlan) => settings.vlan = vlan,
            Setting::Rate(rate) => settings.rate = Some(rate),
            Setting::SpoofCheck(on) => settings.spoof_check = Some(on),
            Setting::Trust(on) => settings.trust = Some(on),
            Setting::LinkState(state) => settings.link_state = Some(state),
        }
        Ok(())
    }

    fn set_mtu(&self, netdev: &str, mtu: u32) -> Result<(), NetlinkError> {
        for address in self.sysfs.devices()? {
            if self.sysfs.netdevs(address).iter().any(|there| there == netdev) {
                put(&self.sysfs.file(address, "net").join(netdev).join("mtu"), &format!("{mtu}\n"));
                return Ok(());
            }
        }
        Err(refusal(Errno::ENODEV))
    }

    fn foreign_netdev(&self, vf: PciAddress) -> Result<Option<ForeignNetdev>, NetlinkError> {
        Ok(self.state().moved.get(&vf).cloned())
    }
}

impl FakeKernel {
    fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, scenario: Scenario) -> bool {
        self.state().scenarios.contains(&scenario)
    }

    fn hang(&self, file: &str) {
        if file != "unbind" {
            return;
        }
        let mut state = self.state();
        while state.scenarios.contains(&Scenario::UnbindHangs) {
            state = self.calmed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pf_of(&self, netdev: &str) -> Result<PciAddress, NetlinkError> {
        let pf = self
            .sysfs
            .devices()?
            .into_iter()
            .find(|&address| self.sysfs.netdevs(address).iter().any(|there| there == netdev));
        pf.ok_or(refusal(Errno::ENODEV))
    }

    /// `sriov_numvfs_store` of drivers/pci/iov.c.
    fn set_count(&self, pf: PciAddress, value: &str) -> Result<(), NetlinkError> {
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
            _ => made,
        });
        for index in 0..made {
            self.make_vf(pf, index);
        }
        put(&self.sysfs.file(pf, "sriov_numvfs"), &format!("{made}\n"));
        Ok(())
    }

    fn make_vf(&self, pf: PciAddress, index: u32) {
        let bus = u8::from_str_radix(&pf.to_string()[5..7], 16).unwrap_or(PF_BUS);
        let vf = vf_address(bus, index);
        let (size, with_pf) = {
            let state = self.state();
            (state.group_size, state.pf_in_group)
        };
        let group = 100 * u32::from(bus) + index / size;
        self.make_device(vf, VF_DEVICE, group);
        put(&self.sysfs.file(vf, "reset"), "");
        link(&format!("../{pf}"), &self.sysfs.file(vf, "physfn"));
        link(&format!("../{vf}"), &self.sysfs.file(pf, &format!("virtfn{index}")));
        if with_pf {
            link(&format!("../../../../bus/pci/devices/{pf}"), &self.group(group).join("devices").join(pf.to_string()));
        }
        self.state()
            .settings
            .insert(vf, Settings { spoof_check: Some(true), trust: Some(false), ..Default::default() });
        if self.sysfs.text(pf, "sriov_drivers_autoprobe").as_deref() == Some("1") {
            let _ = self.probe(vf);
        }
    }

    fn remove_vfs(&self, pf: PciAddress) {
        for (index, vf) in self.sysfs.virtfns(pf) {
            let _ = fs::remove_file(self.sysfs.file(pf, &format!("virtfn{index}")));
            if let Some(group) = self.sysfs.iommu_group(vf) {
                let _ = fs::remove_dir_all(self.group(group));
            }
            let _ = fs::remove_dir_all(self.sysfs.file(vf, ""));
            self.state().settings.remove(&vf);
        }
        put(&self.sysfs.file(pf, "sriov_numvfs"), "0\n");
    }

    /// `drivers_probe_store` of drivers/base/bus.c with `pci_device_can_probe` of drivers/pci/pci-driver.c.
    fn probe(&self, function: PciAddress) -> Result<(), NetlinkError> {
        if !self.sysfs.exists(function) {
            return Err(refusal(Errno::ENODEV));
        }
        if self.sysfs.driver(function).is_some() || self.has(Scenario::NobodyProbes) {
            return Ok(());
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
        // vfio-pci wants a group of which nothing else is in the kernel's hands when it is opened; binding needs one.
        if driver == VFIO_PCI && self.sysfs.iommu_group(function).is_none() {
            return Err(refusal(Errno::EINVAL));
        }
        link(&format!("../../drivers/{driver}"), &self.sysfs.file(function, "driver"));
        if driver != VFIO_PCI {
            let mut state = self.state();
            state.next_address = state.next_address.wrapping_add(1);
            let invented = Mac([0x0a, 0, 0, 0, 0, state.next_address]);
            let own = state.scenarios.contains(&Scenario::OwnAddress);
            let settings = state.settings.entry(function).or_default();
            let mac = if settings.mac.is_zero() { invented } else { settings.mac };
            if own {
                settings.mac = mac;
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

    fn make_device(&self, address: PciAddress, device: &str, group: u32) {
        let directory = self.sysfs.file(address, "");
        make(&directory);
        for (file, text) in [
            ("vendor", "0x8086"),
            ("device", device),
            ("class", "0x020000"),
            ("numa_node", "0"),
            ("driver_override", ""),
        ] {
            put(&directory.join(file), &format!("{text}\n"));
        }
        let devices = self.group(group).join("devices");
        make(&devices);
        link(&format!("../../../../bus/pci/devices/{address}"), &devices.join(address.to_string()));
        link(&format!("../../../../kernel/iommu_groups/{group}"), &directory.join("iommu_group"));
    }

    fn group(&self, group: u32) -> PathBuf {
        self.sysfs.path(&format!("sys/kernel/iommu_groups/{group}"))
    }

    fn make_netdev(&self, address: PciAddress, name: &str, mac: Mac) {
        let directory = self.sysfs.file(address, "net").join(name);
        make(&directory);
        put(&directory.join("mtu"), "1500\n");
        put(&directory.join("address"), &format!("{mac}\n"));
    }
}

/// An 82576: VFs begin at device 16 of the bus behind, and every second function is one of the other PF's.
fn vf_address(bus: u8, index: u32) -> PciAddress {
    PciAddress::new(0, bus, 16 + (index / 4) as u8, 2 * (index % 4) as u8)
}

fn netdev_name(vf: PciAddress) -> String {
    format!("enp{}", vf.to_string()[5..].replace([':', '.'], "s"))
}

fn refusal(errno: Errno) -> NetlinkError {
    NetlinkError { errno, hint: None }
}

fn make(directory: &Path) {
    fs::create_dir_all(directory).expect("a directory below a temporary one can be made");
}

fn put(file: &Path, text: &str) {
    fs::write(file, text).expect("a file below a temporary directory can be written");
}

fn link(target: &str, link: &Path) {
    let _ = fs::remove_file(link);
    symlink(target, link).expect("a link below a temporary directory can be made");
}

const PF_BUS: u8 = 2;
const PF_DEVICE: &str = "0x10c9";
const VF_DEVICE: &str = "0x10ca";
const NIC_DEVICE: &str = "0x10d3";
