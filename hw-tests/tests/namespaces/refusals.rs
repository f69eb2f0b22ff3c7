//! What cannot be made is refused with a reason and a cure, and leaves nothing behind.

use std::path::Path;

use ferrule_dataplane::spec::{EndSpec, KernelSpec, MemifSpec, NetNs, Role, Route, WireSpec};
use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};
use ferrule_hw_tests::unique;

use crate::testbed::engine;

#[test]
fn what_is_refused_leaves_nothing_and_can_be_made_once_it_is_put_right() {
    if lacks_namespaces("what_is_refused_leaves_nothing_and_can_be_made_once_it_is_put_right") {
        return;
    }
    let engine = engine();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("memif.sock");
    let pod = TestNetNs::new();
    pod.ip("tuntap add dev taken mode tap");
    let good = pod.interface("nsm-1", &["10.0.0.1/30"]);
    let route = |to: &str, via: &str| Route { to: to.parse().unwrap(), via: Some(via.parse().unwrap()) };
    let nowhere = || Some(NetNs::Path("/run/netns/ferrule-nowhere".into()));
    let cases = [
        (
            KernelSpec { name: "taken".parse().unwrap(), ..good.clone() },
            &["`taken`", "the name is taken", "choose another"][..],
        ),
        (
            KernelSpec { netns: nowhere(), ..good.clone() },
            &["/run/netns/ferrule-nowhere", "No such file", "ip netns list"],
        ),
        (KernelSpec { netns: Some(NetNs::Path(socket.clone())), ..good.clone() }, &["memif.sock", "name a namespace"]),
        (KernelSpec { mtu: Some(67), ..good.clone() }, &["ends[1].kernel.mtu", "67 bytes", "68 to 65521"]),
        (KernelSpec { mtu: Some(65_522), ..good.clone() }, &["ends[1].kernel.mtu", "65522 bytes", "68 to 65521"]),
        (
            KernelSpec { mtu: Some(1000), ..pod.interface("nsm-1", &["fd00::1/64"]) },
            &["fd00::1/64", "`nsm-1`", "MTU at 1280 or more"],
        ),
        (
            KernelSpec { routes: vec![route("10.9.0.0/16", "10.8.0.1")], ..good.clone() },
            &["10.9.0.0/16 via 10.8.0.1", "`nsm-1`", "next hop"],
        ),
    ];
    for (kernel, parts) in cases {
        let error = engine.add(wire(&kernel, &socket)).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
        pod.wait_for_interfaces(&["taken"]);
        assert!(!socket.exists(), "{error}");
        assert!(engine.wires().is_empty(), "{error}");
        // The same wire with the fault put right.
        engine.add(wire(&good, &socket)).unwrap();
        pod.wait_for_interfaces(&["taken", "nsm-1"]);
        engine.remove("refused").unwrap();
        pod.wait_for_interfaces(&["taken"]);
    }
}

#[test]
fn a_second_wire_cannot_take_the_interface_or_the_id_of_the_first() {
    if lacks_namespaces("a_second_wire_cannot_take_the_interface_or_the_id_of_the_first") {
        return;
    }
    let engine = engine();
    let folder = tempfile::tempdir().unwrap();
    let pod = TestNetNs::new();
    let kernel = pod.interface("nsm-1", &["10.0.0.1/30"]);
    let [first, second] = ["a.sock", "b.sock"].map(|name| folder.path().join(name));
    engine.add(wire(&kernel, &first)).unwrap();
    let renamed = |wire: WireSpec| WireSpec { name: unique("second"), ..wire };
    let error = engine.add(renamed(wire(&kernel, &second))).unwrap_err().to_string();
    assert!(error.contains("the name is taken") && !second.exists(), "{error}");
    let other = KernelSpec { name: "nsm-2".parse().unwrap(), ..kernel.clone() };
    let error = engine.add(renamed(wire(&other, &first))).unwrap_err().to_string();
    assert!(error.contains("wire `refused` has that id") && first.exists(), "{error}");
    pod.wait_for_interfaces(&["nsm-1"]);
}

/// The memif end comes first, so that its listener is there when the kernel end fails.
fn wire(kernel: &KernelSpec, socket: &Path) -> WireSpec {
    let memif = MemifSpec::new(socket.to_str().unwrap().parse().unwrap(), Role::Server);
    let ends = [EndSpec::Memif(memif), EndSpec::Kernel(kernel.clone())];
    WireSpec::new("refused".to_owned(), ends)
}
