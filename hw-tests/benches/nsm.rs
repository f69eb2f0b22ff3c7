//! How fast the forwarder makes, refreshes and closes connections of the mesh, when a driver calls it in place of a manager; and what a
//! connection costs in memory.
//!
//! `cargo build --release --workspace --bins && cargo bench --workspace --bench nsm [-- COUNT ...]`
//!
//! First the kernel alone: the pairs that 1000 connections have, with their addresses and routes, made and closed by as many threads as the
//! forwarder has for it, without a mesh. No forwarder is faster than that.
//!
//! Needs root. Each connection is a veth pair between two namespaces; the driver calls over one TLS connection for each, as managers in Go do.
//! Endpoint and registry are our own processes on the same cores. Nothing passes or fails here.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferrule_dataplane::port::kernel::{InterfaceOwner, VethPair};
use ferrule_dataplane::spec::{KernelSpec, NetNs, Route};
use ferrule_hw_tests::need::{Need, lacks};
use ferrule_hw_tests::nsm::caller::{Caller, dial, file, kernel, request};
use ferrule_hw_tests::nsm::mesh::{Mesh, MeshOptions, SERVICE};
use ferrule_hw_tests::nsm::pod::MeshPod;
use ferrule_hw_tests::nsm::programs::Cast;
use ferrule_nsm::proto::connection::Connection;
use ferrule_nsm::proto::networkservice::NetworkServiceRequest;
use ferrule_nsm::service::NextHop;
use ferrule_nsm::transport::DialOptions;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::task::JoinSet;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // `cargo test --benches` only wants to know that it builds.
    if !arguments.iter().any(|argument| argument == "--bench") || lacks("nsm", &[Need::Root]) {
        return Ok(());
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let mut counts: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if counts.is_empty() {
        counts = vec![1, 100, 1000];
    }
    let mut mesh = Mesh::start(Cast::default(), MeshOptions::default())?;
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    mesh.far().start_endpoint(&endpoint_pod, "10.0.0.0/16", "ETHERNET")?;
    let driver = Driver {
        caller: Caller::at(mesh.path("identity/nsmgr-1.sock"))?,
        forwarder: mesh.near().forwarder_url(),
        namespace: file(&client_pod.netns().path())?,
    };
    println!("| in flight | call | p50 | p99 | a second |\n| ---: | --- | ---: | ---: | ---: |");
    kernel_alone([&client_pod, &endpoint_pod])?;
    for count in counts {
        let mut calls = Calls::default();
        let rounds = (CALLS_MIN / count).max(1);
        let mut memory = 0;
        for _ in 0..rounds {
            let before = mesh.near().resident("forwarder")?;
            let made = driver.make(count, &mut calls)?;
            memory = mesh.near().resident("forwarder")?.saturating_sub(before);
            driver.close(driver.refresh(made, &mut calls)?, &mut calls)?;
        }
        for (what, times) in [("new", &mut calls.new), ("refresh", &mut calls.refresh), ("close", &mut calls.close)] {
            times.show(count, what);
        }
        println!("{:.1} kB of the forwarder for each of {count} connections", memory as f64 / count as f64);
    }
    Ok(())
}

/// What the kernel takes for the pairs alone.
fn kernel_alone(pods: [&MeshPod; 2]) -> Result<()> {
    let owner = Arc::new(InterfaceOwner::process());
    let (numbers, pairs) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let made = Mutex::new(Times::default());
    let began = Instant::now();
    let make = || -> Result<()> {
        loop {
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            if number >= PAIRS {
                return Ok(());
            }
            let address = |end: usize| format!("10.{}.{}.{}/32", 1 + end, number / 250, number % 250);
            let spec = |end: usize| -> Result<KernelSpec> {
                let name = format!("{}{number}", ["k", "e"][end]).parse()?;
                let netns = Some(NetNs::Path(pods[end].netns().path()));
                let routes = vec![Route { to: address(1 - end).parse()?, via: None }];
                Ok(KernelSpec { netns, addresses: vec![address(end).parse()?], routes, ..KernelSpec::new(name) })
            };
            let (specs, began) = ([spec(0)?, spec(1)?], Instant::now());
            let pair = VethPair::create(&owner, "bench", [&specs[0], &specs[1]]).map_err(|(_, error)| error)?;
            made.lock().unwrap_or_else(PoisonError::into_inner).single.push(began.elapsed());
            pairs.lock().unwrap_or_else(PoisonError::into_inner).push(pair);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..MAKERS).map(|_| scope.spawn(make)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.all = began.elapsed();
    made.show(MAKERS, "kernel alone: new");
    let mut closed = Times::default();
    let (began, times) = (Instant::now(), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..CLOSERS {
            scope.spawn(|| {
                loop {
                    let pair = pairs.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let Some(pair) = pair else { return };
                    let began = Instant::now();
                    drop(pair);
                    times.lock().unwrap_or_else(PoisonError::into_inner).push(began.elapsed());
                }
            });
        }
    });
    (closed.all, closed.single) = (began.elapsed(), times.into_inner().unwrap_or_else(PoisonError::into_inner));
    closed.show(CLOSERS, "kernel alone: close");
    Ok(())
}

/// Calls the forwarder.
struct Driver {
    caller: Caller,
    forwarder: String,
    namespace: Arc<OwnedFd>,
}

/// A connection that was made, and over what.
type Made = (NextHop, NetworkServiceRequest);

impl Driver {
    /// So many connections at once.
    fn make(&self, count: usize, calls: &mut Calls) -> Result<Vec<Made>> {
        let mut asked = Vec::new();
        for number in 0..count {
            let (next, interface) = (self.dial()?, format!("c{number}"));
            asked.push((next, request("driver", &interface, SERVICE, kernel(&self.namespace, &interface)?)));
        }
        self.all(asked, &mut calls.new, |(next, message), files| async move {
            let answer = next.request(message.clone(), &files, LIMIT).await;
            let connection = Some(answer.map_err(|error| error.status)?);
            Ok((next, NetworkServiceRequest { connection, ..message }))
        })
    }

    /// The same requests again.
    fn refresh(&self, made: Vec<Made>, calls: &mut Calls) -> Result<Vec<Made>> {
        self.all(made, &mut calls.refresh, |(next, message), files| async move {
            let answer = next.request(message.clone(), &files, LIMIT).await;
            let connection = Some(answer.map_err(|error| error.status)?);
            Ok((next, NetworkServiceRequest { connection, ..message }))
        })
    }

    fn close(&self, made: Vec<Made>, calls: &mut Calls) -> Result<()> {
        let closed = self.all(made, &mut calls.close, |(next, message), files| async move {
            let connection: Connection = message.connection.clone().context("it was made")?;
            next.close(connection, &files, LIMIT).await?;
            Ok((next, message))
        });
        closed.map(drop)
    }

    /// All at once, each measured.
    fn all<F: Future<Output = Result<Made>> + Send + 'static>(
        &self,
        connections: Vec<Made>,
        times: &mut Times,
        call: impl Fn(Made, Vec<Arc<OwnedFd>>) -> F + Copy + Send + 'static,
    ) -> Result<Vec<Made>> {
        let files = vec![Arc::clone(&self.namespace)];
        self.caller.runtime().block_on(async {
            let began = Instant::now();
            let mut running = JoinSet::new();
            for connection in connections {
                let files = files.clone();
                running.spawn(async move {
                    let began = Instant::now();
                    let done = call(connection, files).await;
                    (done, began.elapsed())
                });
            }
            let mut done = Vec::new();
            while let Some(ended) = running.join_next().await {
                let (made, took) = ended?;
                done.push(made?);
                times.single.push(took);
            }
            times.all += began.elapsed();
            Ok(done)
        })
    }

    fn dial(&self) -> Result<NextHop> {
        let identity = self.caller.identity().current();
        self.caller.runtime().block_on(dial(&self.forwarder, &identity, &DialOptions::default()))
    }
}

/// What was measured.
#[derive(Default)]
struct Calls {
    new: Times,
    refresh: Times,
    close: Times,
}

#[derive(Default)]
struct Times {
    single: Vec<Duration>,
    all: Duration,
}

impl Times {
    fn show(&mut self, in_flight: usize, what: &str) {
        self.single.sort();
        let at = |share: usize| self.single[(self.single.len() - 1) * share / 100].as_secs_f64() * 1e3;
        let rate = self.single.len() as f64 / self.all.as_secs_f64();
        println!("| {in_flight} | {what} | {:.1} ms | {:.1} ms | {rate:.0} |", at(50), at(99));
    }
}

const PAIRS: usize = 1000;
/// As many threads as the forwarder makes and closes pairs with.
const MAKERS: usize = 4;
const CLOSERS: usize = 32;
/// Of each kind, where few are in flight.
const CALLS_MIN: usize = 200;
const LIMIT: Duration = Duration::from_mins(2);
