//! Pods get VFs.

use std::fs;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::node::hardware::VFS;
use crate::node::machine::{DPDK, KERNEL, Node};
use crate::node::pod::{Pod, nodes, variable};
use crate::node::until;

pub fn sees_what_it_got(node: &mut Node) -> Result<()> {
    let began = Instant::now();
    let said = node.run_until_started(&Pod::new("one").with(DPDK, 1))?;
    node.time("from kubectl apply to the pod's first words", began.elapsed());
    let vf = variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?;
    let listed = node.hardware.vf(vf)?;
    ensure!(listed.driver == "vfio-pci", "{vf} is on {}", listed.driver);
    let group = listed.vfio_group.rsplit('/').next().unwrap_or_default();
    ensure!(nodes(&said) == [group, "vfio"], "group {group}, and in /dev/vfio:\n{said}");
    let info = variable(&said, "PCIDEVICE_INTEL_COM_DPDK_INFO")?;
    ensure!(info.contains(&listed.vfio_group), "{info}");
    until("the manager knows whose it is", || {
        let tenant = node.hardware.vf(vf)?.lease.unwrap_or_default().tenant;
        ensure!(tenant == "pod default/one", "it is {tenant}'s");
        Ok(Some(()))
    })
}

pub fn gets_nodes_by_cdi(node: &mut Node) -> Result<()> {
    for how in ["field", "annotation"] {
        node.stop_plugin()?;
        node.start_plugin(&["--cdi", how])?;
        node.until_counts(DPDK, VFS, VFS)?;
        let said = node.run_until_started(&Pod::new(how).with(DPDK, 1))?;
        let vf = node.hardware.vf(variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?)?;
        let group = vf.vfio_group.rsplit('/').next().unwrap_or_default();
        ensure!(nodes(&said) == [group, "vfio"], "--cdi {how}: group {group}, and in /dev/vfio:\n{said}");
        let specs = fs::read_dir("/var/run/cdi")?.flatten().map(|spec| fs::read_to_string(spec.path()));
        let specs = specs.collect::<Result<Vec<_>, _>>()?.concat();
        ensure!(specs.contains(&vf.vfio_group), "--cdi {how}: {} is in no spec:\n{specs}", vf.vfio_group);
        node.delete(how)?;
        // The next plugin takes back at once what this one saw on the list.
        node.until_counts(KERNEL, VFS, VFS)?;
    }
    node.stop_plugin()?;
    node.start_plugin(&[])
}

pub fn waits_until_one_is_free(node: &mut Node) -> Result<()> {
    let names: Vec<_> = (0..VFS).map(|number| format!("pod-{number}")).collect();
    for name in &names {
        node.run_until_started(&Pod::new(name).with(DPDK, 1))?;
    }
    node.run(&Pod::new("next").with(DPDK, 1))?;
    node.until_pending("next", "Insufficient intel.com/dpdk")?;
    let freed = node.said(&names[0])?;
    let began = Instant::now();
    node.delete(&names[0])?;
    let said = node.until_said("next", "started")?;
    node.time("from kubectl delete to the words of the pod that waited", began.elapsed());
    let (freed, got) = (variable(&freed, "PCIDEVICE_INTEL_COM_DPDK")?, variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?);
    ensure!(freed == got, "{freed} was freed and it got {got}");
    Ok(())
}

pub fn serves_two_drivers_in_turn(node: &mut Node) -> Result<()> {
    let before = node.hardware.nic.fingerprint();
    for (name, resource, driver) in
        [("dpdk-1", DPDK, "vfio-pci"), ("kernel-1", KERNEL, "igbvf"), ("dpdk-2", DPDK, "vfio-pci")]
    {
        let said = node.run_until_started(&Pod::new(name).with(resource, VFS))?;
        let word = resource.rsplit('/').next().unwrap_or_default().to_uppercase();
        let all = variable(&said, &format!("PCIDEVICE_INTEL_COM_{word}"))?;
        ensure!(all.split(',').count() == VFS as usize, "{all}");
        for vf in all.split(',') {
            let vf = node.hardware.vf(vf)?;
            ensure!(vf.driver == driver, "{name} has {} on {}", vf.address, vf.driver);
        }
        let groups = nodes(&said).len();
        ensure!(groups == if driver == "igbvf" { 0 } else { 1 + VFS as usize }, "{name} has {groups} nodes:\n{said}");
        // The other resource cannot give them away.
        let other = if resource == DPDK { KERNEL } else { DPDK };
        node.until_counts(other, VFS, 0)?;
        node.delete(name)?;
        node.until_counts(other, VFS, VFS)?;
    }
    until("all is as it was", || {
        let after = node.hardware.nic.fingerprint();
        ensure!(after == before, "before:\n{before}\nafter:\n{after}");
        Ok(Some(()))
    })
}

pub fn starts_when_the_manager_is_back(node: &mut Node) -> Result<()> {
    node.hardware.stop_manager();
    node.run(&Pod::new("early").with(DPDK, 1))?;
    until("the pod is admitted and its container waits", || {
        let why = node.why("early")?;
        let state = &node.pod("early")?["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        ensure!(state == "CreateContainerConfigError" || state == "PreStartHookError", "{why}");
        Ok(Some(()))
    })?;
    node.hardware.start_manager()?;
    let said = node.until_said("early", "started")?;
    let vf = node.hardware.vf(variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?)?;
    ensure!(vf.driver == "vfio-pci", "{} is on {}", vf.address, vf.driver);
    Ok(())
}

pub fn is_seen_by_describe(node: &mut Node) -> Result<()> {
    node.run_until_started(&Pod::new("one").with(DPDK, 1))?;
    node.run_until_started(&Pod::new("two").with(KERNEL, 2))?;
    node.until_counts(DPDK, VFS, VFS - 2)?;
    let text = node.kubectl.run(&["describe", "node", crate::node::kubelet::NODE])?;
    // For the picture in the docs.
    fs::write(node.pieces.folder.join("describe-node.txt"), &text)?;
    let used = |resource: &str| {
        let table = text.split("Allocated resources:").nth(1).unwrap_or_default();
        let line = table.lines().find_map(|line| line.trim().strip_prefix(resource)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    ensure!(used(DPDK) == ["1", "1"] && used(KERNEL) == ["2", "2"], "{text}");
    Ok(())
}
