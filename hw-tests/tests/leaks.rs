//! Wires come and go, and leave nothing in the process. Alone in its binary: it counts all that the process has.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, WireSpec};
use ferrule_dataplane::{Engine, Settings};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};
use ferrule_hw_tests::{TIMEOUT, eventually, unique};

#[test]
fn wires_that_came_and_went_leave_nothing() {
    if lacks_namespaces("wires_that_came_and_went_leave_nothing") {
        return;
    }
    let engine = Engine::start(&Settings::new(vec![0])).unwrap();
    let pod = TestNetNs::new();
    // What is made once and kept: the workshop, the allocator's pools.
    (0..2).for_each(|_| come_and_go(&engine, &pod, AT_ONCE));
    // What leaks does so each time. What the allocator keeps for one more thread does not.
    let grown: Vec<_> = (0..3).map(|_| growth_by_100_wires(&engine, &pod)).collect();
    assert!(grown.iter().any(|&kib| kib < 1024), "100 wires leave these KiB each time: {grown:?}");
    pod.wait_for_interfaces(&[]);
}

const AT_ONCE: u32 = 20;

/// Resident KiB that 100 wires leave. All else is as before.
fn growth_by_100_wires(engine: &Engine, pod: &TestNetNs) -> u64 {
    let before = ResourceUsage::count();
    // As many at a time as before, or the allocator would keep more.
    (0..100 / AT_ONCE).for_each(|_| come_and_go(engine, pod, AT_ONCE));
    eventually("all is given back", || {
        let now = ResourceUsage::count();
        // Threads that wait for another task end after a while: there may be fewer.
        now.descriptors <= before.descriptors && now.threads <= before.threads && now.mappings <= before.mappings
    });
    ResourceUsage::count().resident_kib.saturating_sub(before.resident_kib)
}

/// Makes so many wires at once, with a peer at each, and removes them.
fn come_and_go(engine: &Engine, pod: &TestNetNs, count: u32) {
    let socket = format!("@{}", unique("leaks"));
    let memif = |id, role| MemifSpec { id, ..MemifSpec::new(socket.parse().unwrap(), role) };
    for id in 0..count {
        let kernel = EndSpec::Kernel(pod.interface(&format!("nsm-{id}"), &[]));
        let ends = [kernel, EndSpec::Memif(memif(id, Role::Server))];
        engine.add(WireSpec::new(format!("leaks-{id}"), ends)).unwrap();
    }
    assert_eq!(pod.interfaces().len(), count as usize);
    let peers: Vec<_> = (0..count).map(|id| Endpoint::open(&memif(id, Role::Client), TIMEOUT).unwrap()).collect();
    eventually("all are up", || engine.wires().iter().all(ferrule_dataplane::status::WireStatus::is_up));
    for id in 0..count {
        engine.remove(&format!("leaks-{id}")).unwrap();
    }
    drop(peers);
}

/// What this process has.
#[derive(Debug)]
struct ResourceUsage {
    descriptors: usize,
    threads: usize,
    mappings: usize,
    resident_kib: u64,
}

impl ResourceUsage {
    fn count() -> Self {
        let entries = |folder| fs::read_dir(folder).unwrap().count();
        let status = procfs::process::Process::myself().unwrap().status().unwrap();
        let shared = fs::read_to_string("/proc/self/maps").unwrap();
        Self {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            // Private ones are the allocator's business.
            mappings: shared.lines().filter(|line| line.contains("/memfd:")).count(),
            resident_kib: status.vmrss.unwrap(),
        }
    }
}
