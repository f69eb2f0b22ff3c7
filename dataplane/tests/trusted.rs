//! Trusted pairs through the engine: who lends to whom, restarts of either, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::{client, engine, eventually, memif_wire, receive, send, server_spec};
use ferrule_dataplane::Engine;
use ferrule_dataplane::capture::Capture;
use ferrule_dataplane::spec::{Full, Role, WireSpec};
use ferrule_dataplane::status::Crossing;
use ferrule_endpoints::memif::Endpoint;

/// A trusted wire, the peer that lends (a client) and the one that borrows (a server).
fn testbed(engine: &Engine, name: &str) -> (String, Endpoint, Endpoint) {
    let (name, wire) = memif_wire(name, Role::Server, Role::Client, Full::Hold);
    engine.add(WireSpec { trusted: true, ..wire }).unwrap();
    let borrower = open(&name);
    let lender = client(&name, 0);
    let borrower = borrower.join().unwrap();
    eventually("frames are switched", || engine.wire(&name).unwrap().crossing == Crossing::Switched);
    eventually("the wire is up", || engine.wire(&name).unwrap().is_up());
    (name, lender, borrower)
}

/// Listens on another thread: the engine connects only when the lender is there.
fn open(name: &str) -> std::thread::JoinHandle<Endpoint> {
    let spec = server_spec(name, 1);
    std::thread::spawn(move || Endpoint::open(&spec, common::DEADLINE).unwrap())
}

#[test]
fn frames_that_nobody_copies_are_not_traced() {
    let engine = engine();
    let (name, _lender, _borrower) = testbed(&engine, "untraced");
    let refused = engine.trace(&name, Some(Arc::new(Capture::new(1, 1)))).unwrap_err();
    assert!(refused.to_string().contains("make the wire without `trusted`"), "{refused}");
}

fn exchange(lender: &mut Endpoint, borrower: &mut Endpoint, count: usize) {
    for number in 0..count {
        let frame: Vec<u8> = (0..60 + number % 4000).map(|at| (at + number) as u8).collect();
        send(lender, 0, &frame);
        assert_eq!(receive(borrower, 0), frame);
        send(borrower, 0, &frame);
        assert_eq!(receive(lender, 0), frame);
    }
}

#[test]
fn frames_cross_a_trusted_wire_and_are_counted() {
    let engine = engine();
    let (name, mut lender, mut borrower) = testbed(&engine, "trusted");
    exchange(&mut lender, &mut borrower, 5000);
    let [there, back] = engine.wire(&name).unwrap().directions;
    assert_eq!((there.frames, there.dropped(), back.frames, back.bytes), (5000, 0, 5000, there.bytes));
    engine.remove(&name).unwrap();
    eventually("the lender is told", || lender.check_peer().is_err());
    eventually("the borrower is told", || borrower.check_peer().is_err());
}

#[test]
fn either_peer_of_a_trusted_wire_may_restart() {
    let engine = engine();
    let (name, mut lender, mut borrower) = testbed(&engine, "trusted-restart");
    exchange(&mut lender, &mut borrower, 100);
    for _ in 0..3 {
        drop(borrower);
        eventually("the loss is noticed", || !engine.wire(&name).unwrap().is_up());
        borrower = open(&name).join().unwrap();
        exchange(&mut lender, &mut borrower, 100);

        drop(lender);
        eventually("the loss is noticed", || !engine.wire(&name).unwrap().is_up());
        // The borrower has the old lender's memory: it is asked to connect again.
        lender = client(&name, 0);
        eventually("the borrower is told", || borrower.check_peer().is_err());
        drop(borrower);
        borrower = open(&name).join().unwrap();
        exchange(&mut lender, &mut borrower, 100);
    }
}

#[test]
fn only_a_server_end_and_a_client_end_can_be_trusted() {
    let engine = engine();
    for roles in [[Role::Server; 2], [Role::Client; 2]] {
        let (_, wire) = memif_wire("trusted-roles", roles[0], roles[1], Full::Hold);
        let error = engine.add(WireSpec { trusted: true, ..wire }).unwrap_err();
        assert!(error.to_string().contains("memif server end"), "{error}");
    }
}

#[test]
fn a_trusted_wire_that_should_drop_is_refused() {
    let engine = engine();
    let (_, wire) = memif_wire("trusted-drop", Role::Server, Role::Client, Full::Drop);
    let error = engine.add(WireSpec { trusted: true, ..wire }).unwrap_err();
    assert!(error.to_string().contains("cannot drop"), "{error}");
}
