//! What a frame costs in instructions, which is the same on every host: the forwarder beside testpmd, on the same devices.
//!
//! ```text
//!                     +---- switch of the PF ----+
//!   32 frames for A   |                          |   32 frames for B
//!                     A --- forwarder/testpmd -- B
//! ```
//! A frame for A that leaves by B comes back to A: each look at a VF finds what has left by the other one, as a burst.

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::forwarder::Forwarder;
use crate::lab::pci::Function;
use crate::lab::scenario::Lab;
use crate::lab::testpmd;

use super::ip;

pub fn of_a_frame(lab: &Lab) -> Result<()> {
    check_clock()?;
    let ring = Ring::new(lab)?;
    let vfs = ring.pair.each_ref().map(|vf| vf.address.clone());
    let nulls = [0, 1].map(|number| format!("net_null{number},size=64"));
    // Without a word about PCI, testpmd would take the VFs as well.
    let [first, second] = nulls.each_ref().map(|device| format!("--vdev={device}"));
    let of_nulls = vec!["--no-pci".to_owned(), first, second];
    let of_vfs = vfs.iter().map(|vf| format!("--allow={vf}")).collect();
    let cases =
        [("VF to VF, bursts of 32", &vfs, of_vfs, 32), ("net_null to net_null, bursts of 64", &nulls, of_nulls, 64)];
    for (name, devices, arguments, burst) in cases {
        // What net_null receives it makes itself.
        let fill = || if devices == &vfs { ring.fill() } else { Ok(()) };
        let ours = ours(lab, devices, fill)?;
        let theirs = theirs(&arguments, burst, fill)?;
        lab.figure(&format!("{name}: dpdk-forwarder"), ours, "instructions a frame");
        lab.figure(&format!("{name}: dpdk-testpmd"), theirs, "instructions a frame");
        lab.figure(&format!("{name}: of testpmd's"), 100.0 * ours / theirs, "%");
        ensure!(ours <= MOST * theirs, "{name}: {ours:.1} instructions a frame are more than {MOST} of {theirs:.1}");
    }
    ring.end()
}

/// A frame on a wire between two devices.
fn ours(lab: &Lab, devices: &[String; 2], fill: impl Fn() -> Result<()>) -> Result<f64> {
    let [a, b] = devices;
    let wire = format!("{{ name: w, ends: [{{ ethdev: {{ device: '{a}' }} }}, {{ ethdev: {{ device: '{b}' }} }}] }}");
    let forwarder = Forwarder::start(lab, &[wire])?;
    forwarder.until_up("w")?;
    thread::sleep(BEGINNING);
    fill()?;
    // It is killed then: a wire that is removed is served until nothing comes any more, and here that does not end.
    cost(forwarder.id(), || forwarder.frames("w"))
}

/// The same between two devices of testpmd's.
fn theirs(devices: &[String], burst: u32, fill: impl Fn() -> Result<()>) -> Result<f64> {
    let mut process = testpmd::start_on(devices, &["--forward-mode=io".to_owned(), format!("--burst={burst}")])?;
    process.type_in("start\n");
    process.wait_for("packets/burst=");
    thread::sleep(BEGINNING);
    fill()?;
    let cost = cost(process.id(), || Ok(testpmd::received(&mut process).iter().sum()))?;
    testpmd::quit(process);
    Ok(cost)
}

/// Its time-stamp counter goes as fast as instructions are executed, and the kernel has found that out.
fn check_clock() -> Result<()> {
    let text = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let mhz = text.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(':')?.1.trim().parse::<f64>().ok());
    let mhz = mhz.context("/proc/cpuinfo tells MHz")?;
    ensure!((mhz / 1000.0 - 1.0).abs() < EXACT, "this clock does not count instructions: it has {mhz} MHz");
    Ok(())
}

/// Two VFs of a PF, and who sends frames to them.
struct Ring {
    /// Of the PF.
    interface: String,
    pair: [Function; 2],
}

impl Ring {
    fn new(lab: &Lab) -> Result<Self> {
        let pf = &lab.pfs[0];
        let interface = pf.interface().context("a PF has an interface")?;
        // A frame for everybody would go round as well, and wake the kernel each time.
        fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1").context("turn IPv6 off")?;
        ip(&["link", "set", &interface, "up"])?;
        ip(&["addr", "add", "10.9.0.1/24", "dev", &interface])?;
        pf.write("sriov_drivers_autoprobe", "0")?;
        pf.set_vfs(2)?;
        let vfs = pf.vfs();
        for (index, vf) in vfs.iter().enumerate() {
            let (index, mac, peer) = (index.to_string(), format!("52:54:00:00:01:0{index}"), peer(index));
            ip(&["link", "set", &interface, "vf", &index, "mac", &mac, "spoofchk", "off"])?;
            ip(&["neigh", "replace", &peer, "lladdr", &mac, "nud", "permanent", "dev", &interface])?;
            vf.bind("vfio-pci")?;
        }
        let pair = vfs.try_into().ok().context("two VFs were made")?;
        Ok(Self { interface, pair })
    }

    /// Sends a burst to each VF.
    fn fill(&self) -> Result<()> {
        let socket = UdpSocket::bind("10.9.0.1:0").context("make a socket")?;
        for index in 0..self.pair.len() {
            for _ in 0..BURST {
                // A frame of 60 bytes. The port is nobody's.
                socket.send_to(&[0; 18], format!("{}:9", peer(index))).context("send a frame")?;
            }
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        ip(&["addr", "flush", "dev", &self.interface]).map(drop)
    }
}

/// The address whose neighbour is a VF.
fn peer(index: usize) -> String {
    format!("10.9.0.{}", index + 2)
}

/// Instructions that the thread of a process that polls takes for a frame.
fn cost(process: u32, mut frames: impl FnMut() -> Result<u64>) -> Result<f64> {
    let began = Instant::now();
    let tasks = format!("/proc/{process}/task");
    let polling = polling(&tasks)?;
    // Who counts frames has the CPU first, so that hardly any move meanwhile.
    let renice = Command::new("renice").args(["-n", "19", "-p", &polling]).status().context("run renice")?;
    ensure!(renice.success(), "renice {polling}: {renice}");
    let mut look = || -> Result<Look> {
        let before = cpu_time(&tasks, &polling)?;
        let frames = frames()?;
        Ok(Look { before, frames, after: cpu_time(&tasks, &polling)? })
    };
    let first = look()?;
    loop {
        thread::sleep(WINDOW);
        let last = look()?;
        let frames = last.frames.saturating_sub(first.frames) as f64;
        let [least, most] = [last.before - first.after, last.after - first.before].map(|time| time as f64);
        if frames > 0.0 && most - least < EXACT * least {
            return Ok(least.midpoint(most) / frames);
        }
        ensure!(began.elapsed() < WAIT_MAX, "thread {polling}: {frames} frames for {least} to {most} instructions");
    }
}

/// How many frames there were, and the CPU time of a thread before and after they were counted.
struct Look {
    before: u64,
    frames: u64,
    after: u64,
}

/// The thread that polls: `worker-0`, or DPDK's `rte-worker-1`.
fn polling(tasks: &str) -> Result<String> {
    let threads = fs::read_dir(tasks).with_context(|| format!("read {tasks}"))?.flatten();
    let is_worker = |name: &String| {
        fs::read_to_string(format!("{tasks}/{name}/comm")).is_ok_and(|called| called.contains("worker-"))
    };
    let mut workers = threads.map(|thread| thread.file_name().to_string_lossy().into_owned()).filter(is_worker);
    workers.next().with_context(|| format!("{tasks}: no worker"))
}

/// How long a thread ran, in nanoseconds. On the only CPU it does not run while it is asked for.
fn cpu_time(tasks: &str, thread: &str) -> Result<u64> {
    let path = format!("{tasks}/{thread}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.split(' ').next().and_then(|time| time.parse().ok()).with_context(|| format!("understand {path}: {text}"))
}

/// Frames that go round each way.
const BURST: usize = 32;
/// What a program of a dev build may take of testpmd's, optimized as that is.
const MOST: f64 = 1.5;
/// How exact a figure is at least.
const EXACT: f64 = 0.005;
/// Of emulated time, of which a second is ten or more of this host.
const WINDOW: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(20);
/// What devices have when a program begins it throws away: testpmd for 20 ms, ours until they are empty or 4096 frames are gone.
const BEGINNING: Duration = Duration::from_millis(100);
