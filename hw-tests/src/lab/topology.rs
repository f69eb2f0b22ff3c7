//! The lab's machine: two NUMA nodes, a CPU and an SR-IOV NIC on each, an IOMMU that remaps interrupts, a disk, and a third
//! NIC that the IOMMU cannot tell from its neighbour.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::vm::image::Image;
use crate::vm::pieces::{Pieces, program};

/// Which card is in which slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cards {
    /// As always.
    #[default]
    InPlace,
    /// The first two are in each other's slot, so that each has the other's addresses.
    Swapped,
}

/// What the clocks of a machine go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// Those of this host.
    #[default]
    Host,
    /// The instructions of its only CPU, a nanosecond each: how long something takes is how many it executed. While nothing is
    /// executed they go by those of this host.
    Instructions,
}

/// Which of the machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineKind {
    /// Where its cards are.
    pub cards: Cards,
    /// What its clocks go by.
    pub clock: Clock,
}

/// QEMU's arguments. The NICs are not joined: a VF reaches the other VFs of its PF.
pub fn qemu(disk: &Path, kind: MachineKind) -> Vec<String> {
    let mut arguments =
        words("-M q35,kernel-irqchip=split -smp 2,sockets=2 -m 2048 -device intel-iommu,intremap=on,caching-mode=on");
    for node in 0..2 {
        arguments.extend(words(&format!(
            "-object memory-backend-ram,id=ram{node},size=1024M \
             -numa node,nodeid={node},cpus={node},memdev=ram{node} \
             -device pxb-pcie,id=host{node},bus=pcie.0,bus_nr={bus},numa_node={node} \
             -device pcie-root-port,id=port{node},bus=host{node},chassis={slot},slot={slot} \
             -netdev hubport,id=net{node},hubid={node} \
             -device igb,bus=port{node},netdev=net{node},mac=52:54:00:00:00:0{card}",
            bus = 0x20 * (node + 1),
            slot = node + 1,
            card = if kind.cards == Cards::Swapped { 2 - node } else { node + 1 },
        )));
    }
    // Without ACS on their port nothing keeps functions below it apart: one IOMMU group. A NIC with ARI says which of its
    // functions is the next (PCIe 6.0, 7.8.8.2); igb says that there is none, unless told.
    arguments.extend(words(&format!(
        "-device pcie-root-port,id=crowded,bus=pcie.0,chassis=3,slot=3,disable-acs=on \
         -netdev hubport,id=net2,hubid=2 \
         -device igb,bus=crowded,addr=0.0,multifunction=on,{ARI}=on,netdev=net2,mac=52:54:00:00:00:03 \
         -device e1000e,bus=crowded,addr=0.1,netdev=net3,mac=52:54:00:00:00:04 \
         -netdev hubport,id=net3,hubid=3",
    )));
    arguments.extend(words("-device virtio-blk-pci,bus=pcie.0,drive=disk -drive"));
    // A power cut ends QEMU and not this host: what a guest has flushed is in a file's cache, and survives. A flush down to
    // this host's disk would put that disk's moods into every figure.
    arguments.push(format!("id=disk,if=none,format=raw,cache=unsafe,file={}", disk.display()));
    if kind.clock == Clock::Instructions {
        // Two to the power of `shift` nanoseconds.
        arguments.extend(words("-icount shift=0"));
    }
    arguments
}

/// Has igb say that there is a function behind it.
const ARI: &str = "x-pcie-ari-nextfn-1";

/// Added to the kernel's command line. The pages are for DPDK: half a GiB of 2 MiB each.
pub fn kernel(clock: Clock) -> Vec<String> {
    // A second CPU would count too.
    words(if clock == Clock::Instructions { "maxcpus=1" } else { "" })
        .into_iter()
        .chain(words("intel_iommu=on hugepages=256"))
        .collect()
}

/// What this machine has for it. An error says what is missing.
pub fn pieces() -> Result<Pieces> {
    let pieces = Pieces::find()?;
    let has_igb = Pieces::has_device("igb", ARI)?;
    ensure!(has_igb, "a QEMU with igb, the emulated SR-IOV NIC, and its option {ARI} (8.1 or newer)");
    Ok(pieces)
}

/// What is inside; the forwarder may be another one than that of this build.
pub fn image(shell: Option<String>, forwarder: Option<PathBuf>) -> Image {
    let modules = "igb igbvf e1000e vfio-pci vfio_iommu_type1 virtio_blk crc32c_generic ext4 tun veth 8021q bonding bridge macvlan \
         xsk_diag";
    // Without testpmd its scenario is skipped.
    let mut programs = testpmd().unwrap_or_default();
    // busybox has less of them.
    for name in ["unshare", "setpriv"] {
        programs.extend(program(name).map(|file| (file, format!("/bin/{name}"))));
    }
    Image {
        modules: modules.split(' ').collect(),
        programs,
        own: vec![
            "sriov-manager",
            "crash-manager",
            "device-plugin",
            "dpdk-forwarder",
            "responder",
            "ferrule",
            "ferrule-cni",
        ],
        instead: forwarder.map(|file| ("dpdk-forwarder", file)).into_iter().collect(),
        shell,
    }
}

/// DPDK's test program, the drivers it loads by name, and what makes it print line by line.
fn testpmd() -> Result<Vec<(PathBuf, String)>> {
    let testpmd = program("dpdk-testpmd")?;
    let stdbuf = PathBuf::from("/usr/libexec/coreutils/libstdbuf.so");
    ensure!(stdbuf.exists(), "no {}", stdbuf.display());
    let mut parts = vec![(testpmd, "/bin/dpdk-testpmd".to_owned()), (program("stdbuf")?, "/bin/stdbuf".to_owned())];
    parts.push((stdbuf.clone(), stdbuf.to_string_lossy().into_owned()));
    let folder = pmds().context("find DPDK's drivers")?;
    for driver in ["mempool_ring", "net_e1000", "net_null", "net_virtio"] {
        let library = folder.join(format!("librte_{driver}.so"));
        ensure!(library.exists(), "no {}", library.display());
        // Where DPDK looks for them.
        parts.push((library.clone(), library.to_string_lossy().into_owned()));
    }
    Ok(parts)
}

/// Where Debian has them: `/usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0`.
fn pmds() -> Option<PathBuf> {
    let libraries = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path().join("dpdk"));
    let mut folders = libraries.filter_map(|dpdk| fs::read_dir(dpdk).ok()).flat_map(Iterator::flatten);
    folders.find(|entry| entry.file_name().to_string_lossy().starts_with("pmds-")).map(|entry| entry.path())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
