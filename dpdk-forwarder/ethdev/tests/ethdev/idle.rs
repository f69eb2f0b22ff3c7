//! A worker whose only device has an interrupt sleeps while there is nothing to do, and wakes.

use std::fs;
use std::thread;
use std::time::Duration;

use ferrule_ethdev::EthdevSpec;

use crate::common::{client, engine, eventually, receive, send, unique};
use crate::site::{frame, in_namespace, is_up, until_up, wire};

#[test]
fn a_worker_sleeps_while_a_device_with_an_interrupt_is_idle_and_naps_with_one_that_has_none() {
    in_namespace("a_worker_sleeps_while_a_device_with_an_interrupt_is_idle", |_| {
        let [naps, sleeps] = ["net_ring0", "net_tap0,iface=tap7"].map(|device| {
            // One of its own, without other wires.
            let (engine, name) = (engine(), unique("idle"));
            engine.apply(wire(&name, &EthdevSpec::new(device))).unwrap();
            let _peer = client(&name, 0);
            until_up(&engine, &name);
            let idle = Idle::of_worker();
            let Idle { switches, cpu } = idle;
            println!("{device}: {switches} switches and {cpu:?} of CPU in {SPAN:?} without a frame");
            switches
        });
        assert!(sleeps * 4 < naps, "{sleeps} beside {naps} switches");
    });
}

#[test]
fn frames_wake_a_worker_that_sleeps() {
    in_namespace("frames_wake_a_worker_that_sleeps", |engine| {
        let [left, right] = ["left", "right"].map(unique);
        engine.apply(wire(&left, &EthdevSpec::new("net_tap0,iface=tap7"))).unwrap();
        let mut receiver = client(&left, 0);
        until_up(engine, &left);
        // The kernel takes no frame for one that is down.
        eventually("it is told up", || is_up("tap7"));
        // Its worker has the other device too, and would nap for it.
        let other = crate::common::engine();
        other.apply(wire(&right, &EthdevSpec::new("net_af_packet0,iface=tap7"))).unwrap();
        let mut sender = client(&right, 0);
        until_up(&other, &right);
        for number in 0..20 {
            // Longer than a lane stays in the rounds without work.
            thread::sleep(Duration::from_millis(5));
            send(&mut sender, 0, &frame(64, number));
            assert_eq!(receive(&mut receiver, 0), frame(64, number));
        }
    });
}

/// What the worker of this test does in a while.
struct Idle {
    switches: u64,
    cpu: Duration,
}

impl Idle {
    /// Of the one worker that has come last.
    fn of_worker() -> Self {
        let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let is_worker = |task: &std::path::PathBuf| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("worker-"))
        };
        let number = |task: &std::path::PathBuf| task.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap();
        let worker = tasks.filter(is_worker).max_by_key(number).unwrap();
        let now = || {
            let status = fs::read_to_string(worker.join("status")).unwrap();
            let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            let cpu = fs::read_to_string(worker.join("schedstat")).unwrap();
            let cpu = cpu.split(' ').next().unwrap().parse().unwrap();
            (switches.trim().parse::<u64>().unwrap(), Duration::from_nanos(cpu))
        };
        thread::sleep(SETTLE);
        let before = now();
        thread::sleep(SPAN);
        let after = now();
        Self { switches: after.0 - before.0, cpu: after.1.saturating_sub(before.1) }
    }
}

/// What came up with the wire is over then.
const SETTLE: Duration = Duration::from_millis(200);
const SPAN: Duration = Duration::from_secs(2);
