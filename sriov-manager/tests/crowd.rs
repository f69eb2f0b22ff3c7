//! Many clients, slow disks and kernels that hang: nobody is kept waiting by another.

use std::error::Error;
use std::future::poll_fn;
use std::io::Write;
use std::os::unix::net;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferrule_daemon::grpc;
use http_body::Frame;
use nix::sys::resource::{Resource, getrlimit};
use sriov_manager::daemon::{Daemon, DaemonOptions, run};
use sriov_manager::executor::Timeouts;
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::journal::FakeDisk;
use sriov_manager::lease::Stage;
use sriov_manager::policy::NumVfs;
use sriov_manager_client::{connect, refusal, v1};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::{Code, Status};

mod common;

use common::{Watch, acquire, client, eventually, options};

/// Long enough for a busy machine, and shorter than what waited before.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_that_wait_for_one_lease_keep_nobody_from_another() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let held = asking.acquire(acquire("held", v1::Driver::VfioPci)).await.unwrap().into_inner().vf.unwrap();
    let file = node.open_vfio(held.address.parse().unwrap(), 4242, "testpmd");
    let release = v1::ReleaseRequest { lease: "held".into(), wait_ms: 600_000, ..Default::default() };
    let before = *daemon.vfs().watch_unlocked().borrow();
    let mut waiting = Vec::new();
    for _ in 0..3 {
        // Of one program, which has one connection for all that it asks.
        let asking = client(&socket).await;
        for _ in 0..100 {
            let (mut asking, release) = (asking.clone(), release.clone());
            waiting.push(tokio::spawn(async move { asking.release(release).await }));
        }
    }
    eventually("all of them have looked", || *daemon.vfs().watch_unlocked().borrow() >= before + 300).await;
    let other = timeout(SOON, asking.acquire(acquire("other", v1::Driver::VfioPci)));
    other.await.expect("the waiting ones hold neither threads nor permits").unwrap();
    drop(file);
    let mut released = 0;
    for one in waiting {
        match timeout(SOON, one).await.expect("they are answered when the holder has gone").unwrap() {
            Ok(_) => released += 1,
            Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
        }
    }
    assert_eq!(released, 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_busy_vf_has_no_thread_and_is_answered_when_it_is_free() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let vf = asking.acquire(acquire("one", v1::Driver::VfioPci)).await.unwrap().into_inner().vf.unwrap();
    node.set(Scenario::UnbindHangs);
    let mut releasing = client(&socket).await;
    let release = v1::ReleaseRequest { lease: "one".into(), ..Default::default() };
    let releasing = tokio::spawn(async move { releasing.release(release).await });
    eventually("it is being released", || {
        daemon.vfs().facts().leases.values().any(|lease| lease.stage == Stage::Releasing)
    })
    .await;
    // More than one user's share of threads.
    let mut waiting = Vec::new();
    for number in 0..100 {
        let vf = vf.address.clone();
        let wanted = v1::AcquireRequest { vf, pools: Vec::new(), ..acquire("one", v1::Driver::VfioPci) };
        let mut client = client(&socket).await;
        waiting.push(tokio::spawn(async move { client.acquire(wanted).await.map(|_| number) }));
    }
    timeout(SOON, asking.acquire(acquire("other", v1::Driver::None))).await.expect("another VF is free").unwrap();
    node.heal();
    releasing.await.unwrap().unwrap();
    for one in waiting {
        timeout(SOON, one).await.expect("it is free now").unwrap().unwrap();
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_connections_of_one_user_leave_the_manager_at_work() {
    let (node, directory) = (FakeNode::new(1, 7), tempfile::tempdir().unwrap());
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    asking.list(v1::ListRequest::default()).await.unwrap();
    // What the daemon gives its own user is less than this.
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let share = 512.min(files as usize / 4);
    let mut idle = Vec::new();
    while idle.len() < share + 50 {
        idle.extend(UnixStream::connect(&socket).await);
    }
    for _ in 0..3000 {
        drop(UnixStream::connect(&socket).await);
    }
    let lent = timeout(SOON, asking.acquire(acquire("pod", v1::Driver::VfioPci))).await;
    lent.expect("who has a connection is served").unwrap();
    // Those of a flood are not told why, but closed at once; who comes a moment later is.
    let told = async { while !why_refused(&socket).await.contains("connections: end some of them") {} };
    timeout(SOON, told).await.expect("who is refused is told why");
    drop(idle);
    let again = async {
        loop {
            if let Ok(mut client) = connect(&socket).await
                && client.list(v1::ListRequest::default()).await.is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, again).await.expect("places are given back");
    daemon.stop().await;
}

/// A request of which nobody sends more than the beginning.
struct HalfSent(Option<Bytes>);

impl http_body::Body for HalfSent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.take().map_or(Poll::Pending, |bytes| Poll::Ready(Some(Ok(Frame::data(bytes)))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_ends_his_requests_has_no_more_than_his_share_of_memory() {
    let (node, directory) = (FakeNode::new(1, 7), tempfile::tempdir().unwrap());
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    asking.list(v1::ListRequest::default()).await.unwrap();
    let path = format!("/{}/Acquire", v1::vfs_server::SERVICE_NAME);
    // Each may have 64 KiB, and all of a user 128 MiB.
    let mut halves = Vec::new();
    for _ in 0..11 {
        let channel = grpc::connect(&socket).await.unwrap();
        for _ in 0..200 {
            let half = Body::new(HalfSent(Some(Bytes::from_static(&[0, 0, 0, 0xff, 0, b'x']))));
            let request = http::Request::post(&path).header("content-type", "application/grpc").body(half).unwrap();
            let mut channel = channel.clone();
            halves.push(tokio::spawn(async move {
                poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
                channel.call(request).await
            }));
        }
    }
    let refused = async {
        loop {
            match asking.list(v1::ListRequest::default()).await {
                Err(status) => return status,
                Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let refused = timeout(2 * SOON, refused).await.expect("there is no room for more");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("requests under way that are not whole"), "{refused}");
    halves.iter().for_each(tokio::task::JoinHandle::abort);
    let lent = timeout(SOON, asking.acquire(acquire("pod", v1::Driver::VfioPci))).await;
    lent.expect("room is given back").unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_reads_his_lists_has_no_more_than_his_share_of_memory() {
    let (node, directory) = (FakeNode::new(4, 120), tempfile::tempdir().unwrap());
    let socket = directory.path().join("vf.sock");
    let mut options = options(&node, socket.clone());
    options.policies.pools[0].num_vfs = Some(NumVfs::Exactly(120));
    let daemon = Daemon::start(DaemonOptions { rescan: Duration::from_hours(1), ..options }).await.unwrap();
    let mut asking = client(&socket).await.max_decoding_message_size(usize::MAX);
    asking.list(v1::ListRequest::default()).await.unwrap();
    // One that lets nothing be sent, and one that lets all be sent, and reads nothing.
    for (round, window) in [0, i32::MAX as u32].into_iter().enumerate() {
        let silent: Vec<_> = (0..8).map(|_| ask_for_lists_and_read_none(&socket, window)).collect();
        let refused = async {
            loop {
                match asking.list(v1::ListRequest::default()).await {
                    Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                    Err(status) => return status,
                }
            }
        };
        let refused = timeout(Duration::from_mins(1), refused).await.expect("there is a limit");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("that nobody reads"), "{refused}");
        assert!(refusal(&refused).unwrap().retryable);
        let vf = timeout(SOON, asking.acquire(acquire(&format!("pod {round}"), v1::Driver::VfioPci))).await;
        vf.expect("what is no list goes on").unwrap();
        drop(silent);
        let again = async { while asking.list(v1::ListRequest::default()).await.is_err() {} };
        timeout(SOON, again).await.expect("their share is free when they have gone");
    }
    daemon.stop().await;
}

/// What a client is told that asks for a list and gets none.
async fn why_refused(socket: &Path) -> String {
    let refused: Box<dyn Error> = match connect(socket).await {
        Ok(mut client) => match client.list(v1::ListRequest::default()).await {
            Ok(_) => return "nothing".to_owned(),
            Err(status) => Box::new(status),
        },
        Err(error) => Box::new(error),
    };
    let mut said = refused.to_string();
    let mut source = refused.source();
    while let Some(error) = source {
        said += &error.to_string();
        source = error.source();
    }
    said
}

/// 190 calls of `List`, of which no answer is read, in the words of HTTP/2 (RFC 9113) and HPACK (RFC 7541). `window`: how much of each
/// answer may be sent.
fn ask_for_lists_and_read_none(socket: &Path, window: u32) -> net::UnixStream {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let header = |name: &str, value: &str| {
        [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    let headers = [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":authority", "localhost"),
        header(":path", "/ferrule.vf.v1.Vfs/List"),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    ]
    .concat();
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    said.extend(frame(SETTINGS, 0, 0, &[&INITIAL_WINDOW_SIZE[..], &window.to_be_bytes()].concat()));
    said.extend(frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes()));
    for stream in (1..380).step_by(2) {
        said.extend(frame(HEADERS, END_HEADERS, stream, &headers));
        said.extend(frame(DATA, END_STREAM, stream, &[0; 5]));
    }
    let mut client = net::UnixStream::connect(socket).expect("the daemon serves its socket");
    client.write_all(&said).expect("it reads what is said");
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_disk_holds_up_changes_and_no_answer() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let frozen = Arc::new(Mutex::new(()));
    let disk = FakeDisk { frozen: Some(Arc::clone(&frozen)), ..FakeDisk::default() };
    daemon.vfs().set_disk(disk);
    let mut asking = client(&socket).await;
    // A thread of its own has it frozen until it is told otherwise.
    let (thaw, thawed) = mpsc::channel::<()>();
    let (is_frozen, freezing) = mpsc::channel::<()>();
    let freezer = thread::spawn(move || {
        let _frozen = frozen.lock().unwrap();
        is_frozen.send(()).unwrap();
        let _ = thawed.recv();
    });
    freezing.recv().unwrap();
    let mut changing = client(&socket).await;
    let hung = tokio::spawn(async move { changing.acquire(acquire("one", v1::Driver::VfioPci)).await });
    eventually("it waits for the disk", || daemon.vfs().view().vfs.iter().any(|vf| vf.busy)).await;
    let list = timeout(SOON, asking.list(v1::ListRequest::default())).await.expect("a list needs no disk").unwrap();
    let list = list.into_inner();
    assert_eq!(list.vfs.iter().filter(|vf| vf.state() == v1::VfState::Busy).count(), 1);
    let free = list.vfs.iter().find(|vf| vf.state() == v1::VfState::Free).unwrap();
    let explain = v1::ExplainRequest { vf: free.address.clone(), ..Default::default() };
    timeout(SOON, asking.explain(explain)).await.expect("neither does an explanation").unwrap();
    thaw.send(()).unwrap();
    freezer.join().unwrap();
    hung.await.unwrap().unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_answers_from_the_journal_at_once_and_obeys_a_stop_while_leases_hang() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let options = |timeouts| {
        let mut options = DaemonOptions { timeouts, ..options(&node, socket.clone()) };
        options.policies.pools[0].num_vfs = Some(NumVfs::Exactly(6));
        options
    };
    let timeouts = node.options().timeouts;
    let daemon = Daemon::start(options(timeouts)).await.unwrap();
    let mut asking = client(&socket).await;
    for id in ["a", "b", "c", "d", "e", "f"] {
        asking.acquire(acquire(id, v1::Driver::VfioPci)).await.unwrap();
    }
    daemon.stop().await;
    // Somebody else bound them to the kernel's driver, so that each has to be unbound again: which hangs.
    for index in 0..6 {
        let vf = node.vf(0, index);
        for (file, value) in [
            (node.sysfs().unbind_file("vfio-pci"), vf.to_string()),
            (node.sysfs().file(vf, "driver_override"), "igbvf".to_owned()),
            (node.sysfs().probe_file(), vf.to_string()),
        ] {
            sriov_manager::kernel::Kernel::write(&*node.kernel(), &file, &value).unwrap();
        }
    }
    node.set(Scenario::UnbindHangs);
    let slow = options(Timeouts { call: Duration::from_mins(5), ..timeouts });
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(run(slow, async move { drop(stopped.await) }));
    let reached = async {
        loop {
            if let Ok(client) = connect(&socket).await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut asking = timeout(SOON, reached).await.expect("it answers while it starts");
    let list = timeout(SOON, asking.list(v1::ListRequest::default())).await.unwrap().unwrap().into_inner();
    assert_eq!(list.vfs.iter().filter(|vf| vf.lease.is_some()).count(), 6);
    assert_ne!(list.node.unwrap().recovery(), v1::Recovery::Done);
    // They hang at the same time.
    eventually("all six are being unbound", || {
        let hanging = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
        let names = hanging.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.trim() == "kernel-call").count() >= 6
    })
    .await;
    let began = Instant::now();
    stop.send(()).unwrap();
    timeout(SOON, running).await.expect("a stop is obeyed").unwrap().unwrap();
    // It is to be within a second. What is bounded is far less than a call may take, and less than the 5 s that clients have.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    node.heal();
    let daemon = Daemon::start(options(timeouts)).await.unwrap();
    eventually("the next start finishes it", || {
        daemon.vfs().rescan();
        let leases = daemon.vfs().facts().leases;
        leases.len() == 6 && leases.values().all(|lease| lease.fault.is_none())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_to_programs_what_it_says_to_people() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let vf = asking.acquire(acquire("pod", v1::Driver::VfioPci)).await.unwrap().into_inner().vf.unwrap();
    let file = node.open_vfio(vf.address.parse().unwrap(), 4242, "testpmd");
    let status = asking.release(v1::ReleaseRequest { lease: "pod".into(), ..Default::default() }).await.unwrap_err();
    let told = refusal(&status).unwrap();
    let user = told.reasons[0].user.clone().unwrap();
    assert_eq!((told.kind(), told.retryable, told.vf.as_str()), (v1::RefusalKind::Held, true, vf.address.as_str()));
    assert_eq!((user.pid, user.command.as_str(), user.file.as_str()), (4242, "testpmd", "/dev/vfio/200"));
    drop(file);
    let wanted = v1::AcquireRequest { vf: vf.address.clone(), ..acquire("other", v1::Driver::None) };
    let told = refusal(&asking.acquire(wanted).await.unwrap_err()).unwrap();
    let why = &told.reasons[0];
    assert_eq!(
        (told.kind(), why.kind(), why.lease.as_str()),
        (v1::RefusalKind::Unavailable, v1::ReasonKind::Lent, "pod")
    );
    // Its interface is in a pod.
    let of_pod = asking.acquire(acquire("kernel", v1::Driver::Kernel)).await.unwrap().into_inner().vf.unwrap();
    node.move_netdev(of_pod.address.parse().unwrap(), 4243, "pause");
    let of_pod = v1::ReleaseRequest { lease: "kernel".into(), ..Default::default() };
    let told = refusal(&asking.release(of_pod).await.unwrap_err()).unwrap();
    let user = told.reasons[0].user.clone().unwrap();
    assert_eq!((user.pid, user.namespace.as_str()), (4243, "/proc/4243/ns/net"));
    assert!(user.netdev.starts_with("enp02s"), "{user:?}");
    let missing = asking.release(v1::ReleaseRequest { lease: "x".into(), ..Default::default() }).await.unwrap_err();
    let told = refusal(&missing).unwrap();
    assert_eq!((told.kind(), told.retryable, told.lease.as_str()), (v1::RefusalKind::NoSuchLease, false, "x"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_claims_watches_lends_hands_over_and_is_told_of_no_others() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let claim = v1::ClaimRequest { owner: "plugin".into(), pools: vec!["all".into()], vfs: Vec::new() };
    assert_eq!(asking.claim(claim).await.unwrap().into_inner().vfs.len(), 3);
    let about = v1::WatchRequest { pools: vec!["all".into()], driver: v1::Driver::VfioPci.into() };
    let mut watch = Watch::of(&mut asking, about).await;
    assert!(watch.list.vfs.iter().all(|vf| vf.owner == "plugin" && vf.state() == v1::VfState::Free));
    let own = |id: &str| v1::AcquireRequest { owner: "plugin".into(), ..acquire(id, v1::Driver::VfioPci) };
    let stranger = asking.acquire(acquire("x", v1::Driver::VfioPci)).await.unwrap_err();
    assert_eq!(stranger.code(), Code::ResourceExhausted);

    // Until this process ends, which it does not.
    let process = v1::until::What::Process(v1::Process::default());
    let pid = std::process::id();
    let directory = node.sysfs().path(&format!("proc/{pid}"));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("stat"), format!("{pid} (x) S {}9 0\n", "0 ".repeat(18))).unwrap();
    let until = Some(v1::Until { what: Some(process) });
    let both = vec![v1::AcquireRequest { until, ..own("a") }, own("b")];
    let both = v1::AcquireAllRequest { leases: both, same_pf: true, dry_run: false };
    let acquired = asking.acquire_all(both).await.unwrap().into_inner().leases;
    let [first, second] = [0, 1].map(|at| acquired[at].vf.clone().unwrap());
    let told = first.lease.clone().unwrap().until.unwrap().what.unwrap();
    assert_eq!(told, v1::until::What::Process(v1::Process { pid, start_time: 9 }));
    let is_lent = |vf: &&v1::Vf| vf.lease.as_ref().is_some_and(|lease| lease.stage() == v1::Stage::Lent);
    watch.until(|list| list.vfs.iter().filter(is_lent).count() == 2).await;

    let heir = v1::HandOverRequest { from: "a".into(), to: Some(own("c")), wait_ms: 0 };
    let vf = asking.hand_over(heir).await.unwrap().into_inner().vf.unwrap();
    assert_eq!((vf.address.as_str(), vf.lease.unwrap().id.as_str()), (first.address.as_str(), "c"));
    // The free one, of which nothing changed, is not told again. There may be news of the second: the next look at its device.
    let mut told = Vec::new();
    while watch
        .list
        .vfs
        .iter()
        .all(|vf| vf.lease.as_ref().is_none_or(|lease| lease.id != "c" || lease.stage() != v1::Stage::Lent))
    {
        let change = watch.next().await;
        assert!(!change.is_whole);
        told.extend(change.vfs.into_iter().map(|vf| vf.address));
    }
    assert!(told.iter().all(|vf| [&first.address, &second.address].contains(&vf)), "{told:?}");

    let update = v1::UpdateRequest { lease: "b".into(), tenant: "container 2".into(), ..Default::default() };
    assert_eq!(asking.update(update).await.unwrap().into_inner().lease.unwrap().tenant, "container 2");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_given_back_when_its_process_has_ended_while_nobody_asks() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    // Nothing else makes it look.
    let daemon = Daemon::start(DaemonOptions { rescan: Duration::from_hours(1), ..options(&node, socket.clone()) });
    let daemon = daemon.await.unwrap();
    let process = node.sysfs().path("proc/77");
    std::fs::create_dir_all(&process).unwrap();
    std::fs::write(process.join("stat"), format!("77 (x) S {}9 0\n", "0 ".repeat(18))).unwrap();
    let what = Some(v1::until::What::Process(v1::Process { pid: 77, start_time: 0 }));
    let wanted = v1::AcquireRequest { until: Some(v1::Until { what }), ..acquire("pod", v1::Driver::VfioPci) };
    client(&socket).await.acquire(wanted).await.unwrap();
    std::fs::remove_dir_all(&process).unwrap();
    eventually("it is given back", || daemon.vfs().facts().leases.is_empty()).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_a_lease_ends_with_is_absolute_and_no_longer_than_the_kernel_takes() {
    let (node, directory) = (FakeNode::new(1, 7), tempfile::tempdir().unwrap());
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    for path in ["pods/a".to_owned(), format!("/{}", "x".repeat(5000))] {
        for what in [v1::until::What::Cgroup(path.clone()), v1::until::What::NetworkNamespace(path)] {
            let until = Some(v1::Until { what: Some(what) });
            let wanted = v1::AcquireRequest { until, ..acquire("pod", v1::Driver::VfioPci) };
            let refused = client(&socket).await.acquire(wanted).await.unwrap_err();
            assert!(refused.message().contains("an absolute one of less than 4096 is wanted"), "{refused}");
        }
    }
    assert!(daemon.vfs().facts().leases.is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_of_vfs_that_hangs_keeps_no_lease_from_its_end() {
    let (node, directory) = (FakeNode::new(2, 7), tempfile::tempdir().unwrap());
    let socket = directory.path().join("vf.sock");
    // Long enough for nobody to look between the two lines that make the number hang.
    let daemon = Daemon::start(DaemonOptions { rescan: Duration::from_secs(2), ..options(&node, socket.clone()) });
    let daemon = daemon.await.unwrap();
    let process = node.sysfs().path("proc/77");
    std::fs::create_dir_all(&process).unwrap();
    std::fs::write(process.join("stat"), format!("77 (x) S {}9 0\n", "0 ".repeat(18))).unwrap();
    let what = Some(v1::until::What::Process(v1::Process { pid: 77, start_time: 0 }));
    let until = Some(v1::Until { what });
    let wanted = v1::AcquireRequest { vf: node.vf(0, 0).to_string(), until, ..acquire("pod", v1::Driver::VfioPci) };
    client(&socket).await.acquire(wanted).await.unwrap();
    let count = node.sysfs().file(node.pf(1), "sriov_numvfs");
    sriov_manager::kernel::Kernel::write(&*node.kernel(), &count, "0").unwrap();
    node.set(Scenario::CountHangs);
    let is_resizing = || !daemon.vfs().facts().resizes.is_empty();
    eventually("VFs are made anew", is_resizing).await;
    std::fs::remove_dir_all(&process).unwrap();
    eventually("it is given back", || daemon.vfs().facts().leases.is_empty()).await;
    assert!(is_resizing(), "the number still hangs");
    node.heal();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_over_the_api_are_judged_kept_and_numbered() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let document = |count| format!("pools:\n  - name: quick\n    pfs: [{{ name: ens1f0 }}]\n    num_vfs: {count}\n");
    let request = |document: String, dry_run| v1::ApplyPoliciesRequest { document, dry_run };
    let vf = asking.acquire(acquire("pod", v1::Driver::VfioPci)).await.unwrap().into_inner().vf.unwrap();

    let wrong = asking.apply_policies(request("pools: [{ nam: x }]".into(), false)).await.unwrap_err();
    assert!(wrong.code() == Code::InvalidArgument && wrong.message().contains("nam"), "{wrong}");
    let dry = asking.apply_policies(request(document(5), true)).await.unwrap().into_inner();
    let change = &dry.changes[0];
    assert_eq!((dry.generation, change.from, change.to, change.blockers.len()), (1, 3, 5, 1));
    assert_eq!(dry.forbidden.len(), 1, "its pool is gone then");
    assert_eq!(asking.list(v1::ListRequest::default()).await.unwrap().into_inner().vfs[0].pools, ["all"], "it was dry");

    let applied = asking.apply_policies(request(document(5), false)).await.unwrap().into_inner();
    assert!(applied.changes[0].error.contains("is lent as pod"), "{applied:?}");
    assert_eq!(applied.changes[0].blockers[0].vf, vf.address);
    let policies = |list: &v1::ListResponse| list.node.clone().unwrap_or_default().policies.unwrap_or_default();
    let mut watch = Watch::start(&mut asking).await;
    let told = policies(&watch.list);
    assert_eq!((told.wanted_generation, told.reached_generation), (1, 0));
    asking.release(v1::ReleaseRequest { lease: "pod".into(), ..Default::default() }).await.unwrap();
    let again = asking.apply_policies(request(document(5), false)).await.unwrap().into_inner();
    assert_eq!((again.generation, again.changes[0].error.as_str()), (2, ""));
    watch.until(|list| policies(list).reached_generation == 2 && list.vfs.len() == 5).await;

    // They are there after a restart, whatever that was started with.
    daemon.stop().await;
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let list = client(&socket).await.list(v1::ListRequest::default()).await.unwrap().into_inner();
    assert!(list.vfs.len() == 5 && list.vfs.iter().all(|vf| vf.pools == ["quick"]), "{list:?}");
    assert_eq!(policies(&list).wanted_generation, 2);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_iommu_the_answer_names_the_group_that_vfio_made_at_the_bind() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    node.take_iommu_away();
    daemon.vfs().rescan();
    let wanted = v1::AcquireRequest { vf: node.vf(0, 0).to_string(), ..acquire("pod", v1::Driver::VfioPci) };
    let lent = client(&socket).await.acquire(wanted).await.unwrap().into_inner().vf.unwrap();
    assert_eq!(lent.vfio_group, "/dev/vfio/noiommu-0");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_has_what_a_container_needs_of_a_function() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let vf = node.vf(0, 0);
    for (file, text) in [
        ("infiniband/mlx5_2/x", ""),
        ("infiniband_verbs/uverbs2/x", ""),
        ("infiniband_mad/umad2/x", ""),
        ("acpi_index", "7\n"),
        ("vfio-dev/vfio3/dev", "511:3\n"),
        ("iommu_group/name", "vfio-noiommu\n"),
    ] {
        let file = node.sysfs().file(vf, file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    let noiommu = node.sysfs().path("sys/module/vfio/parameters");
    std::fs::create_dir_all(&noiommu).unwrap();
    std::fs::write(noiommu.join("enable_unsafe_noiommu_mode"), "Y\n").unwrap();
    // It is looked at as a new one.
    let elsewhere = node.sysfs().file(vf, "").with_extension("old");
    std::fs::rename(node.sysfs().file(vf, ""), &elsewhere).unwrap();
    std::fs::create_dir(node.sysfs().file(vf, "")).unwrap();
    for entry in std::fs::read_dir(&elsewhere).unwrap().map(Result::unwrap) {
        std::fs::rename(entry.path(), node.sysfs().file(vf, "").join(entry.file_name())).unwrap();
    }
    daemon.vfs().rescan();
    let wanted = v1::AcquireRequest { vf: vf.to_string(), ..acquire("pod", v1::Driver::VfioPci) };
    let lent = client(&socket).await.acquire(wanted).await.unwrap().into_inner().vf.unwrap();
    let rdma = v1::Rdma {
        device: "mlx5_2".into(),
        nodes: vec!["/dev/infiniband/umad2".into(), "/dev/infiniband/uverbs2".into()],
    };
    assert_eq!((lent.rdma, lent.acpi_index, lent.noiommu), (vec![rdma], Some(7), true));
    assert_eq!(
        (lent.vfio_group.as_str(), lent.vfio_device.as_str()),
        ("/dev/vfio/noiommu-200", "/dev/vfio/devices/vfio3")
    );
    let list = client(&socket).await.list(v1::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.pfs[0].permanent_mac, "00:00:00:00:01:00");
    assert_eq!(list.pfs[0].mac, list.pfs[0].permanent_mac);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_is_freed_when_that_is_accepted() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    asking.acquire(acquire("pod", v1::Driver::VfioPci)).await.unwrap();
    node.set(Scenario::MacRefused);
    let release = |accept| v1::ReleaseRequest { lease: "pod".into(), accept, ..Default::default() };
    let refused = asking.release(release(false)).await.unwrap_err();
    assert_eq!(refusal(&refused).unwrap().kind(), v1::RefusalKind::Dirty, "{refused}");
    assert_eq!(daemon.vfs().facts().leases.len(), 1);
    asking.release(release(true)).await.unwrap();
    assert!(daemon.vfs().facts().leases.is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_with_an_interface_tells_its_link_type_and_its_other_names() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    asking.acquire(acquire("pod", v1::Driver::Kernel)).await.unwrap();
    let vf = node.vf(0, 0);
    node.add_altname(vf, "pod-net1");
    for (kind, told) in [("1", "ETH"), ("32", "IB"), ("512", "512")] {
        node.put_netdev_file(vf, "type", kind);
        daemon.vfs().rescan();
        let list = asking.list(v1::ListRequest { details: true, ..Default::default() }).await.unwrap().into_inner();
        assert_eq!((list.vfs[0].link_type.as_str(), &list.vfs[0].alt_names[..]), (told, &["pod-net1".to_owned()][..]));
        assert_eq!(list.vfs[1].link_type, "", "it has no interface");
    }
    daemon.stop().await;
}
