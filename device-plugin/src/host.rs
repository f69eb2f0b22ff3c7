//! What sysfs tells that `sriov-manager` does not: functions that nobody lends (accelerators, sub-functions, NICs without VFs), and how
//! PFs are. Nothing is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::VdpaType;

/// The tree that holds `sys` and `proc`; in a pod, of these what its manifest mounts.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

/// A look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostView {
    /// Functions that are no VFs of NICs: NICs without VFs, and accelerators.
    pub functions: Vec<HostFunction>,
    /// Sub-functions on the auxiliary bus.
    pub sub_functions: Vec<SubFunction>,
    /// Functions of NICs that have VFs.
    pub nic_pfs: BTreeSet<String>,
    /// vDPA devices, by the function that they are of.
    pub vdpa: BTreeMap<String, Vdpa>,
    /// The first InfiniBand partition key of functions.
    pub pkeys: BTreeMap<String, String>,
    /// Interfaces that an IPv4 default route leads through.
    pub default_routes: BTreeSet<String>,
}

/// A PCI function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFunction {
    /// Such as `0000:3b:00.0`.
    pub address: String,
    /// The base class of its PCI class code.
    pub class: u8,
    /// Four hexadecimal digits.
    pub vendor: String,
    /// Four hexadecimal digits.
    pub device: String,
    /// None: it is bound to none.
    pub driver: Option<String>,
    /// None: the machine does not say.
    pub numa: Option<u32>,
    /// Its IOMMU group.
    pub iommu_group: Option<u32>,
    /// Its interfaces.
    pub netdevs: Vec<String>,
    /// `ARPHRD_*` of the first of them.
    pub link_type: Option<u32>,
    /// What firmware calls it.
    pub acpi_index: Option<u32>,
    /// Devices of RDMA, and their nodes.
    pub rdma: Rdma,
}

/// What of a function RDMA uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rdma {
    /// Such as `mlx5_2`.
    pub devices: Vec<String>,
    /// Such as `/dev/infiniband/uverbs2`.
    pub nodes: Vec<String>,
}

/// A function on the auxiliary bus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubFunction {
    /// Such as `mlx5_core.sf.4`.
    pub name: String,
    /// Its number, which its user chose.
    pub number: Option<u32>,
    /// Its own interfaces and RDMA, with the ids and the driver of the PCI function that it is a part of.
    pub function: HostFunction,
    /// The interfaces of that function.
    pub pf_netdevs: Vec<String>,
}

/// A vDPA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vdpa {
    /// Such as `vdpa0`.
    pub name: String,
    /// Who drives it.
    pub kind: VdpaType,
    /// Such as `/dev/vhost-vdpa-0`; none of one that the kernel drives.
    pub path: Option<String>,
}

/// How a function is at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionCondition {
    /// Whether its interface has a link; none: it has none here, or does not tell.
    pub has_link: Option<bool>,
    /// Fatal errors on its PCI Express link since it was found.
    pub fatal_errors: u64,
}

impl Host {
    /// `/`, or a made-up one.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        debug_assert!(is_below_one(path, &READS), "{path} is in none of {READS:?}");
        self.root.join(path)
    }

    /// Looks at everything. What goes away meanwhile is left out.
    pub fn look(&self) -> HostView {
        let mut view = HostView { vdpa: self.vdpa(), default_routes: self.default_routes(), ..HostView::default() };
        for address in names(&self.path("sys/bus/pci/devices")) {
            let file = |name: &str| self.device(&address).join(name);
            let class = hex(&file("class")).map_or(0, |class| (class >> 16) as u8);
            if ![CLASS_NETWORK, CLASS_ACCELERATOR].contains(&class) {
                continue;
            }
            view.pkeys.extend(self.pkey(&address).map(|key| (address.clone(), key)));
            let is_vf = file("physfn").exists();
            // Not by one of them: a VF may be removed alone, and its link then leads nowhere.
            if !is_vf && names(&self.device(&address)).iter().any(|name| name.starts_with("virtfn")) {
                // Whoever changes its number of VFs may change it; its VFs are what is given away.
                view.nic_pfs.extend((class == CLASS_NETWORK).then_some(address));
            } else if class == CLASS_ACCELERATOR || !is_vf {
                view.functions.push(self.function(&address, class));
            }
        }
        for name in names(&self.path("sys/bus/auxiliary/devices")) {
            view.sub_functions.extend(self.sub_function(name));
        }
        view
    }

    /// How a function is now. `netdev`: its interface, if a link is asked for.
    pub fn condition(&self, address: &str, netdev: &str) -> FunctionCondition {
        let carrier = || {
            let net = self.device(address).join("net").join(netdev);
            // An interface that is down refuses to tell, and has none.
            let is_up = text(&net.join("operstate"))? != "down";
            Some(is_up && text(&net.join("carrier")).as_deref() != Some("0"))
        };
        let errors = text(&self.device(address).join("aer_dev_fatal")).unwrap_or_default();
        let total = errors.lines().find_map(|line| line.strip_prefix("TOTAL_ERR_FATAL "));
        FunctionCondition {
            has_link: if netdev.is_empty() { None } else { carrier() },
            fatal_errors: total.and_then(|total| total.trim().parse().ok()).unwrap_or(0),
        }
    }

    /// What a PCI function is bound to.
    pub fn driver(&self, address: &str) -> Option<String> {
        link(&self.device(address).join("driver"))
    }

    /// The nodes of a function on a driver of the uio family, such as `/dev/uio3`.
    pub fn uio_nodes(&self, address: &str) -> Vec<String> {
        names(&self.device(address).join("uio")).into_iter().map(|name| format!("/dev/{name}")).collect()
    }

    /// Whether VFIO makes groups for functions without an IOMMU, each when it is bound.
    pub fn allows_noiommu(&self) -> bool {
        text(&self.path("sys/module/vfio/parameters/enable_unsafe_noiommu_mode")).as_deref() == Some("Y")
    }

    /// Whether an IOMMU group is one without an IOMMU.
    pub fn is_noiommu(&self, group: u32) -> bool {
        text(&self.path(&format!("sys/kernel/iommu_groups/{group}/name"))).as_deref() == Some("vfio-noiommu")
    }

    /// Whether the kernel has a device by this name that is no part of hardware, such as `vhost-net`: not before its module is loaded.
    /// sysfs says so; a pod that saw the node itself could open terminals of the host beside it.
    pub fn has_misc_device(&self, name: &str) -> bool {
        self.path("sys/devices/virtual/misc").join(name).exists()
    }

    /// What tells one start of the machine from the next.
    pub fn boot_id(&self) -> String {
        text(&self.path("proc/sys/kernel/random/boot_id")).unwrap_or_default()
    }

    fn device(&self, address: &str) -> PathBuf {
        self.path("sys/bus/pci/devices").join(address)
    }

    fn function(&self, address: &str, class: u8) -> HostFunction {
        let device = self.device(address);
        let netdevs = names(&device.join("net"));
        let id = |file: &str| hex(&device.join(file)).map(|id| format!("{id:04x}")).unwrap_or_default();
        HostFunction {
            class,
            vendor: id("vendor"),
            device: id("device"),
            driver: link(&device.join("driver")),
            numa: text(&device.join("numa_node")).and_then(|node| node.parse().ok()),
            iommu_group: link(&device.join("iommu_group")).and_then(|group| group.parse().ok()),
            link_type: link_type(&device, &netdevs),
            netdevs,
            acpi_index: text(&device.join("acpi_index")).and_then(|index| index.parse().ok()),
            rdma: rdma(&device),
            address: address.to_owned(),
        }
    }

    fn sub_function(&self, name: String) -> Option<SubFunction> {
        if name.split('.').nth(1) != Some("sf") {
            return None;
        }
        let device = self.path("sys/bus/auxiliary/devices").join(&name).canonicalize().ok()?;
        let parent = device.parent()?.file_name()?.to_str()?.to_owned();
        let netdevs = names(&device.join("net"));
        let parent = self.function(&parent, CLASS_NETWORK);
        let number = text(&device.join("sfnum")).and_then(|number| number.parse().ok());
        let pf_netdevs = parent.netdevs.clone();
        let link_type = link_type(&device, &netdevs).or(parent.link_type);
        let function = HostFunction { link_type, netdevs, rdma: rdma(&device), ..parent };
        Some(SubFunction { name, number, function, pf_netdevs })
    }

    fn pkey(&self, address: &str) -> Option<String> {
        let device = self.device(address).join("infiniband");
        let name = names(&device).into_iter().next()?;
        text(&device.join(name).join("ports/1/pkeys/0"))
    }

    fn vdpa(&self) -> BTreeMap<String, Vdpa> {
        let devices = self.path("sys/bus/vdpa/devices");
        let read = |name: String| {
            let device = devices.join(&name).canonicalize().ok()?;
            let function = device.parent()?.file_name()?.to_str()?.to_owned();
            let kind = match link(&device.join("driver"))?.as_str() {
                "vhost_vdpa" => VdpaType::Vhost,
                "virtio_vdpa" => VdpaType::Virtio,
                _ => return None,
            };
            let node = names(&device).into_iter().find(|name| name.starts_with("vhost-vdpa-"));
            Some((function, Vdpa { name, kind, path: node.map(|node| format!("/dev/{node}")) }))
        };
        names(&devices).into_iter().filter_map(read).collect()
    }

    fn default_routes(&self) -> BTreeSet<String> {
        let routes = fs::read_to_string(self.path("proc/net/route")).unwrap_or_default();
        let is_default = |line: &&str| {
            let mut words = line.split_whitespace();
            words.nth(1) == Some("00000000") && words.nth(5) == Some("00000000")
        };
        let netdev = |line: &str| Some(line.split_whitespace().next()?.to_owned());
        routes.lines().skip(1).filter(is_default).filter_map(netdev).collect()
    }
}

fn rdma(device: &Path) -> Rdma {
    let devices = names(&device.join("infiniband"));
    if devices.is_empty() {
        return Rdma::default();
    }
    let classes = ["infiniband_verbs", "infiniband_mad"];
    let nodes = classes.iter().flat_map(|class| names(&device.join(class)));
    Rdma { devices, nodes: nodes.map(|node| format!("/dev/infiniband/{node}")).collect() }
}

fn link_type(device: &Path, netdevs: &[String]) -> Option<u32> {
    text(&device.join("net").join(netdevs.first()?).join("type"))?.parse().ok()
}

/// The names in a directory, in order; none: it is not there.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

fn text(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

fn hex(file: &Path) -> Option<u32> {
    u32::from_str_radix(text(file)?.trim_start_matches("0x"), 16).ok()
}

fn is_below_one(path: &str, parts: &[impl AsRef<Path>]) -> bool {
    parts.iter().any(|part| Path::new(path).starts_with(part))
}

/// The last part of where a link leads.
fn link(file: &Path) -> Option<String> {
    Some(fs::read_link(file).ok()?.file_name()?.to_str()?.to_owned())
}

/// All that is read of the host. Links of `sys/bus` lead into `sys/devices`.
const READS: [&str; 6] = [
    "sys/bus",
    "sys/devices",
    "sys/kernel/iommu_groups",
    "sys/module",
    "proc/net/route",
    "proc/sys/kernel/random/boot_id",
];

/// The base class of network controllers (PCI code and id assignment specification, 1.3).
pub const CLASS_NETWORK: u8 = 0x02;
/// The base class of processing accelerators (the same, 1.19).
pub const CLASS_ACCELERATOR: u8 = 0x12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_mounts_all_that_is_read_of_the_host() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/manifests/device-plugin/daemonset.yaml");
        let manifest = fs::read_to_string(file).unwrap();
        assert!(manifest.contains("--root=/host"));
        let mounts: Vec<_> = manifest
            .lines()
            .filter_map(|line| line.split_once("mountPath: /host/")?.1.split([',', ' ']).next())
            .collect();
        let missing: Vec<_> = READS.into_iter().filter(|part| !is_below_one(part, &mounts)).collect();
        assert!(missing.is_empty(), "{missing:?} are below none of {mounts:?}");
    }
}
