//! What the daemon does with wires that lost an end, in this process: needs namespaces.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use dpdk_forwarder::wires::{Listed, Wires};
use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, WireSpec};
use ferrule_dataplane::status::EndState;
use ferrule_dataplane::{Engine, Settings};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};
use ferrule_hw_tests::{TIMEOUT, eventually, unique};

#[test]
fn an_end_that_is_well_keeps_its_peer_while_the_other_one_cannot_be_made() {
    if lacks_namespaces("an_end_that_is_well_keeps_its_peer_while_the_other_one_cannot_be_made") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let pod = TestNetNs::new();
    let wires = Wires::new(Engine::start(&Settings::new(vec![0])).unwrap(), None);
    let memif = |role| MemifSpec::new(socket(folder.path()), role);
    let ends = [EndSpec::Memif(memif(Role::Server)), EndSpec::Kernel(pod.interface("nsm-1", &[]))];
    wires.apply(&[WireSpec::new(unique("wire"), ends)]).unwrap();
    let peer = Endpoint::open(&memif(Role::Client), TIMEOUT).unwrap();
    eventually("the peer is there", || state(&wires, 0).0 == "connected");

    let name = pod.delete();
    eventually("the interface is gone", || state(&wires, 1).0 == "failed");
    // What the daemon does every few seconds.
    for _ in 0..3 {
        wires.retry();
        assert_eq!(state(&wires, 0).0, "connected", "its peer is not made to come again");
        assert!(peer.check_peer().is_ok());
        assert_eq!(state(&wires, 1).0, "failed");
    }

    let pod = TestNetNs::called(name);
    wires.retry();
    assert_eq!(state(&wires, 1).0, "up");
    assert_eq!(pod.interfaces(), ["nsm-1"]);
}

fn socket(folder: &Path) -> ferrule_dataplane::spec::SocketAddress {
    folder.join("memif.sock").to_str().unwrap().parse().unwrap()
}

/// The state of an end of the one wire, and what is said of it.
fn state(wires: &Wires, end: usize) -> (&'static str, EndState) {
    let [Listed { status, .. }] = &wires.list()[..] else { panic!("one wire") };
    (status.ends[end].word(), status.ends[end].clone())
}
