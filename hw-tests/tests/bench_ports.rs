//! `ferrule bench` on ports that are no NIC: what it counts is what crossed, and it finds the limit that is there.
//!
//! ```text
//!   bench:  port 0                           port 1
//!             |  veth                 veth     |
//!           device 0 --- who forwards --- device 1
//! ```
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::{FRAME_MAX, Put, Source as _, Target as _};
use ferrule_dataplane::spec::{MemifSpec, Role, SocketAddress};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::need::{TESTPMD, lacks, skip};
use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::{TIMEOUT, forwarder};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn what_our_forwarder_carries_between_two_ports_is_what_everybody_counts() {
    let test = "what_our_forwarder_carries_between_two_ports_is_what_everybody_counts";
    let Some(cables) = Cables::new(test) else { return };
    let Some(_) = forwarder(test) else { return };
    let report = cables.bench("--device net_af_packet2,iface=d0 --device net_af_packet3,iface=d1 --both");
    cables.check(&report, "ferrule");
    let program = &report["programs"][0];
    assert!(program["commands"][0].as_str().unwrap().contains("dpdk-forwarder"), "{program}");
}

#[test]
fn testpmd_between_two_ports_is_measured_where_it_runs() {
    let test = "testpmd_between_two_ports_is_measured_where_it_runs";
    if lacks(test, &[TESTPMD]) {
        return;
    }
    let Some(cables) = Cables::new(test) else { return };
    let mut command = Command::new("ip");
    command.args([
        "netns",
        "exec",
        cables.netns.name(),
        "stdbuf",
        "-oL",
        "dpdk-testpmd",
        "--no-huge",
        "-m",
        "256",
        "--no-pci",
    ]);
    command.args(["--no-shconf", "--no-telemetry", "--lcores", "0@0,1@0"]);
    command.args(["--vdev", "net_af_packet0,iface=d0", "--vdev", "net_af_packet1,iface=d1"]);
    command.args(["--", "-i", "--forward-mode=io", "--auto-start", "--total-num-mbufs=8192"]);
    let mut testpmd = Process::start(&mut command);
    testpmd.wait_for("testpmd> ");
    let report = cables.bench("--at testpmd");
    cables.check(&report, "testpmd");
    testpmd.type_in("show fwd stats all\n");
    testpmd.wait_for("Accumulated forward statistics");
    testpmd.wait_for_times("TX-packets", 3);
    // What it sent by its second port is what came to the far one of ours.
    let sent = testpmd.output();
    let sent = sent.split("Forward statistics for port 1").nth(1).unwrap().split("TX-packets:").nth(1).unwrap();
    let sent: u64 = sent.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(sent, cables.counter("g1", "rx_packets"));
    testpmd.type_in("quit\n");
    testpmd.wait();
}

#[test]
fn the_search_finds_the_limit_that_is_there() {
    let test = "the_search_finds_the_limit_that_is_there";
    let Some(ferrule) = ferrule(test) else { return };
    let folder = TempDir::new().unwrap();
    let sockets = ["a", "b"].map(|name| folder.path().join(name));
    let is_over = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        scope.spawn(|| limited_wire(&sockets, &is_over));
        let _over = SetOnDrop(&is_over);
        let devices =
            sockets.each_ref().map(|socket| format!("role=client,id=0,socket={},socket-abstract=no", socket.display()));
        let mut command = Command::new(ferrule);
        command.args([
            "bench",
            "--port",
            &format!("net_memif0,{}", devices[0]),
            "--port",
            &format!("net_memif1,{}", devices[1]),
        ]);
        command.args(
            "--at limiter --size 64 --rounds 1 --time 1s --max-rate 8k --precision 5% --method throughput".split(' '),
        );
        run(&mut command, folder.path())
    });
    let figures: Value = serde_json::from_str(&fs::read_to_string(folder.path().join("report.json")).unwrap()).unwrap();
    // What the bucket holds at the beginning of a trial goes through beside what comes into it in a second.
    let most = (LIMIT + BUCKET) / LIMIT * 1.05;
    let share = figures[0]["ours_mpps"].as_f64().unwrap() * 1e6 / LIMIT;
    assert!((0.5..most).contains(&share), "{share} of the limit: {figures}");
    let trials = report["cases"][0]["programs"][0]["rounds"][0].as_array().unwrap();
    assert!(trials.iter().any(|trial| trial["loss"].as_f64().unwrap() > 0.1), "it was offered more than it takes");
}

/// The wire ends with the bench, on a panic too.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A wire between two memif servers that carries so many frames in a second and drops the others.
fn limited_wire(sockets: &[PathBuf; 2], is_over: &AtomicBool) {
    let spec = |socket: &PathBuf| MemifSpec::new(SocketAddress::Path(socket.clone()), Role::Server);
    let open = |socket: &PathBuf| Endpoint::open(&spec(socket), TIMEOUT).unwrap();
    let (mut near, mut far) = thread::scope(|scope| {
        let far = scope.spawn(|| open(&sockets[1]));
        (open(&sockets[0]), far.join().unwrap())
    });
    let (mut gather, mut tokens, mut last) = (vec![0; FRAME_MAX], BUCKET, Instant::now());
    while !is_over.load(Relaxed) {
        let now = Instant::now();
        tokens = (tokens + (now - last).as_secs_f64() * LIMIT).min(BUCKET);
        last = now;
        let (source, target) = (&mut near.queues.receivers[0], &mut far.queues.senders[0]);
        // A peer that goes at the end says so in its own way.
        let (Ok(mut is_waiting), Ok(())) = (source.refresh(), target.refresh()) else { return };
        while is_waiting {
            let Ok(Some(frame)) = source.peek(&mut gather) else { break };
            if tokens >= 1.0 && matches!(target.put(&frame), Ok(Put::Stored)) {
                tokens -= 1.0;
            }
            let slots = frame.slots;
            source.advance(slots);
            is_waiting = target.room() > 0;
        }
        target.publish();
        source.release();
        // What comes the other way is for nobody.
        let back = &mut far.queues.receivers[0];
        while let Ok(true) = back.refresh() {
            let Ok(Some(frame)) = back.peek(&mut gather) else { break };
            let slots = frame.slots;
            back.advance(slots);
            back.release();
        }
        thread::yield_now();
    }
}

/// Two cables in a namespace of their own.
struct Cables {
    netns: TestNetNs,
    ferrule: PathBuf,
    folder: TempDir,
}

impl Cables {
    fn new(test: &str) -> Option<Self> {
        if lacks_namespaces(test) {
            return None;
        }
        let ferrule = ferrule(test)?;
        let netns = TestNetNs::new();
        for number in 0..2 {
            // DPDK names what the sockets of a device share by the process and the interface, exclusive or: with the numbers of interfaces that follow
            // each other, that of generator and device is the same now and then, which the kernel refuses.
            let index = (1 << 15) + number;
            netns.ip(&format!("link add g{number} index {index} type veth peer name d{number}"));
            for end in ["g", "d"] {
                // The kernel is to say nothing of its own.
                netns.ip(&format!("link set {end}{number} addrgenmode none"));
                netns.ip(&format!("link set {end}{number} up"));
            }
        }
        for end in ["g0", "g1", "d0", "d1"] {
            netns.wait_for_carrier(end);
        }
        Some(Self { netns, ferrule, folder: TempDir::new().unwrap() })
    }

    /// The report of a slow load in two sizes.
    fn bench(&self, between: &str) -> Value {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.netns.name()]).arg(&self.ferrule);
        command.args("bench --port net_af_packet0,iface=g0 --port net_af_packet1,iface=g1".split(' '));
        command
            .args("--method fixed --rate 1k --size 64,1518 --rounds 1 --time 500ms".split(' '))
            .args(between.split(' '));
        run(&mut command, self.folder.path())
    }

    /// Nothing is lost or out of order at that rate; the ports, the kernel and the report agree.
    fn check(&self, report: &Value, program: &str) {
        let ports = report["programs"][0]["ports"].as_array().unwrap();
        assert_eq!((&report["programs"][0]["name"], ports.len()), (&program.into(), 2), "{report}");
        for (number, port) in ports.iter().enumerate() {
            let counter = |name: &str| port["counters"][name].as_u64().unwrap();
            let kernel = |name: &str| self.counter(&format!("g{number}"), name);
            assert_eq!(counter("tx_frames"), kernel("tx_packets"), "port {number}");
            assert_eq!(counter("tx_frames"), self.counter(&format!("d{number}"), "rx_packets"));
            assert_eq!(kernel("rx_packets"), self.counter(&format!("d{number}"), "tx_packets"));
            assert!(counter("rx_frames") <= kernel("rx_packets"), "port {number}");
        }
        let cases = report["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 2);
        let mut frames = 0.0;
        for case in cases {
            for trial in case["programs"][0]["rounds"][0].as_array().unwrap() {
                let figure = |name: &str| trial[name].as_f64().unwrap();
                assert!(figure("loss") == 0.0 && figure("disorder") == 0.0 && figure("missed") == 0.0, "{case}");
                frames += figure("offered_pps") * TRIAL.as_secs_f64();
            }
            let latency = &case["programs"][0]["latency"][0];
            assert!(latency["frames"].as_u64().unwrap() > 100 && latency["p50"].as_f64().unwrap() > 0.0, "{latency}");
            assert!(case["line_bps"].is_null(), "a software device has no line");
        }
        assert!(frames > 100.0 && frames < self.counter("g0", "tx_packets") as f64 * 2.0);
    }

    fn counter(&self, interface: &str, name: &str) -> u64 {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            self.netns.name(),
            "cat",
            &format!("/sys/class/net/{interface}/statistics/{name}"),
        ]);
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim().parse().unwrap()
    }
}

/// The details that a bench reports.
fn run(command: &mut Command, folder: &Path) -> Value {
    let (code, text) = Process::start(command.arg("--report").arg(folder)).wait();
    assert_eq!(code, Some(0), "{text}");
    serde_json::from_str(&fs::read_to_string(folder.join("report.details.json")).unwrap()).unwrap()
}

/// The program, if it was built with DPDK.
fn ferrule(test: &str) -> Option<PathBuf> {
    let here = std::env::current_exe().unwrap();
    let program = here.parent()?.parent()?.join("ferrule");
    if !program.exists() {
        skip(test, &format!("{} (cargo build -p ferrule)", program.display()));
        return None;
    }
    let doctor = Command::new(&program).args(["bench", "doctor", "--json"]).output().unwrap();
    let found: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let libdpdk = found["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "libdpdk").unwrap();
    if libdpdk["verdict"] != "ok" {
        skip(test, &format!("libdpdk (apt-get install dpdk-dev): {}", libdpdk["is"]));
        return None;
    }
    Some(program)
}

const TRIAL: Duration = Duration::from_millis(500);
/// Frames in a second, and those that may come at once.
const LIMIT: f64 = 2_000.0;
const BUCKET: f64 = 500.0;
