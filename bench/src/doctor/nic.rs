//! Ports of NICs: where they are in the machine, how fast their way there is, and who has them.

use std::process::Command;

use super::finding::{Finding, Verdict, by_hand, command};
use super::tree::{CpuList, Tree};

/// A PCI function that is a port, or a VF of one.
#[derive(Clone, Debug)]
pub struct Nic {
    /// Its address.
    pub address: String,
    /// The function that has its plug: itself, or the PF of a VF.
    physical: String,
    /// The NUMA node that it is on.
    pub node: Option<u64>,
    /// Somebody named it as one of those that are measured.
    is_named: bool,
}

impl Nic {
    /// Those that are named; if none is, every port that the machine has.
    pub fn find(tree: &Tree, named: &[String]) -> Vec<Self> {
        let is_named = !named.is_empty();
        let all = || {
            let is_port = |address: &String| {
                let class = tree.text(&format!("{DEVICES}/{address}/class")).unwrap_or_default();
                class.starts_with(ETHERNET) && !tree.has(&format!("{DEVICES}/{address}/physfn"))
            };
            tree.names(DEVICES).into_iter().filter(is_port).collect()
        };
        let addresses: Vec<_> = if is_named { named.iter().map(|name| full_address(name)).collect() } else { all() };
        let nic = |address: String| Self {
            physical: tree.link(&format!("{DEVICES}/{address}/physfn")).unwrap_or_else(|| address.clone()),
            node: tree.number(&format!("{DEVICES}/{address}/numa_node")),
            address,
            is_named,
        };
        addresses.into_iter().map(nic).collect()
    }

    fn is_vf(&self) -> bool {
        self.physical != self.address
    }

    fn file(&self, name: &str) -> String {
        format!("{DEVICES}/{}/{name}", self.address)
    }

    fn physical_file(&self, name: &str) -> String {
        format!("{DEVICES}/{}/{name}", self.physical)
    }

    fn driver(&self, tree: &Tree) -> Option<String> {
        tree.link(&self.file("driver"))
    }

    fn interface(&self, tree: &Tree) -> Option<String> {
        tree.names(&self.physical_file("net")).into_iter().next()
    }

    /// In Gbit/s; the kernel only knows it while its own driver has the port.
    fn speed(&self, tree: &Tree) -> Option<f64> {
        let interface = self.interface(tree)?;
        let mbps = tree.number(&format!("sys/class/net/{interface}/speed"))?;
        (0 < mbps && mbps < u64::from(u32::MAX)).then_some(mbps as f64 / 1e3)
    }
}

/// What is to be said of all of them.
pub fn findings(tree: &Tree, nics: &[Nic], cpus: &CpuList) -> Vec<Finding> {
    let count = match nics.len() {
        0 => "none".to_owned(),
        1 => "one port".to_owned(),
        count => format!("{count} ports"),
    };
    let cure = by_hand("put a NIC in, or name its ports with --port 0000:3b:00.0 --port 0000:3b:00.1");
    let enough = Finding::of(
        nics.len() >= 2,
        Verdict::Error,
        [cure],
        Finding::ok("ports", count, "two: one sends, one receives"),
    );
    let of_each = nics.iter().flat_map(|nic| {
        if !tree.has(&format!("{DEVICES}/{}", nic.address)) {
            let cure = command("lspci -D | grep -i ethernet");
            return vec![
                Finding::not_ok("ports", Verdict::Error, "no such PCI function", "there", [cure]).about(&*nic.address),
            ];
        }
        let mut all = vec![
            driver(tree, nic),
            group(tree, nic),
            pcie(tree, nic),
            link(tree, nic),
            numa(nic, tree, cpus),
            vfs(tree, nic),
        ];
        all.extend(firmware(tree, nic));
        all.into_iter().map(|finding| finding.about(&*nic.address)).collect()
    });
    std::iter::once(enough).chain(of_each).collect()
}

fn driver(tree: &Tree, nic: &Nic) -> Finding {
    let driver = nic.driver(tree);
    let name = driver.as_deref().unwrap_or("none");
    let device = ["vendor", "device"].map(|file| tree.text(&nic.file(file)).unwrap_or_default().replace("0x", ""));
    let is = format!("{name} ({})", device.join(":"));
    if device[0] == NVIDIA {
        let cure = command("modprobe mlx5_core");
        let should = "mlx5_core: DPDK polls this NIC beside the kernel's driver";
        return Finding::of(name == "mlx5_core", Verdict::Error, [cure], Finding::ok("driver", is, should));
    }
    let (address, interface) = (&nic.address, nic.interface(tree));
    let down = if nic.is_vf() { None } else { interface.map(|interface| format!("ip link set {interface} down && ")) };
    let bind = format!(
        "{}dpdk-devbind.py --bind=vfio-pci {address}    (a VF: `ferrule vf acquire LEASE --vf ADDRESS --driver vfio-pci` does it, and `ferrule vf release LEASE` undoes it)",
        down.unwrap_or_default()
    );
    if !nic.is_named && name != "vfio-pci" {
        let should = "vfio-pci, if it is one of the two that are measured: name those with --port";
        return Finding::not_ok("driver", Verdict::Unknown, is, should, []);
    }
    Finding::of(name == "vfio-pci", Verdict::Error, [command(bind)], Finding::ok("driver", is, "vfio-pci"))
}

fn group(tree: &Tree, nic: &Nic) -> Finding {
    let should = "an IOMMU group without devices that the kernel drives";
    let Some(group) = tree.link(&nic.file("iommu_group")) else {
        let cure = by_hand("see the check `iommu`");
        return Finding::not_ok("iommu-group", Verdict::Error, "no group: the IOMMU is off", should, [cure]);
    };
    let drives = |address: &String| {
        let driver = tree.link(&format!("{DEVICES}/{address}/driver"));
        let class = tree.text(&format!("{DEVICES}/{address}/class")).unwrap_or_default();
        let is_free = driver.is_none_or(|driver| driver == "vfio-pci" || driver == "pcieport");
        *address != nic.address && !is_free && !class.starts_with(BRIDGE)
    };
    let others: Vec<_> = tree.names(&nic.file("iommu_group/devices")).into_iter().filter(drives).collect();
    let is =
        if others.is_empty() { format!("group {group}") } else { format!("group {group}, with {}", others.join(", ")) };
    let cure =
        by_hand("put the NIC into a slot of its own root port; firmware: ACS on; or bind the others to vfio-pci too");
    let verdict = if nic.is_named { Verdict::Error } else { Verdict::Unknown };
    Finding::of(others.is_empty(), verdict, [cure], Finding::ok("iommu-group", is, should))
}

fn pcie(tree: &Tree, nic: &Nic) -> Finding {
    let value = |name: &str| {
        let text = tree.text(&nic.physical_file(name))?;
        text.split_whitespace().next()?.parse::<f64>().ok().filter(|&value| value > 0.0)
    };
    let lane = |name: &str, width: &str| Some((value(name)?, value(width)?));
    let now = lane("current_link_speed", "current_link_width");
    let most = lane("max_link_speed", "max_link_width");
    let (Some(now), Some(most)) = (now, most) else {
        return Finding::not_ok("pcie", Verdict::Unknown, "not to be seen", "as fast and as wide as the card", []);
    };
    let words =
        |(speed, width): (f64, f64)| format!("{speed:.1} GT/s x{width:.0}, {:.0} Gbit/s", pcie_gbps((speed, width)));
    let (is, can) = (words(now), words(most));
    let by_slot = by_hand(
        "another slot: one that has all lanes, at the CPU and not behind a bridge; firmware: its link speed, no bifurcation",
    );
    let needed = nic.speed(tree).map(|speed| speed * PCIE_HEADROOM);
    if let Some(needed) = needed.filter(|&needed| pcie_gbps(now) < needed) {
        let should = format!("{needed:.0} Gbit/s or more: line rate, and descriptors beside the frames");
        return Finding::not_ok("pcie", Verdict::Error, is, should, [by_slot]);
    }
    Finding::of(now == most, Verdict::Warning, [by_slot], Finding::ok("pcie", is, format!("what the card can: {can}")))
}

fn link(tree: &Tree, nic: &Nic) -> Finding {
    let should = "up, at the speed of the port";
    let Some(interface) = nic.interface(tree) else {
        let is = "not to be seen while the kernel has no driver on it";
        return Finding::not_ok(
            "link",
            Verdict::Unknown,
            is,
            should,
            [by_hand("`ferrule bench` waits for it and says so")],
        );
    };
    let folder = format!("sys/class/net/{interface}");
    let is_up = tree.text(&format!("{folder}/carrier")).as_deref() == Some("1");
    let is = match (is_up, nic.speed(tree)) {
        (true, Some(speed)) => format!("{interface}: up, {speed:.0} Gbit/s"),
        (true, None) => format!("{interface}: up"),
        (false, _) => format!("{interface}: down"),
    };
    let cures = [
        command(format!("ip link set {interface} up")),
        by_hand("cable, transceiver, the peer's port; the same FEC at both ends (`ethtool --show-fec`)"),
    ];
    let verdict = if nic.is_named { Verdict::Error } else { Verdict::Unknown };
    Finding::of(is_up, verdict, cures, Finding::ok("link", is, should))
}

fn numa(nic: &Nic, tree: &Tree, cpus: &CpuList) -> Finding {
    let nodes = tree.names("sys/devices/system/node").iter().filter(|name| name.starts_with("node")).count();
    let should = "the node of the CPUs that poll it";
    let Some(node) = nic.node else {
        let is = if nodes > 1 { "the firmware does not say" } else { "the machine has one" };
        let verdict = if nodes > 1 { Verdict::Unknown } else { Verdict::Ok };
        return Finding::not_ok("numa", verdict, is, should, []);
    };
    let here = tree.cpus(&format!("sys/devices/system/node/node{node}/cpulist"));
    let others = cpus.without(&here);
    let is = if others.is_empty() { format!("node {node}") } else { format!("node {node}; CPU {others} is elsewhere") };
    let cure = by_hand(format!("isolate CPUs of node {node} ({here}) and use them: isolcpus=, --worker, --generator"));
    Finding::of(others.is_empty(), Verdict::Warning, [cure], Finding::ok("numa", is, should))
}

fn vfs(tree: &Tree, nic: &Nic) -> Finding {
    let total = tree.number(&nic.physical_file("sriov_totalvfs")).unwrap_or_default();
    let made = tree.number(&nic.physical_file("sriov_numvfs")).unwrap_or_default();
    if nic.is_vf() {
        return Finding::ok("vfs", format!("a VF of {}, which has {made}", nic.physical), "a VF, or a port as a whole");
    }
    let is = if total == 0 { "it can have none".to_owned() } else { format!("{made} of {total}") };
    let should = "one or more, if VFs are to be measured; none are needed for a port as a whole";
    // Nothing is wrong with either.
    Finding::ok("vfs", is, should)
}

/// By the kernel's driver, so only of this machine, and only while that has the port.
fn firmware(tree: &Tree, nic: &Nic) -> Option<Finding> {
    let interface = nic.interface(tree)?;
    let should = "what the vendor lists beside the driver and this DPDK (see its release notes)";
    let cure = [by_hand(format!("ethtool -i {interface}    (package ethtool)"))];
    if !tree.is_here() {
        return Some(Finding::not_ok("firmware", Verdict::Unknown, "not to be seen", should, cure));
    }
    let output = Command::new("ethtool").args(["-i", &interface]).output();
    let text = output
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    Some(match text.and_then(|text| versions(&text)) {
        Some(is) => Finding::ok("firmware", is, should),
        None => Finding::not_ok("firmware", Verdict::Unknown, "not to be seen", should, cure),
    })
}

/// Of what `ethtool -i` prints.
fn versions(text: &str) -> Option<String> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let (driver, firmware) = (field("driver")?, field("firmware-version").unwrap_or_default());
    let version = field("version").unwrap_or_default();
    let firmware = if firmware.is_empty() { "not told" } else { firmware };
    Some(format!("driver {driver} {version}, firmware {firmware}"))
}

/// What lanes carry in Gbit/s, without their line code.
fn pcie_gbps((speed, width): (f64, f64)) -> f64 {
    let code = if speed < 8.0 { 8.0 / 10.0 } else { 128.0 / 130.0 };
    speed * width * code
}

/// With its domain: `3b:00.0` is `0000:3b:00.0`.
fn full_address(name: &str) -> String {
    let address = name.split(',').next().unwrap_or_default();
    if address.matches(':').count() == 1 { format!("0000:{address}") } else { address.to_owned() }
}

/// Headers of the PCIe packets, descriptors and their write-back: about a seventh at 128 bytes, more for smaller frames.
const PCIE_HEADROOM: f64 = 1.15;
const DEVICES: &str = "sys/bus/pci/devices";
/// Class 2, subclass 0 (PCI code and id assignment specification, 1.3).
const ETHERNET: &str = "0x0200";
const BRIDGE: &str = "0x06";
const NVIDIA: &str = "15b3";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lanes_carry_is_less_than_their_rate() {
        assert!((pcie_gbps((16.0, 16.0)) - 252.06).abs() < 0.01);
        assert!((pcie_gbps((5.0, 8.0)) - 32.0).abs() < 0.01);
    }

    #[test]
    fn versions_are_read_and_an_address_gets_its_domain() {
        let text = "driver: ice\nversion: 6.1.0-18-amd64\nfirmware-version: 4.40 0x8001c967 1.3534.0\nexpansion-rom-version:\n";
        assert_eq!(versions(text).unwrap(), "driver ice 6.1.0-18-amd64, firmware 4.40 0x8001c967 1.3534.0");
        assert!(versions("").is_none());
        assert_eq!(["3b:00.0", "0001:3b:00.0,arg=1"].map(full_address), ["0000:3b:00.0", "0001:3b:00.0"]);
    }
}
