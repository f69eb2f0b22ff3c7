//! memif against Debian's testpmd, in both roles: every size, several queues, every ring, sockets and secrets.
//!
//! ```text
//! our end 0 -- wire 0 -- testpmd port 0 <-> port 1 -- wire 1 -- our end 1
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod testbed;

use ferrule_dataplane::spec::Role;
use ferrule_dataplane::status::{Crossing, EndState};
use ferrule_hw_tests::eventually;
use ferrule_hw_tests::need::{TESTPMD, lacks};
use ferrule_hw_tests::stream::{Route, Stream, both_ways, carry};
use ferrule_hw_tests::testpmd::{Testpmd, TestpmdOptions};
use testbed::{Link, Testbed, alone};

#[test]
fn every_size_crosses_testpmd_as_client_both_ways() {
    crossing("every_size_crosses_testpmd_as_client_both_ways", &as_client(), &SIZES, 4500);
}

#[test]
fn every_size_crosses_testpmd_as_server_both_ways() {
    crossing("every_size_crosses_testpmd_as_server_both_ways", &as_server(), &SIZES, 4500);
}

#[test]
fn rings_of_every_size_wrap_with_testpmd_as_client() {
    every_ring("rings_of_every_size_wrap_with_testpmd_as_client", &as_client());
}

#[test]
fn rings_of_every_size_wrap_with_testpmd_as_server() {
    every_ring("rings_of_every_size_wrap_with_testpmd_as_server", &as_server());
}

#[test]
fn four_queues_of_testpmd_as_client_stay_apart() {
    let link = Link { queues: 4, ..as_client() };
    crossing("four_queues_of_testpmd_as_client_stay_apart", &link, &[64, 1518, 9000], 1500);
}

#[test]
fn four_queues_of_testpmd_as_server_stay_apart() {
    let link = Link { queues: 4, ..as_server() };
    crossing("four_queues_of_testpmd_as_server_stay_apart", &link, &[64, 1518, 9000], 1500);
}

#[test]
fn testpmd_as_client_comes_through_a_socket_file_with_a_secret() {
    let test = "testpmd_as_client_comes_through_a_socket_file_with_a_secret";
    let folder = tempfile::tempdir().unwrap();
    let link = Link { folder: Some(folder.path().to_owned()), secret: Some("open sesame"), ..as_client() };
    crossing(test, &link, &[64], 1000);
}

#[test]
fn testpmd_as_server_is_reached_through_a_socket_file_with_a_secret() {
    let test = "testpmd_as_server_is_reached_through_a_socket_file_with_a_secret";
    let folder = tempfile::tempdir().unwrap();
    let link = Link { folder: Some(folder.path().to_owned()), secret: Some("open sesame"), ..as_server() };
    crossing(test, &link, &[64], 1000);
}

#[test]
fn a_wrong_secret_of_testpmd_is_refused_and_said_on_both_sides() {
    if lacks("a_wrong_secret_of_testpmd_is_refused_and_said_on_both_sides", &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let testbed = Testbed::new(&Link { secret: Some("open sesame"), ..as_client() });
    let devices = testbed.options().devices.iter().map(|device| device.replace("open sesame", "open barley")).collect();
    let testpmd = Testpmd::start(&TestpmdOptions { devices, ..testbed.options() });
    testpmd.wait_for("incorrect secret");
    assert!(!testbed.status(0).is_up());
}

#[test]
fn a_wrong_secret_of_ours_is_refused_by_testpmd_and_the_wire_says_so() {
    if lacks("a_wrong_secret_of_ours_is_refused_by_testpmd_and_the_wire_says_so", &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let testbed = Testbed::new(&Link { secret: Some("open sesame"), ..as_server() });
    let devices = testbed.options().devices.iter().map(|device| device.replace("open sesame", "open barley")).collect();
    let _testpmd = Testpmd::start(&TestpmdOptions { devices, ..testbed.options() });
    eventually("the wire says why", || match &testbed.status(0).ends[1] {
        EndState::Connecting { last_error: Some(error) } => error.contains("Incorrect secret"),
        _ => false,
    });
}

#[test]
fn frames_come_back_from_a_port_alone_with_their_addresses_swapped() {
    if lacks("frames_come_back_from_a_port_alone_with_their_addresses_swapped", &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let testbed = Testbed::new(&as_client());
    let options = TestpmdOptions { devices: vec![testbed.device(0)], forward: "macswap", ..testbed.options() };
    let testpmd = Testpmd::start(&options);
    testpmd.wait_for_connections(1);
    let mut ends = testbed.ends();
    let mut there_and_back = [Route { stream: Stream::new(0, &SIZES, WINDOW), from: 0, to: 0 }];
    carry(&mut ends, &mut there_and_back, 4500);
}

#[test]
fn long_frames_in_small_buffers_leave_short_ones_alone_with_testpmd_as_client() {
    let test = "long_frames_in_small_buffers_leave_short_ones_alone_with_testpmd_as_client";
    crossing(test, &Link { buffer: 2048, ..as_client() }, &[64, 9000, 2049], 3000);
}

#[test]
fn long_frames_in_small_buffers_leave_short_ones_alone_with_testpmd_as_server() {
    let test = "long_frames_in_small_buffers_leave_short_ones_alone_with_testpmd_as_server";
    crossing(test, &Link { buffer: 2048, ..as_server() }, &[64, 9000, 2049], 3000);
}

#[test]
fn testpmd_as_server_borrows_the_memory_of_a_trusted_pair() {
    if lacks("testpmd_as_server_borrows_the_memory_of_a_trusted_pair", &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    for queues in [1, 4] {
        let link = Link { queues, trusted: true, ..as_server() };
        let testbed = Testbed::new(&link);
        let testpmd = Testpmd::start(&testbed.options());
        // It is connected to once it can be given our memory.
        let mut ends = testbed.ends();
        testpmd.wait_for_connections(2);
        testbed.wait_for(&testpmd, 1);
        assert!((0..2).all(|port| testbed.status(port).crossing == Crossing::Switched));
        carry(&mut ends, &mut both_ways(usize::from(queues), &[60, 64, 1518, 2048], WINDOW), 70_000);
        testpmd.stop();
    }
}

/// Carries `total` frames each way and on each queue.
fn crossing(test: &str, link: &Link, sizes: &[usize], total: u64) {
    if lacks(test, &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let testbed = Testbed::new(link);
    let testpmd = Testpmd::start(&testbed.options());
    testbed.wait_for(&testpmd, 1);
    let mut ends = testbed.ends();
    carry(&mut ends, &mut both_ways(usize::from(link.queues), sizes, WINDOW), total);
    testpmd.stop();
    assert_eq!(usize::from(link.queues), ends[0].queues.senders.len());
}

/// Rings of 2^8, 2^10 and 2^12 slots, each with more frames than an index can count.
fn every_ring(test: &str, link: &Link) {
    for log2_ring in [8, 10, 12] {
        crossing(test, &Link { log2_ring, buffer: 2048, ..link.clone() }, &[64], 70_000);
    }
}

fn as_client() -> Link {
    Link { ours: Role::Server, ..Link::default() }
}

fn as_server() -> Link {
    Link { ours: Role::Client, ..Link::default() }
}

/// 64 to 9000 bytes, and 60: a minimal frame without its FCS.
const SIZES: [usize; 9] = [60, 64, 65, 128, 1514, 1518, 2048, 4000, 9000];
/// Frames under way in one direction of a queue: half of the smallest ring, and in chains a third of the usual one.
const WINDOW: u64 = 128;
