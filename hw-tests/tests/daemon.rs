//! The real `dpdk-forwarder` as a process: reloaded, killed, drained, started twice.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use dpdk_forwarder::admin::{AdminClient, Secrets, connect, spec_to_proto, v1};
use dpdk_forwarder::config::parse_wire;
use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::need::{Need, lacks};
use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::stream::{Stream, both_ways, carry};
use ferrule_hw_tests::unanswered::UnansweredFolder;
use ferrule_hw_tests::{TIMEOUT, eventually, forwarder};
use nix::sys::signal::Signal;
use tempfile::TempDir;

#[test]
fn a_reload_touches_only_what_changed() {
    let Some(testbed) = Testbed::new("a_reload_touches_only_what_changed") else { return };
    testbed.write(&[testbed.wire("kept", ""), testbed.wire("changed", "")]);
    let daemon = testbed.start("admin.sock");
    let mut kept = testbed.ends("kept");
    let changed = testbed.ends("changed");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let flow = scope.spawn(|| {
            let mut routes = both_ways(1, &[64, 1518], 512);
            let mut total = 0;
            while !over.load(Relaxed) {
                total += 1000;
                carry(&mut kept, &mut routes, total);
            }
            total
        });
        // On a change of the file, and on a signal; another wire comes, changes, goes.
        testbed.write(&[testbed.wire("kept", ""), testbed.wire("changed", "full: drop, ")]);
        daemon.wait_for("wires file applied");
        assert!(changed.iter().all(|end| end.check_peer().is_ok()), "what no peer can see changes in place");
        let other = testbed.wire("changed", "full: drop, ").replace("role: server", "role: server, queues: 2");
        testbed.write(&[testbed.wire("kept", ""), other]);
        eventually("the peers of a changed wire are told", || changed.iter().all(|end| end.check_peer().is_err()));
        drop(testbed.ends("changed"));
        testbed.write(&[testbed.wire("kept", ""), testbed.wire("new", "")]);
        daemon.signal(Signal::SIGHUP);
        drop(testbed.ends("new"));
        assert!(!testbed.socket("changed", 0).exists());
        fs::write(testbed.file(), "wires: [").unwrap();
        daemon.wait_for("the wires stay as they are");
        over.store(true, Relaxed);
        assert!(flow.join().unwrap() > 0);
    });
    assert!(kept.iter().all(|end| end.check_peer().is_ok()));
}

#[test]
fn a_killed_forwarder_is_replaced_by_the_next() {
    let test = "a_killed_forwarder_is_replaced_by_the_next";
    let Some(testbed) = Testbed::new(test).filter(|_| !lacks_namespaces(test)) else { return };
    let pod = TestNetNs::new();
    let kernel = format!(
        "{{name: pod, ends: [{{kernel: {{netns: {}, name: nsm-1}}}}, {{memif: {{socket: {}, role: server}}}}]}}",
        pod.path().display(),
        testbed.socket("pod", 0).display(),
    );
    testbed.write(&[testbed.wire("wire", ""), kernel]);
    let mut daemon = testbed.start("admin.sock");
    for _ in 0..2 {
        let ends = testbed.ends("wire");
        assert_eq!(pod.interfaces(), ["nsm-1"]);
        daemon.kill();
        eventually("the peers see it", || ends.iter().all(|end| end.check_peer().is_err()));
        pod.wait_for_interfaces(&[]);
        assert!(testbed.socket("wire", 0).exists(), "nobody cleaned up");
        daemon = testbed.start("admin.sock");
        let mut ends = testbed.ends("wire");
        carry(&mut ends, &mut both_ways(1, &[64, 1518], 512), 1000);
    }
    let (code, log) = end(daemon);
    assert_eq!(code, Some(0), "{log}");
    assert!(pod.interfaces().is_empty());
}

#[test]
fn sigterm_delivers_what_was_published_says_goodbye_and_leaves_nothing() {
    let Some(testbed) = Testbed::new("sigterm_delivers_what_was_published_says_goodbye_and_leaves_nothing") else {
        return;
    };
    testbed.write(&[testbed.wire("wire", "")]);
    let daemon = testbed.start("admin.sock");
    // The far ring takes 32 frames at a time; the others wait in the near one.
    let mut ends = [(0, 1024), (1, 32)]
        .map(|(end, ring)| Endpoint::open(&MemifSpec { ring, ..testbed.client("wire", end) }, TIMEOUT).unwrap());
    let mut stream = Stream::new(0, &[64, 1518], 1000);
    assert_eq!(stream.send(&mut ends[0], 1000), 1000);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("draining");
    eventually("all has come", || {
        stream.receive(&mut ends[1]);
        stream.missing() == 0
    });
    stream.check_all();
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
    for end in &ends {
        let goodbye = end.check_peer().unwrap_err().to_string();
        assert!(goodbye.contains("the peer disconnected: "), "{goodbye}");
    }
    let left: Vec<_> = fs::read_dir(testbed.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["wires.yaml"]);
}

#[test]
fn a_stop_does_not_wait_for_the_wires_that_are_being_made() {
    let test = "a_stop_does_not_wait_for_the_wires_that_are_being_made";
    let Some(testbed) = Testbed::new(test).filter(|_| !lacks_namespaces(test)) else { return };
    let pod = TestNetNs::new();
    // Each interface takes the kernel some 40 ms: all of them, far longer than it takes to see the first one.
    let wire = |number| {
        format!(
            "{{name: w{number}, ends: [{{kernel: {{netns: {}, name: tap{number}}}}}, {{memif: {{socket: {}, role: server}}}}]}}",
            pod.path().display(),
            testbed.socket("pod", number).display(),
        )
    };
    testbed.write(&(0..600).map(wire).collect::<Vec<_>>());
    let daemon = testbed.spawn("admin.sock");
    daemon.wait_for("admin API on");
    eventually("the first interface is there", || !pod.interfaces().is_empty());
    let names = testbed.asked("admin.sock", async |client| names(client).await);
    assert_eq!(names.len(), 600, "wires are listed while they are made");
    let (code, log) = end(daemon);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("draining") && log.contains("stopped") && !log.contains("ready:"), "{log}");
    pod.wait_for_interfaces(&[]);
}

#[test]
fn a_file_system_that_does_not_answer_holds_up_only_its_own_wires() {
    let test = "a_file_system_that_does_not_answer_holds_up_only_its_own_wires";
    let fuse = Need::Device { path: "/dev/fuse", cure: "modprobe fuse" };
    let Some(testbed) = Testbed::new(test).filter(|_| !lacks(test, &[Need::Root, fuse])) else { return };
    let place = tempfile::tempdir().unwrap();
    let text = |name: &str| {
        let server = |socket: &Path| format!("{{memif: {{socket: {}, role: server}}}}", socket.display());
        let ends = [place.path().join(format!("{name}.sock")), testbed.socket(name, 1)].map(|socket| server(&socket));
        format!("{{name: {name}, ends: [{}]}}", ends.join(", "))
    };
    testbed.write(&[testbed.wire("good", ""), text("of-file")]);
    // The folder goes first also after a failure: the kernel keeps a process of which a thread waits for an answer.
    let (daemon, hung) = {
        let hung = UnansweredFolder::on(place.path());
        (testbed.spawn("admin.sock"), hung)
    };
    daemon.wait_for("admin API on");
    testbed.asked("admin.sock", async |client| {
        assert_eq!(names(client).await, ["good", "of-file"]);
        // The start still waits for that of the file.
        let request = |wire: &str| v1::PutWireRequest {
            wire: Some(spec_to_proto(&parse_wire(wire).unwrap(), Secrets::Shown)),
            persist: None,
        };
        let (mut other, slow) = (client.clone(), request(&text("of-api")));
        let put = tokio::spawn(async move { other.put_wire(slow).await });
        client.put_wire(request(&testbed.wire("other", ""))).await.unwrap();
        while !names(client).await.contains(&"of-api".to_owned()) {
            tokio::task::yield_now().await;
        }
        client.remove_wire(v1::RemoveWireRequest { name: "of-api".to_owned() }).await.unwrap();
        let aborted = put.await.unwrap().unwrap_err();
        assert_eq!(aborted.code(), tonic::Code::Aborted, "{aborted}");
        assert_eq!(names(client).await, ["good", "of-file", "other"]);
    });
    daemon.wait_for("is it of a file system that does not answer");
    daemon.wait_for("ready: ");
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("stopped");
    drop(hung);
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_second_forwarder_takes_neither_the_admin_socket_nor_a_wires_socket() {
    let Some(testbed) = Testbed::new("a_second_forwarder_takes_neither_the_admin_socket_nor_a_wires_socket") else {
        return;
    };
    testbed.write(&[testbed.wire("wire", "")]);
    let _first = testbed.start("admin.sock");
    let mut ends = testbed.ends("wire");
    let (code, log) = testbed.spawn("admin.sock").wait();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("admin.sock: another forwarder answers there"), "{log}");
    let second = testbed.start("other.sock");
    second.wait_for("wire not made");
    let (code, log) = end(second);
    assert_eq!(code, Some(0), "{log}");
    // Both ends listen at the same time: either may be the one that says so.
    let refusal = |end| format!("listen on {}: another process does; stop it", testbed.socket("wire", end).display());
    assert!([0, 1].iter().any(|&end| log.contains(&refusal(end))), "{log}");
    // The first one's sockets and wires are as they were.
    carry(&mut ends, &mut both_ways(1, &[64], 512), 1000);
    drop(ends);
    drop(testbed.ends("wire"));
}

#[test]
fn a_wrong_file_is_refused_with_every_error() {
    let Some(testbed) = Testbed::new("a_wrong_file_is_refused_with_every_error") else { return };
    testbed.write(&[testbed.wire("a", "ful: hold, "), testbed.wire("a", "full: keep, "), "{name: b}".to_owned()]);
    let (code, log) = testbed.spawn("admin.sock").wait();
    assert_eq!(code, Some(64), "{log}");
    for part in ["did you mean `full`?", "wires[1].full", "the name `a` is in use", "wires[2].ends"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(!testbed.folder.path().join("admin.sock").exists());
}

/// A folder with a wires file and everything that a daemon makes.
struct Testbed {
    folder: TempDir,
    program: PathBuf,
}

impl Testbed {
    fn new(test: &str) -> Option<Self> {
        let program = forwarder(test)?;
        Some(Self { folder: tempfile::tempdir().unwrap(), program })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("wires.yaml")
    }

    /// The socket of end `end` of a wire.
    fn socket(&self, wire: &str, end: usize) -> PathBuf {
        self.folder.path().join(format!("{wire}-{end}.sock"))
    }

    /// A wire between two servers, with more settings.
    fn wire(&self, name: &str, more: &str) -> String {
        let end = |end| format!("{{memif: {{socket: {}, role: server}}}}", self.socket(name, end).display());
        format!("{{name: {name}, {more}ends: [{}, {}]}}", end(0), end(1))
    }

    /// Writes the file as an editor does: another one, put in its place.
    fn write(&self, wires: &[String]) {
        let lines: Vec<_> = wires.iter().map(|wire| format!("  - {wire}\n")).collect();
        let next = self.folder.path().join("next.yaml");
        fs::write(&next, format!("wires:\n{}", lines.concat())).unwrap();
        fs::rename(next, self.file()).unwrap();
    }

    fn spawn(&self, admin: &str) -> Process {
        let mut command = Command::new(&self.program);
        Process::start(command.arg("--config").arg(self.file()).arg("--admin").arg(self.folder.path().join(admin)))
    }

    /// What a client of the admin API sees and does, within [`TIMEOUT`].
    fn asked<T>(&self, admin: &str, ask: impl AsyncFnOnce(&mut AdminClient) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let path = self.folder.path().join(admin);
        let work = async {
            let mut client = connect(&path).await.unwrap();
            ask(&mut client).await
        };
        runtime.block_on(async { tokio::time::timeout(TIMEOUT, work).await }).expect("the forwarder answers")
    }

    /// A daemon that is ready.
    fn start(&self, admin: &str) -> Process {
        let daemon = self.spawn(admin);
        daemon.wait_for("ready: ");
        daemon
    }

    /// Both ends of a wire, as soon as they can be had.
    fn ends(&self, wire: &str) -> [Endpoint; 2] {
        [0, 1].map(|end| Endpoint::open(&self.client(wire, end), TIMEOUT).unwrap())
    }

    fn client(&self, wire: &str, end: usize) -> MemifSpec {
        MemifSpec::new(self.socket(wire, end).to_str().unwrap().parse().unwrap(), Role::Client)
    }
}

async fn names(client: &mut AdminClient) -> Vec<String> {
    let wires = client.list_wires(v1::ListWiresRequest::default()).await.unwrap().into_inner().wires;
    wires.into_iter().map(|wire| wire.name).collect()
}

/// Asks a daemon to end, and waits for that.
fn end(daemon: Process) -> (Option<i32>, String) {
    daemon.signal(Signal::SIGTERM);
    daemon.wait()
}
