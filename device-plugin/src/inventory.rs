//! Every device of the node that can be advertised, as selectors look at it: VFs that `sriov-manager` lends, and functions that
//! nobody lends.

use std::collections::BTreeMap;
use std::sync::Arc;

use sriov_manager_client::v1;

use crate::config::SoftwareKind;
use crate::host::{CLASS_NETWORK, HostFunction, HostView, Rdma, SubFunction, Vdpa};

/// Every device, by its id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    /// By what the kubelet calls it.
    pub devices: BTreeMap<String, Arc<Device>>,
    /// VFs whose lease is there and who are not, by their addresses.
    pub lost: BTreeMap<String, v1::Lease>,
}

/// What `sriov-manager` tells of VFs, for each of the drivers that they may be lent with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lists {
    /// For the kernel's.
    pub kernel: Arc<v1::ListResponse>,
    /// For `vfio-pci`.
    pub vfio: Arc<v1::ListResponse>,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Device {
    /// What the kubelet calls it: a PCI address, or a name on the auxiliary bus.
    pub id: String,
    /// Where it comes from.
    pub source: Source,
    /// Its PCI function, or that which it is a part of.
    pub pci: String,
    /// Four hexadecimal digits.
    pub vendor: String,
    /// Four hexadecimal digits.
    pub device: String,
    /// None: it is bound to none.
    pub driver: Option<String>,
    /// Its PF, by address; none: it is one, or nobody knows.
    pub pf: Option<String>,
    /// All names of its PF's interface.
    pub pf_names: Vec<String>,
    /// Its number among those of its PF.
    pub index: Option<u32>,
    /// Its interfaces in the host's namespace.
    pub netdevs: Vec<String>,
    /// `ether` or `infiniband`, as netlink calls it; none: neither it nor its PF has an interface.
    pub link_type: Option<String>,
    /// What firmware calls it.
    pub acpi_index: Option<u32>,
    /// None: the machine does not say.
    pub numa: Option<u32>,
    /// Its IOMMU group, which it has whatever it is bound to.
    pub iommu_group: Option<u32>,
    /// For pods that use RDMA.
    pub rdma: Rdma,
    /// For pods that use vDPA.
    pub vdpa: Option<Vdpa>,
    /// Its first InfiniBand partition key.
    pub pkey: Option<String>,
    /// The default route of the host leads through it.
    pub is_default_route: bool,
}

/// Where a device comes from, and so what is done when a pod gets it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Source {
    /// A VF: it is borrowed from `sriov-manager`.
    Vf(Box<VfState>),
    /// A function that nobody lends: it is given as it is.
    #[default]
    Function,
    /// An accelerator: the same.
    Accelerator,
    /// A function on the auxiliary bus: the same.
    SubFunction,
    /// An endpoint of the forwarder.
    Software(SoftwareEnd),
}

/// An endpoint of the forwarder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoftwareEnd {
    /// What a pod finds.
    pub kind: SoftwareKind,
    /// Why it is not to be had while it is free.
    pub blocked: Option<String>,
}

impl Source {
    /// What it is, in words.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Vf(_) => "a VF",
            Self::Function => "a NIC without VFs",
            Self::Accelerator => "an accelerator",
            Self::SubFunction => "a sub-function",
            Self::Software(_) => "a software endpoint",
        }
    }
}

/// How a VF is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VfState {
    /// Who has it.
    pub lease: Option<v1::Lease>,
    /// Who alone may lend it; empty: everybody.
    pub owner: String,
    /// Why it is not to be had by the kernel's driver, beside being lent.
    pub reasons_kernel: Vec<v1::Reason>,
    /// Why not by `vfio-pci`.
    pub reasons_vfio: Vec<v1::Reason>,
    /// Something is being done to it.
    pub is_busy: bool,
    /// Why no VF of its PF is to be had; empty: nothing.
    pub pf_problem: String,
}

impl Inventory {
    /// What all of them know.
    pub fn new(lists: &Lists, host: &HostView) -> Self {
        let Lists { kernel: list, vfio } = lists;
        let pfs: BTreeMap<&str, &v1::Pf> = list.pfs.iter().map(|pf| (pf.address.as_str(), pf)).collect();
        let vfio: BTreeMap<&str, &v1::Vf> = vfio.vfs.iter().map(|vf| (vf.address.as_str(), vf)).collect();
        let is_nic = |vf: &&v1::Vf| host.nic_pfs.contains(&vf.pf);
        let vf = |vf: &v1::Vf| {
            let reasons_vfio = vfio.get(vf.address.as_str()).map(|vf| vf.reasons.clone()).unwrap_or_default();
            of_vf(vf, reasons_vfio, pfs.get(vf.pf.as_str()).copied(), host)
        };
        let vfs = list.vfs.iter().filter(is_nic).map(vf);
        let functions = host.functions.iter().map(|function| of_function(function, host));
        let sub_functions = host.sub_functions.iter().map(|function| of_sub_function(function, host));
        let all = vfs.chain(functions).chain(sub_functions);
        Self {
            devices: all.map(|device| (device.id.clone(), Arc::new(device))).collect(),
            lost: list.lost.iter().map(|lease| (lease.vf.clone(), lease.clone())).collect(),
        }
    }
}

impl Device {
    /// The VF's state, if it is one.
    pub fn vf(&self) -> Option<&VfState> {
        match &self.source {
            Source::Vf(state) => Some(state),
            Source::Function | Source::Accelerator | Source::SubFunction | Source::Software(_) => None,
        }
    }

    /// An endpoint of the forwarder, which is no part of the node.
    pub fn of_software(id: &str, end: SoftwareEnd) -> Self {
        Self { id: id.to_owned(), source: Source::Software(end), ..Self::default() }
    }

    /// The endpoint, if it is one.
    pub fn software(&self) -> Option<&SoftwareEnd> {
        match &self.source {
            Source::Software(end) => Some(end),
            _ => None,
        }
    }

    /// Whether a VF's lease can have it on its present driver: `sriov-manager` binds to two, and knows no others.
    pub fn present_driver(&self) -> Option<v1::Driver> {
        match self.driver.as_deref() {
            Some("vfio-pci") => Some(v1::Driver::VfioPci),
            Some(driver) if !UIO_DRIVERS.contains(&driver) => Some(v1::Driver::Kernel),
            _ => None,
        }
    }

    /// What the device is a part of, for choices among several: its PF, or itself.
    pub fn card(&self) -> &str {
        self.pf.as_deref().unwrap_or(&self.pci)
    }
}

fn of_vf(vf: &v1::Vf, reasons_vfio: Vec<v1::Reason>, pf: Option<&v1::Pf>, host: &HostView) -> Device {
    let pf_names = pf.map(|pf| [std::slice::from_ref(&pf.netdev), &pf.alt_names].concat()).unwrap_or_default();
    let own = [&vf.link_type, pf.map_or(&vf.link_type, |pf| &pf.link_type)];
    let link_type = own.into_iter().find(|kind| !kind.is_empty());
    let problems = pf.map(|pf| [pf.stuck.as_str(), &pf.cordoned]).unwrap_or_default();
    let state = VfState {
        lease: vf.lease.clone(),
        owner: vf.owner.clone(),
        reasons_kernel: vf.reasons.clone(),
        reasons_vfio,
        is_busy: vf.state() == v1::VfState::Busy,
        pf_problem: problems.into_iter().find(|problem| !problem.is_empty()).unwrap_or_default().to_owned(),
    };
    Device {
        id: vf.address.clone(),
        source: Source::Vf(Box::new(state)),
        pci: vf.address.clone(),
        vendor: format!("{:04x}", vf.vendor),
        device: format!("{:04x}", vf.device),
        driver: some(&vf.driver),
        pf: some(&vf.pf),
        pf_names: pf_names.into_iter().filter(|name| !name.is_empty()).collect(),
        index: Some(vf.index),
        is_default_route: vf.netdevs.iter().any(|netdev| host.default_routes.contains(netdev)),
        netdevs: vf.netdevs.clone(),
        link_type: link_type.map(|kind| link_word(kind)),
        acpi_index: vf.acpi_index,
        numa: vf.numa,
        iommu_group: vf.iommu_group,
        rdma: Rdma {
            devices: vf.rdma.iter().map(|rdma| rdma.device.clone()).collect(),
            nodes: vf.rdma.first().map(|rdma| rdma.nodes.clone()).unwrap_or_default(),
        },
        vdpa: host.vdpa.get(&vf.address).cloned(),
        pkey: host.pkeys.get(&vf.address).cloned(),
    }
}

fn of_function(function: &HostFunction, host: &HostView) -> Device {
    let source = if function.class == CLASS_NETWORK { Source::Function } else { Source::Accelerator };
    Device {
        id: function.address.clone(),
        source,
        pci: function.address.clone(),
        vendor: function.vendor.clone(),
        device: function.device.clone(),
        driver: function.driver.clone(),
        pf: Some(function.address.clone()),
        pf_names: function.netdevs.clone(),
        index: None,
        is_default_route: function.netdevs.iter().any(|netdev| host.default_routes.contains(netdev)),
        netdevs: function.netdevs.clone(),
        link_type: function.link_type.map(|kind| link_word(&kind.to_string())),
        acpi_index: function.acpi_index,
        numa: function.numa,
        iommu_group: function.iommu_group,
        rdma: function.rdma.clone(),
        vdpa: host.vdpa.get(&function.address).cloned(),
        pkey: host.pkeys.get(&function.address).cloned(),
    }
}

fn of_sub_function(part: &SubFunction, host: &HostView) -> Device {
    Device {
        id: part.name.clone(),
        source: Source::SubFunction,
        index: part.number,
        pf_names: part.pf_netdevs.clone(),
        ..of_function(&part.function, host)
    }
}

/// The manager tells the types that it has words for, and numbers of others (`ARPHRD_*`).
fn link_word(kind: &str) -> String {
    match kind {
        "ETH" | "1" => "ether",
        "IB" | "32" => "infiniband",
        other => other,
    }
    .to_owned()
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Drivers that give a function to a program and are not VFIO.
pub const UIO_DRIVERS: [&str; 3] = ["uio", "uio_pci_generic", "igb_uio"];
