//! The files of a made-up node.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::FakeKernel;
use crate::address::PciAddress;
use crate::attributes::Mac;

impl FakeKernel {
    pub(super) fn make_device(&self, address: PciAddress, [vendor, device]: [u32; 2], group: u32) {
        let directory = self.sysfs.file(address, "");
        make(&directory);
        for (file, text) in [
            ("vendor", format!("{vendor:#06x}")),
            ("device", format!("{device:#06x}")),
            ("class", "0x020000".to_owned()),
            ("numa_node", "0".to_owned()),
            ("driver_override", String::new()),
        ] {
            put(&directory.join(file), &format!("{text}\n"));
        }
        let devices = self.group(group).join("devices");
        make(&devices);
        link(&format!("../../../../bus/pci/devices/{address}"), &devices.join(address.to_string()));
        link(&format!("../../../../kernel/iommu_groups/{group}"), &directory.join("iommu_group"));
    }

    pub(super) fn group(&self, group: u32) -> PathBuf {
        self.sysfs.path(&format!("sys/kernel/iommu_groups/{group}"))
    }

    pub(super) fn allows_noiommu(&self) -> bool {
        fs::read_to_string(self.sysfs.path(NOIOMMU_FILE)).is_ok_and(|text| text.trim() == "Y")
    }

    /// `vfio_noiommu_group_alloc` of drivers/vfio/group.c: a function without a group gets one with its driver.
    pub(super) fn make_noiommu_group(&self, address: PciAddress) {
        let number = (0..=u32::MAX).find(|number| !self.group(*number).exists()).unwrap_or_default();
        make(&self.group(number).join("devices"));
        put(&self.group(number).join("name"), "vfio-noiommu\n");
        link(&format!("../../../../kernel/iommu_groups/{number}"), &self.sysfs.file(address, "iommu_group"));
    }

    /// And loses it with its driver.
    pub(super) fn remove_noiommu_group(&self, address: PciAddress) {
        let group = self.sysfs.file(address, "iommu_group");
        if fs::read_to_string(group.join("name")).is_ok_and(|name| name.trim() == "vfio-noiommu") {
            let number = self.sysfs.iommu_group(address).unwrap_or_default();
            let _ = fs::remove_dir_all(self.group(number));
            let _ = fs::remove_file(group);
        }
    }

    pub(super) fn make_netdev(&self, address: PciAddress, name: &str, mac: Mac) {
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

/// As an 82576 has them: VFs begin at device 16 of its bus, and every second function is one of the other PF's. What has no
/// room there is in domains further behind.
pub(super) fn vf_address(pf: PciAddress, index: u32) -> PciAddress {
    let (further, place) = (index / 64, index % 64);
    let (bus, function) = place_of(pf);
    PciAddress::new(further, bus, 16 + (place / 4) as u8, 2 * (place % 4) as u8 + function)
}

/// The IOMMU group of VFs of a PF, by their number: of no other PF.
pub(super) fn vf_group(pf: PciAddress, number: u32) -> u32 {
    let (bus, function) = place_of(pf);
    let pf = u32::from(bus) + 256 * u32::from(function);
    if number < 100 { 100 * pf + number } else { 10_000 * (100 + pf) + number }
}

/// Bus and function of an address, `0000:BUS:DEVICE.FUNCTION`.
fn place_of(address: PciAddress) -> (u8, u8) {
    let text = address.to_string();
    let hex = |range: std::ops::Range<usize>| text.get(range).and_then(|text| u8::from_str_radix(text, 16).ok());
    (hex(5..7).unwrap_or_default(), hex(11..12).unwrap_or_default())
}

pub(super) fn netdev_name(vf: PciAddress) -> String {
    format!("enp{}", vf.to_string().trim_start_matches("0000:").replace([':', '.'], "s"))
}

pub(super) fn make(directory: &Path) {
    fs::create_dir_all(directory).expect("a directory below a temporary one can be made");
}

pub(super) fn put(file: &Path, text: &str) {
    fs::write(file, text).expect("a file below a temporary directory can be written");
}

pub(super) fn link(target: &str, link: &Path) {
    let _ = fs::remove_file(link);
    symlink(target, link).expect("a link below a temporary directory can be made");
}

pub(super) const NOIOMMU_FILE: &str = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
pub(super) const VF_DEVICE: u32 = 0x10ca;
pub(super) const NIC_DEVICE: u32 = 0x10d3;
