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

use crate::address::{PciAddress, VFIO_PCI, is_userspace_driver};
use crate::attributes::{Mac, VfChange, VfState};
use crate::executor::Timeouts;
use crate::holders::processes;
use crate::journal::FakeDisk;
use crate::kernel::{ForeignNetdev, Interface, Kernel, PfReport};
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
    /// The PF's driver refuses all zeros for a VF's address, as qede, cxgb4 and otx2 do.
    ZeroMacRefused,
    /// The PF's driver refuses every address for a VF.
    MacRefused,
    /// The PF's driver is busy with this VF and leaves it out of what it tells.
    LeftOut(u32),
    /// A change of the number of VFs never comes back, until [`FakeNode::heal`].
    CountHangs,
    /// Unbinding never comes back, until [`FakeNode::heal`].
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
    healed: Condvar,
}

#[derive(Default)]
struct FakeState {
    scenarios: BTreeSet<Scenario>,
    states: BTreeMap<PciAddress, VfState>,
    /// PFs whose interface is in another namespace, and what it is called.
    away: BTreeMap<PciAddress, String>,
    /// The permanent addresses of PFs.
    permanent: BTreeMap<PciAddress, Mac>,
    /// What the host does with interfaces.
    host_uses: BTreeMap<u32, Vec<String>>,
    /// VFIO nodes that somebody has open who is not in `/proc`.
    hidden: BTreeSet<PathBuf>,
    /// The last number that an interface was given.
    last_interface: u32,
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
                healed: Condvar::new(),
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

    /// How to own this node: with the timeouts of a test, which a busy machine must not exhaust.
    pub fn options(&self) -> Options {
        let timeouts = Timeouts {
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
            timeouts,
            observer: None,
        }
    }

    /// Owns this node.
    pub fn open(&self) -> Vfs {
        Vfs::open(self.options()).expect("a made-up node can be owned")
    }

    /// Owns this node with a disk that is full at the record of this number, counting from the first after the start, and not
    /// before or after it.
    pub fn open_with_journal_that_fails_at(&self, number: usize) -> Vfs {
        let vfs = self.open();
        vfs.set_disk(FakeDisk { full_at: number, ..FakeDisk::default() });
        vfs
    }

    /// From now on the node behaves so.
    pub fn set(&self, scenario: Scenario) {
        self.kernel.state().scenarios.insert(scenario);
    }

    /// The node behaves again, and what hung comes back.
    pub fn heal(&self) {
        self.kernel.state().scenarios.clear();
        self.kernel.healed.notify_all();
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
        self.open_file(&format!("/dev/vfio/{group}"), pid, comm)
    }

    /// A process has a file open; it ends when the value is dropped.
    pub fn open_file(&self, file: &str, pid: u32, comm: &str) -> OpenFile {
        let directory = self.kernel.sysfs.path(&format!("proc/{pid}"));
        make(&directory.join("fd"));
        put(&directory.join("comm"), &format!("{comm}\n"));
        link(file, &directory.join("fd/7"));
        OpenFile(directory)
    }

    /// Somebody whom `/proc` does not show has the VFIO group of a VF open, or nobody any more.
    pub fn open_vfio_unseen(&self, vf: PciAddress, is_open: bool) {
        let group = self.kernel.sysfs.iommu_group(vf).unwrap_or_default();
        let node = self.kernel.sysfs.path(&format!("dev/vfio/{group}"));
        let mut state = self.kernel.state();
        if is_open {
            state.hidden.insert(node)
        } else {
            state.hidden.remove(&node)
        };
    }

    /// The interface of a PF is moved to another network namespace.
    pub fn move_pf_away(&self, pf: PciAddress) {
        let netdev = self.kernel.sysfs.netdevs(pf).pop().expect("a PF has an interface");
        fs::remove_dir_all(self.kernel.sysfs.file(pf, "net"))
            .expect("a file below a temporary directory can be removed");
        self.kernel.state().away.insert(pf, netdev);
    }

    /// The interface of a PF comes back.
    pub fn return_pf(&self, pf: PciAddress) {
        let netdev = self.kernel.state().away.remove(&pf);
        let mac = self.kernel.state().permanent.get(&pf).copied().unwrap_or_default();
        self.kernel.make_netdev(pf, &netdev.expect("it was moved away"), mac);
    }

    /// Two PFs have each other's name from now on.
    pub fn swap_pf_names(&self, first: PciAddress, second: PciAddress) {
        let net = |pf: PciAddress| {
            let netdev = self.kernel.sysfs.netdevs(pf).pop().expect("a PF has an interface");
            self.kernel.sysfs.file(pf, "net").join(netdev)
        };
        let (a, b) = (net(first), net(second));
        let rename = |from: &Path, to: &Path| fs::rename(from, to).expect("a directory can be renamed");
        let (a_now, b_now) =
            (a.with_file_name(b.file_name().expect("a name")), b.with_file_name(a.file_name().expect("a name")));
        rename(&a, &a_now);
        rename(&b, &b_now);
    }

    /// A bond gives the interface of a PF another address. The permanent one stays.
    pub fn set_pf_mac(&self, pf: PciAddress, mac: Mac) {
        let netdev = self.kernel.sysfs.netdevs(pf).pop().expect("a PF has an interface");
        put(&self.kernel.sysfs.file(pf, "net").join(netdev).join("address"), &format!("{mac}\n"));
    }

    /// The host uses the interface of a function for this; nothing: not any more.
    pub fn use_by_host(&self, function: PciAddress, uses: &[&str]) {
        let (_, interface) = self.kernel.sysfs.interface(function).expect("it has an interface");
        let uses = uses.iter().map(ToString::to_string).collect();
        self.kernel.state().host_uses.insert(interface.index, uses);
    }

    /// An interface is made of one of a function: a bond, a bridge, a VLAN.
    pub fn make_upper(&self, function: PciAddress, upper: &str) {
        let netdev = self.kernel.sysfs.netdevs(function).pop().expect("it has an interface");
        let file = self.kernel.sysfs.file(function, "net").join(netdev).join(format!("upper_{upper}"));
        link(&format!("../../../../../../virtual/net/{upper}"), &file);
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
        let foreign = self.kernel.state().moved.remove(&vf);
        if let Some(foreign) = foreign {
            self.kernel.make_netdev(vf, &foreign.netdev, Mac([2, 0, 0, 0, 0, 1]));
        }
    }

    /// Everything about the node that must be the same after a lease as before it, in words.
    pub fn fingerprint(&self) -> String {
        let sysfs = &self.kernel.sysfs;
        let state = self.kernel.state();
        let mut out = Vec::new();
        for address in sysfs.devices().unwrap_or_default() {
            let mut vf_state = state.states.get(&address).cloned();
            if let (Some(vf_state), true) = (&mut vf_state, state.scenarios.contains(&Scenario::OwnAddress)) {
                vf_state.mac = Mac::default();
            }
            let reserved = sysfs.text(address, "driver_override").unwrap_or_default();
            let autoprobe = sysfs.text(address, "sriov_drivers_autoprobe");
            out.push(format!(
                "{address} driver {:?} reserved {reserved:?} netdevs {:?} autoprobe {autoprobe:?} {vf_state:?}",
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
            let mac = Mac([0, 0, 0, 0, 1, number]);
            self.kernel.state().permanent.insert(pf, mac);
            self.kernel.make_netdev(pf, &format!("ens{}f{number}", 1), mac);
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

    fn pf_report(&self, pf: Interface) -> Result<PfReport, NetlinkError> {
        let pf = self.device_of(pf)?;
        let state = self.state();
        let is_left_out = |index: &u32| state.scenarios.contains(&Scenario::LeftOut(*index));
        let vfs = self.sysfs.virtfns(pf).into_iter().filter(|(index, _)| !is_left_out(index));
        let vfs = vfs.map(|(index, vf)| (index, state.states.get(&vf).cloned().unwrap_or_default())).collect();
        Ok(PfReport { permanent_mac: state.permanent.get(&pf).copied(), device: Some(pf.to_string()), vfs })
    }

    fn set_vf(&self, pf: Interface, index: u32, change: VfChange) -> Result<(), NetlinkError> {
        let pf = self.device_of(pf)?;
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
        let told = state.states.entry(vf).or_default();
        match change {
            VfChange::Mac(mac) => told.mac = mac,
            VfChange::Vlan(vlan) => told.vlan = vlan,
            VfChange::Rate(rate) => told.rate = Some(rate),
            VfChange::SpoofCheck(on) => told.spoof_check = Some(on),
            VfChange::Trust(on) => told.trust = Some(on),
            VfChange::LinkState(state) => told.link_state = Some(state),
        }
        Ok(())
    }

    fn set_mtu(&self, interface: Interface, mtu: u32) -> Result<(), NetlinkError> {
        let device = self.device_of(interface)?;
        let (netdev, _) = self.sysfs.interface(device).ok_or(refusal(Errno::ENODEV))?;
        put(&self.sysfs.file(device, "net").join(netdev).join("mtu"), &format!("{mtu}\n"));
        Ok(())
    }

    fn host_uses(&self, interface: Interface) -> Result<Vec<String>, NetlinkError> {
        Ok(self.state().host_uses.get(&interface.index).cloned().unwrap_or_default())
    }

    fn is_vfio_open(&self, node: &Path) -> Result<Option<bool>, NetlinkError> {
        if self.state().hidden.contains(node) {
            return Ok(Some(true));
        }
        let shown = Path::new("/").join(node.strip_prefix(self.sysfs.path("")).unwrap_or(node));
        Ok(Some(!processes(&self.sysfs, &[shown]).is_empty()))
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
        let scenario = match file {
            "unbind" => Scenario::UnbindHangs,
            "sriov_numvfs" => Scenario::CountHangs,
            _ => return,
        };
        let mut state = self.state();
        while state.scenarios.contains(&scenario) {
            state = self.healed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The function that an interface is of, by the interface's number alone.
    fn device_of(&self, interface: Interface) -> Result<PciAddress, NetlinkError> {
        let is_it = |&device: &PciAddress| {
            self.sysfs.interface(device).is_some_and(|(_, there)| there.index == interface.index)
        };
        let device = self.sysfs.devices()?.into_iter().find(is_it).filter(|device| *device == interface.device);
        device.ok_or(refusal(Errno::ENODEV))
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
        let group = index / size;
        let group = if group < 100 { 100 * u32::from(bus) + group } else { 1000 * (100 + u32::from(bus)) + group };
        self.make_device(vf, VF_DEVICE, group);
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

    fn remove_vfs(&self, pf: PciAddress) {
        for (index, vf) in self.sysfs.virtfns(pf) {
            let _ = fs::remove_file(self.sysfs.file(pf, &format!("virtfn{index}")));
            if let Some(group) = self.sysfs.iommu_group(vf) {
                let _ = fs::remove_dir_all(self.group(group));
            }
            // Kept elsewhere, so that what comes to its place has another number, as in sysfs.
            let gone = self.sysfs.path("gone");
            make(&gone);
            let number = fs::read_dir(&gone).map_or(0, Iterator::count);
            let _ = fs::rename(self.sysfs.file(vf, ""), gone.join(number.to_string()));
            self.state().states.remove(&vf);
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
        // vfio-pci wants a group of which nothing else is in the kernel's executor when it is opened; binding needs one.
        if driver == VFIO_PCI && self.sysfs.iommu_group(function).is_none() {
            return Err(refusal(Errno::EINVAL));
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
        let index = {
            let mut state = self.state();
            state.last_interface += 1;
            state.last_interface
        };
        put(&directory.join("ifindex"), &format!("{index}\n"));
    }
}

/// An 82576: VFs begin at device 16 of the bus behind, and every second function is one of the other PF's.
fn vf_address(bus: u8, index: u32) -> PciAddress {
    // What has no room there is on buses further behind, as on NICs with more VFs.
    let (further, place) = (index / 64, index % 64);
    let bus = if further == 0 { bus } else { 0x20 + 4 * (bus - PF_BUS) + further as u8 };
    PciAddress::new(0, bus, 16 + (place / 4) as u8, 2 * (place % 4) as u8)
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
