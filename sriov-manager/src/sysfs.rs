//! What the kernel shows of PCI functions, below any root.
//!
//! Reading is by the crate `sysfs-class` where it serves (`docs/decisions/sysfs.md` says where it does not). Two
//! files are never read here, since reading them waits for the lock of the device, which a stuck unbind or a
//! change of the VF count holds: `sriov_numvfs` (the `virtfnN` links are counted instead) and `driver_override`. One that waits
//! for the lock of all interfaces is read by nobody who waits: `phys_port_name` (`ports`).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ferrule_ffi::sysfs::{net, pci_device};
use sysfs_class::{PciDevice, SysClass};

use crate::address::PciAddress;
use crate::attributes::Guid;
use crate::gone::unless_gone;
use crate::kernel::Interface;

mod ports;

use ports::Ports;

/// A tree with `sys`, `proc` and `dev`: `/`, or a made-up one.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
    ports: Ports,
}

/// A device of RDMA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaDevice {
    /// Such as `mlx5_2`.
    pub name: String,
    /// Its nodes, such as `/dev/infiniband/uverbs2`.
    pub nodes: Vec<String>,
    /// The GUID that it has in its fabric.
    pub guid: Option<Guid>,
}

impl Sysfs {
    /// The tree below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ports: Ports::default() }
    }

    /// Whether this is the machine's own.
    pub fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// A path below the root.
    pub fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// Which boot this is; none: the kernel does not tell.
    pub fn boot_id(&self) -> Option<String> {
        let text = fs::read_to_string(self.path("proc/sys/kernel/random/boot_id")).ok()?;
        Some(text.trim().to_owned()).filter(|boot| !boot.is_empty())
    }

    /// A file of a device.
    pub fn file(&self, address: PciAddress, name: &str) -> PathBuf {
        self.device_directory(address).join(name)
    }

    fn device_directory(&self, address: PciAddress) -> PathBuf {
        self.path(DEVICES).join(address.to_string())
    }

    fn device(&self, address: PciAddress) -> PciDevice {
        pci_device(self.device_directory(address))
    }

    /// Every PCI function.
    pub fn devices(&self) -> io::Result<BTreeSet<PciAddress>> {
        Ok(names(&self.path(DEVICES))?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Whether the function is there.
    pub fn exists(&self, address: PciAddress) -> bool {
        self.device_directory(address).exists()
    }

    /// A number that differs between a function and one that came to its address later; none: it is not there.
    pub fn instance(&self, address: PciAddress) -> Option<u64> {
        fs::metadata(self.device_directory(address)).ok().map(|metadata| metadata.ino())
    }

    /// A file of a device without the white space around it; none if it is not there or not to be read.
    pub fn text(&self, address: PciAddress, name: &str) -> Option<String> {
        self.device(address).trim_file(name).ok()
    }

    /// A file that holds a decimal number.
    pub fn number<T: FromStr<Err: std::fmt::Display>>(&self, address: PciAddress, name: &str) -> Option<T> {
        self.device(address).parse_file(name).ok()
    }

    /// An id in hexadecimal, such as `vendor`.
    pub fn hex(&self, address: PciAddress, name: &str) -> Option<u32> {
        let text = self.text(address, name)?;
        u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
    }

    /// [`Sysfs::read_driver`], where what cannot be asked has none.
    pub fn driver(&self, address: PciAddress) -> Option<String> {
        self.read_driver(address).ok().flatten()
    }

    /// The driver that the function is bound to.
    pub fn read_driver(&self, address: PciAddress) -> io::Result<Option<String>> {
        read_link_name(&self.file(address, "driver"))
    }

    /// [`Sysfs::read_iommu_group`], where what cannot be asked has none.
    pub fn iommu_group(&self, address: PciAddress) -> Option<u32> {
        self.read_iommu_group(address).ok().flatten()
    }

    /// The number of the IOMMU group; none: no IOMMU.
    pub fn read_iommu_group(&self, address: PciAddress) -> io::Result<Option<u32>> {
        Ok(read_link_name(&self.file(address, "iommu_group"))?.and_then(|group| group.parse().ok()))
    }

    /// Every function in the IOMMU group of a function, itself included.
    pub fn group_members(&self, address: PciAddress) -> io::Result<BTreeSet<PciAddress>> {
        let devices = unless_gone(names(&self.file(address, "iommu_group/devices")))?.unwrap_or_default();
        Ok(devices.iter().filter_map(|name| name.parse().ok()).chain([address]).collect())
    }

    /// How many VFs a function can have; none: it is no PF, or it has gone.
    pub fn total_vfs(&self, address: PciAddress) -> io::Result<Option<u32>> {
        let text = unless_gone(fs::read_to_string(self.file(address, "sriov_totalvfs")))?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    /// [`Sysfs::read_virtfns`], where what cannot be asked has none.
    pub fn virtfns(&self, pf: PciAddress) -> BTreeMap<u32, PciAddress> {
        self.read_virtfns(pf).unwrap_or_default()
    }

    /// The VFs of a PF by their numbers, in the order of the numbers: `virtfn10` comes after `virtfn9`.
    pub fn read_virtfns(&self, pf: PciAddress) -> io::Result<BTreeMap<u32, PciAddress>> {
        let entries = unless_gone(names(&self.device_directory(pf)))?.unwrap_or_default();
        let mut vfs = BTreeMap::new();
        for name in entries {
            let Some(index) = name.strip_prefix("virtfn").and_then(|index| index.parse().ok()) else { continue };
            let vf = read_link_name(&self.file(pf, &name))?.and_then(|vf| vf.parse::<PciAddress>().ok());
            vfs.extend(vf.map(|vf| (index, vf)));
        }
        Ok(vfs)
    }

    /// The PF of a VF; none: it is no VF.
    pub fn physfn(&self, vf: PciAddress) -> Option<PciAddress> {
        link_name(&self.file(vf, "physfn"))?.parse().ok()
    }

    /// Network interfaces of a function that are in our network namespace. The first is the one through which it is spoken
    /// to: beside it a PF may have one for each of its VFs (a switch's representors), and one for each of several ports.
    pub fn read_netdevs(&self, address: PciAddress) -> io::Result<Vec<String>> {
        self.netdevs_in_order(address).map(|(netdevs, _)| netdevs)
    }

    /// And whether the first is known to be the one.
    fn netdevs_in_order(&self, address: PciAddress) -> io::Result<(Vec<String>, bool)> {
        let folder = self.file(address, "net");
        let mut all = unless_gone(names(&folder))?.unwrap_or_default();
        if all.len() < 2 {
            return Ok((all, true));
        }
        let number = |netdev: &str, file| self.netdev_file(address, netdev, file)?.parse::<u32>().ok();
        let numbered: Vec<_> =
            all.iter().filter_map(|netdev| Some((netdev.clone(), number(netdev, "ifindex")?))).collect();
        let ports = self.ports.names(&folder, &numbered);
        // One that does not tell may be either.
        let is_own = |netdev: &str| ports.get(netdev).map(|port| !is_representor(port));
        all.sort_by_cached_key(|netdev| {
            let place = is_own(netdev).map_or(1, |is_own| if is_own { 0 } else { 2 });
            (place, number(netdev, "dev_port").unwrap_or_default(), netdev.clone())
        });
        let is_known = all.first().is_some_and(|first| is_own(first).is_some());
        Ok((all, is_known))
    }

    /// [`Sysfs::read_netdevs`], where what cannot be asked has none.
    pub fn netdevs(&self, address: PciAddress) -> Vec<String> {
        self.read_netdevs(address).unwrap_or_default()
    }

    /// [`Sysfs::read_interface`], where what cannot be asked has none.
    pub fn interface(&self, address: PciAddress) -> Option<(String, Interface)> {
        self.read_interface(address).ok().flatten()
    }

    /// The interface through which a function is spoken to; none: it has none in our network namespace.
    pub fn read_interface(&self, address: PciAddress) -> io::Result<Option<(String, Interface)>> {
        for _ in 0..NETDEV_LOOKS {
            let (netdevs, is_known) = self.netdevs_in_order(address)?;
            let Some(netdev) = netdevs.into_iter().next() else { return Ok(None) };
            if !is_known {
                return Err(io::Error::other(format!(
                    "the kernel does not tell now which interface of {address} is its own"
                )));
            }
            // It may have been renamed, or have gone, since.
            let Some(text) = unless_gone(self.read_netdev_file(address, &netdev, "ifindex"))? else { continue };
            let index = text.parse().map_err(|_| io::Error::other(format!("the ifindex of {netdev} is {text:?}")))?;
            return Ok(Some((netdev, Interface { index, device: address })));
        }
        Err(io::Error::other(format!("the interface of {address} has another name at each look")))
    }

    /// Whether a function has a network interface, and none in our network namespace. The kernel keeps the folder for as long as
    /// there is any, and shows in it those of one namespace (`get_device_parent` and `cleanup_glue_dir` of drivers/base/core.c).
    pub fn has_netdev_elsewhere(&self, address: PciAddress) -> bool {
        match names(&self.file(address, "net")) {
            Ok(here) => here.is_empty(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    fn netdev_file(&self, address: PciAddress, netdev: &str, file: &str) -> Option<String> {
        self.read_netdev_file(address, netdev, file).ok()
    }

    fn read_netdev_file(&self, address: PciAddress, netdev: &str, file: &str) -> io::Result<String> {
        // It is at most a page, which the kernel gives at once: there is no need to ask how much it is, or for more.
        let mut text = [0; PAGE];
        let length = File::open(self.file(address, "net").join(netdev).join(file))?.read(&mut text)?;
        let text = str::from_utf8(text.get(..length).unwrap_or_default()).map_err(io::Error::other)?;
        Ok(text.trim().to_owned())
    }

    /// Interfaces that are made on top of one of a function: bonds, bridges, VLANs and their like.
    pub fn upper_netdevs(&self, address: PciAddress, netdev: &str) -> io::Result<Vec<String>> {
        let entries = unless_gone(names(&self.file(address, "net").join(netdev)))?.unwrap_or_default();
        let mut uppers: Vec<_> =
            entries.iter().filter_map(|name| name.strip_prefix("upper_")).map(ToOwned::to_owned).collect();
        uppers.sort_unstable();
        Ok(uppers)
    }

    /// The nodes of a function that is driven by UIO, below `/dev`.
    pub fn uio_devices(&self, address: PciAddress) -> io::Result<Vec<String>> {
        self.names_in(address, "uio")
    }

    /// The nodes of devices of vDPA that a function has, below `/dev`.
    pub fn vdpa_nodes(&self, address: PciAddress) -> io::Result<Vec<String>> {
        let mut nodes = Vec::new();
        for device in self.names_in(address, "")?.into_iter().filter(|name| name.starts_with("vdpa")) {
            nodes.extend(self.names_in(address, &device)?.into_iter().filter(|name| name.starts_with("vhost-vdpa-")));
        }
        Ok(nodes)
    }

    /// `vfioN` of a function that has a node of its own, `/dev/vfio/devices/vfioN`: not every kernel makes one.
    pub fn vfio_device(&self, address: PciAddress) -> io::Result<Option<String>> {
        let Some(name) = self.names_in(address, "vfio-dev")?.pop() else { return Ok(None) };
        let node = self.file(address, "vfio-dev").join(&name).join("dev");
        Ok(unless_gone(fs::metadata(node))?.map(|_| name))
    }

    /// What is in a folder of a function; nothing: it is not there.
    fn names_in(&self, address: PciAddress, folder: &str) -> io::Result<Vec<String>> {
        Ok(unless_gone(names(&self.file(address, folder)))?.unwrap_or_default())
    }

    /// The type of link of a network interface of a function: `ARPHRD_*` of linux/if_arp.h.
    pub fn link_type(&self, address: PciAddress, netdev: &str) -> Option<u16> {
        self.netdev_file(address, netdev, "type")?.parse().ok()
    }

    /// The devices of RDMA of a function, and their nodes. A function has one as a rule, and all nodes are its.
    pub fn rdma(&self, address: PciAddress) -> io::Result<Vec<RdmaDevice>> {
        let mut devices = self.names_in(address, "infiniband")?;
        if devices.is_empty() {
            return Ok(Vec::new());
        }
        devices.sort_unstable();
        let mut nodes = self.names_in(address, "infiniband_verbs")?;
        nodes.extend(self.names_in(address, "infiniband_mad")?);
        nodes.sort_unstable();
        let nodes: Vec<_> = nodes.iter().map(|node| format!("/dev/infiniband/{node}")).collect();
        let device = |name: String| {
            // Four words of four digits.
            let guid = self.text(address, &format!("infiniband/{name}/node_guid"));
            let guid = guid.and_then(|text| u64::from_str_radix(&text.replace(':', ""), 16).ok()).map(Guid);
            RdmaDevice { name, nodes: nodes.clone(), guid }
        };
        Ok(devices.into_iter().map(device).collect())
    }

    /// Interfaces of a PF's switch, by the numbers of the VFs at their other ends.
    pub fn representors(&self, pf: PciAddress) -> BTreeMap<u32, String> {
        let folder = self.file(pf, "net");
        let all = names(&folder).unwrap_or_default();
        let numbered = |netdev: String| {
            let number = self.netdev_file(pf, &netdev, "ifindex")?.parse().ok()?;
            Some((netdev, number))
        };
        let numbered: Vec<_> = all.into_iter().filter_map(numbered).collect();
        let ports = self.ports.names(&folder, &numbered);
        ports.into_iter().filter_map(|(netdev, port)| Some((represented_vf(&port)?, netdev))).collect()
    }

    /// Whether a network interface of a function is set up.
    pub fn is_admin_up(&self, address: PciAddress, netdev: &str) -> Option<bool> {
        let flags = self.netdev_file(address, netdev, "flags")?;
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
        Some(flags & IFF_UP != 0)
    }

    /// Whether a network interface of a function has a link; none: its driver does not tell.
    pub fn is_link_up(&self, address: PciAddress, netdev: &str) -> Option<bool> {
        let state = self.netdev_file(address, netdev, "operstate")?;
        (state != "unknown").then_some(state == "up")
    }

    /// The speed of the link of a network interface of a function, in Mbit/s. The driver is asked, and waits for the lock of all
    /// interfaces: whoever calls this may wait as well.
    pub fn link_speed(&self, address: PciAddress, netdev: &str) -> Option<u32> {
        // -1 of one without a link.
        self.netdev_file(address, netdev, "speed")?.parse().ok()
    }

    /// The MTU of a network interface of a function.
    pub fn mtu(&self, address: PciAddress, netdev: &str) -> Option<u32> {
        net(self.file(address, "net").join(netdev)).mtu().ok()
    }

    /// The MAC address of a network interface of a function.
    pub fn mac(&self, address: PciAddress, netdev: &str) -> Option<crate::attributes::Mac> {
        net(self.file(address, "net").join(netdev)).address().ok()?.parse().ok()
    }

    /// Whether a driver of that name is loaded.
    pub fn has_driver(&self, driver: &str) -> bool {
        self.path(DRIVERS).join(driver).is_dir()
    }

    /// The file to write an address into to unbind it from a driver.
    pub fn unbind_file(&self, driver: &str) -> PathBuf {
        self.path(DRIVERS).join(driver).join("unbind")
    }

    /// The file to write an address into to have a driver looked for.
    pub fn probe_file(&self) -> PathBuf {
        self.path("sys/bus/pci/drivers_probe")
    }
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::new("/")
    }
}

/// Whether a port is another's end in a switch, by its name as drivers make it (`devlink_port_phys_port_name_get` of
/// net/devlink/port.c): `pf0vf1`, `pf0sf1`, `c1pf0`; a port to the outside is `p0`.
fn is_representor(port: &str) -> bool {
    port.contains("pf")
}

/// The VF of this machine at whose other end a port is. Those of another machine's begin with the number of a controller.
fn represented_vf(port: &str) -> Option<u32> {
    let (pf, vf) = port.strip_prefix("pf")?.split_once("vf")?;
    pf.parse::<u32>().ok()?;
    vf.parse().ok()
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned())).collect()
}

/// The last part of what a link leads to. The target need not be there: it may be gone this very moment.
pub(crate) fn link_name(link: &Path) -> Option<String> {
    read_link_name(link).ok().flatten()
}

/// The last part of where a link leads; none: it is not there.
fn read_link_name(link: &Path) -> io::Result<Option<String>> {
    let target = unless_gone(fs::read_link(link))?;
    Ok(target.and_then(|target| target.file_name().and_then(OsStr::to_str).map(ToOwned::to_owned)))
}

/// So often it is looked for an interface that is renamed meanwhile.
const NETDEV_LOOKS: usize = 3;
/// Of a file of sysfs.
const PAGE: usize = 4096;
/// linux/if.h.
const IFF_UP: u32 = 1;
const DEVICES: &str = "sys/bus/pci/devices";
const DRIVERS: &str = "sys/bus/pci/drivers";
