//! What one acquire costs that needs no rebind, asked over the socket of a daemon on a node made of files: two PFs with seven
//! VFs each, as the lab has them.
//!
//! `cargo bench --workspace --bench acquire` prints times, and what a machine with other work does not change as much: the CPU time
//! and how often a thread had to wait.

use std::time::{Duration, Instant};

use ferrule_daemon::ApiSocket;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use sriov_manager::daemon::{Daemon, DaemonOptions};
use sriov_manager::fake::FakeNode;
use sriov_manager::kernel::Kernel;
use sriov_manager::policy::Policies;
use sriov_manager_client::{Client, connect, v1};

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime can be made").block_on(measure());
}

async fn measure() {
    let node = FakeNode::new(2, VFS);
    let vfs = node.open();
    for pf in 0..2 {
        vfs.create(node.pf(pf), VFS).expect("a made-up node makes VFs");
    }
    drop(vfs);
    let (vf, kernel, sysfs) = (node.vf(0, 0), node.kernel(), node.sysfs());
    kernel.write(&sysfs.file(vf, "driver_override"), "vfio-pci").expect("it is there");
    kernel.write(&sysfs.probe_file(), &vf.to_string()).expect("it is there");
    let parts = node.options();
    let socket = node.state().with_file_name("vf.sock");
    let options = DaemonOptions {
        sysfs,
        kernel,
        state: parts.state,
        socket: ApiSocket::at(socket.clone()),
        metrics: None,
        rescan: Duration::from_mins(10),
        policies: Policies::default(),
        file: None,
        timeouts: parts.timeouts,
        observer: None,
    };
    let daemon = Daemon::start(options).await.expect("a made-up node can be owned");
    let mut client = connect(&socket).await.expect("it serves");
    let vf = vf.to_string();
    let (mut explains, mut acquires) = (Costs::default(), Costs::default());
    for round in 0..ROUNDS {
        // The first are for the caches.
        let counts = round >= ROUNDS / 5;
        let begun = Begun::now();
        explain(&mut client, &vf).await;
        explains.add(begun, counts);
        let begun = Begun::now();
        acquire(&mut client, &vf).await;
        acquires.add(begun, counts);
        let release = v1::ReleaseRequest { lease: "bench".into(), ..Default::default() };
        client.release(release).await.expect("nobody holds it");
    }
    explains.tell("explain");
    acquires.tell("acquire without a rebind");
    daemon.stop().await;
}

async fn explain(client: &mut Client, vf: &str) {
    let request = v1::ExplainRequest { vf: vf.into(), ..Default::default() };
    client.explain(request).await.expect("there is one");
}

async fn acquire(client: &mut Client, vf: &str) {
    let request = v1::AcquireRequest {
        id: "bench".into(),
        tenant: "a bench".into(),
        vf: vf.into(),
        driver: v1::Driver::VfioPci.into(),
        ..Default::default()
    };
    let steps = client.acquire(request).await.expect("it is free").into_inner().steps;
    assert!(steps.iter().all(|step| !step.contains("bind")), "it has its driver: {steps:?}");
}

/// The moment before something.
#[derive(Clone, Copy)]
struct Begun {
    at: Instant,
    cpu: i64,
    waits: i64,
}

impl Begun {
    fn now() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask that");
        let cpu = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Self { at: Instant::now(), cpu, waits: usage.voluntary_context_switches() }
    }
}

#[derive(Default)]
struct Costs {
    times: Vec<Duration>,
    cpu: Vec<i64>,
    waits: Vec<i64>,
}

impl Costs {
    fn add(&mut self, begun: Begun, counts: bool) {
        let time = begun.at.elapsed();
        let now = Begun::now();
        if counts {
            self.times.push(time);
            self.cpu.push(now.cpu - begun.cpu);
            self.waits.push(now.waits - begun.waits);
        }
    }

    fn tell(&mut self, what: &str) {
        self.times.sort_unstable();
        self.cpu.sort_unstable();
        self.waits.sort_unstable();
        let rank = |percent: usize| (self.times.len() * percent).div_ceil(100) - 1;
        let time = |percent| self.times[rank(percent)].as_secs_f64() * 1e3;
        println!(
            "{what}: p50 {:.2} ms, p99 {:.2} ms; CPU of both ends {} us, {} waits of threads",
            time(50),
            time(99),
            self.cpu[rank(50)],
            self.waits[rank(50)],
        );
    }
}

const VFS: u32 = 7;
const ROUNDS: usize = 500;
