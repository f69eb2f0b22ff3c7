//! What others do to a made-up node: they open devices, move and rename interfaces, give them to bonds.

use std::fs;
use std::path::{Path, PathBuf};

use super::FakeNode;
use super::tree::{NIC_DEVICE, NOIOMMU_FILE, link, make, put};
use crate::address::PciAddress;
use crate::attributes::{Guid, Mac};
use crate::kernel::{EswitchMode, ForeignNetdev};

impl FakeNode {
    /// The machine has no IOMMU from now on, and VFIO is allowed to work without one.
    pub fn take_iommu_away(&self) {
        let sysfs = &self.kernel.sysfs;
        let parameter = sysfs.path(NOIOMMU_FILE);
        make(parameter.parent().unwrap_or(&parameter));
        put(&parameter, "Y\n");
        for function in sysfs.devices().unwrap_or_default() {
            let _ = fs::remove_file(sysfs.file(function, "iommu_group"));
        }
        let _ = fs::remove_dir_all(sysfs.path("sys/kernel/iommu_groups"));
    }

    /// A VF has another IOMMU group, as after a start of the machine.
    pub fn renumber_group(&self, vf: PciAddress, group: u32) {
        let sysfs = &self.kernel.sysfs;
        let before = self.kernel.group(sysfs.iommu_group(vf).unwrap_or_default());
        let _ = fs::rename(before, self.kernel.group(group));
        link(&format!("../../../../kernel/iommu_groups/{group}"), &sysfs.file(vf, "iommu_group"));
    }

    /// A NIC that is no VF, bound to `e1000e`, is in the IOMMU group of a VF.
    pub fn put_nic_in_group(&self, vf: PciAddress, nic: PciAddress) {
        let kernel = &self.kernel;
        kernel.make_device(nic, [0x8086, NIC_DEVICE], kernel.sysfs.iommu_group(vf).unwrap_or_default());
        link("../../drivers/e1000e", &kernel.sysfs.file(nic, "driver"));
    }

    /// A VF alone is taken away, as by `remove` in sysfs.
    pub fn remove_vf(&self, vf: PciAddress) {
        let pf = self.kernel.sysfs.physfn(vf).expect("a VF has a PF");
        let index = self.kernel.sysfs.virtfns(pf).into_iter().find(|(_, there)| *there == vf);
        self.kernel.remove_vf(pf, index.expect("a PF knows its VFs").0, vf);
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

    /// The interface of a PF gets another name besides.
    pub fn add_altname(&self, pf: PciAddress, name: &str) {
        let netdev = self.kernel.sysfs.netdevs(pf).pop().expect("a PF has an interface");
        self.kernel.state().altnames.entry(netdev).or_default().push(name.to_owned());
    }

    /// The switch of a PF's card does this.
    pub fn set_eswitch_mode(&self, pf: PciAddress, mode: EswitchMode) {
        self.kernel.state().eswitch_modes.insert(pf, mode);
    }

    /// A PF gives a VF a GUID.
    pub fn set_guid(&self, vf: PciAddress, guid: Guid) {
        self.kernel.state().guids.insert(vf, guid);
    }

    /// The interface of a VF at the other end of the PF's switch is there.
    pub fn make_representor(&self, pf: PciAddress, index: u32, name: &str) {
        self.kernel.make_netdev(pf, name, Mac([2, 0, 0, 0, 1, index as u8]));
        put(&self.kernel.sysfs.file(pf, "net").join(name).join("phys_port_name"), &format!("pf0vf{index}\n"));
    }

    /// A file of an interface says this from now on.
    pub fn put_netdev_file(&self, function: PciAddress, file: &str, text: &str) {
        let netdev = self.kernel.sysfs.netdevs(function).into_iter().next().expect("it has an interface");
        put(&self.kernel.sysfs.file(function, "net").join(netdev).join(file), &format!("{text}\n"));
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
        let netdev = self.hide_netdev(vf);
        let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
        self.kernel.state().moved.insert(vf, ForeignNetdev { netdev, namespace, pid: Some(pid) });
    }

    /// Moves the interface of a VF into a namespace that nothing leads to. Returns what it was called.
    pub fn hide_netdev(&self, vf: PciAddress) -> String {
        let netdev = self.kernel.sysfs.netdevs(vf).pop().unwrap_or_default();
        // The folder stays for as long as there is an interface anywhere.
        let _ = fs::remove_dir_all(self.kernel.sysfs.file(vf, "net").join(&netdev));
        netdev
    }

    /// The interface of a VF comes back, as it does when a namespace ends.
    pub fn return_netdev(&self, vf: PciAddress) {
        let foreign = self.kernel.state().moved.remove(&vf);
        if let Some(foreign) = foreign {
            self.kernel.make_netdev(vf, &foreign.netdev, Mac([2, 0, 0, 0, 0, 1]));
        }
    }
}

/// A file that a made-up process has open.
pub struct OpenFile(PathBuf);

impl Drop for OpenFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
