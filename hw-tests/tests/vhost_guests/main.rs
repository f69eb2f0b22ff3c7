//! Virtual machines on wires: QEMU as the vhost-user frontend, a Debian kernel's virtio-net as the driver.
//!
//! [`testbed`] has the guests, [`migration`] those that move; what runs inside is `vm-guest`. `docs/lab.md` says how the machines are made.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod migration;
mod testbed;

use std::fs;
use std::process::Command;
use std::thread;

use ferrule_dataplane::spec::{EndSpec, WireSpec};
use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::vm::machine::Machine;
use ferrule_hw_tests::{content, eventually, forwarder};
use nix::sys::signal::Signal;
use testbed::{PORT, Testbed, Transfer, crossed, end, engine, ping_all, settle};

#[test]
fn two_guests_on_a_wire_outlive_the_forwarder() {
    let test = "two_guests_on_a_wire_outlive_the_forwarder";
    let Some(program) = forwarder(test) else { return };
    let Some(testbed) = Testbed::new(test) else { return };
    let nics = [testbed.nic(1), testbed.nic(2)];
    let [first, second] = nics.each_ref().map(|nic| nic.socket.display());
    let wires = testbed.folder.path().join("wires.yaml");
    let ends = format!(
        "[{{vhost-user: {{socket: {first}, role: server}}}}, {{vhost-user: {{socket: {second}, role: server}}}}]"
    );
    fs::write(&wires, format!("wires:\n  - {{name: guests, ends: {ends}}}\n")).unwrap();
    let start = || {
        let mut command = Command::new(&program);
        let admin = testbed.folder.path().join("admin.sock");
        let daemon = Process::start(command.arg("--config").arg(&wires).arg("--admin").arg(admin));
        daemon.wait_for("ready: ");
        daemon
    };
    let mut daemon = start();
    let guests = nics.each_ref().map(|nic| testbed.start(nic));
    settle(&[(&guests[0], &nics[0]), (&guests[1], &nics[1])]);
    ping_all(&guests[0], &nics[1].address(), 5, 56);
    ping_all(&guests[1], &nics[0].address(), 5, 1472);

    // Killed under way: the guests connect to the next one, and TCP sends again what was lost.
    let transfer = Transfer::start(&guests[0], &guests[1], &nics[1].address(), 4 * BYTES);
    eventually("it is under way", || received(&guests[1]) > BYTES as u64 / 2);
    daemon.kill();
    assert!(nics.iter().all(|nic| nic.socket.exists()), "nobody cleaned up");
    let daemon = start();
    transfer.finish();

    // Ended properly, its sockets go, and they come back with the next one.
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
    assert!(nics.iter().all(|nic| !nic.socket.exists()));
    let _daemon = start();
    Transfer::start(&guests[1], &guests[0], &nics[0].address(), BYTES).finish();
}

#[test]
fn guests_with_packed_rings_and_two_queues_may_restart() {
    let Some(testbed) = Testbed::new("guests_with_packed_rings_and_two_queues_may_restart") else { return };
    let nics = [1, 2].map(|number| testbed::Nic { listens: true, queues: 2, packed: true, ..testbed.nic(number) });
    let wire = wire(nics.each_ref().map(end));
    let engine = engine();
    engine.add(wire.clone()).unwrap();
    let [kept, restarted] = nics.each_ref().map(|nic| testbed.start(nic));
    settle(&[(&kept, &nics[0]), (&restarted, &nics[1])]);
    ping_all(&kept, &nics[1].address(), 5, 1472);
    let before = crossed(&engine, &wire.name);
    Transfer::start(&kept, &restarted, &nics[1].address(), BYTES).finish();
    segments_crossed_whole(before, crossed(&engine, &wire.name));
    assert_eq!(engine.wire(&wire.name).unwrap().queues, 2);

    restarted.cut();
    eventually("the loss is noticed", || !engine.wire(&wire.name).unwrap().is_up());
    // QEMU was killed and left its socket behind; whoever cleans up takes it away.
    fs::remove_file(&nics[1].socket).unwrap();
    let restarted = testbed.start(&nics[1]);
    settle(&[(&restarted, &nics[1])]);
    ping_all(&kept, &nics[1].address(), 5, 1472);
    Transfer::start(&restarted, &kept, &nics[0].address(), BYTES).finish();
}

#[test]
fn a_guest_and_a_namespace_move_large_segments() {
    let test = "a_guest_and_a_namespace_move_large_segments";
    if lacks_namespaces(test) {
        return;
    }
    let Some(testbed) = Testbed::new(test) else { return };
    let pod = TestNetNs::new();
    let nic = testbed.nic(1);
    let wire = wire([end(&nic), EndSpec::Kernel(pod.interface("nsm-1", &["10.0.0.2/24"]))]);
    let engine = engine();
    engine.add(wire.clone()).unwrap();
    let guest = testbed.start(&nic);
    settle(&[(&guest, &nic)]);
    pod.wait_for_carrier("nsm-1");
    ping_all(&guest, "10.0.0.2", 5, 56);
    pod.ping_all(&nic.address(), 5, 1472);
    let before = crossed(&engine, &wire.name);
    let address = format!("{}:{PORT}", nic.address());
    let far =
        guest.spawn(&["/bin/vm-guest", "accept", &address, &BYTES.to_string()], ferrule_hw_tests::TIMEOUT).unwrap();
    far.wait_for("listening").unwrap();
    let near = pod.run(|| std::net::TcpStream::connect(&address).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| content::exchange(&near, BYTES, 1, 2).unwrap());
    });
    println!("{}", far.succeed().unwrap());
    segments_crossed_whole(before, crossed(&engine, &wire.name));
}

/// Frames were larger than the MTU, by far and most of the time.
fn segments_crossed_whole(before: [(u64, u64); 2], after: [(u64, u64); 2]) {
    for (before, after) in before.iter().zip(after) {
        let mean = (after.1 - before.1) / (after.0 - before.0);
        println!("{mean} bytes in the mean frame");
        assert!(mean > 2 * 1514, "segments were cut: the mean frame has {mean} bytes");
    }
}

/// What a guest's NIC has received.
fn received(guest: &Machine) -> u64 {
    guest.run(&["/bin/cat", "/sys/class/net/eth0/statistics/rx_bytes"]).unwrap().trim().parse().unwrap()
}

fn wire(ends: [EndSpec; 2]) -> WireSpec {
    WireSpec::new(ferrule_hw_tests::unique("wire"), ends)
}

/// Of a transfer: about a second in software emulation.
const BYTES: usize = 16 << 20;
