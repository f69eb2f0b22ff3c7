//! Descriptors whose `close` never returns, sent by the hundred, to a forwarder that may have 1024.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;

use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_endpoints::memif::Endpoint;
use ferrule_ffi::unix::{Kind, UnixSocket};
use ferrule_hw_tests::need::{Need, lacks};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::stream::{both_ways, carry};
use ferrule_hw_tests::unanswered::UnansweredFile;
use ferrule_hw_tests::{TIMEOUT, eventually, forwarder};
use nix::sys::socket::{UnixAddr, setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

#[test]
fn files_that_cannot_be_closed_take_few_descriptors_and_come_back() {
    let test = "files_that_cannot_be_closed_take_few_descriptors_and_come_back";
    let fuse = Need::Device { path: "/dev/fuse", cure: "modprobe fuse" };
    let Some(program) = forwarder(test).filter(|_| !lacks(test, &[Need::Root, fuse])) else { return };
    let folder = tempfile::tempdir().unwrap();
    let socket = |wire: &str, end: usize| -> PathBuf { folder.path().join(format!("{wire}-{end}.sock")) };
    let end = |kind, wire, end| format!("{{{kind}: {{socket: {}, role: server}}}}", socket(wire, end).display());
    let wire =
        |name, kind| format!("  - {{name: {name}, ends: [{}, {}]}}\n", end(kind, name, 0), end("memif", name, 1));
    let file = folder.path().join("wires.yaml");
    let wires = [wire("bystander", "memif"), wire("hostile", "memif"), wire("guest", "vhost-user")];
    fs::write(&file, format!("wires:\n{}", wires.concat())).unwrap();
    let mut command = Command::new("sh");
    let daemon = command.args(["-c", "ulimit -n 1024 && exec \"$@\"", "sh"]).arg(program).arg("--config").arg(&file);
    let daemon = Process::start(daemon.arg("--admin").arg(folder.path().join("admin.sock")));
    daemon.wait_for("ready: ");
    let open_files = || fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().count();

    let client = |wire, end| MemifSpec::new(socket(wire, end).to_str().unwrap().parse().unwrap(), Role::Client);
    let mut ends = [0, 1].map(|end| Endpoint::open(&client("bystander", end), TIMEOUT).unwrap());
    let before = open_files();
    let stuck = UnansweredFile::new();
    for (wire, kind) in [("hostile", Kind::SeqPacket), ("guest", Kind::Stream)] {
        for _ in 0..20 {
            let peer = UnixSocket::connect(kind, &UnixAddr::new(&socket(wire, 0)).unwrap()).unwrap();
            // No message of memif or vhost-user has so many.
            let _ = peer.send(&[0; 12], &[stuck.file().as_fd(); 250]);
            wait_for_end(&peer);
            carry(&mut ends, &mut both_ways(1, &[64], 256), 100);
        }
    }
    let held = open_files();
    assert!(held < before + 200, "{held} descriptors, {before} before");
    // Another socket takes peers as ever.
    drop(Endpoint::open(&client("hostile", 1), TIMEOUT).unwrap());
    drop(stuck);
    eventually("all are closed", || open_files() <= before);
    let mut hostile = [0, 1].map(|end| Endpoint::open(&client("hostile", end), TIMEOUT).unwrap());
    carry(&mut hostile, &mut both_ways(1, &[64], 256), 100);
    carry(&mut ends, &mut both_ways(1, &[64], 256), 100);
    let log = daemon.stop();
    assert!(log.contains("descriptors came with"), "{log}");
}

/// Waits until the other side has closed.
fn wait_for_end(peer: &UnixSocket) {
    setsockopt(&peer.as_fd(), ReceiveTimeout, &TimeVal::new(10, 0)).unwrap();
    eventually("the forwarder ends the connection", || {
        nix::sys::socket::recv(peer.as_fd().as_raw_fd(), &mut [0; 256], nix::sys::socket::MsgFlags::MSG_DONTWAIT)
            .is_ok_and(|len| len == 0)
    });
}
