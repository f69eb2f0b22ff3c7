//! A node made of files, with a kernel that behaves like the real one towards it: for tests of this crate and of
//! those that use it.
//!
//! What it does on a write, and with which error it refuses, is that of Linux 6.12: `drivers/pci/iov.c`,
//! `drivers/pci/pci-driver.c`, `drivers/base/bus.c`, `drivers/vfio/pci`. A [`Scenario`] makes it behave like hardware
//! or a driver in a mood.
//!
//! Modules: `changes` (what others do to it), `kernel`, `tree` (its files).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use crate::address::{PciAddress, VFIO_PCI};
use crate::attributes::{Guid, Mac, VfState};
use crate::executor::Timeouts;
use crate::journal::FakeDisk;
use crate::kernel::{EswitchMode, ForeignNetdev};
use crate::policy::Policies;
use crate::sysfs::Sysfs;
use crate::vfs::{Options, Vfs};

mod changes;
mod kernel;
mod tree;

pub use changes::OpenFile;

use tree::{put, vf_address};

/// How the kernel or a device behaves beside the rules that always hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// The driver of the PF refuses numbers of VFs above the first value, with the second as the error.
    CountRefused(u32, i32),
    /// The driver of the PF makes no more VFs than this, and calls it a success.
    CountAtMost(u32),
    /// Somebody else makes this number of VFs the moment ours was made.
    CountOvertaken(u32),
    /// No driver takes a VF, and the kernel calls it a success.
    NobodyProbes,
    /// A driver refuses this VF with this error.
    ProbeRefused(PciAddress, i32),
    /// The VF's function cannot be reset alone.
    ResetUnsupported,
    /// The PF's driver knows no link state.
    LinkStateUnsupported,
    /// The PF's driver says this many times that the VF is still in reset, as drivers say it.
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
    /// A question about a PF is answered with this error.
    ReportRefused(i32),
    /// A question about a PF never comes back, until [`FakeNode::heal`].
    ReportHangs,
    /// The question for other names of interfaces never comes back, until [`FakeNode::heal`].
    AltnamesHang,
    /// Whoever asks for other names of interfaces dies.
    AltnamesPanic,
    /// A change of the number of VFs never comes back, until [`FakeNode::heal`].
    CountHangs,
    /// Other network namespaces cannot be looked into.
    NamespacesUnknown,
    /// Other network namespaces come and go all the time, so that no look at them is whole.
    NamespacesBusy,
    /// Whoever asks whether a VFIO node is open is refused with this error.
    VfioOpenRefused(i32),
    /// The interface of a VF is there once it was looked for elsewhere, as when a driver has just taken the VF.
    NetdevComesMeanwhile,
    /// Unbinding never comes back, until [`FakeNode::heal`].
    UnbindHangs,
}

/// A PF of a node that is to be made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakePf<'a> {
    /// Where it is: in domain 0, as function 0 or 1 of its device.
    pub address: PciAddress,
    /// Its interface.
    pub name: &'a str,
    /// PCI vendor id.
    pub vendor: u32,
    /// PCI device id.
    pub device: u32,
    /// Its driver.
    pub driver: &'a str,
    /// The most VFs that it offers.
    pub total_vfs: u32,
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
    /// Held while a number of VFs changes, as the kernel holds a lock of the PF.
    counting: Mutex<()>,
}

#[derive(Default)]
struct FakeState {
    scenarios: BTreeSet<Scenario>,
    states: BTreeMap<PciAddress, VfState>,
    /// PFs whose interface is in another namespace, and what it is called.
    away: BTreeMap<PciAddress, String>,
    /// What the switches of cards do.
    eswitch_modes: BTreeMap<PciAddress, EswitchMode>,
    /// GUIDs that PFs gave their VFs.
    guids: BTreeMap<PciAddress, Guid>,
    /// The permanent addresses of PFs.
    permanent: BTreeMap<PciAddress, Mac>,
    /// Other names of interfaces, by their own names.
    altnames: BTreeMap<String, Vec<String>>,
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
    /// How often other namespaces were searched.
    searches: usize,
    /// Functions that went.
    gone: usize,
    /// Writes and settings that were taken, as a log.
    log: Vec<String>,
}

impl FakeNode {
    /// A node with PFs `ens1f0`, `ens1f1` and so on, of `total_vfs` VFs each, and no VF.
    pub fn new(pfs: u8, total_vfs: u32) -> Self {
        let names: Vec<_> = (0..pfs).map(|number| format!("ens1f{number}")).collect();
        let pf = |(number, name)| FakePf {
            address: pf_address(number),
            name,
            vendor: 0x8086,
            device: 0x10c9,
            driver: "igb",
            total_vfs,
        };
        let pfs: Vec<_> = (0..).zip(&names).map(|(number, name)| pf((number, name.as_str()))).collect();
        Self::with_pfs(&pfs)
    }

    /// A node with these PFs, and no VF.
    pub fn with_pfs(pfs: &[FakePf<'_>]) -> Self {
        let directory = TempDir::new().expect("a temporary directory can be made");
        let sysfs = Sysfs::new(directory.path());
        let node = Self {
            directory,
            kernel: Arc::new(FakeKernel {
                sysfs,
                state: Mutex::new(FakeState { group_size: 1, ..FakeState::default() }),
                healed: Condvar::new(),
                counting: Mutex::default(),
            }),
        };
        node.build(pfs).expect("a temporary directory can be filled");
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
        pf_address(number)
    }

    /// A VF of a PF.
    pub fn vf(&self, pf: u8, index: u32) -> PciAddress {
        vf_address(pf_address(pf), index)
    }

    /// How to own this node: with the timeouts of a test, which a busy machine must not exhaust.
    pub fn options(&self) -> Options {
        let timeouts = Timeouts {
            call: Duration::from_secs(5),
            count: Duration::from_mins(1),
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
        self.fill_disk_at_record(&vfs, number);
        vfs
    }

    /// The disk is full at the record of this number from now on, counting from one, and not after it.
    pub fn fill_disk_at_record(&self, vfs: &Vfs, number: usize) {
        vfs.set_disk(FakeDisk { full_at: number, ..FakeDisk::default() });
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

    /// The node behaves again in one respect, and what hung in it comes back.
    pub fn heal_from(&self, scenario: Scenario) {
        self.kernel.state().scenarios.remove(&scenario);
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

    /// How often other network namespaces were searched so far.
    pub fn searches(&self) -> usize {
        self.kernel.state().searches
    }

    /// What was done so far, oldest first.
    pub fn log(&self) -> Vec<String> {
        self.kernel.state().log.clone()
    }

    /// The machine starts again: VFs are gone, settings and reservations with them.
    pub fn reboot(&self, boot: &str) {
        let pfs: Vec<_> = self.kernel.state().permanent.keys().copied().collect();
        for pf in pfs {
            self.kernel.remove_vfs(pf);
            put(&self.kernel.sysfs.file(pf, "sriov_drivers_autoprobe"), "1\n");
        }
        self.kernel.state().moved.clear();
        put(&self.kernel.sysfs.path("proc/sys/kernel/random/boot_id"), &format!("{boot}\n"));
    }

    /// A card is plugged in while the node runs.
    pub fn add_pf(&self, pf: &FakePf<'_>) {
        let number = self.kernel.state().permanent.len();
        self.make_pf(u8::try_from(number).unwrap_or(u8::MAX), pf).expect("a temporary directory can be filled");
    }

    fn build(&self, pfs: &[FakePf<'_>]) -> io::Result<()> {
        let sysfs = &self.kernel.sysfs;
        for driver in ["igbvf", VFIO_PCI] {
            self.load_driver(driver)?;
        }
        fs::write(sysfs.probe_file(), "")?;
        fs::create_dir_all(sysfs.path("proc/sys/kernel/random"))?;
        fs::write(sysfs.path("proc/sys/kernel/random/boot_id"), "first\n")?;
        (0..).zip(pfs).try_for_each(|(number, pf)| self.make_pf(number, pf))
    }

    fn make_pf(&self, number: u8, pf: &FakePf<'_>) -> io::Result<()> {
        let FakePf { address, name, vendor, device, driver, total_vfs } = *pf;
        self.load_driver(driver)?;
        self.kernel.make_device(address, [vendor, device], u32::from(number));
        let sysfs = &self.kernel.sysfs;
        for (file, text) in [
            ("sriov_totalvfs", format!("{total_vfs}\n")),
            ("sriov_numvfs", "0\n".to_owned()),
            ("sriov_drivers_autoprobe", "1\n".to_owned()),
            ("sriov_vf_device", "10ca\n".to_owned()),
        ] {
            fs::write(sysfs.file(address, file), text)?;
        }
        symlink(format!("../../drivers/{driver}"), sysfs.file(address, "driver"))?;
        let mac = Mac([0, 0, 0, 0, 1, number]);
        self.kernel.state().permanent.insert(address, mac);
        self.kernel.make_netdev(address, name, mac);
        Ok(())
    }

    fn load_driver(&self, driver: &str) -> io::Result<()> {
        let sysfs = &self.kernel.sysfs;
        fs::create_dir_all(sysfs.path(&format!("sys/bus/pci/drivers/{driver}")))?;
        fs::write(sysfs.unbind_file(driver), "")
    }
}

fn pf_address(number: u8) -> PciAddress {
    PciAddress::new(0, PF_BUS + number, 0, 0)
}

const PF_BUS: u8 = 2;
