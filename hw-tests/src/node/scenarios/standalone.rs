//! A kubelet of the next release, which registers plugins by other rules, without an API server.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::restarts::hand_over;
use crate::node::hardware::VFS;
use crate::node::machine::{DPDK, KERNEL, Node};
use crate::node::pod::{Pod, nodes, variable};
use crate::node::until;

pub fn registers_lists_and_allocates(node: &mut Node) -> Result<()> {
    let said = node.run_static_until_started(&Pod::new("one").with(DPDK, 1))?;
    let vf = variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?;
    let listed = node.hardware.vf(vf)?;
    let group = listed.vfio_group.rsplit('/').next().unwrap_or_default();
    ensure!(listed.driver == "vfio-pci" && nodes(&said) == [group, "vfio"], "{vf} is on {}:\n{said}", listed.driver);
    ensure!(node.devices_of("one")? == [vf], "the kubelet says {:?}", node.devices_of("one")?);
    node.until_devices(KERNEL, VFS - 1)
}

pub fn plugin_is_killed_and_replaced(node: &mut Node) -> Result<()> {
    let mut slowest = std::time::Duration::ZERO;
    for number in 1..=20 {
        node.kill_plugin()?;
        // With a kubelet whose path was poisoned they would never go.
        node.until_devices(DPDK, 0)?;
        let began = Instant::now();
        node.start_plugin(&[])?;
        node.until_devices(DPDK, VFS)?;
        slowest = slowest.max(began.elapsed());
        if number % 5 == 0 {
            node.run_static_until_started(&Pod::new(&format!("next-{number}")).with(DPDK, 1))?;
        }
    }
    node.time("from the plugin's start to all devices, the slowest of 20", slowest);
    Ok(())
}

pub fn plugin_hands_over_to_the_next(node: &mut Node) -> Result<()> {
    let said = node.run_static_until_started(&Pod::new("running").with(DPDK, 1))?;
    hand_over(node)?;
    let next = node.run_static_until_started(&Pod::new("next").with(DPDK, 1))?;
    let name = "PCIDEVICE_INTEL_COM_DPDK";
    ensure!(variable(&said, name)? != variable(&next, name)?, "both got {}", variable(&next, name)?);
    Ok(())
}

pub fn kubelet_starts_again(node: &mut Node) -> Result<()> {
    let said = node.run_static_until_started(&Pod::new("running").with(DPDK, 1))?;
    let vf = variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?;
    for _ in 0..3 {
        node.kill_kubelet()?;
        let began = Instant::now();
        node.start_kubelet()?;
        node.until_devices(DPDK, VFS)?;
        node.time("from the kubelet's start to all devices", began.elapsed());
    }
    // It lists no pod before it has admitted it again.
    until("the pod has what it had", || {
        let devices = node.devices_of("running")?;
        ensure!(devices == [vf], "it had {vf}, and the kubelet says {devices:?}");
        Ok(Some(()))
    })?;
    ensure!(node.hardware.vf(vf)?.driver == "vfio-pci", "{vf} was taken from a running pod");
    node.run_static_until_started(&Pod::new("next").with(DPDK, 1)).map(drop)
}
