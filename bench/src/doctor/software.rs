//! Software: the IOMMU, VFIO, libdpdk, and what moves interrupts about.

use std::collections::BTreeSet;
use std::path::Path;

use super::finding::{Finding, Verdict, by_hand, command, kernel};
use super::tree::Tree;

/// What is to be said of it.
pub fn findings(tree: &Tree) -> Vec<Finding> {
    vec![iommu(tree), vfio(tree), irqbalance(tree), libdpdk(tree)]
}

fn iommu(tree: &Tree) -> Finding {
    let units = tree.names("sys/class/iommu");
    let groups = tree.names("sys/kernel/iommu_groups");
    let is_amd = tree.text("proc/cpuinfo").is_some_and(|info| info.contains("AuthenticAMD"));
    let is_pass_through = tree.kernel_argument("iommu").as_deref() == Some("pt")
        || tree.kernel_argument("iommu.passthrough").as_deref() == Some("1");
    let should = "on, with iommu=pt: VFIO uses it, and the kernel's own drivers do not pay for it";
    if units.is_empty() || groups.is_empty() {
        // The kernel uses AMD's unless it is switched off.
        let mut cures = if is_amd {
            vec![by_hand("firmware: IOMMU and SVM on")]
        } else {
            vec![by_hand("firmware: VT-d on"), kernel("intel_iommu=on")]
        };
        cures.push(kernel("iommu=pt"));
        return Finding::not_ok("iommu", Verdict::Error, "off", should, cures);
    }
    let is =
        format!("on, {} groups{}", groups.len(), if is_pass_through { ", iommu=pt" } else { ", without iommu=pt" });
    Finding::of(is_pass_through, Verdict::Warning, [kernel("iommu=pt")], Finding::ok("iommu", is, should))
}

fn vfio(tree: &Tree) -> Finding {
    let is_there = tree.has("sys/bus/pci/drivers/vfio-pci");
    let cure = command("modprobe vfio-pci && echo vfio-pci >/etc/modules-load.d/vfio-pci.conf");
    let is = if is_there { "there" } else { "not loaded" };
    Finding::of(is_there, Verdict::Error, [cure], Finding::ok("vfio", is, "the driver vfio-pci is loaded"))
}

fn irqbalance(tree: &Tree) -> Finding {
    let is_it = |pid: &String| {
        pid.bytes().all(|byte| byte.is_ascii_digit())
            && tree.text(&format!("proc/{pid}/comm")).as_deref() == Some("irqbalance")
    };
    let process = tree.names("proc").into_iter().find(|pid| is_it(pid));
    let is = process.as_ref().map_or("does not run".to_owned(), |pid| format!("runs, process {pid}"));
    let cure = command("systemctl disable --now irqbalance");
    Finding::of(
        process.is_none(),
        Verdict::Warning,
        [cure],
        Finding::ok("irqbalance", is, "does not run: it moves interrupts to the CPUs that poll"),
    )
}

fn libdpdk(tree: &Tree) -> Finding {
    let abis: BTreeSet<_> = folders().flat_map(|folder| tree.names(&folder)).filter_map(|name| abi(&name)).collect();
    let drivers = folders().flat_map(|folder| {
        let plugins = tree.names(&folder).into_iter().filter(|name| name == "dpdk");
        plugins.flat_map(move |plugin| {
            let path = format!("{folder}/{plugin}");
            tree.names(&path).into_iter().map(move |pmds| format!("{path}/{pmds}"))
        })
    });
    let nics = drivers
        .flat_map(|folder| tree.names(&folder))
        .filter(|name| name.starts_with("librte_net_") && Path::new(name).extension().is_some_and(|end| end == "so"));
    // A folder may have two names: by them its drivers are seen twice.
    let nics = nics.collect::<BTreeSet<_>>().len();
    let should = format!("librte_eal.so.{}, and drivers of NICs", wanted_abi().unwrap_or_else(|| "N".to_owned()));
    let install = command("apt-get install --no-install-recommends dpdk librte-meta-net librte-meta-bus");
    if let Some(missing) = crate::ports::MISSING {
        let rebuild = command(
            "apt-get install dpdk-dev libclang-dev pkgconf gcc && cargo build --release -p ferrule -p dpdk-forwarder",
        );
        let is = format!("this ferrule was built without DPDK: {missing}");
        return Finding::not_ok("libdpdk", Verdict::Error, is, should, [rebuild]);
    }
    let is_wanted = |abi: &String| wanted_abi().is_none_or(|wanted| *abi == wanted);
    if !abis.iter().any(is_wanted) {
        let is = abis.first().map_or("not installed".to_owned(), |abi| format!("librte_eal.so.{abi}"));
        return Finding::not_ok("libdpdk", Verdict::Error, is, should, [install]);
    }
    let is = format!(
        "librte_eal.so.{}, {nics} drivers of NICs",
        abis.iter().find(|abi| is_wanted(abi)).cloned().unwrap_or_default()
    );
    Finding::of(nics > 0, Verdict::Error, [install], Finding::ok("libdpdk", is, should))
}

/// Of `librte_eal.so.23`, `23`; longer numbers are versions of the file.
fn abi(name: &str) -> Option<String> {
    let abi = name.strip_prefix("librte_eal.so.")?;
    abi.bytes().all(|byte| byte.is_ascii_digit()).then(|| abi.to_owned())
}

/// The one that this program was built for: 22.11 has 23, and it is one more each year.
fn wanted_abi() -> Option<String> {
    let (year, _) = crate::ports::VERSION?.split_once('.')?;
    Some((year.parse::<u32>().ok()? + 1).to_string())
}

/// Where libraries are. `/lib` and `/usr/lib` are one folder on most systems, and not on all.
fn folders() -> impl Iterator<Item = String> {
    let below = ["lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib64"];
    ["", "usr/", "usr/local/"].into_iter().flat_map(move |above| below.map(|folder| format!("{above}{folder}")))
}
