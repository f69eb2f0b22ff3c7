//! What a container is given with its devices: environment and device nodes, byte for byte as the Go plugin does.

use std::collections::BTreeMap;

use ferrule_kubelet::v1beta1::DeviceSpec;
use sriov_manager_client::v1;
use tracing::{info, warn};

use crate::config::{ResourceConfig, SoftwareKind, VdpaType};
use crate::host::Host;
use crate::inventory::{Device, Source, UIO_DRIVERS};
use crate::pools::Member;
use crate::software::{container_socket, eal_argument};

/// Environment and nodes of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Names and values.
    pub envs: BTreeMap<String, String>,
    /// Nodes of all devices, each once.
    pub nodes: Vec<Node>,
    /// By device: its own, for CDI.
    pub nodes_of: BTreeMap<String, Vec<Node>>,
    /// By device: the node of its VFIO group on the host, if it has one.
    pub groups: BTreeMap<String, String>,
    /// The first device that goes to VFIO and has no group yet.
    pub without_group: Option<String>,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// On the host.
    pub host: String,
    /// In the container.
    pub container: String,
}

impl From<Node> for DeviceSpec {
    fn from(Node { host, container }: Node) -> Self {
        Self { container_path: container, host_path: host, permissions: "rw".to_owned() }
    }
}

/// What a device is on when the container starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// A program has it through this node of its group; none: without an IOMMU, VFIO makes the group when it is bound.
    Vfio(Option<String>),
    /// A program has it through these nodes.
    Uio(Vec<String>),
    /// The kernel, or nobody, has it.
    Kernel,
    /// It is an endpoint of the forwarder.
    Software(SoftwareKind),
}

impl Bound {
    /// What a device that goes to `driver` will be on. `vf` is what `sriov-manager` said when it lent it; without that it is known from the group
    /// that the device has whatever it is bound to.
    pub fn of(driver: Option<v1::Driver>, member: &Member, vf: Option<&v1::Vf>, host: &Host) -> Self {
        let device = &member.device;
        if let Some(end) = device.software() {
            return Self::Software(end.kind);
        }
        if driver == Some(v1::Driver::VfioPci) {
            if let Some(group) = vf.map(|vf| &vf.vfio_group).filter(|group| !group.is_empty()) {
                return Self::Vfio(Some(group.clone()));
            }
            let word = |group| if host.is_noiommu(group) { "noiommu-" } else { "" };
            return Self::Vfio(device.iommu_group.map(|group| format!("/dev/vfio/{}{group}", word(group))));
        }
        let is_uio = device.driver.as_deref().is_some_and(|driver| UIO_DRIVERS.contains(&driver));
        if is_uio { Self::Uio(host.uio_nodes(&device.pci)) } else { Self::Kernel }
    }
}

/// What a container gets with these devices of a resource, which are in order.
pub fn give(resource: &ResourceConfig, devices: &[(&Member, Bound)], host: &Host) -> Given {
    let mut given = Given::default();
    let mut told = BTreeMap::new();
    for (member, bound) in devices {
        let id = &member.device.id;
        let (info, nodes) = of_device(resource, member, bound, host);
        told.insert(id.clone(), info);
        for node in &nodes {
            if given.nodes.iter().all(|other| other.host != node.host) {
                given.nodes.push(node.clone());
            }
        }
        given.nodes_of.insert(id.clone(), nodes);
        if let Bound::Vfio(group) = bound {
            match group {
                Some(group) => drop(given.groups.insert(id.clone(), group.clone())),
                None => drop(given.without_group.get_or_insert_with(|| id.clone())),
            }
        }
    }
    let ids: Vec<_> = devices.iter().map(|(member, _)| member.device.id.as_str()).collect();
    let variable = resource.name.variable();
    given.envs.insert(format!("{variable}_INFO"), go_json(&told));
    // A pod that starts DPDK with it runs on VFs and on software endpoints as it is.
    let eal: Option<Vec<String>> = devices.iter().map(|(member, bound)| eal(member, bound)).collect();
    if let Some(eal) = eal.filter(|eal| !eal.is_empty()) {
        given.envs.insert(format!("{variable}_EAL"), eal.join(" "));
    }
    given.envs.insert(variable, ids.join(","));
    given
}

/// The argument by which DPDK takes a device; none: it is the kernel's.
fn eal(member: &Member, bound: &Bound) -> Option<String> {
    match bound {
        Bound::Vfio(_) | Bound::Uio(_) => Some(format!("--allow={}", member.device.pci)),
        Bound::Software(kind) => Some(eal_argument(&member.device.id, *kind)),
        Bound::Kernel => None,
    }
}

/// By provider: names and values.
type Info = BTreeMap<&'static str, BTreeMap<String, String>>;

fn of_device(resource: &ResourceConfig, member: &Member, bound: &Bound, host: &Host) -> (Info, Vec<Node>) {
    let device = &member.device;
    let same = |path: &str| Node { host: path.to_owned(), container: path.to_owned() };
    let words =
        |words: &[(&str, &str)]| words.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut info = Info::from([("generic", words(&[("deviceID", &device.id)]))]);
    let mut nodes = Vec::new();
    match bound {
        Bound::Vfio(None) => {
            info.insert("vfio", words(&[("mount", VFIO)]));
            nodes.push(same(VFIO));
        }
        Bound::Vfio(Some(group)) => {
            // DPDK looks for the plain number, also of a group without an IOMMU.
            let container = group.replace("/noiommu-", "/");
            info.insert("vfio", words(&[("mount", VFIO), ("dev-mount", &container)]));
            nodes.extend([same(VFIO), Node { host: group.clone(), container }]);
        }
        Bound::Uio(uio) => {
            let mounts = uio.iter().map(|node| ("mount", node.as_str())).collect::<Vec<_>>();
            info.insert("uio", words(&mounts));
            nodes.extend(uio.iter().map(|node| same(node)));
        }
        Bound::Kernel => {}
        Bound::Software(kind) => {
            let socket = container_socket(&device.id, *kind);
            info.insert(kind.word(), words(&[("path", &socket), ("role", "client")]));
        }
    }
    let selector = member.selector(resource);
    if selector.is_some_and(|selector| selector.need_vhost_net) && gives_vhost_net(resource, device, host) {
        info.insert("vhost", words(&[("net-mount", VHOST[0]), ("tun-mount", VHOST[1])]));
        nodes.extend(VHOST.iter().map(|node| same(node)));
    }
    if selector.is_some_and(|selector| selector.is_rdma) && device.software().is_none() {
        let mut rdma = device.rdma.nodes.clone();
        if !rdma.is_empty() && host.has_misc_device("rdma_cm") {
            rdma.push(RDMA_CM.to_owned());
        }
        info.insert("rdma", rdma_info(&rdma, &device.rdma.devices));
        nodes.extend(rdma.iter().map(|node| same(node)));
    }
    if let Some(vdpa) = device.vdpa.as_ref().filter(|_| selector.is_some_and(|selector| selector.vdpa_type.is_some())) {
        let path = vdpa.path.as_deref().filter(|_| vdpa.kind == VdpaType::Vhost);
        info.insert("vdpa", path.map(|path| words(&[("mount", path)])).unwrap_or_default());
        nodes.extend(path.map(same));
    }
    let extra: BTreeMap<String, String> = ["*", &device.id]
        .iter()
        .filter_map(|key| resource.additional_info.get(*key))
        .flat_map(BTreeMap::clone)
        .collect();
    if !extra.is_empty() {
        info.insert("extra", extra);
    }
    (info, nodes)
}

fn rdma_info(nodes: &[String], devices: &[String]) -> BTreeMap<String, String> {
    let kinds = ["uverbs", "umad", "issm", "rdma_cm"];
    let kind = |node: &String| Some(((*kinds.iter().find(|kind| node.contains(**kind))?).to_owned(), node.clone()));
    let mut info: BTreeMap<String, String> = nodes.iter().filter_map(kind).collect();
    info.insert("rdma_dev".to_owned(), devices.join(","));
    info
}

/// As Go writes JSON: keys in order, no spaces, and what HTML means something by is escaped.
fn go_json(value: &impl serde::Serialize) -> String {
    // Maps of texts cannot fail.
    let text = serde_json::to_string(value).unwrap_or_default();
    ['<', '>', '&', '\u{2028}', '\u{2029}']
        .into_iter()
        .fold(text, |text, char| text.replace(char, &format!("\\u{:04x}", u32::from(char))))
}

/// Whether a device comes with the nodes that `needVhostNet` asks for. A machine that has the modules has the nodes from its boot on, and
/// whoever opens one loads its module (kmod-static-nodes of systemd). What stands in for a VF where there is no hardware has them only
/// where they are there for sure: such a machine, or a container that is taken for one, may have none.
fn gives_vhost_net(resource: &ResourceConfig, device: &Device, host: &Host) -> bool {
    let unloaded: Vec<_> = ["vhost-net", "tun"].into_iter().filter(|name| !host.has_misc_device(name)).collect();
    if unloaded.is_empty() {
        return true;
    }
    let is_given = device.software().is_none();
    if is_given {
        info!(
            resource = %resource.name, ?unloaded,
            "nodes of needVhostNet are given whose modules are not loaded: whoever opens them loads these. If a container does not \
             start for want of them, load the modules vhost_net and tun on the node"
        );
    } else {
        warn!(resource = %resource.name, ?unloaded, "no node of needVhostNet is given: load the modules vhost_net and tun on the node");
    }
    is_given
}

/// The class of a CDI device, as the Go plugin names them.
pub fn cdi_class(source: &Source) -> &'static str {
    match source {
        Source::Vf(_) | Source::Function => "net-pci",
        Source::Accelerator => "net-accel",
        Source::SubFunction => "net-sf",
        Source::Software(_) => "net-software",
    }
}

const VFIO: &str = "/dev/vfio/vfio";
const VHOST: [&str; 2] = ["/dev/vhost-net", "/dev/net/tun"];
const RDMA_CM: &str = "/dev/infiniband/rdma_cm";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::host::{Rdma, Vdpa};
    use crate::inventory::SoftwareEnd;

    fn resource(entry: &str) -> Arc<ResourceConfig> {
        let text = format!("{{\"resourceList\": [{entry}]}}");
        Config::parse("f", &text, "intel.com").unwrap().resources.remove(0)
    }

    fn member(driver: &str) -> Member {
        let device = Device {
            id: "0000:3b:02.1".into(),
            pci: "0000:3b:02.1".into(),
            driver: Some(driver.into()),
            source: Source::Vf(Box::default()),
            iommu_group: Some(42),
            ..Device::default()
        };
        Member { device: Arc::new(device), selector: 0, is_gone: false }
    }

    #[test]
    fn a_vf_on_vfio_comes_with_the_variables_and_nodes_of_the_go_plugin() {
        let resource = resource(
            r#"{"resourceName": "sriov-net_a", "selectors": {}, "additionalInfo":
                {"*": {"token": "<&>", "b": "1"}, "0000:3b:02.1": {"b": "2"}}}"#,
        );
        let host = Host::new("/nowhere");
        let member = member("vfio-pci");
        let bound = Bound::of(Some(v1::Driver::VfioPci), &member, None, &host);
        let given = give(&resource, &[(&member, bound)], &host);
        assert_eq!(given.envs["PCIDEVICE_INTEL_COM_SRIOV-NET_A"], "0000:3b:02.1");
        assert_eq!(
            given.envs["PCIDEVICE_INTEL_COM_SRIOV-NET_A_INFO"],
            "{\"0000:3b:02.1\":{\"extra\":{\"b\":\"2\",\"token\":\"\\u003c\\u0026\\u003e\"},\
             \"generic\":{\"deviceID\":\"0000:3b:02.1\"},\
             \"vfio\":{\"dev-mount\":\"/dev/vfio/42\",\"mount\":\"/dev/vfio/vfio\"}}}"
        );
        let nodes: Vec<_> = given.nodes.iter().map(|node| (node.host.as_str(), node.container.as_str())).collect();
        assert_eq!(nodes, [(VFIO, VFIO), ("/dev/vfio/42", "/dev/vfio/42")]);
        assert_eq!(given.envs["PCIDEVICE_INTEL_COM_SRIOV-NET_A_EAL"], "--allow=0000:3b:02.1");
        let given = give(&resource, &[(&member, Bound::Kernel)], &host);
        assert!(!given.envs.contains_key("PCIDEVICE_INTEL_COM_SRIOV-NET_A_EAL"));
    }

    #[test]
    fn a_software_endpoint_comes_with_the_variables_of_a_vf() {
        let resource = resource(r#"{"resourceName": "a", "software": 2, "selectors": {"isRdma": true}}"#);
        let end = SoftwareEnd { kind: SoftwareKind::Memif, blocked: None };
        let ends: Vec<_> = ["soft-a-0", "soft-a-2"]
            .map(|id| Member { device: Arc::new(Device::of_software(id, end.clone())), selector: 0, is_gone: false })
            .into();
        let host = Host::new("/nowhere");
        let bound = |member: &Member| Bound::of(Some(v1::Driver::VfioPci), member, None, &host);
        let devices: Vec<_> = ends.iter().map(|member| (member, bound(member))).collect();
        let given = give(&resource, &devices, &host);
        assert_eq!(given.envs["PCIDEVICE_INTEL_COM_A"], "soft-a-0,soft-a-2");
        let info = |id: &str| {
            format!(
                "\"{id}\":{{\"generic\":{{\"deviceID\":\"{id}\"}},\
                 \"memif\":{{\"path\":\"/run/ferrule/{id}/memif.sock\",\"role\":\"client\"}}}}"
            )
        };
        assert_eq!(given.envs["PCIDEVICE_INTEL_COM_A_INFO"], format!("{{{},{}}}", info("soft-a-0"), info("soft-a-2")));
        let eal = &given.envs["PCIDEVICE_INTEL_COM_A_EAL"];
        assert!(eal.starts_with("--vdev=net_memif_a_0,") && eal.contains(" --vdev=net_memif_a_2,"), "{eal}");
        assert!(given.nodes.is_empty());
    }

    #[test]
    fn a_group_without_an_iommu_has_its_plain_number_in_the_container() {
        let resource = resource(r#"{"resourceName": "a", "selectors": {}}"#);
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("sys/kernel/iommu_groups/42");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("name"), "vfio-noiommu\n").unwrap();
        let (host, member) = (Host::new(root.path()), member("vfio-pci"));
        let bound = Bound::of(Some(v1::Driver::VfioPci), &member, None, &host);
        assert_eq!(bound, Bound::Vfio(Some("/dev/vfio/noiommu-42".into())));
        let given = give(&resource, &[(&member, bound)], &host);
        let node = Node { host: "/dev/vfio/noiommu-42".into(), container: "/dev/vfio/42".into() };
        assert_eq!(given.nodes[1], node);
    }

    #[test]
    fn rdma_vdpa_and_vhost_bring_their_nodes_each_once() {
        let root = tempfile::tempdir().unwrap();
        let misc = root.path().join("sys/devices/virtual/misc");
        for name in ["vhost-net", "tun", "rdma_cm"] {
            fs::create_dir_all(misc.join(name)).unwrap();
        }
        let host = Host::new(root.path());
        let selectors = r#"{"resourceName": "a", "selectors": {"isRdma": true, "needVhostNet": true}}"#;
        let mut first = member("mlx5_core");
        let rdma = Rdma {
            devices: vec!["mlx5_2".into()],
            nodes: ["issm2", "umad2", "uverbs2"].map(|node| format!("/dev/infiniband/{node}")).into(),
        };
        Arc::make_mut(&mut first.device).rdma = rdma;
        let mut second = first.clone();
        Arc::make_mut(&mut second.device).id = "0000:3b:02.2".into();
        let given = give(&resource(selectors), &[(&first, Bound::Kernel), (&second, Bound::Kernel)], &host);
        let nodes: Vec<_> = given.nodes.iter().map(|node| node.host.as_str()).collect();
        let inf = "/dev/infiniband";
        let rdma_nodes = ["issm2", "umad2", "uverbs2", "rdma_cm"].map(|node| format!("{inf}/{node}"));
        assert_eq!(nodes, [&[VHOST[0].to_owned(), VHOST[1].to_owned()], &rdma_nodes[..]].concat());
        let info = &given.envs["PCIDEVICE_INTEL_COM_A_INFO"];
        let wanted = format!(
            "\"rdma\":{{\"issm\":\"{inf}/issm2\",\"rdma_cm\":\"{inf}/rdma_cm\",\"rdma_dev\":\"mlx5_2\",\
             \"umad\":\"{inf}/umad2\",\"uverbs\":\"{inf}/uverbs2\"}}"
        );
        assert!(info.contains(&wanted), "{info}");
        assert!(info.contains(r#""vhost":{"net-mount":"/dev/vhost-net","tun-mount":"/dev/net/tun"}"#), "{info}");

        // A module that is not loaded yet is loaded by whoever opens its node; who asks about RDMA is asked in vain without one.
        fs::remove_dir_all(&misc).unwrap();
        let given = give(&resource(selectors), &[(&first, Bound::Kernel)], &host);
        let nodes: Vec<_> = given.nodes.iter().map(|node| node.host.as_str()).collect();
        assert_eq!(nodes, [&[VHOST[0].to_owned(), VHOST[1].to_owned()], &rdma_nodes[..3]].concat());
        let end = SoftwareEnd { kind: SoftwareKind::Memif, blocked: None };
        let end = Member { device: Arc::new(Device::of_software("soft-a-0", end)), selector: 0, is_gone: false };
        let of_software = resource(r#"{"resourceName": "a", "software": 2, "selectors": {"needVhostNet": true}}"#);
        assert!(give(&of_software, &[(&end, Bound::Software(SoftwareKind::Memif))], &host).nodes.is_empty());

        let vdpa = Vdpa { name: "vdpa0".into(), kind: VdpaType::Vhost, path: Some("/dev/vhost-vdpa-0".into()) };
        Arc::make_mut(&mut first.device).vdpa = Some(vdpa);
        let resource = resource(r#"{"resourceName": "a", "selectors": [{"vdpaType": "vhost"}]}"#);
        let given = give(&resource, &[(&first, Bound::Kernel)], &host);
        assert_eq!(given.nodes[0].host, "/dev/vhost-vdpa-0");
        assert!(given.envs["PCIDEVICE_INTEL_COM_A_INFO"].contains(r#""vdpa":{"mount":"/dev/vhost-vdpa-0"}"#));
    }
}
