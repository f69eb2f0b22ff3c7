//! The demo for real: the programs as they were built, real namespaces, real packets.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_hw_tests::need::skip;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

#[test]
fn every_wire_of_the_demo_passes_its_checks() {
    if let Some(lacking) = lacking() {
        return skip("every_wire_of_the_demo_passes_its_checks", &lacking);
    }
    let (pid, document) = passes(&["--json"]);
    let names: Vec<_> = wires(&document).iter().map(|wire| wire["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["kernel-kernel", "kernel-memif", "memif-memif", "tap-memif-tap"]);
    for wire in wires(&document) {
        let name = wire["name"].as_str().unwrap();
        assert_eq!((&wire["passed"], &wire["problem"]), (&true.into(), &Value::Null), "{wire:#}");
        assert!(wire["counters"]["frames"][0].as_u64().unwrap() > 0, "{wire:#}");
        assert_eq!(wire["counters"]["drops"], 0, "{wire:#}");
        if name == "memif-memif" {
            assert!(wire["rate_mpps"]["64"].as_f64().unwrap() > 0.0, "{wire:#}");
            assert!(wire["rate_mpps"]["1518"].as_f64().unwrap() > 0.0, "{wire:#}");
        } else {
            for family in ["v4", "v6"] {
                let ping = &wire["ping"][family];
                assert_eq!((&ping["sent"], &ping["received"]), (&5.into(), &5.into()), "{wire:#}");
                assert!(ping["rtt_ms"].as_f64().unwrap() > 0.0, "{wire:#}");
            }
        }
        let speaks_tcp = ["kernel-kernel", "tap-memif-tap"].contains(&name);
        assert_eq!(wire["tcp_gbit_s"].as_f64().is_some_and(|rate| rate > 0.0), speaks_tcp, "{wire:#}");
    }
    assert_nothing_is_left_of(pid);
}

#[test]
fn two_pods_get_what_the_device_plugin_gives_and_ping_each_other() {
    if let Some(lacking) = lacking() {
        return skip("two_pods_get_what_the_device_plugin_gives_and_ping_each_other", &lacking);
    }
    let (pid, document) = passes(&["pod", "--json"]);
    let steps = document["steps"].as_array().unwrap();
    let seen = |name: &str| {
        let step =
            steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no step {name}: {document:#}"));
        assert_eq!(step["passed"], true, "{step:#}");
        step["seen"].as_str().unwrap()
    };
    assert!(seen("pod one").contains("mount /run/ferrule/soft-port-0 (read-only)"), "{document:#}");
    assert!(seen("pod two").contains("PCIDEVICE_EXAMPLE_COM_PORT=soft-port-1"), "{document:#}");
    assert!(seen("wire").contains("default/one and default/two"), "{document:#}");
    assert!(seen("ping").contains("5 sent, 0 % lost"), "{document:#}");
    assert!(seen("frames").contains(" 0 dropped"), "{document:#}");
    assert!(seen("pod three").contains("mount /run/ferrule/soft-guest-0 (read-only)"), "{document:#}");
    assert!(seen("pod four").contains("PCIDEVICE_EXAMPLE_COM_GUEST=soft-guest-1"), "{document:#}");
    assert!(seen("vhost-user").contains("20000 frames of 64 to 1514 B each way, all intact"), "{document:#}");
    assert!(seen("pod two deleted").contains("all 6 devices are free"), "{document:#}");
    assert_nothing_is_left_of(pid);

    let failed = demo(&["pod", "--json", "--device-plugin", "/bin/false"]).spawn().unwrap();
    let pid = failed.id();
    let Output { status, stdout, .. } = failed.wait_with_output().unwrap();
    let document: Value = serde_json::from_slice(&stdout).unwrap();
    let reason = "device-plugin /bin/false: ended before it was ready (exit status: 1); it logged nothing";
    assert_eq!((status.code(), &document["passed"], &document["problem"]), (Some(1), &false.into(), &reason.into()));
    assert_nothing_is_left_of(pid);
}

#[test]
fn two_clients_reach_the_gateway_through_firewalls_and_passthroughs_on_one_port_and_not_on_the_other() {
    let name = "two_clients_reach_the_gateway_through_firewalls_and_passthroughs_on_one_port_and_not_on_the_other";
    if let Some(lacking) = lacking() {
        return skip(name, &lacking);
    }
    let (pid, document) = passes(&["secure-intranet", "--json"]);
    for (client, (number, ip, target)) in
        [(1, "172.16.1.1", "172.16.1.2"), (2, "172.16.1.5", "172.16.1.6")].into_iter().enumerate()
    {
        let who = format!("NSC vpn-gateway-nsc-{number} with IP {ip}");
        let target = format!("vpn-gateway-nse TargetIP: {target}");
        assert_checks(
            &document["clients"][client],
            &[
                ("ping", &format!("{who} pinging {target} successful"), "5 of 5 answered"),
                ("port 80", &format!("{who} accessing {target} TargetPort:80 successful"), "112 bytes"),
                ("port 8080", &format!("{who} blocked {target} TargetPort:8080"), "timed out"),
            ],
        );
    }
    assert_eq!(document["clients"].as_array().unwrap().len(), 2);
    assert_nothing_is_left_of(pid);
    assert_eq!(processes_of(pid), [0; 0]);
}

#[test]
fn a_web_server_behind_a_nat_logs_an_address_of_the_pool_for_its_client() {
    let name = "a_web_server_behind_a_nat_logs_an_address_of_the_pool_for_its_client";
    if let Some(lacking) = lacking() {
        return skip(name, &lacking);
    }
    let (pid, document) = passes(&["nat", "--json"]);
    let client = &document["clients"][0];
    let log = &client["checks"][2];
    let (line, seen) = (log["line"].as_str().unwrap(), log["seen"].as_str().unwrap());
    assert!(line.starts_with("client 192.168.100.10:"), "{log:#}");
    assert!(line.contains(" known to webserver as 80.80.80.100:"), "{log:#}");
    assert!(seen.starts_with("80.80.80.100:") && seen.ends_with(" `GET / HTTP/1.1` 200"), "{log:#}");
    let who = "client with IP 192.168.100.10";
    let target = "webserver TargetIP: 80.80.80.80";
    assert_checks(
        client,
        &[
            ("ping", &format!("{who} pinging {target} successful"), "5 of 5 answered"),
            ("page", &format!("{who} accessing {target} TargetPort:80 successful"), "82 bytes"),
            ("server's log", line, seen),
        ],
    );
    assert_nothing_is_left_of(pid);
    assert_eq!(processes_of(pid), [0; 0]);
}

/// The checks of a client of a chain, all of them good: names, lines, and what was seen.
fn assert_checks(client: &Value, wanted: &[(&str, &str, &str)]) {
    let checks = client["checks"].as_array().unwrap();
    for (check, (name, line, seen)) in checks.iter().zip(wanted) {
        assert_eq!((&check["name"], &check["passed"]), (&(*name).into(), &true.into()), "{check:#}");
        assert_eq!((&check["line"], &check["seen"]), (&(*line).into(), &(*seen).into()), "{check:#}");
    }
    assert_eq!(checks.len(), wanted.len());
}

#[test]
fn a_forwarder_that_does_not_start_is_told_and_nothing_is_left() {
    if let Some(lacking) = lacking() {
        return skip("a_forwarder_that_does_not_start_is_told_and_nothing_is_left", &lacking);
    }
    let demo = demo(&["--json", "--forwarder", "/bin/false"]).spawn().unwrap();
    let pid = demo.id();
    let Output { status, stdout, stderr } = demo.wait_with_output().unwrap();
    let document: Value = serde_json::from_slice(&stdout).unwrap();
    let reason = "forwarder /bin/false: ended before it was ready (exit status: 1); it logged nothing";
    assert_eq!((status.code(), &document["passed"], &document["problem"]), (Some(1), &false.into(), &reason.into()));
    assert!(String::from_utf8(stderr).unwrap().ends_with(&format!("{reason}\n")));
    assert_nothing_is_left_of(pid);
}

#[test]
fn a_signal_ends_the_demo_and_nothing_is_left() {
    if let Some(lacking) = lacking() {
        return skip("a_signal_ends_the_demo_and_nothing_is_left", &lacking);
    }
    let mut demo = until_said(&[], "wires are up");
    kill(pid_of(&demo), Signal::SIGINT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(1));
    assert_nothing_is_left_of(demo.id());
}

/// Where the demo with pods is in the middle of something: daemons start, a pod is admitted, a sidecar runs, frames cross, a pod goes.
const MOMENTS: [&str; 5] =
    ["starting dpdk-forwarder", "pod one asks", "pod one pings pod two", "pod four asks", "deleting pod one"];

#[test]
fn a_signal_at_any_moment_ends_the_demo_with_pods_and_nothing_is_left() {
    if let Some(lacking) = lacking() {
        return skip("a_signal_at_any_moment_ends_the_demo_with_pods_and_nothing_is_left", &lacking);
    }
    for moment in MOMENTS {
        let mut demo = until_said(&["pod"], moment);
        let processes = processes_of(demo.id());
        kill(pid_of(&demo), Signal::SIGINT).unwrap();
        assert_eq!(demo.wait().unwrap().code(), Some(1), "{moment}");
        assert_nothing_is_left_of(demo.id());
        processes.into_iter().for_each(assert_ends);
        assert_eq!(processes_of(demo.id()), [0; 0], "{moment}");
    }
}

#[test]
fn the_next_demo_removes_what_a_killed_one_with_pods_left() {
    if let Some(lacking) = lacking() {
        return skip("the_next_demo_removes_what_a_killed_one_with_pods_left", &lacking);
    }
    for moment in MOMENTS {
        let mut killed = until_said(&["pod"], moment);
        killed.kill().unwrap();
        killed.wait().unwrap();
        let left = processes_of(killed.id());
        assert!(Path::new(&format!("/run/ferrule-demo-{}", killed.id())).exists());
        demo(&["pod", "--forwarder", "/bin/false"]).output().unwrap();
        assert_nothing_is_left_of(killed.id());
        left.into_iter().for_each(assert_ends);
        assert_eq!(processes_of(killed.id()), [0; 0], "{moment}");
    }
}

#[test]
fn the_next_demo_removes_what_a_killed_one_left() {
    if let Some(lacking) = lacking() {
        return skip("the_next_demo_removes_what_a_killed_one_left", &lacking);
    }
    let mut killed = until_said(&[], "wires are up");
    let directory = format!("/run/ferrule-demo-{}", killed.id());
    let forwarder: i32 = fs::read_to_string(format!("{directory}/forwarder.pid")).unwrap().parse().unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(Path::new(&directory).exists());
    demo(&["--forwarder", "/bin/false"]).output().unwrap();
    assert_nothing_is_left_of(killed.id());
    assert_ends(forwarder);
}

/// Waits until a process is gone that was killed: the kernel may still be taking it down, or its new parent may not have noticed yet.
fn assert_ends(process: i32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let state = || fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    while !(state().is_empty() || state().contains(") Z ") || state().contains(") X ")) {
        assert!(Instant::now() < deadline, "{}", state());
        thread::sleep(Duration::from_millis(10));
    }
}

/// What runs for a demo beside itself: its directory is in their command lines.
fn processes_of(demo: u32) -> Vec<i32> {
    let directory = format!("/run/ferrule-demo-{demo}/");
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_its = |process: &i32| {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&directory)
    };
    processes.filter(is_its).collect()
}

/// A demo that comes to a good end: its process, and what it says.
fn passes(arguments: &[&str]) -> (u32, Value) {
    let demo = demo(arguments).spawn().unwrap();
    let pid = demo.id();
    let Output { status, stdout, stderr } = demo.wait_with_output().unwrap();
    let (said, progress) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success(), "{said}\n{progress}");
    let document: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&document["passed"], &document["problem"]), (&true.into(), &Value::Null));
    (pid, document)
}

/// A demo in the middle of its work: it has said this.
fn until_said(arguments: &[&str], wanted: &str) -> Child {
    let mut demo = demo(arguments).spawn().unwrap();
    let mut stdout = BufReader::new(demo.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(wanted) {
        line.clear();
        if stdout.read_line(&mut line).unwrap() == 0 {
            let mut said = String::new();
            demo.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("the demo ended early: {said}");
        }
    }
    // What it says next would end it if nobody read it.
    thread::spawn(move || io::copy(&mut stdout, &mut io::sink()));
    demo
}

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(FERRULE);
    command.arg("demo").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn wires(document: &Value) -> &[Value] {
    document["wires"].as_array().unwrap()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

fn assert_nothing_is_left_of(pid: u32) {
    let name = format!("ferrule-demo-{pid}");
    let namespaces = ["a", "b", "c"].map(|side| format!("/run/netns/{name}-{side}"));
    for path in namespaces.into_iter().chain([format!("/run/{name}")]) {
        assert!(!Path::new(&path).exists(), "{path} is left");
    }
}

/// What this machine lacks for a demo.
fn lacking() -> Option<String> {
    for name in ["dpdk-forwarder", "device-plugin", "network-function"] {
        let program = Path::new(FERRULE).with_file_name(name);
        if !program.exists() {
            return Some(format!("{} (cargo build --bin {name})", program.display()));
        }
    }
    // It looks for what it needs before anything else.
    let output = demo(&["--forwarder", "/bin/false"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    said.strip_prefix("the demo cannot run here: ").map(|needs| needs.trim().to_owned())
}

const FERRULE: &str = env!("CARGO_BIN_EXE_ferrule");
