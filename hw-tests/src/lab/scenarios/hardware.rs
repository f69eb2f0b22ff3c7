//! The lab itself: NICs, VFs, groups and drivers, by nothing but sysfs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::pci::{Function, KERNEL_WAITS, VFS_MAX};
use crate::lab::scenario::Lab;
use crate::lab::testpmd;

use super::ip;

pub fn two_pfs(lab: &Lab) -> Result<()> {
    for (node, pf) in lab.pfs.iter().enumerate() {
        assert_eq!(pf.driver().as_deref(), Some("igb"));
        assert_eq!(pf.read("numa_node")?, node.to_string());
        assert_eq!(pf.read("sriov_totalvfs")?, VFS_MAX.to_string());
        assert!(pf.iommu_group().is_some() && pf.interface().is_some());
    }
    Ok(())
}

pub fn vfs_come_and_go(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[0];
    // Once as managers do it, and once as the kernel does it unless told otherwise.
    pf.write("sriov_drivers_autoprobe", "0")?;
    let began = Instant::now();
    pf.set_vfs(VFS_MAX)?;
    lab.time("kernel: 7 VFs made", began.elapsed());
    assert!(began.elapsed() >= KERNEL_WAITS[0]);
    let groups: BTreeSet<_> = pf.vfs().iter().chain(&lab.pfs).map(Function::iommu_group).collect();
    assert_eq!(groups.len(), VFS_MAX + 2, "each function has a group of its own: {groups:?}");
    assert!(pf.vfs().iter().all(|vf| vf.driver().is_none()));
    let began = Instant::now();
    pf.set_vfs(0)?;
    lab.time("kernel: 7 VFs removed", began.elapsed());
    pf.write("sriov_drivers_autoprobe", "1")?;
    let began = Instant::now();
    pf.set_vfs(VFS_MAX)?;
    lab.time("kernel: 7 VFs made and bound to igbvf", began.elapsed());
    for vf in pf.vfs() {
        assert_eq!(vf.driver().as_deref(), Some("igbvf"));
        vf.wait_for_interface();
    }
    Ok(())
}

pub fn driver_override(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[1];
    pf.set_vfs(1)?;
    let vf = &pf.vfs()[0];
    let began = Instant::now();
    vf.bind("vfio-pci")?;
    lab.time("kernel: igbvf to vfio-pci", began.elapsed());
    let group = vf.iommu_group().context("a bound VF has a group")?;
    assert!(Path::new("/dev/vfio").join(group.to_string()).exists());
    let began = Instant::now();
    vf.bind("igbvf")?;
    lab.time("kernel: vfio-pci to igbvf", began.elapsed());
    vf.wait_for_interface();
    Ok(())
}

pub fn dpdk(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[0];
    let interface = pf.interface().context("a PF has an interface")?;
    ip(&["link", "set", &interface, "up"])?;
    pf.write("sriov_drivers_autoprobe", "0")?;
    pf.set_vfs(2)?;
    let mac = |index| format!("52:54:00:00:01:0{index}");
    let vfs = pf.vfs();
    for (index, vf) in vfs.iter().enumerate() {
        ip(&["link", "set", &interface, "vf", &index.to_string(), "mac", &mac(index)])?;
        vf.bind("vfio-pci")?;
    }
    // A frame that comes in on one port goes out of the other, addressed to where it came in: it goes round for ever.
    let peers = [format!("--eth-peer=0,{}", mac(1)), format!("--eth-peer=1,{}", mac(0))];
    let [first, second] = peers;
    let mut process = testpmd::start(&[&vfs[0], &vfs[1]], &["--forward-mode=mac".to_owned(), first, second])?;
    process.type_in("start tx_first\n");
    let began = Instant::now();
    let received = loop {
        thread::sleep(Duration::from_millis(200));
        let received = testpmd::received(&mut process);
        if received.iter().all(|count| *count >= FRAMES) || began.elapsed() > crate::TIMEOUT {
            break received;
        }
    };
    lab.figure("frames between two VFs", received.iter().sum::<u64>() as f64 / began.elapsed().as_secs_f64(), "1/s");
    assert!(received.iter().all(|count| *count >= FRAMES), "only so many frames crossed: {received:?}");
    testpmd::quit(process);
    Ok(())
}

pub fn write_to_disk(lab: &Lab) -> Result<()> {
    lab.pfs[0].set_vfs(1)?;
    let mut note = File::create(lab.state().join("note")).context("make a file on the disk")?;
    note.write_all(boot_id()?.as_bytes()).and_then(|()| note.sync_all()).context("write to the disk")
}

pub fn read_from_disk(lab: &Lab) -> Result<()> {
    let before = fs::read_to_string(lab.state().join("note")).context("read from the disk")?;
    ensure!(before != boot_id()?, "the machine was not rebooted");
    assert!(lab.pfs[0].vfs().is_empty());
    Ok(())
}

fn boot_id() -> Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot's id")
}

/// Frames that have to cross in each direction: many times what testpmd sends first.
const FRAMES: u64 = 10_000;
