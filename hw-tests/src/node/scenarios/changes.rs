//! VFs, and what they are called, change.

use anyhow::{Result, ensure};

use crate::node::hardware::VFS;
use crate::node::machine::{CONFIG, DPDK, KERNEL, Node};
use crate::node::pod::{Pod, variable};

pub fn link_goes_and_comes_back(node: &mut Node) -> Result<()> {
    node.run_until_started(&Pod::new("one").with(DPDK, 1))?;
    let pf = node.hardware.nic.pf(0);
    node.hardware.nic.put_netdev_file(pf, "operstate", "down");
    // That of the pod is as good as before in its own resource, and in the other one it is taken.
    node.until_counts(DPDK, VFS, 1)?;
    node.until_counts(KERNEL, VFS, 0)?;
    node.until_phase("one", "Running")?;
    node.run(&Pod::new("two").with(DPDK, 1))?;
    node.until_pending("two", "Insufficient intel.com/dpdk")?;
    node.hardware.nic.put_netdev_file(pf, "operstate", "up");
    node.until_said("two", "started")?;
    node.until_counts(DPDK, VFS, VFS)?;
    node.until_counts(KERNEL, VFS, VFS - 2)
}

pub fn vfs_go(node: &mut Node) -> Result<()> {
    let said = node.run_until_started(&Pod::new("one").with(DPDK, 1))?;
    let held = variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?;
    let vfs: Vec<_> = (0..VFS).map(|index| node.hardware.nic.vf(0, index)).collect();
    let is_held = |vf: &&_| ToString::to_string(vf) == held;
    let free = vfs.iter().find(|vf| !is_held(vf)).copied();
    node.hardware.nic.remove_vf(free.unwrap_or(vfs[0]));
    node.until_counts(DPDK, VFS - 1, VFS - 1)?;
    node.until_counts(KERNEL, VFS - 1, VFS - 2)?;
    // One that a pod has stays in the list until the pod goes.
    node.hardware.nic.remove_vf(vfs.iter().find(is_held).copied().unwrap_or(vfs[0]));
    node.until_counts(DPDK, VFS - 1, VFS - 2)?;
    node.until_phase("one", "Running")?;
    node.delete("one")?;
    node.until_counts(DPDK, VFS - 2, VFS - 2)?;
    node.hardware.remake_vfs()
}

pub fn resource_gets_another_name(node: &mut Node) -> Result<()> {
    let said = node.run_until_started(&Pod::new("one").with(DPDK, 1))?;
    let held = variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?.to_owned();
    node.write_plugin_config(&CONFIG.replace("\"dpdk\"", "\"fast\""))?;
    // That of the pod is not to be had by the new name, and is all that is left of the old one.
    node.until_counts("intel.com/fast", VFS, VFS - 1)?;
    node.until_counts(DPDK, 1, 1)?;
    node.until_phase("one", "Running")?;
    let said = node.run_until_started(&Pod::new("two").with("intel.com/fast", VFS - 1))?;
    let given = variable(&said, "PCIDEVICE_INTEL_COM_FAST")?;
    ensure!(!given.contains(&held), "{held} is the first pod's, and the second one got {given}");
    node.delete("one")?;
    node.delete("two")?;
    node.until_counts("intel.com/fast", VFS, VFS)?;
    node.until_devices(DPDK, 0)
}
