//! VFs made, lent, set and given back by the manager.

use std::cell::Cell;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use ferrule_ffi::netlink::NetlinkError;
use serde_json::Value;
use sriov_manager::attributes::{Mac, VfChange};
use sriov_manager::kernel::{Interface, Kernel as _, LiveKernel};
use sriov_manager_client::v1::{Attributes, LinkState, Rate, Vlan, VlanProtocol};
use tonic::{Code, Status};

use crate::eventually;
use crate::lab::manager::{Manager, ManagerOptions};
use crate::lab::pci::{Function, VFS_MAX};
use crate::lab::scenario::Lab;
use crate::lab::testpmd;

use super::{ip, vf_states};

pub fn fourteen_vfs(lab: &Lab) -> Result<()> {
    // The floor: one PF after the other, by the kernel alone.
    for pf in &lab.pfs {
        pf.write("sriov_drivers_autoprobe", "0")?;
    }
    let began = Instant::now();
    for pf in &lab.pfs {
        pf.set_vfs(VFS_MAX)?;
    }
    lab.time("kernel: 7 VFs on one PF and then on the other", began.elapsed());
    for pf in &lab.pfs {
        pf.set_vfs(0)?;
        pf.write("sriov_drivers_autoprobe", "1")?;
    }
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    let began = Instant::now();
    let created = manager.create(&lab.pfs, VFS_MAX)?;
    lab.time("manager: 7 VFs on two PFs at once", began.elapsed());
    assert!(created.iter().all(|created| created.error.is_empty()), "{created:?}");
    let list = manager.list()?;
    assert_eq!(list.vfs.len(), 2 * VFS_MAX);
    for pf in &lab.pfs {
        let listed = list.pfs.iter().find(|listed| listed.address == pf.address).context("each PF is listed")?;
        assert_eq!(listed.num_vfs as usize, VFS_MAX);
        assert_eq!(listed.numa.map(|node| node.to_string()), Some(pf.read("numa_node")?));
        assert_eq!(pf.read("sriov_drivers_autoprobe")?, "1", "it is as it was before");
        for (index, vf) in pf.vfs().iter().enumerate() {
            assert_eq!(vf.driver(), None, "no driver was bound that nobody asked for");
            let listed = manager.vf(vf)?;
            assert_eq!((&listed.pf, listed.index as usize), (&pf.address, index));
            assert_eq!((listed.iommu_group, listed.state().word()), (vf.iommu_group(), "free"));
        }
    }
    // The same again is nothing to do; another number is made through none.
    let again = manager.create(&lab.pfs, VFS_MAX)?;
    assert!(again.iter().all(|created| created.steps.is_empty() && created.error.is_empty()), "{again:?}");
    let fewer = manager.create(&lab.pfs, 2)?;
    assert!(fewer.iter().all(|created| created.error.is_empty()), "{fewer:?}");
    assert!(lab.pfs.iter().all(|pf| pf.vfs().len() == 2));
    Ok(())
}

pub fn vfio_and_back(lab: &Lab) -> Result<()> {
    // Bound to igbvf by the kernel, before there was a manager.
    lab.pfs[0].set_vfs(2)?;
    let vfs = lab.pfs[0].vfs();
    for vf in &vfs {
        vf.wait_for_interface();
    }
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.acquire("dpdk", &vfs[0], "vfio-pci", None)?;
    assert_eq!(vfs[0].driver().as_deref(), Some("vfio-pci"));
    assert!(vfs[0].interface().is_none());
    assert_eq!(vfs[1].driver().as_deref(), Some("igbvf"), "its neighbour is left alone");
    assert!(manager.acquire("dpdk", &vfs[0], "vfio-pci", None)?.is_empty(), "the same again is nothing to do");
    let refused = manager.acquire("other", &vfs[0], "kernel", None).expect_err("it is lent");
    assert!(refused.message().contains("it is lent as dpdk to the lab"), "{refused}");
    manager.release("dpdk", Duration::ZERO)?;
    assert_eq!(vfs[0].driver().as_deref(), Some("igbvf"), "it is what it was");
    vfs[0].wait_for_interface();
    // Nothing is left that would surprise the next driver.
    assert_eq!(vfs[0].read("driver_override")?, "(null)");
    manager.acquire("dpdk", &vfs[0], "vfio-pci", None)?;
    manager.acquire("dpdk", &vfs[0], "kernel", None)?;
    assert_eq!(vfs[0].driver().as_deref(), Some("igbvf"), "a lease can change its driver");
    manager.release("dpdk", Duration::ZERO)?;
    assert_eq!(manager.vf(&vfs[0])?.state().word(), "free");
    Ok(())
}

pub fn attributes(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[1];
    let interface = pf.interface().context("a PF has an interface")?;
    ip(&["link", "set", &interface, "up"])?;
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.create(&lab.pfs[1..], 2)?;
    // A rate wants a link that is up, and igb resets itself for its VFs.
    eventually("the link is up", || ip(&["link", "show", &interface]).is_ok_and(|text| text.contains("LOWER_UP")));
    let vfs = pf.vfs();
    let before = vf_states(&interface)?;
    let attributes = Attributes {
        mac: Some("02:00:00:00:00:07".to_owned()),
        vlan: Some(Vlan { id: 100, qos: 3, protocol: 0 }),
        rate: Some(Rate { min: 0, max: 100 }),
        spoof_check: Some(false),
        trust: Some(true),
        mtu: Some(1400),
        ..Attributes::default()
    };
    manager.acquire("pod", &vfs[1], "kernel", Some(attributes.clone()))?;
    let during = vf_states(&interface)?;
    assert_eq!(during[0], before[0], "its neighbour is left alone");
    let [vlan, rate] = [&during[1]["vlan_list"][0], &during[1]["rate"]];
    assert_eq!(during[1]["address"], "02:00:00:00:00:07");
    assert_eq!((&vlan["vlan"], &vlan["qos"]), (&Value::from(100), &Value::from(3)));
    assert_eq!(rate["max_tx"], 100);
    assert_eq!((&during[1]["spoofchk"], &during[1]["trust"]), (&Value::from(false), &Value::from(true)));
    let inside = vfs[1].wait_for_interface();
    let link = ip(&["link", "show", &inside])?;
    assert!(link.contains("02:00:00:00:00:07") && link.contains("mtu 1400"), "the VF itself knows: {link}");
    // What the NIC cannot do is refused by its driver, and the lease stays as it was.
    let service_tag = Vlan { id: 100, qos: 3, protocol: VlanProtocol::Dot1ad.into() };
    for (wrong, told) in [
        (Attributes { link_state: Some(LinkState::Enable.into()), ..attributes.clone() }, "set link state enable of"),
        (Attributes { vlan: Some(service_tag), ..attributes.clone() }, "cannot do that: ask for the VF without it"),
        (Attributes { rate: Some(Rate { min: 10, max: 100 }), ..attributes.clone() }, "set rate min 10 max 100 of"),
    ] {
        let refused = manager.acquire("pod", &vfs[1], "kernel", Some(wrong)).expect_err("an 82576 cannot do it");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(told), "{told} in {refused}");
        assert_eq!(vf_states(&interface)?, during);
        assert_eq!(manager.vf(&vfs[1])?.lease.and_then(|lease| lease.attributes), Some(attributes.clone()));
    }
    manager.release("pod", Duration::ZERO)?;
    assert_eq!(vf_states(&interface)?, before, "released, it is what it was");
    Ok(())
}

/// A pod's interface goes to a process with a driver of its own, without anything of the pod, and is free at no moment.
pub fn handed_over_from_a_pod(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[0];
    let interface = pf.interface().context("a PF has an interface")?;
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.create(&lab.pfs[..1], 2)?;
    let vfs = pf.vfs();
    let vf = &vfs[0];
    let before = vf_states(&interface)?;
    let attributes = Attributes {
        mac: Some("02:00:00:00:00:07".to_owned()),
        vlan: Some(Vlan { id: 100, qos: 3, protocol: 0 }),
        trust: Some(true),
        mtu: Some(1400),
        ..Attributes::default()
    };
    manager.acquire("pod", vf, "kernel", Some(attributes))?;
    ip(&["netns", "add", "pod"])?;
    ip(&["link", "set", &vf.wait_for_interface(), "netns", "pod", "name", "net1"])?;
    let hand_over = ["hand-over", "pod", "dpdk", "--driver", "vfio-pci"];
    let refused = manager.ferrule(&hand_over).expect_err("its interface is in the pod").to_string();
    assert!(refused.contains("net1") && refused.contains("/run/netns/pod"), "{refused}");
    assert_eq!(vf.driver().as_deref(), Some("igbvf"), "it was left alone");
    ip(&["netns", "del", "pod"])?;
    vf.wait_for_interface();

    let mut watch = manager.watch()?;
    manager.ferrule(&hand_over)?;
    let was_free = Cell::new(false);
    watch.until(|list| {
        let listed = list.vfs.iter().find(|listed| listed.address == vf.address);
        was_free.set(was_free.get() || listed.is_none_or(|listed| listed.lease.is_none()));
        listed.and_then(|listed| listed.lease.as_ref()).is_some_and(|lease| lease.id == "dpdk")
    })?;
    assert!(!was_free.get(), "it goes from one to the other");
    assert_eq!(vf.driver().as_deref(), Some("vfio-pci"));
    let now = vf_states(&interface)?;
    assert_ne!(now[0]["address"], "02:00:00:00:00:07");
    assert_eq!((&now[0]["vlan_list"], &now[0]["trust"]), (&before[0]["vlan_list"], &before[0]["trust"]));
    assert_eq!(now[1], before[1], "its neighbour is left alone");
    manager.ferrule(&hand_over).context("the same again, whose answer did not arrive say")?;
    manager.ferrule(&["hand-over", "dpdk", "next", "--driver", "kernel"])?;
    assert_eq!(vf.driver().as_deref(), Some("igbvf"));
    manager.release("next", Duration::ZERO)?;
    assert_eq!((vf.driver(), vf_states(&interface)?), (None, before), "what it was before the first of them");
    Ok(())
}

pub fn command_line(lab: &Lab) -> Result<()> {
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    let pf = &lab.pfs[0];
    manager.ferrule(&["create", &format!("{}=2", pf.address)])?;
    let vf = &pf.vfs()[1];
    let plan = manager.ferrule(&["acquire", "dpdk", "--vf", &vf.address, "--driver", "vfio-pci", "--dry-run"])?;
    assert!(plan.contains("vfio-pci"), "{plan}");
    assert_eq!(vf.driver(), None, "it was only asked what would be done");
    manager.ferrule(&["acquire", "dpdk", "--vf", &vf.address, "--driver", "vfio-pci"])?;
    assert_eq!(vf.driver().as_deref(), Some("vfio-pci"));
    let table = manager.ferrule(&["list"])?;
    let row = table.lines().find(|line| line.contains(&vf.address)).context("the table has the VF")?;
    assert!(row.contains("vfio-pci") && row.contains("dpdk"), "{table}");
    let why = manager.ferrule(&["explain", &vf.address])?;
    assert!(why.contains("it is lent as dpdk"), "{why}");
    manager.ferrule(&["release", "dpdk"])?;
    assert_eq!(vf.driver(), None);
    Ok(())
}

/// A lease ends, and the next one has its VF reset, without what the first one had set.
pub fn handed_over(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[0];
    let interface = pf.interface().context("a PF has an interface")?;
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.create(&lab.pfs[..1], 1)?;
    let vf = &pf.vfs()[0];
    let before = vf_states(&interface)?;
    let vlan = Some(Vlan { id: 100, qos: 3, protocol: 0 });
    let first =
        Attributes { vlan, trust: Some(true), mac: Some("02:00:00:00:00:07".to_owned()), ..Attributes::default() };
    manager.acquire("pod-1", vf, "vfio-pci", Some(first))?;
    let holder = testpmd::start(&[vf], &[])?;
    let refused = manager.hand_over("pod-1", "pod-2").expect_err("the first one's guest has it");
    assert!(refused.message().contains("(dpdk-testpmd)"), "{refused}");
    assert_eq!(manager.vf(vf)?.lease.map(|lease| lease.id), Some("pod-1".to_owned()));
    testpmd::quit(holder);
    let steps = manager.hand_over("pod-1", "pod-2")?;
    assert!(steps.iter().any(|step| step.starts_with("reset ")), "{steps:?}");
    let now = &vf_states(&interface)?[0];
    assert_eq!((&now["vlan_list"], &now["trust"]), (&before[0]["vlan_list"], &before[0]["trust"]));
    assert_ne!(now["address"], "02:00:00:00:00:07");
    assert_eq!(manager.vf(vf)?.lease.map(|lease| lease.id), Some("pod-2".to_owned()));
    assert!(manager.hand_over("pod-1", "pod-2")?.is_empty(), "the same again is nothing to do");
    let refused = manager.hand_over(&vf.address, "pod-3").expect_err("a lease has a name");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    manager.release("pod-2", Duration::ZERO)?;
    assert_eq!(vf_states(&interface)?, before, "what it was before the first one");
    Ok(())
}

pub fn times(lab: &Lab) -> Result<()> {
    const ROUNDS: usize = 20;
    let manager = Manager::start(lab, &ManagerOptions { quiet: true, ..ManagerOptions::default() })?;
    manager.create(&lab.pfs[..1], 2)?;
    let vfs = lab.pfs[0].vfs();
    let [vf, ready] = [&vfs[0], &vfs[1]];
    // The floor: what the kernel takes for the same by hand.
    let [mut binds, mut resets] = [(); 2].map(|()| Vec::new());
    for _ in 0..ROUNDS {
        binds.push(timed(|| vf.bind("vfio-pci"))?);
        resets.push(timed(|| {
            vf.write("driver/unbind", &vf.address)?;
            vf.write("reset", "1")
        })?);
    }
    vf.write("driver_override", "\n")?;
    lab.times("kernel: bind to vfio-pci", &mut binds);
    lab.times("kernel: unbind from vfio-pci and reset", &mut resets);
    // A VF that has the driver already, and one that has none.
    ready.bind("vfio-pci")?;
    floor(lab, ready, ROUNDS)?;
    let [mut asked, mut kept, mut rebinds, mut changes, mut releases] = [(); 5].map(|()| Vec::new());
    for round in 0..ROUNDS {
        asked.push(rested(|| manager.explain(vf))?);
        kept.push(rested(|| {
            let steps = manager.acquire("ready", ready, "vfio-pci", None)?;
            assert!(steps.iter().all(|step| !step.contains("bind")), "it has its driver: {steps:?}");
            Ok::<_, Status>(())
        })?);
        manager.release("ready", Duration::ZERO)?;
        rebinds.push(rested(|| manager.acquire("pod", vf, "vfio-pci", None))?);
        let vlan = Vlan { id: 1 + round as u32, ..Vlan::default() };
        let other = Attributes { vlan: Some(vlan), ..Attributes::default() };
        changes.push(rested(|| manager.acquire("pod", vf, "vfio-pci", Some(other)))?);
        releases.push(rested(|| manager.release("pod", Duration::ZERO))?);
    }
    lab.times("a question and its answer (explain)", &mut asked);
    lab.times("acquire, without rebind", &mut kept);
    lab.times("acquire, with rebind to vfio-pci", &mut rebinds);
    lab.times("another VLAN for a lease", &mut changes);
    lab.times("release", &mut releases);
    // Somebody else binds a driver: what the manager shows follows.
    let mut watch = manager.watch()?;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let driver = if round % 2 == 0 { "vfio-pci" } else { "igbvf" };
        vf.bind(driver)?;
        let began = Instant::now();
        watch.until(|list| list.vfs.iter().any(|listed| listed.address == vf.address && listed.driver == driver))?;
        times.push(began.elapsed());
    }
    lab.times("list change after a uevent", &mut times);
    assert!(times.iter().all(|time| *time < Duration::from_millis(500)), "{times:?}");
    Ok(())
}

/// What the parts of an acquire without a rebind take alone: a record on the disk, and each question to the kernel.
fn floor(lab: &Lab, vf: &Function, rounds: usize) -> Result<()> {
    let pf = &lab.pfs[0];
    let name = pf.interface().context("a PF has an interface")?;
    let index = pf.read(&format!("net/{name}/ifindex"))?.parse()?;
    let interface = Interface { index, device: pf.address.parse()? };
    let group = vf.iommu_group().context("a VF has an IOMMU group")?;
    let node = PathBuf::from(format!("/dev/vfio/{group}"));
    let (mut file, room) = (File::create(lab.state().join("records"))?, File::create(lab.state().join("room"))?);
    room.write_all_at(&vec![0; rounds * RECORD], 0).and_then(|()| room.sync_all())?;
    let [mut longer, mut records, mut reports, mut settings, mut opens] = [(); 5].map(|()| Vec::new());
    for round in 0..rounds {
        longer.push(rested(|| file.write_all(&[b'x'; RECORD]).and_then(|()| file.sync_data()))?);
        let at = (round * RECORD) as u64;
        records.push(rested(|| room.write_all_at(&[b'x'; RECORD], at).and_then(|()| room.sync_data()))?);
        reports.push(rested(|| told(LiveKernel.pf_report(interface)))?);
        let mac = Mac([2, 0, 0, 0, 0, round as u8]);
        settings.push(rested(|| told(LiveKernel.set_vf(interface, 1, VfChange::Mac(mac))))?);
        opens.push(rested(|| told(LiveKernel.is_vfio_open(&node)))?);
    }
    told(LiveKernel.set_vf(interface, 1, VfChange::Mac(Mac::default())))?;
    lab.times("kernel: a record on the disk, of a file that gets longer", &mut longer);
    lab.times("kernel: a record on the disk", &mut records);
    lab.times("kernel: what a PF says of its VFs", &mut reports);
    lab.times("kernel: an address for a VF", &mut settings);
    lab.times("kernel: open and close a VFIO group", &mut opens);
    Ok(())
}

fn told<T>(answer: Result<T, NetlinkError>) -> Result<T> {
    answer.map_err(|refusal| anyhow!("{refusal}"))
}

/// How long it takes on a machine that is at rest: all of this one is a single thread, and the manager looks at every device
/// when the last operation's uevents have come.
fn rested<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<Duration, E> {
    thread::sleep(Duration::from_millis(60));
    timed(work)
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<Duration, E> {
    let began = Instant::now();
    work().map(|_| began.elapsed())
}

/// A line of the journal.
const RECORD: usize = 700;
