//! The configuration examples of the Go plugin's documentation on a made-up node of several NIC families, with 256 VFs on each of
//! four PFs: which resource has which devices, and how long it takes.

#![allow(clippy::unwrap_used, reason = "it is a test")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use ferrule_kubelet::stand_in::{Kubelet, Release};
use sriov_manager::PciAddress;
use sriov_manager::fake::{FakeNode, FakePf};
use sriov_manager::kernel::Kernel;
use sriov_manager_client::v1;
use tokio::time::sleep;

mod common;

use common::Site;

const VFS: u32 = 256;
/// An E810, an X710, a ConnectX in switchdev mode, an 82576.
const FAMILIES: [Family; 4] = [
    Family { pf: "ens1f0", pf_driver: "ice", vendor: 0x8086, device: 0x1592, vf_device: 0x1889, vf_driver: "iavf" },
    Family {
        pf: "ens785f0",
        pf_driver: "i40e",
        vendor: 0x8086,
        device: 0x1572,
        vf_device: 0x154c,
        vf_driver: "vfio-pci",
    },
    Family {
        pf: "ens3f0np0",
        pf_driver: "mlx5_core",
        vendor: 0x15b3,
        device: 0x1017,
        vf_device: 0x1018,
        vf_driver: "mlx5_core",
    },
    Family { pf: "enp2s0", pf_driver: "igb", vendor: 0x8086, device: 0x10c9, vf_device: 0x10ca, vf_driver: "igbvf" },
];

struct Family {
    pf: &'static str,
    pf_driver: &'static str,
    vendor: u32,
    device: u32,
    vf_device: u32,
    vf_driver: &'static str,
}

/// In the order of the file a device goes to the first that takes it.
const EXAMPLES: &str = r#"{"resourceList": [
    {"resourceName": "intel_sriov_netdevice",
     "selectors": [{"vendors": ["8086"], "devices": ["154c", "10ed", "1889"], "drivers": ["i40evf", "iavf", "ixgbevf"]}]},
    {"resourceName": "intel_sriov_dpdk", "resourcePrefix": "intel.com",
     "selectors": [{"vendors": ["8086"], "devices": ["154c", "10ed"], "drivers": ["vfio-pci"], "pfNames": ["enp0s0f0", "ens785f0#0-99,200"]}]},
    {"resourceName": "intel_sriov_rest",
     "selectors": [{"rootDevices": ["0000:03:00.0#100-109"]}, {"pfNames": ["ENS785F0#110-119"]}]},
    {"resourceName": "mlnx_sriov_rdma", "resourcePrefix": "mellanox.com",
     "selectors": [{"vendors": ["15b3"], "devices": ["1018"], "drivers": ["mlx5_core"], "IsRdma": true}]},
    {"resourceName": "mlnx_ether", "resourcePrefix": "mellanox.com",
     "selectors": {"vendors": ["15b3"], "linkTypes": ["ether"], "pfNames": ["ens3f0np0"]}},
    {"resourceName": "infiniband", "resourcePrefix": "mellanox.com",
     "selectors": [{"vendors": ["15b3"], "linkTypes": ["infiniband"]}]},
    {"resourceName": "igb_any", "driver": "vfio-pci", "policy": "pack", "selectors": {"pfNames": ["enp2s0"]}},
    {"resourceName": "fpga", "deviceType": "accelerator", "selectors": [{"vendors": ["8086"], "devices": ["0d90"]}]},
    {"resourceName": "sf", "deviceType": "auxNetDevice",
     "selectors": [{"vendors": ["15b3"], "auxTypes": ["sf"], "pfNames": ["ens3f0np0#4"]}]}
]}"#;

fn node() -> FakeNode {
    let pf = |(bus, family): (u8, &Family)| FakePf {
        address: PciAddress::new(0, bus, 0, 0),
        name: family.pf,
        vendor: family.vendor,
        device: family.device,
        driver: family.pf_driver,
        total_vfs: VFS,
    };
    let pfs: Vec<_> = (2..).zip(&FAMILIES).map(pf).collect();
    let node = FakeNode::with_pfs(&pfs);
    let vfs = node.open();
    for (number, family) in (0..).zip(&FAMILIES) {
        vfs.create(node.pf(number), VFS).unwrap();
        let write = |address, file: &str, text: String| fs::write(node.sysfs().file(address, file), text).unwrap();
        for index in 0..VFS {
            let vf = node.vf(number, index);
            write(vf, "vendor", format!("{:#06x}\n", family.vendor));
            write(vf, "device", format!("{:#06x}\n", family.vf_device));
            link(&format!("../../drivers/{}", family.vf_driver), &node.sysfs().file(vf, "driver"));
        }
    }
    drop(vfs);
    let sysfs = node.sysfs();
    // A driver that is not loaded takes no VF.
    for family in &FAMILIES {
        let driver = sysfs.path("sys/bus/pci/drivers").join(family.vf_driver);
        fs::create_dir_all(&driver).unwrap();
        fs::write(driver.join("unbind"), "").unwrap();
    }
    let mlx = node.pf(2);
    for (netdev, port, number) in [("ens3f0np0", "p0", 0), ("eth0", "pf0vf0", 1), ("eth1", "pf0vf1", 2)] {
        let net = sysfs.file(mlx, "net").join(netdev);
        fs::create_dir_all(&net).unwrap();
        for (file, text) in
            [("phys_port_name", port.to_owned()), ("dev_port", number.to_string()), ("type", "1".into())]
        {
            fs::write(net.join(file), format!("{text}\n")).unwrap();
        }
    }
    for index in 0..8 {
        let vf = node.vf(2, index);
        fs::create_dir_all(sysfs.file(vf, "infiniband").join(format!("mlx5_{index}"))).unwrap();
        fs::create_dir_all(sysfs.file(vf, "infiniband_verbs").join(format!("uverbs{index}"))).unwrap();
    }
    put_accelerator(&sysfs.path("sys/bus/pci/devices/0000:65:00.0"));
    put_sub_function(&sysfs.path(""), &sysfs.file(mlx, ""));
    node
}

fn put_accelerator(device: &Path) {
    fs::create_dir_all(device).unwrap();
    for (file, text) in [("class", "0x120000"), ("vendor", "0x8086"), ("device", "0x0d90"), ("numa_node", "1")] {
        fs::write(device.join(file), format!("{text}\n")).unwrap();
    }
    link("../../drivers/dfl-pci", &device.join("driver"));
}

fn put_sub_function(root: &Path, parent: &Path) {
    let device = parent.join("mlx5_core.sf.4");
    fs::create_dir_all(&device).unwrap();
    fs::write(device.join("sfnum"), "4\n").unwrap();
    let auxiliary = root.join("sys/bus/auxiliary/devices");
    fs::create_dir_all(&auxiliary).unwrap();
    symlink(&device, auxiliary.join("mlx5_core.sf.4")).unwrap();
}

fn link(target: &str, link: &Path) {
    let _ = fs::remove_file(link);
    symlink(target, link).unwrap();
}

async fn until(kubelet: &Kubelet, resource: &str, count: usize) -> BTreeSet<String> {
    let what = format!("{count} devices of {resource}");
    kubelet.until(&what, |kubelet| kubelet.counts(resource).is_some_and(|counts| counts.capacity == count)).await;
    kubelet.healthy(resource)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_plugins_examples_have_the_same_devices_on_a_node_of_a_thousand_vfs() {
    let mut site = Site::new(node(), EXAMPLES);
    // As the manager has it when it runs for real.
    site.rescan = Duration::from_secs(30);
    site.start_manager(VFS).await;
    site.start_kubelet(Release::V1_37);
    let began = Instant::now();
    site.start_plugin().await;
    let kubelet = site.kubelet();
    let vf = |pf, index| site.node.vf(pf, index).to_string();
    let vfs = |pf, indexes: Vec<u32>| -> BTreeSet<String> { indexes.into_iter().map(|index| vf(pf, index)).collect() };

    let all: Vec<u32> = (0..VFS).collect();
    assert_eq!(until(kubelet, "intel.com/intel_sriov_netdevice", 256).await, vfs(0, all.clone()));
    println!("{:?} from the start of the plugin to its first list", began.elapsed());
    let dpdk: Vec<u32> = (0..100).chain([200]).collect();
    assert_eq!(until(kubelet, "intel.com/intel_sriov_dpdk", 101).await, vfs(1, dpdk));
    let rest: Vec<u32> = (100..120).collect();
    assert_eq!(until(kubelet, "intel.com/intel_sriov_rest", 20).await, vfs(1, rest));
    assert_eq!(until(kubelet, "mellanox.com/mlnx_sriov_rdma", 8).await, vfs(2, (0..8).collect()));
    // By the uplink's name, and its type of link: a VF has none without an interface.
    assert_eq!(until(kubelet, "mellanox.com/mlnx_ether", 248).await, vfs(2, (8..VFS).collect()));
    assert_eq!(until(kubelet, "mellanox.com/infiniband", 0).await.len(), 0);
    assert_eq!(until(kubelet, "intel.com/igb_any", 256).await, vfs(3, all));
    assert_eq!(until(kubelet, "intel.com/fpga", 1).await, BTreeSet::from(["0000:65:00.0".to_owned()]));
    assert_eq!(kubelet.numa_nodes("intel.com/fpga", "0000:65:00.0"), [1]);
    assert_eq!(until(kubelet, "intel.com/sf", 1).await, BTreeSet::from(["mlx5_core.sf.4".to_owned()]));

    // What is never bound is given as it is.
    let answer = kubelet.admit("one", "main", "intel.com/fpga", 1).await.unwrap();
    assert_eq!(answer.envs["PCIDEVICE_INTEL_COM_FPGA"], "0000:65:00.0");
    let answer = kubelet.admit("one", "main", "mellanox.com/mlnx_sriov_rdma", 2).await.unwrap();
    let info = &answer.envs["PCIDEVICE_MELLANOX_COM_MLNX_SRIOV_RDMA_INFO"];
    assert!(info.contains(r#""rdma":{"rdma_dev":"mlx5_0","uverbs":"/dev/infiniband/uverbs0"}"#), "{info}");
    kubelet.start_container("one", "main").await.unwrap();

    figures(&site).await;

    // The first of a PF, alone: the others stay. Here nothing but a look tells the manager.
    site.stop_manager().await;
    site.rescan = Duration::from_millis(50);
    site.start_manager(VFS).await;
    let kubelet = site.kubelet();
    let began = Instant::now();
    let gone = site.node.vf(0, 0);
    fs::remove_dir_all(site.node.sysfs().file(gone, "")).unwrap();
    assert!(!until(kubelet, "intel.com/intel_sriov_netdevice", 255).await.contains(&gone.to_string()));
    println!("{:?} from a VF that goes to the kubelet's list; the manager looks every 50 ms here", began.elapsed());
    site.stop().await;
}

/// How long calls and news take on this node, with nothing but them at work.
async fn figures(site: &Site) {
    let kubelet = site.kubelet();
    let available = |resource: &str| kubelet.healthy(resource).into_iter().collect::<Vec<_>>();
    for (what, resource) in
        [("without another driver", "intel.com/intel_sriov_dpdk"), ("with another driver", "intel.com/igb_any")]
    {
        let (mut preferred, mut allocated) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            let free = available(resource);
            let free: Vec<_> = free.iter().map(String::as_str).collect();
            // Calls of a kubelet are apart; what comes of the last one is over.
            sleep(Duration::from_millis(50)).await;
            let began = Instant::now();
            let chosen = kubelet.prefer(resource, &free, &[], 1).await.unwrap().remove(0);
            preferred.push(began.elapsed());
            let began = Instant::now();
            kubelet.allocate_ids(resource, &[&chosen]).await.unwrap();
            allocated.push(began.elapsed());
        }
        println!("Allocate {what}: {}; the choice before it: {}", told(allocated), told(preferred));
    }
    floor(site).await;
    let mut client = site.client().await;
    let mut times = Vec::new();
    for index in 0..20 {
        sleep(Duration::from_millis(50)).await;
        let (id, owner) = (format!("direct-{index}"), "device-plugin".to_owned());
        let (vf, driver) = (site.node.vf(1, 100 + index).to_string(), v1::Driver::VfioPci.into());
        let request = v1::AcquireRequest { id, owner, vf, driver, tenant: "a test".into(), ..Default::default() };
        let began = Instant::now();
        client.acquire(request).await.unwrap();
        times.push(began.elapsed());
    }
    println!("the manager alone, without another driver: {}", told(times));
    let mut times = Vec::new();
    let resource = "intel.com/intel_sriov_netdevice";
    for round in 0..20 {
        let why = if round % 2 == 0 { "a new cable" } else { "" };
        let began = Instant::now();
        client.cordon(v1::CordonRequest { pf: "ens1f0".into(), why: why.into() }).await.unwrap();
        let wanted = if why.is_empty() { VFS as usize } else { 0 };
        kubelet.until("the PF's VFs are told of", |kubelet| kubelet.healthy(resource).len() == wanted).await;
        times.push(began.elapsed());
    }
    println!("news of a PF with {VFS} VFs, until they are in the kubelet's list: {}", told(times));
}

/// What no Allocate can be without: a question and its answer, a record on the disk, and what a PF says of all its VFs.
async fn floor(site: &Site) {
    let (mut asked, mut recorded, mut reported) = (Vec::new(), Vec::new(), Vec::new());
    let mut file = fs::File::create(site.directory.path().join("floor")).unwrap();
    let (kernel, pf) = (site.node.kernel(), site.node.pf(1));
    let (_, interface) = site.node.sysfs().interface(pf).unwrap();
    for _ in 0..100 {
        sleep(Duration::from_millis(10)).await;
        let began = Instant::now();
        site.kubelet().allocate_ids("intel.com/intel_sriov_dpdk", &[]).await.unwrap();
        asked.push(began.elapsed());
        let began = Instant::now();
        file.write_all(&[b'x'; 512]).and_then(|()| file.sync_data()).unwrap();
        recorded.push(began.elapsed());
        let began = Instant::now();
        assert_eq!(kernel.pf_report(interface).unwrap().vfs.len(), VFS as usize);
        reported.push(began.elapsed());
    }
    println!("the floor, an Allocate of no device: {}", told(asked));
    println!("the floor, a record on the disk: {}", told(recorded));
    println!("the floor, what the made-up PF says of {VFS} VFs: {}", told(reported));
}

fn told(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    format!("p50 {:.1?}, p99 {:.1?}", times[times.len() / 2], times[times.len() * 99 / 100])
}
