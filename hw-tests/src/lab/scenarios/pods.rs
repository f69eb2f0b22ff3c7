//! Pods that get real VFs: bound for each, given back clean, whatever becomes of the plugin, the manager and the disk.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::lab::manager::{Manager, ManagerOptions};
use crate::lab::pci::Function;
use crate::lab::pods::PodNode;
use crate::lab::scenario::Lab;

/// The same two pods get a VF of one pool by each of two resources, in turn.
pub fn in_turn(lab: &Lab) -> Result<()> {
    let node = node(lab, 2, &shared(&lab.pfs[0]), "plugin")?;
    let before: Vec<_> = lab.pfs[0].vfs().iter().map(Function::driver).collect();
    for round in 0..4 {
        let resources = if round % 2 == 0 { [DPDK, KERNEL] } else { [KERNEL, DPDK] };
        node.until_healthy(DPDK, 2)?;
        node.until_healthy(KERNEL, 2)?;
        for (pod, resource) in ["one", "two"].into_iter().zip(resources) {
            let answer = node.admit(pod, resource)?;
            node.start_container(pod)?;
            let vf = Function { address: node.device_of(pod)? };
            let nodes: Vec<_> = answer.devices.iter().map(|device| device.host_path.clone()).collect();
            if resource == DPDK {
                ensure!(vf.driver().as_deref() == Some("vfio-pci"), "{}: {:?}", vf.address, vf.driver());
                let group = vf.iommu_group().context("a VF on vfio-pci has a group")?;
                ensure!(nodes == ["/dev/vfio/vfio".to_owned(), format!("/dev/vfio/{group}")], "{nodes:?}");
                fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&nodes[1])
                    .context("open the node that a pod gets")?;
            } else {
                ensure!(vf.driver().as_deref() == Some("igbvf"), "{}: {:?}", vf.address, vf.driver());
                ensure!(nodes.is_empty(), "{nodes:?}");
                vf.wait_for_interface();
            }
        }
        node.until_healthy(DPDK, 1)?;
        // Whoever is listed once is given back a moment after he is not.
        for (pod, resource) in ["one", "two"].into_iter().zip(resources) {
            node.until_told(resource, "whose it is", |told| {
                told.held().any(|(_, holder)| holder.pod.as_deref() == Some(&format!("pod default/{pod}")))
            })?;
            node.kubelet().end_pod(pod);
        }
    }
    for resource in [DPDK, KERNEL] {
        node.until_told(resource, "all are free", |told| told.free().count() == 2)?;
    }
    let after: Vec<_> = lab.pfs[0].vfs().iter().map(Function::driver).collect();
    ensure!(before == after, "drivers are as they were: {before:?}, {after:?}");
    Ok(())
}

/// How long the kubelet waits for an answer, and how soon it hears of what happens.
pub fn times(lab: &Lab) -> Result<()> {
    const ROUNDS: usize = 20;
    let [first, second] = &lab.pfs;
    let resource = |name: &str, pf: &Function, more: &str| {
        format!(
            r#"{{"resourceName": "{name}", "needsLink": false, {more}"selectors": {{"rootDevices": ["{}"#,
            pf.address
        )
    };
    let config = format!(
        r#"{{"resourceList": [{}#0"]}}}}, {}#1"]}}}}, {}"], "drivers": ["vfio-pci"]}}}}]}}"#,
        resource("ready", first, r#""driver": "vfio-pci", "#),
        resource("bound", first, r#""driver": "vfio-pci", "#),
        resource("asis", second, "")
    );
    let manager = Manager::start(lab, &ManagerOptions { quiet: true, ..ManagerOptions::default() })?;
    manager.create(std::slice::from_ref(first), 2)?;
    manager.create(std::slice::from_ref(second), 1)?;
    let vfs = first.vfs();
    vfs[0].bind("vfio-pci")?;
    let mut binds = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        vfs[1].bind("vfio-pci")?;
        binds.push(began.elapsed());
        vfs[1].write("driver/unbind", &vfs[1].address)?;
    }
    vfs[1].bind("igbvf")?;
    vfs[1].write("driver_override", "\n")?;
    lab.times("kernel: bind to vfio-pci", &mut binds);

    let node = PodNode::start(lab, manager, &config, &lab.state().join("plugin"))?;
    for (name, vf, what) in [("ready", &vfs[0], "without rebind"), ("bound", &vfs[1], "with rebind to vfio-pci")] {
        let resource = format!("intel.com/{name}");
        node.until_healthy(&resource, 1)?;
        let (mut asked, mut allocated, mut lent) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            rest();
            let began = Instant::now();
            node.block_on(node.kubelet().allocate_ids(&resource, &[]))?;
            asked.push(began.elapsed());
            rest();
            let began = Instant::now();
            node.admit("pod", &resource)?;
            allocated.push(began.elapsed());
            rest();
            node.kubelet().end_pod("pod");
            node.manager().release(&format!("{resource}@{}", vf.address), Duration::ZERO)?;
            node.until_told(&resource, "it is free", |told| told.held().count() == 0)?;
            // The same by the manager alone: what the plugin adds is the difference.
            rest();
            let began = Instant::now();
            node.manager().acquire_of("device-plugin", "alone", vf, "vfio-pci")?;
            lent.push(began.elapsed());
            node.manager().release("alone", Duration::ZERO)?;
            node.until_healthy(&resource, 1)?;
        }
        lab.times(&format!("an Allocate of nothing, beside those {what}"), &mut asked);
        lab.times(&format!("choice and Allocate, {what}"), &mut allocated);
        lab.times(&format!("the manager's part of it, {what}"), &mut lent);
    }

    let vf = &second.vfs()[0];
    let mut news = Vec::new();
    for round in 0..ROUNDS {
        let (driver, count) = if round % 2 == 0 { ("vfio-pci", 1) } else { ("igbvf", 0) };
        rest();
        vf.bind(driver)?;
        let began = Instant::now();
        node.until("the VF's driver is seen", |kubelet| kubelet.healthy("intel.com/asis").len() == count)?;
        news.push(began.elapsed());
    }
    lab.times("kubelet's list after a uevent", &mut news);
    Ok(())
}

/// A plugin that is killed twenty times, a disk without room, and a manager that is away for a minute.
pub fn mishaps(lab: &Lab) -> Result<()> {
    let full = lab.state().join("full");
    fs::create_dir_all(&full).context("make a folder")?;
    mount(Some("tmpfs"), &full, Some("tmpfs"), MsFlags::empty(), Some("size=16k")).context("mount a small tmpfs")?;
    fs::write(full.join("filler"), vec![0; 64 << 10]).expect_err("it is full");
    let told = on_a_full_disk(lab);
    umount2(&full, MntFlags::MNT_DETACH).context("unmount the tmpfs")?;
    told
}

fn on_a_full_disk(lab: &Lab) -> Result<()> {
    let mut node = node(lab, 2, &shared(&lab.pfs[0]), "full/plugin")?;
    node.until_healthy(DPDK, 2)?;
    node.admit("one", DPDK)?;
    node.start_container("one")?;
    node.until_told(DPDK, "whose it is", |told| told.held().any(|(_, holder)| holder.pod.is_some()))?;
    ensure!(node.log().contains("make room on its disk"), "the disk is full, and nobody says so:\n{}", node.log());
    for _ in 0..20 {
        let registered = node.kubelet().registrations();
        node.replace_plugin();
        node.until("both are registered again", |kubelet| kubelet.registrations() >= registered + 2)?;
        node.until_healthy(DPDK, 2)?;
        node.kubelet().admit_again("one")?;
        node.start_container("one")?;
    }
    ensure!(node.kubelet().most_open_lists() == 1, "never two lists of a resource");

    node.kill_manager();
    let gone = Instant::now();
    node.admit("two", DPDK)?;
    while gone.elapsed() < Duration::from_mins(1) {
        thread::sleep(Duration::from_secs(2));
        node.kubelet().admit_again("one")?;
        node.start_container("one").context("a container that crashed")?;
        ensure!(node.start_container("two").is_err(), "its VF is not lent yet");
    }
    node.start_manager(lab)?;
    let deadline = Instant::now() + Duration::from_mins(1);
    while let Err(error) = node.start_container("two") {
        ensure!(Instant::now() < deadline, "the manager is back: {error}");
        thread::sleep(Duration::from_millis(100));
    }
    node.until_told(DPDK, "whose they are", |told| {
        told.held().filter(|(_, holder)| holder.pod.is_some()).count() == 2
    })?;
    for pod in ["one", "two"] {
        node.kubelet().end_pod(pod);
    }
    node.until_told(DPDK, "all are free", |told| told.free().count() == 2)
}

/// A node with so many VFs on its first PF.
fn node(lab: &Lab, vfs: usize, config: &str, state: &str) -> Result<PodNode> {
    let manager = Manager::start(lab, &ManagerOptions { quiet: true, ..ManagerOptions::default() })?;
    manager.create(&lab.pfs[..1], vfs)?;
    PodNode::start(lab, manager, config, &lab.state().join(state))
}

/// Two resources that share the VFs of a PF. Nothing is plugged into the lab's NICs.
fn shared(pf: &Function) -> String {
    let entry = |name: &str, driver: &str| {
        format!(
            r#"{{"resourceName": "{name}", "driver": "{driver}", "needsLink": false, "selectors": {{"rootDevices": ["{}"]}}}}"#,
            pf.address
        )
    };
    format!(r#"{{"resourceList": [{}, {}]}}"#, entry("dpdk", "vfio-pci"), entry("kernel", "kernel"))
}

/// What comes of the last one is over, as between a kubelet's calls.
fn rest() {
    thread::sleep(Duration::from_millis(300));
}

const DPDK: &str = "intel.com/dpdk";
const KERNEL: &str = "intel.com/kernel";
