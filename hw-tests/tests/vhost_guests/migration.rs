//! Live migration: a guest moves to another machine, whose NIC is on another wire, while frames flow.
//!
//! ```text
//!   machine 1 (guest) == wire 1 == TAP 1 \
//!        | moves                          bridge, 10.0.0.2: a namespace
//!   machine 2         == wire 2 == TAP 2 /
//! ```

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::thread;

use ferrule_dataplane::Engine;
use ferrule_dataplane::spec::EndSpec;
use ferrule_hw_tests::content::{CHUNK, Content};
use ferrule_hw_tests::guest::tcp::HELD;
use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::vm::job::Job;
use ferrule_hw_tests::vm::machine::Machine;
use ferrule_hw_tests::vm::migration::Moving;
use ferrule_hw_tests::{content, eventually};
use nix::sys::signal::Signal;

use crate::testbed::{Nic, PORT, TRANSFER_MAX, Testbed, crossed, end, engine, ping_all, settle};
use crate::wire;

#[test]
fn a_guest_moves_to_another_machine_in_the_middle_of_a_transfer() {
    moves("a_guest_moves_to_another_machine_in_the_middle_of_a_transfer", false);
}

#[test]
fn a_guest_with_packed_rings_moves_too() {
    moves("a_guest_with_packed_rings_moves_too", true);
}

fn moves(test: &str, packed: bool) {
    if lacks_namespaces(test) {
        return;
    }
    // QEMU, the guest that writes, and the wire want two cores for themselves.
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(testbed) = Testbed::new(test) else { return };
    let here = Nic { packed, ..testbed.nic(1) };
    let there = Nic { socket: testbed.folder.path().join("there.sock"), ..here.clone() };
    let (pod, engine) = (TestNetNs::new(), engine());
    let wires = join(&engine, &pod, [&here, &there]);
    let source = testbed.start(&here);
    settle(&[(&source, &here)]);
    pod.ping_all(&here.address(), 5, 1472);
    let pings = Process::start(&mut pod.ping(&format!("-i 0.05 {}", here.address())));

    let target = testbed.start_empty(&there);
    let held = Held::start(&pod, &source, &here);
    let address = format!("{}:{PORT}", here.address());
    let far = source.spawn(&["/bin/vm-guest", "accept", &address, &BYTES.to_string()], TRANSFER_MAX).unwrap();
    far.wait_for("listening").unwrap();
    let near = pod.run(|| TcpStream::connect(&address).unwrap());
    let restless = source.spawn(&["/bin/sh", "-c", WRITE], TRANSFER_MAX).unwrap();
    restless.wait_for("written").unwrap();
    let mut moving = Moving::begin(&source, &target).unwrap();
    moving.wait_for_rounds(2).unwrap();
    // What has gone into the guest, as the wire knows: a guest that moves cannot be asked.
    let into = || crossed(&engine, &wires[0])[1].1;
    let before = into();
    held.send();
    eventually("it is in the guest", || {
        moving.must_go_on().unwrap();
        into() > before + HELD_BYTES as u64
    });

    let before = into();
    let transfer = thread::spawn(move || content::exchange(&near, BYTES, 1, 2).unwrap());
    eventually("the transfer is under way", || {
        moving.must_go_on().unwrap();
        into() > before + (4 << 20)
    });

    source.kill(&restless).unwrap();
    let moved = moving.finish().unwrap();
    assert!(!transfer.is_finished(), "the transfer was over before the guest had moved: {moved:?}");
    // Nobody is where it was.
    source.cut();
    held.must_be_intact_in(&target);
    transfer.join().unwrap();
    println!("{}", target.follow(&far).succeed().unwrap().trim());

    let answered = || pings.output().lines().filter(|line| line.contains("icmp_seq=")).count();
    let heard = answered();
    eventually("pings are answered at the new place", || answered() > heard + 5);
    pings.signal(Signal::SIGINT);
    let (_, printed) = pings.wait();
    println!("{moved:?}; {}", printed.lines().find(|line| line.contains("packet loss")).unwrap());
    assert!(!printed.contains("DUP!"), "{printed}");
    ping_all(&target, "10.0.0.2", 5, 1472);
    let carried = wires.map(|wire| crossed(&engine, &wire));
    println!("frames and bytes over the first wire, then the second: {carried:?}");
    // Into the guest at the first place, and both ways at the second.
    assert!(carried[0][1].1 > HELD_BYTES as u64, "{carried:?}");
    assert!(carried[1].iter().all(|&(_, bytes)| bytes > BYTES as u64 / 2), "{carried:?}");
}

/// Bytes that arrive while the guest moves, when its memory was copied once and twice, and that nothing in the guest touches
/// until it has moved: they lie in buffers that were waiting all the time, and come along only if the wire has marked the
/// pages that it wrote.
struct Held {
    job: Job,
    to_guest: TcpStream,
}

impl Held {
    fn start(pod: &TestNetNs, guest: &Machine, nic: &Nic) -> Self {
        let address = format!("{}:{}", nic.address(), PORT + 1);
        let job = guest.spawn(&["/bin/vm-guest", "hold", &address, &HELD_BYTES.to_string(), GO], TRANSFER_MAX).unwrap();
        job.wait_for("listening").unwrap();
        let to_guest = pod.run(|| TcpStream::connect(&address).unwrap());
        Self { job, to_guest }
    }

    fn send(&self) {
        let mut content = Content::new(HELD);
        for _ in 0..HELD_BYTES / CHUNK {
            (&self.to_guest).write_all(&content.next(CHUNK)).unwrap();
        }
    }

    fn must_be_intact_in(&self, guest: &Machine) {
        guest.run(&["/bin/touch", GO]).unwrap();
        println!("{}", guest.follow(&self.job).succeed().unwrap().trim());
    }
}

/// Wires from each NIC to a bridge in a namespace, by their names.
fn join(engine: &Engine, pod: &TestNetNs, nics: [&Nic; 2]) -> [String; 2] {
    pod.ip("link add bridge type bridge");
    pod.ip("address add 10.0.0.2/24 dev bridge");
    pod.ip("link set bridge up");
    let mut number = 0;
    nics.map(|nic| {
        number += 1;
        let tap = format!("nsm-{number}");
        let wire = wire([end(nic), EndSpec::Kernel(pod.interface(&tap, &[]))]);
        engine.add(wire.clone()).unwrap();
        pod.ip(&format!("link set {tap} master bridge"));
        wire.name
    })
}

/// Of those that move a guest one at a time.
static TURN: Mutex<()> = Mutex::new(());
/// Of the transfer, each way: it takes several times as long as the guest needs to move then.
const BYTES: usize = 128 << 20;
/// What arrives in the middle.
const HELD_BYTES: usize = 4 << 20;
/// The file that says that it has moved.
const GO: &str = "/go";
/// Writes to 16 MiB of the guest's memory over and over, so that it does not arrive too early. Pages of zeros would be sent
/// in no time, and what it prints would have to wait for QEMU. It leaves the guest's only CPU to what receives.
const WRITE: &str = "renice -n 19 -p $$; dd if=/dev/urandom of=/noise bs=1M count=16 && echo written && \
                     while dd if=/noise of=/dirt bs=1M conv=notrunc 2>/dev/null; do :; done";
