//! A namespace and a responder of ours at the far end of a memif ring.

use ferrule_dataplane::spec::KernelSpec;
use ferrule_hw_tests::frames::Server;
use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};

use crate::testbed::{engine, wire_to_us};

#[test]
fn pings_of_every_size_are_answered_through_memif() {
    if lacks_namespaces("pings_of_every_size_are_answered_through_memif") {
        return;
    }
    let engine = engine();
    // What a packet holds besides its headers, at the most.
    for (mtu, v4, v6) in [(1500, 1472, 1452), (9000, 8972, 8952)] {
        let pod = TestNetNs::new();
        let kernel = KernelSpec { mtu: Some(mtu), ..pod.interface("nsm-1", &["10.0.0.1/30", "fd00::1/64"]) };
        let (name, end) = wire_to_us(&engine, &kernel);
        let _responder = Server::responder(end);
        pod.wait_for_carrier("nsm-1");
        for size in [56, v4] {
            pod.ping_all("10.0.0.2", 20, size);
        }
        for size in [56, v6] {
            pod.ping_all("fd00::2", 20, size);
        }
        let status = engine.wire(&name).unwrap();
        assert!(status.directions.iter().all(|direction| direction.dropped() == 0), "{status:?}");
        engine.remove(&name).unwrap();
    }
}
