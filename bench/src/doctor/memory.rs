//! Memory: hugepages by NUMA node, and how much may be locked.

use super::finding::{Finding, Verdict, by_hand, command, kernel};
use super::tree::Tree;

/// What is to be said of it. `nodes` are those of the ports.
pub fn findings(tree: &Tree, nodes: &[u64]) -> Vec<Finding> {
    nodes.iter().map(|&node| hugepages(tree, node)).chain([memlock(tree)]).collect()
}

fn hugepages(tree: &Tree, node: u64) -> Finding {
    let pools = pools(tree, node);
    let free: u64 = pools.iter().map(|pool| pool.free * pool.kib / 1024).sum();
    let words = |pool: &Pool| format!("{} of {} free of {}", pool.free, pool.all, size(pool.kib));
    let is = match &pools[..] {
        [] => "none".to_owned(),
        pools => pools.iter().map(words).collect::<Vec<_>>().join(", "),
    };
    let file = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages");
    let cures = [
        kernel("default_hugepagesz=1G"),
        kernel("hugepagesz=1G"),
        kernel(format!("hugepages={}", 2 * FREE_MIN_MIB / 1024)),
        command(format!("echo {} >{file}    (until the next start, while memory is not in pieces)", FREE_MIN_MIB / 2)),
    ];
    let should = format!("{FREE_MIN_MIB} MiB free: half for the bench, half for a forwarder beside it");
    Finding::of(free >= FREE_MIN_MIB, Verdict::Error, cures, Finding::ok("hugepages", is, should))
        .about(format!("NUMA node {node}"))
}

/// Hugepages of one size on a node.
struct Pool {
    kib: u64,
    all: u64,
    free: u64,
}

fn pools(tree: &Tree, node: u64) -> Vec<Pool> {
    let folder = format!("sys/devices/system/node/node{node}/hugepages");
    let pool = |name: String| {
        let number = |file| tree.number(&format!("{folder}/{name}/{file}"));
        let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(Pool { kib, all: number("nr_hugepages")?, free: number("free_hugepages")? }).filter(|pool| pool.all > 0)
    };
    tree.names(&folder).into_iter().filter_map(pool).collect()
}

/// Free hugepages of all nodes, in MiB.
pub fn free_mib(tree: &Tree) -> u64 {
    let node = |name: String| name.strip_prefix("node")?.parse().ok();
    let nodes = tree.names("sys/devices/system/node").into_iter().filter_map(node);
    nodes.flat_map(|node| pools(tree, node)).map(|pool| pool.free * pool.kib / 1024).sum()
}

fn memlock(tree: &Tree) -> Finding {
    let limits = tree.text("proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = line.and_then(|line| line.split_whitespace().next()).unwrap_or_default();
    let is_root =
        tree.text("proc/self/status").is_some_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")));
    let bytes = soft.parse::<u64>().ok();
    let enough = soft == "unlimited" || is_root || bytes.is_some_and(|bytes| bytes >= FREE_MIN_MIB << 20);
    let is = match (soft, bytes, is_root) {
        (_, _, true) => "any, by root's right".to_owned(),
        ("", ..) => "not to be seen".to_owned(),
        (_, Some(bytes), _) => format!("{} KiB", bytes / 1024),
        (word, ..) => word.to_owned(),
    };
    let cures = [
        by_hand("in a systemd unit: LimitMEMLOCK=infinity"),
        command("echo '* - memlock unlimited' >/etc/security/limits.d/ferrule.conf    (from the next login on)"),
    ];
    Finding::of(
        enough,
        Verdict::Error,
        cures,
        Finding::ok("memlock", is, "unlimited: a VFIO device has all of DPDK's memory locked"),
    )
}

fn size(kib: u64) -> String {
    if kib >= 1 << 20 { format!("{} GiB", kib >> 20) } else { format!("{} MiB", kib >> 10) }
}

/// Of each node with a port.
const FREE_MIN_MIB: u64 = 2048;
