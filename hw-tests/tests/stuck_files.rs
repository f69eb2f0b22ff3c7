//! File systems that never answer: descriptors whose `close` never returns, sent by the hundred to a forwarder that may
//! have 1024, and directories in which no socket can be looked up.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, VhostUserSpec, WireSpec};
use ferrule_dataplane::status::EndState;
use ferrule_dataplane::{Applied, Engine, Settings};
use ferrule_endpoints::memif::Endpoint;
use ferrule_ffi::unix::{Kind, UnixSocket};
use ferrule_hw_tests::need::{Need, lacks};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::stream::{both_ways, carry};
use ferrule_hw_tests::unanswered::{UnansweredFile, UnansweredFolder};
use ferrule_hw_tests::{TIMEOUT, eventually, forwarder};
use nix::sys::socket::UnixAddr;

#[test]
fn files_that_cannot_be_closed_take_few_descriptors_and_come_back() {
    let test = "files_that_cannot_be_closed_take_few_descriptors_and_come_back";
    let fuse = Need::Device { path: "/dev/fuse", cure: "modprobe fuse" };
    let Some(program) = forwarder(test).filter(|_| !lacks(test, &[Need::Root, fuse])) else { return };
    let folder = tempfile::tempdir().unwrap();
    let socket = |wire: &str, end: usize| -> PathBuf { folder.path().join(format!("{wire}-{end}.sock")) };
    let end = |kind, wire, end| format!("{{{kind}: {{socket: {}, role: server}}}}", socket(wire, end).display());
    let wire =
        |name, kind| format!("  - {{name: {name}, ends: [{}, {}]}}\n", end(kind, name, 0), end("memif", name, 1));
    let file = folder.path().join("wires.yaml");
    let wires = [wire("bystander", "memif"), wire("hostile", "memif"), wire("guest", "vhost-user")];
    fs::write(&file, format!("wires:\n{}", wires.concat())).unwrap();
    let mut command = Command::new("sh");
    let daemon = command.args(["-c", "ulimit -n 1024 && exec \"$@\"", "sh"]).arg(program).arg("--config").arg(&file);
    let daemon = Process::start(daemon.arg("--admin").arg(folder.path().join("admin.sock")));
    daemon.wait_for("ready: ");
    let open_files = || fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().count();

    let client = |wire, end| MemifSpec::new(socket(wire, end).to_str().unwrap().parse().unwrap(), Role::Client);
    let mut ends = [0, 1].map(|end| Endpoint::open(&client("bystander", end), TIMEOUT).unwrap());
    let before = open_files();
    let stuck = UnansweredFile::new();
    let mut waiting = Vec::new();
    for (wire, kind) in [("hostile", Kind::SeqPacket), ("guest", Kind::Stream)] {
        for _ in 0..20 {
            let peer = UnixSocket::connect(kind, &UnixAddr::new(&socket(wire, 0)).unwrap()).unwrap();
            // No message of memif or vhost-user has so many.
            let _ = peer.send(&[0; 12], &[stuck.file().as_fd(); 250]);
            // Those of guests are as many as a socket's peers may have before long: then others wait before they are
            // accepted, and lose nothing.
            eventually("it is refused, or waits", || has_ended(&peer) || daemon.output().contains("clients wait"));
            if !has_ended(&peer) {
                waiting.push(peer);
            }
            carry(&mut ends, &mut both_ways(1, &[64], 256), 100);
        }
    }
    assert!(waiting.len() > 10, "{}", waiting.len());
    let held = open_files();
    assert!(held < before + 200, "{held} descriptors, {before} before");
    // Another socket takes peers as ever.
    drop(Endpoint::open(&client("hostile", 1), TIMEOUT).unwrap());
    drop(stuck);
    eventually("whoever waited is accepted", || waiting.iter().all(has_ended));
    drop(waiting);
    eventually("all are closed", || open_files() <= before);
    let mut hostile = [0, 1].map(|end| Endpoint::open(&client("hostile", end), TIMEOUT).unwrap());
    carry(&mut hostile, &mut both_ways(1, &[64], 256), 100);
    carry(&mut ends, &mut both_ways(1, &[64], 256), 100);
    let log = daemon.stop();
    assert!(log.contains("descriptors came with"), "{log}");
}

#[test]
fn a_directory_that_does_not_answer_holds_up_its_own_wires_only() {
    let test = "a_directory_that_does_not_answer_holds_up_its_own_wires_only";
    let fuse = Need::Device { path: "/dev/fuse", cure: "modprobe fuse" };
    if lacks(test, &[Need::Root, fuse]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::start(&Settings::new(vec![0])).unwrap();
    let socket = |place: &str, name: &str| folder.path().join(place).join(name).to_str().unwrap().parse().unwrap();
    let wire = |place: &str, name: &str, end: EndSpec| {
        let other = MemifSpec::new(socket("good", &format!("{place}-{name}")), Role::Server);
        WireSpec::new(format!("{place}-{name}"), [end, EndSpec::Memif(other)])
    };
    let memif =
        |place: &str, name: &str, role| wire(place, name, EndSpec::Memif(MemifSpec::new(socket(place, name), role)));
    let vhost = |place: &str, name: &str, role| {
        wire(place, name, EndSpec::VhostUser(VhostUserSpec::new(socket(place, name), role)))
    };
    // One that listened there before.
    engine.add(memif("stuck", "before", Role::Server)).unwrap();
    let stuck = UnansweredFolder::on(&folder.path().join("stuck"));

    std::thread::scope(|scope| {
        let name = |kind, number| format!("{kind}{number}");
        let servers = (0..20).flat_map(|number| {
            [memif("stuck", &name("m", number), Role::Server), vhost("stuck", &name("v", number), Role::Server)]
        });
        let servers: Vec<_> = servers.collect();
        let not_made = scope.spawn(|| engine.apply_all(servers));
        let others = (0..20).flat_map(|number| {
            [
                memif("good", &name("m", number), Role::Server),
                memif("stuck", &name("mc", number), Role::Client),
                vhost("stuck", &name("vc", number), Role::Client),
            ]
        });
        let made = engine.apply_all(others.collect());
        assert!(made.iter().all(|made| matches!(made, Ok(Applied::Made))), "{made:?}");
        let client = |path| MemifSpec::new(path, Role::Client);
        let mut ends = ["m0", "good-m0"].map(|name| Endpoint::open(&client(socket("good", name)), TIMEOUT).unwrap());
        carry(&mut ends, &mut both_ways(1, &[64], 256), 100);
        for error in not_made.join().unwrap().into_iter().map(Result::unwrap_err) {
            assert!(error.to_string().contains("does not answer"), "{error}");
        }
    });
    let says = |wire: &str| match engine.wire(wire).map(|wire| wire.ends[0].clone()) {
        Some(EndState::Connecting { last_error } | EndState::Listening { last_error }) => {
            last_error.is_some_and(|error| error.contains("does not answer"))
        }
        _ => false,
    };
    for wire in ["stuck-mc0", "stuck-mc19", "stuck-vc0", "stuck-vc19", "stuck-before"] {
        eventually("the wire says why", || says(wire));
    }
    engine.remove("stuck-before").unwrap();
    engine.remove("stuck-mc0").unwrap();

    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        engine.drain(Duration::from_secs(1));
        drop(engine);
        let _ = ended.send(());
    });
    assert_eq!(end.recv_timeout(TIMEOUT), Ok(()), "nothing waits for the directory");
    drop(stuck);
}

#[test]
fn clients_in_more_directories_that_hang_than_there_are_threads_leave_some_for_who_listens() {
    let test = "clients_in_more_directories_that_hang_than_there_are_threads_leave_some_for_who_listens";
    let fuse = Need::Device { path: "/dev/fuse", cure: "modprobe fuse" };
    if lacks(test, &[Need::Root, fuse]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("stuck")).unwrap();
    let stuck = UnansweredFolder::on(&folder.path().join("stuck"));
    let engine = Engine::start(&Settings::new(vec![0])).unwrap();
    let end = |place: &str, role| {
        EndSpec::Memif(MemifSpec::new(folder.path().join(place).to_str().unwrap().parse().unwrap(), role))
    };
    let wire = |number: usize| {
        let name = format!("w{number}");
        let near = end(&format!("stuck/{number}/s"), Role::Client);
        WireSpec::new(name.clone(), [near, end(&format!("good/{name}"), Role::Server)])
    };
    let says = |number: usize, problem: &str| match engine.wire(&format!("w{number}")).map(|wire| wire.ends[0].clone())
    {
        Some(EndState::Connecting { last_error }) => last_error.is_some_and(|error| error.contains(problem)),
        _ => false,
    };
    let made = engine.apply_all((0..100).map(wire).collect());
    assert!(made.iter().all(|made| matches!(made, Ok(Applied::Made))), "{made:?}");
    eventually("one says that its directory does not answer", || (0..100).any(|n| says(n, "does not answer")));
    eventually("one says who has the threads", || (0..100).any(|n| says(n, "no thread was free")));
    // Whoever listens has a thread all the same.
    assert!(matches!(engine.apply(wire(100)), Ok(Applied::Made)));
    drop(stuck);
    eventually("all go on", || (0..100).all(|number| says(number, "No such file or directory")));
}

fn has_ended(peer: &UnixSocket) -> bool {
    nix::sys::socket::recv(peer.as_fd().as_raw_fd(), &mut [0; 256], nix::sys::socket::MsgFlags::MSG_DONTWAIT)
        .is_ok_and(|len| len == 0)
}
