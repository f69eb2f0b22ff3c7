//! Containers, the kubelet and the plugin end and start again.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::node::hardware::VFS;
use crate::node::machine::{DPDK, Node};
use crate::node::pod::{Pod, variable};
use crate::node::until;

pub fn container_keeps_its_vf(node: &mut Node) -> Result<()> {
    let first = node.run_until_started(&crashing("crashing"))?;
    let lease = |said: &str| -> Result<_> {
        let vf = node.hardware.vf(variable(said, "PCIDEVICE_INTEL_COM_DPDK")?)?;
        Ok((vf.address, vf.driver, vf.lease.unwrap_or_default().id))
    };
    let before = lease(&first)?;
    until_restarted(node, "crashing", 2)?;
    let after = lease(&node.until_said("crashing", "started")?)?;
    ensure!(before == after && before.1 == "vfio-pci", "before {before:?}, after {after:?}");
    Ok(())
}

pub fn kubelet_loses_no_pod(node: &mut Node) -> Result<()> {
    let said = node.run_until_started(&Pod::new("running").with(DPDK, 1))?;
    let running = variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?.to_owned();
    let said = node.run_until_started(&crashing("crashing"))?;
    let crashing = variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?.to_owned();
    for _ in 0..3 {
        // Then it is looked at anew when the kubelet is back, and refused if there is no device.
        until("the container is down", || {
            let state = &node.pod("crashing")?["status"]["containerStatuses"][0]["state"];
            ensure!(state["waiting"]["reason"] == "CrashLoopBackOff", "{state}");
            Ok(Some(()))
        })?;
        let restarts = node.restarts("crashing")?;
        node.kill_kubelet()?;
        let began = Instant::now();
        node.start_kubelet()?;
        let listening = began.elapsed();
        node.until_devices(DPDK, VFS)?;
        node.time("from the kubelet's start to its socket", listening);
        node.time("from the kubelet's start to all devices", began.elapsed());
        until_restarted(node, "crashing", restarts + 1)?;
        let said = node.until_said("crashing", "started")?;
        ensure!(variable(&said, "PCIDEVICE_INTEL_COM_DPDK")? == crashing, "it had {crashing}:\n{said}");
        node.until_phase("running", "Running")?;
        ensure!(node.restarts("running")? == 0, "the running pod was started again");
    }
    node.until_counts(DPDK, VFS, VFS)?;
    ensure!(node.hardware.vf(&running)?.driver == "vfio-pci", "{running} was taken from a running pod");
    node.run_until_started(&Pod::new("next").with(DPDK, 1)).map(drop)
}

pub fn plugin_is_killed_and_replaced(node: &mut Node) -> Result<()> {
    node.run_until_started(&Pod::new("running").with(DPDK, 1))?;
    node.run_until_started(&crashing("crashing"))?;
    let mut slowest = std::time::Duration::ZERO;
    for number in 1..=20 {
        node.kill_plugin()?;
        node.until_devices(DPDK, 0)?;
        let began = Instant::now();
        node.start_plugin(&[])?;
        node.until_devices(DPDK, VFS)?;
        slowest = slowest.max(began.elapsed());
        let next = Pod::new(&format!("next-{number}")).with(DPDK, 1);
        node.run_until_started(&next)?;
        node.kubectl.run(&["delete", "pod", &next.name, "--wait=false"])?;
    }
    node.time("from the plugin's start to all devices, the slowest of 20", slowest);
    ensure!(node.restarts("running")? == 0, "the running pod was started again");
    until_restarted(node, "crashing", 2)?;
    node.until_phase("crashing", "Running").map(drop)
}

pub fn plugin_hands_over_to_the_next(node: &mut Node) -> Result<()> {
    node.run_until_started(&Pod::new("running").with(DPDK, 1))?;
    hand_over(node)?;
    node.run_until_started(&Pod::new("next").with(DPDK, 1))?;
    ensure!(node.restarts("running")? == 0, "the running pod was started again");
    Ok(())
}

/// A second plugin starts beside the first, as in a rolling update, and the first one is stopped when the second is ready.
pub fn hand_over(node: &mut Node) -> Result<()> {
    for _ in 0..5 {
        let second = node.spawn_plugin(&["--metrics", SECOND])?;
        until("the second plugin is ready", || Ok(is_ready(SECOND, "/readyz")?.then_some(())))?;
        // The list was never gone: the first one has it.
        ensure!(node.allocatable_devices(DPDK)?.len() == VFS as usize, "a second plugin cut the first");
        let began = Instant::now();
        node.stop_plugin()?;
        node.swap_plugin(Some(second));
        node.until_devices(DPDK, VFS)?;
        node.time("from the first plugin's end to all devices of the second", began.elapsed());
        // It stays: an old list that ends may cut a new one.
        node.until_counts(DPDK, VFS, VFS)?;
        // Its port is the next one's.
        node.stop_plugin()?;
        node.until_devices(DPDK, 0)?;
        node.start_plugin(&[])?;
        node.until_devices(DPDK, VFS)?;
    }
    Ok(())
}

/// A pod with a VF whose container ends soon, and starts again.
pub fn crashing(name: &str) -> Pod {
    Pod::new(name).with(DPDK, 1).again_and_again("env; echo started; sleep 1; exit 1")
}

/// Waits until a pod's container was started again so many times.
pub fn until_restarted(node: &Node, pod: &str, times: u64) -> Result<()> {
    until(&format!("pod {pod} was started again {times} times"), || {
        let restarts = node.restarts(pod)?;
        ensure!(restarts >= times, "{restarts} times; {}", node.why(pod)?);
        Ok(Some(()))
    })
}

/// Whether a daemon says by its page that it is ready.
pub fn is_ready(address: &str, path: &str) -> Result<bool> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "it says {answer}");
    Ok(true)
}

const SECOND: &str = "127.0.0.1:19092";
