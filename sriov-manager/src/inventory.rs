//! Every PF and VF of the node, as sysfs shows them at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::address::PciAddress;
use crate::attributes::Mac;
use crate::sysfs::{RdmaDevice, Sysfs};

/// A look at the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Functions that can have VFs.
    pub pfs: BTreeMap<PciAddress, PhysicalFunction>,
    /// VFs, by address.
    pub vfs: BTreeMap<PciAddress, VirtualFunction>,
}

/// A function that can have VFs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhysicalFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Its ids and place.
    pub function: Function,
    /// The most VFs that its driver allows now.
    pub total_vfs: u32,
    /// The device id that its VFs have.
    pub vf_device: Option<u32>,
    /// Its VFs by their numbers.
    pub vfs: BTreeMap<u32, PciAddress>,
    /// Whether its interface is set up.
    pub admin_up: Option<bool>,
    /// Whether its interface has a link; none: it does not tell.
    pub link_up: Option<bool>,
    /// Interfaces of its switch, by the numbers of the VFs at their other ends.
    pub representors: BTreeMap<u32, String>,
}

/// One VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Its PF.
    pub pf: PciAddress,
    /// Its number there: `virtfnN`.
    pub index: u32,
    /// Its ids and place.
    pub function: Function,
    /// What is in its IOMMU group beside it.
    pub group_with: Vec<PciAddress>,
    /// `vfioN` of `/dev/vfio/devices`.
    pub vfio_device: Option<String>,
    /// Differs between this VF and one that was made at the same address before: the number of its directory in sysfs.
    pub instance: u64,
}

/// What sysfs says of any function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// PCI vendor id.
    pub vendor: u32,
    /// PCI device id.
    pub device: u32,
    /// PCI class code: base class, subclass, interface.
    pub class: u32,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub iommu_group: Option<u32>,
    /// Its NUMA node; none: the machine does not say.
    pub numa: Option<u32>,
    /// Its network interfaces in our namespace.
    pub netdevs: Vec<String>,
    /// Other names of these (`ip link property add`).
    pub altnames: Vec<String>,
    /// `ARPHRD_*` of linux/if_arp.h: 1 is Ethernet, 32 InfiniBand; none: it has no interface in our namespace.
    pub link_type: Option<u16>,
    /// The address of its interface.
    pub mac: Option<Mac>,
    /// The MTU of its interface.
    pub mtu: Option<u32>,
    /// What the firmware calls it.
    pub acpi_index: Option<u32>,
    /// Its devices of RDMA.
    pub rdma: Vec<RdmaDevice>,
}

impl Inventory {
    /// Looks at the whole tree. A function that goes away meanwhile is left out; where one cannot be asked, it is an error: whoever
    /// took a VF for gone would have it lent uncleaned.
    pub fn read(sysfs: &Sysfs) -> io::Result<Self> {
        Self::read_after(sysfs, &Self::default())
    }

    /// [`Inventory::read`], with an earlier look: what never changes of a VF is not read again while it is the same VF. Of a node
    /// with thousands of them that is half of the work.
    pub fn read_after(sysfs: &Sysfs, before: &Self) -> io::Result<Self> {
        let mut inventory = Self::default();
        for address in sysfs.devices()? {
            // A VF has no VFs of its own.
            if inventory.vfs.contains_key(&address) {
                continue;
            }
            let Some(total_vfs) = sysfs.total_vfs(address)? else { continue };
            let pf = PhysicalFunction::read(sysfs, address, total_vfs)?;
            for (&index, &vf) in &pf.vfs {
                let read = VirtualFunction::read(sysfs, address, index, vf, before.vfs.get(&vf))?;
                inventory.vfs.extend(read.map(|read| (vf, read)));
            }
            inventory.pfs.insert(address, pf);
        }
        Ok(inventory)
    }

    /// Looks at some VFs again. What is no VF of a PF that is known is left as it is.
    pub fn reread(&mut self, sysfs: &Sysfs, vfs: &BTreeSet<PciAddress>) {
        for &vf in vfs {
            let owner = self.pfs.values().find_map(|pf| {
                let index = pf.vfs.iter().find_map(|(&index, &there)| (there == vf).then_some(index))?;
                Some((pf.address, index))
            });
            let Some((pf, index)) = owner else { continue };
            let before = self.vfs.remove(&vf);
            // What cannot be asked is as it was.
            let read = VirtualFunction::read(sysfs, pf, index, vf, before.as_ref()).unwrap_or_else(|_| before.clone());
            let Some(mut read) = read else { continue };
            // Those of an interface that is still there are told with the next look at the whole tree.
            if let Some(before) = before.filter(|before| before.function.netdevs == read.function.netdevs) {
                read.function.altnames = before.function.altnames;
            }
            self.vfs.insert(vf, read);
        }
    }

    /// Takes over what `newer` knows of some VFs.
    pub fn adopt(&mut self, newer: &Self, vfs: &BTreeSet<PciAddress>) {
        for vf in vfs {
            match newer.vfs.get(vf) {
                // Only if this look has it as well: its PF may have lost it since.
                Some(newer) if self.vfs.contains_key(vf) => drop(self.vfs.insert(*vf, newer.clone())),
                _ => {}
            }
        }
    }

    /// Takes over the other names of interfaces, by their names.
    pub fn set_altnames(&mut self, altnames: &BTreeMap<String, Vec<String>>) {
        let functions = self.pfs.values_mut().map(|pf| &mut pf.function);
        for function in functions.chain(self.vfs.values_mut().map(|vf| &mut vf.function)) {
            let others = function.netdevs.iter().filter_map(|netdev| altnames.get(netdev));
            function.altnames = others.flatten().cloned().collect();
        }
    }

    /// A PF by its address, also without the domain, or by a name of its interface.
    pub fn find_pf(&self, name: &str) -> Option<&PhysicalFunction> {
        match address(name) {
            Some(address) => self.pfs.get(&address),
            None => self.pfs.values().find(|pf| pf.function.has_name(name)),
        }
    }

    /// A VF by its address, also without the domain, or by a name of its interface.
    pub fn find_vf(&self, name: &str) -> Option<&VirtualFunction> {
        match address(name) {
            Some(address) => self.vfs.get(&address),
            None => self.vfs.values().find(|vf| vf.function.has_name(name)),
        }
    }
}

/// An address as people write it: the domain is mostly 0000, and left out.
fn address(text: &str) -> Option<PciAddress> {
    text.parse().or_else(|_| format!("0000:{text}").parse()).ok()
}

impl PhysicalFunction {
    fn read(sysfs: &Sysfs, address: PciAddress, total_vfs: u32) -> io::Result<Self> {
        let function = Function::read(sysfs, address)?;
        Ok(Self {
            address,
            total_vfs,
            vf_device: sysfs.hex(address, "sriov_vf_device"),
            vfs: sysfs.read_virtfns(address)?,
            admin_up: function.netdevs.first().and_then(|netdev| sysfs.is_admin_up(address, netdev)),
            link_up: function.netdevs.first().and_then(|netdev| sysfs.is_link_up(address, netdev)),
            representors: if function.netdevs.len() > 1 { sysfs.representors(address) } else { BTreeMap::new() },
            function,
        })
    }

    /// Its interface, through which its VFs are set.
    pub fn netdev(&self) -> Option<&str> {
        self.function.netdevs.first().map(String::as_str)
    }

    /// What people call it: the interface, or the address of one that has none.
    pub fn name(&self) -> String {
        self.netdev().map_or_else(|| self.address.to_string(), ToOwned::to_owned)
    }
}

impl VirtualFunction {
    /// None: it is not there.
    fn read(
        sysfs: &Sysfs,
        pf: PciAddress,
        index: u32,
        address: PciAddress,
        before: Option<&Self>,
    ) -> io::Result<Option<Self>> {
        let Some(instance) = sysfs.instance(address) else { return Ok(None) };
        let before = before.filter(|before| before.instance == instance);
        Ok(Some(Self {
            address,
            pf,
            index,
            function: match before {
                Some(before) => before.function.read_again(sysfs, address)?,
                None => Function::read(sysfs, address)?,
            },
            group_with: sysfs.group_members(address)?.into_iter().filter(|member| *member != address).collect(),
            vfio_device: sysfs.vfio_device(address)?,
            instance,
        }))
    }
}

impl Function {
    /// Whether it is a NIC of any kind. Others have VFs as well: GPUs, accelerators, NVMe disks.
    pub fn is_network(&self) -> bool {
        self.class >> 16 == CLASS_NETWORK
    }

    /// Whether an interface of it has this name.
    pub fn has_name(&self, name: &str) -> bool {
        self.netdevs.iter().chain(&self.altnames).any(|other| other == name)
    }

    fn read(sysfs: &Sysfs, address: PciAddress) -> io::Result<Self> {
        let constant = Self {
            vendor: sysfs.hex(address, "vendor").unwrap_or_default(),
            device: sysfs.hex(address, "device").unwrap_or_default(),
            class: sysfs.hex(address, "class").unwrap_or_default(),
            // -1 on machines that do not say.
            numa: sysfs.number::<i64>(address, "numa_node").and_then(|node| u32::try_from(node).ok()),
            acpi_index: sysfs.number(address, "acpi_index"),
            ..Self::default()
        };
        constant.read_again(sysfs, address)
    }

    /// What may change of a function that is the same one.
    fn read_again(&self, sysfs: &Sysfs, address: PciAddress) -> io::Result<Self> {
        let Self { vendor, device, class, numa, acpi_index, .. } = *self;
        let (driver, netdevs) = (sysfs.read_driver(address)?, sysfs.read_netdevs(address)?);
        let netdev = netdevs.first();
        Ok(Self {
            vendor,
            device,
            class,
            driver,
            // VFIO makes one for a function without an IOMMU when it is bound.
            iommu_group: sysfs.read_iommu_group(address)?,
            numa,
            link_type: netdev.and_then(|netdev| sysfs.link_type(address, netdev)),
            mac: netdev.and_then(|netdev| sysfs.mac(address, netdev)),
            mtu: netdev.and_then(|netdev| sysfs.mtu(address, netdev)),
            netdevs,
            // Sysfs does not show them.
            altnames: Vec::new(),
            acpi_index,
            rdma: sysfs.rdma(address)?,
        })
    }
}

/// The base class of network controllers (PCI code and id assignment specification, 1.3).
const CLASS_NETWORK: u32 = 0x02;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeNode;

    #[test]
    fn what_an_earlier_look_knows_is_taken_over_while_the_vf_is_the_same() {
        let node = FakeNode::new(1, 7);
        let vfs = node.open();
        vfs.create(node.pf(0), 2).unwrap();
        let (sysfs, vf) = (node.sysfs(), node.vf(0, 1));
        let first = Inventory::read(&sysfs).unwrap();
        assert_eq!(Inventory::read_after(&sysfs, &first).unwrap(), first);
        std::fs::write(sysfs.file(vf, "driver_override"), "igbvf\n").unwrap();
        crate::kernel::Kernel::write(&*node.kernel(), &sysfs.probe_file(), &vf.to_string()).unwrap();
        let bound = Inventory::read_after(&sysfs, &first).unwrap();
        assert_eq!(bound, Inventory::read(&sysfs).unwrap(), "its driver and its interface are seen");
        assert_ne!(bound, first);
        // Another VF at the same address, which is another device.
        vfs.create(node.pf(0), 0).unwrap();
        vfs.create(node.pf(0), 2).unwrap();
        std::fs::write(sysfs.file(vf, "device"), "0x1520\n").unwrap();
        let remade = Inventory::read_after(&sysfs, &bound).unwrap();
        assert_eq!(remade.vfs[&vf].function.device, 0x1520);
        vfs.create(node.pf(0), 1).unwrap();
        assert_eq!(Inventory::read_after(&sysfs, &remade).unwrap().vfs.len(), 1);
    }
}
