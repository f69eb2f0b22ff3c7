//! Wires between memif peers and devices, and namespaces for those of the kernel.

use std::fs;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use ferrule_dataplane::Engine;
use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, WireSpec};
use ferrule_dataplane::status::{EndState, WireStatus};
use ferrule_endpoints::memif::Endpoint;
use ferrule_ethdev::EthdevSpec;
use nix::sched::{CloneFlags, unshare};

use crate::common::{client_spec, engine, eventually, receive};

pub const LENGTHS: [usize; 7] = [60, 64, 65, 128, 1000, 1513, 1514];

/// Whether this was built with it.
pub fn has_dpdk() -> bool {
    ferrule_ethdev::MISSING.is_none()
}

/// A test's turn: DPDK's devices are the process's. `None`: there is no DPDK.
pub fn turn(test: &str) -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    if !has_dpdk() {
        println!("skipped: {test}: DPDK when this was built");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs a test with an engine whose threads have a network namespace to themselves, with a veth pair.
pub fn in_namespace(test: &str, run: impl FnOnce(&Engine) + Send + 'static) {
    let Some(_turn) = turn(test) else { return };
    let name = test.to_owned();
    let thread = thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("skipped: {name}: a network namespace ({error})");
            return;
        }
        // The kernel has no frames of its own then.
        for scope in ["all", "default"] {
            fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
        }
        for arguments in ["link add veth0 type veth peer name veth1", "link set veth0 up", "link set veth1 up"] {
            ip(arguments);
        }
        run(&engine());
    });
    thread.join().unwrap();
}

pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn is_up(interface: &str) -> bool {
    let output = Command::new("ip").args(["-o", "link", "show", interface]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let flags = text.split(['<', '>']).nth(1).unwrap();
    flags.split(',').any(|flag| flag == "UP")
}

pub fn end(ethdev: &EthdevSpec) -> EndSpec {
    EndSpec::External(ethdev.clone().into())
}

/// A wire between a memif interface and a device.
pub fn wire(name: &str, ethdev: &EthdevSpec) -> WireSpec {
    let memif = MemifSpec { role: Role::Server, ..client_spec(name, 0) };
    WireSpec::new(name, [EndSpec::Memif(memif), end(ethdev)])
}

pub fn status(engine: &Engine, name: &str) -> WireStatus {
    engine.wire(name).unwrap()
}

pub fn until_up(engine: &Engine, name: &str) {
    eventually("the wire is up", || {
        let status = status(engine, name);
        assert!(!status.ends.iter().any(|end| matches!(end, EndState::Lost { .. })), "{:?}", status.ends);
        status.is_up()
    });
}

pub fn device_counter(engine: &Engine, name: &str, counter: &str) -> Option<u64> {
    status(engine, name).devices[1].as_ref()?.counters.get(counter).copied()
}

/// The next frame that is not the kernel's own.
pub fn next_of_ours(peer: &mut Endpoint) -> Vec<u8> {
    loop {
        let frame = receive(peer, 0);
        if frame[12..14] == ETHERTYPE {
            return frame;
        }
    }
}

pub fn frame(len: usize, number: u8) -> Vec<u8> {
    let mut frame: Vec<_> = (0..len).map(|place| (place as u8).wrapping_mul(31).wrapping_add(number)).collect();
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&ETHERTYPE);
    frame
}

/// For local experiments (IEEE 802).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
