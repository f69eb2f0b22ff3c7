//! Turns of a wire and of its peers.

use std::error::Error;
use std::sync::atomic::AtomicBool;
use std::thread;

use ferrule_bench::generator;
use ferrule_bench::load::{Load, Mix};
use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, SocketAddress, WireSpec};
use ferrule_dataplane::{Engine, Idle, Settings};
use ferrule_endpoints::end::End;
use ferrule_endpoints::memif::Endpoint;
use ferrule_ethdev::EthdevSpec;
use ferrule_hw_tests::need::{TESTPMD, lacks};
use ferrule_hw_tests::{TIMEOUT, eventually};

use crate::primed::Primed;
use crate::testpmd::Testpmd;
use crate::turn::{TURN, WARM_UP, WORKER, turn};

pub fn run() -> Result<(), Box<dyn Error>> {
    if lacks("ports", &[TESTPMD]) {
        return Ok(());
    }
    let engine = Engine::start(&Settings { idle: Idle::Poll, ..Settings::new(vec![WORKER]) })?;
    println!("| Devices | Ferrule, ns a frame | testpmd, burst 32 | ratio | burst 64 | ratio |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for devices in [["net_null0,size=64", "net_null1,size=64"], ["net_ring0", "net_ring1"]] {
        let mut peers = [32, 64].map(|burst| Testpmd::start(&devices, burst));
        let mut costs = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            costs[0].push(of_wire(&engine, devices)?);
            for (peer, costs) in peers.iter_mut().zip(&mut costs[1..]) {
                costs.push(peer.turn()?);
            }
        }
        let [ours, small, large] = costs.map(median);
        // The ratio of rates: more is better.
        println!(
            "| `{}` | {ours:.2} | {small:.2} | {:.2} | {large:.2} | {:.2} |",
            devices[0],
            small / ours,
            large / ours
        );
    }
    println!("\n| Size | Our memif, ns a frame | `net_memif` of DPDK | ratio |\n| --- | ---: | ---: | ---: |");
    for size in [64, 1518] {
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (through_dpdk, costs) in [false, true].into_iter().zip(&mut costs) {
                costs.push(of_memif(&engine, through_dpdk, size)?);
            }
        }
        let [ours, theirs] = costs.map(median);
        println!("| {size} | {ours:.1} | {theirs:.1} | {:.2} |", theirs / ours);
    }
    Ok(())
}

/// A turn of a wire between these devices.
fn of_wire(engine: &Engine, devices: [&str; 2]) -> Result<f64, Box<dyn Error>> {
    let ends = devices.map(|device| EndSpec::External(Primed { device: device.to_owned() }.into()));
    engine.apply(WireSpec::new("devices", ends))?;
    let frames = || engine.wire("devices").map_or(0, |wire| wire.directions.iter().map(|traffic| traffic.frames).sum());
    let cost = turn(std::process::id(), frames);
    engine.remove("devices")?;
    Ok(cost.map_err(|error| format!("{devices:?}: {error}"))?)
}

/// A turn of a wire between two memif peers, at both ends of which is our memif, or DPDK's.
fn of_memif(engine: &Engine, through_dpdk: bool, size: usize) -> Result<f64, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let socket = |end: usize| folder.path().join(format!("{end}.sock"));
    let ends = [0, 1].map(|end| {
        if through_dpdk {
            let device = format!("net_memif{end},role=server,socket={},socket-abstract=no", socket(end).display());
            return EndSpec::External(EthdevSpec::new(device).into());
        }
        EndSpec::Memif(MemifSpec::new(SocketAddress::Path(socket(end)), Role::Server))
    });
    engine.apply(WireSpec::new("memif", ends))?;
    let mut peers = [0, 1].map(|end| {
        let spec = MemifSpec::new(SocketAddress::Path(socket(end)), Role::Client);
        Endpoint::open(&spec, TIMEOUT).map(End::Memif)
    });
    let [Ok(near), Ok(far)] = &mut peers else { return Err("the wire has no peers".into()) };
    eventually("the wire is up", || engine.wire("memif").is_some_and(|wire| wire.is_up()));
    let load = Load { warm_up: WARM_UP, ..Load::new(Mix::new([size])?, WARM_UP + TURN) };
    let cost = thread::scope(|scope| {
        let measured = scope.spawn(|| {
            let now = || {
                let frames: u64 = engine.wire("memif").map_or(0, |wire| wire.directions.iter().map(|t| t.frames).sum());
                (engine.workers()[0].busy, frames)
            };
            thread::sleep(WARM_UP);
            let before = now();
            thread::sleep(TURN);
            let after = now();
            (after.0.saturating_sub(before.0).as_nanos(), after.1 - before.1)
        });
        generator::run(&load, near, far, &AtomicBool::new(false)).map(|_| measured.join())
    })?;
    engine.remove("memif")?;
    match cost {
        Ok((spent, frames @ 1..)) => Ok(spent as f64 / frames as f64),
        _ => Err(format!("no frame of {size} bytes crossed the wire of two memif peers").into()),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

const ROUNDS: usize = 9;
