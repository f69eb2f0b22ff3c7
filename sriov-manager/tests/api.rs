//! The daemon on a made-up node, asked over its socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use sriov_manager::config::PoliciesFile;
use sriov_manager::daemon::{Daemon, DaemonOptions, RunError};
use sriov_manager::executor::{Observer, Point};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::kernel::Kernel;
use sriov_manager::lease::Stage;
use sriov_manager_client::cache::Latest;
use sriov_manager_client::{VfCache, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

mod common;

use common::{Watch, acquire, client, eventually, options};

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_asked_for_watched_measured_and_outlive_the_daemon() {
    let node = FakeNode::new(2, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let list = asking.list(v1::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.pfs.len(), list.vfs.len()), (2, 6), "the policies' VFs were made");
    assert!(list.vfs.iter().all(|vf| vf.state() == v1::VfState::Free && vf.pools == ["all"]));

    let mut watch = Watch::start(&mut asking).await;
    assert_eq!(watch.list.vfs.len(), 6, "the first list comes at once");
    let v1::AcquireResponse { vf, steps } =
        asking.acquire(acquire("one", v1::Driver::VfioPci)).await.unwrap().into_inner();
    let vf = vf.unwrap();
    assert_eq!((vf.driver.as_str(), vf.state()), ("vfio-pci", v1::VfState::Lent));
    assert!(!steps.is_empty());
    watch.until(|list| list.vfs.iter().any(|listed| listed.address == vf.address && listed.driver == "vfio-pci")).await;

    let metrics = scrape(daemon.metrics().unwrap()).await;
    let line = format!("ferrule_vf_lent{{pf=\"ens1f0\",vf=\"{}\"}} 1", vf.address);
    assert!(metrics.contains(&line), "{line} in\n{metrics}");

    // A graceful stop ends the watch, and the next daemon knows the lease.
    daemon.stop().await;
    assert!(!socket.exists());
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let again = asking.acquire(acquire("one", v1::Driver::VfioPci)).await.unwrap().into_inner();
    assert_eq!((again.vf.unwrap().address, again.steps.len()), (vf.address.clone(), 0));
    let release = v1::ReleaseRequest { lease: "one".into(), wait_ms: 0, dry_run: false, ..Default::default() };
    assert_eq!(asking.release(release).await.unwrap().into_inner().vf, vf.address);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_the_program_ends_one_turn_of_the_work_in_the_background_and_no_more() {
    // In the start, and while drift is made good.
    for in_start in [true, false] {
        let node = FakeNode::new(1, 7);
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vf.sock");
        let is_faulty = Arc::new(AtomicBool::new(in_start));
        let faulty = Arc::clone(&is_faulty);
        let observer: Observer = Arc::new(move |point| {
            let is_its = matches!((point, in_start), (Point::Recorded(_), true) | (Point::Before(_), false));
            assert!(!is_its || !faulty.swap(false, Ordering::SeqCst), "a fault of the program");
        });
        let started = Daemon::start(DaemonOptions { observer: Some(observer), ..options(&node, socket.clone()) });
        let daemon = timeout(Duration::from_secs(10), started).await.expect("it is started").unwrap();
        let mut asking = client(&socket).await;
        let lent = asking.acquire(acquire("one", v1::Driver::VfioPci)).await.unwrap().into_inner();
        let vf = lent.vf.unwrap().address.parse().unwrap();
        is_faulty.store(!in_start, Ordering::SeqCst);
        node.kernel().write(&node.sysfs().unbind_file("vfio-pci"), &format!("{vf}")).unwrap();
        eventually("it is bound again", || node.sysfs().driver(vf).as_deref() == Some("vfio-pci")).await;
        assert!(!is_faulty.load(Ordering::SeqCst), "the fault was there");
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_codes_that_the_proto_promises() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let code = |result: Result<tonic::Response<v1::AcquireResponse>, tonic::Status>| result.unwrap_err().code();
    let by_address =
        |vf: &str| v1::AcquireRequest { vf: vf.into(), pools: Vec::new(), ..acquire("x", v1::Driver::Kernel) };
    assert_eq!(code(asking.acquire(by_address("0000:ff:00.0")).await), Code::NotFound);
    assert_eq!(code(asking.acquire(by_address("nonsense")).await), Code::InvalidArgument);
    assert_eq!(
        code(asking.acquire(v1::AcquireRequest { driver: 99, ..acquire("x", v1::Driver::None) }).await),
        Code::InvalidArgument
    );
    for id in ["a", "b", "c"] {
        asking.acquire(acquire(id, v1::Driver::None)).await.unwrap();
    }
    assert_eq!(code(asking.acquire(acquire("d", v1::Driver::None)).await), Code::ResourceExhausted);
    let taken = asking.list(v1::ListRequest::default()).await.unwrap().into_inner().vfs[0].address.clone();
    assert_eq!(code(asking.acquire(by_address(&taken)).await), Code::FailedPrecondition);
    assert_eq!(
        code(asking.acquire(v1::AcquireRequest { id: "b".into(), ..by_address(&taken) }).await),
        Code::AlreadyExists
    );

    let counts = vec![v1::Count { pf: "ens1f0".into(), count: 5 }, v1::Count { pf: "nothing".into(), count: 1 }];
    let created = asking
        .create(v1::CreateRequest { counts, dry_run: false, ..Default::default() })
        .await
        .unwrap()
        .into_inner()
        .created;
    assert!(created[0].error.contains("is lent as"), "{created:?}");
    assert!(created[1].error.contains("there is no PF nothing"), "{created:?}");
    let of_nobody = v1::ListRequest { pools: vec!["typo".into()], ..Default::default() };
    assert_eq!(asking.list(of_nobody).await.unwrap_err().code(), Code::NotFound);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_manager_is_refused_at_the_socket_and_at_the_state() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let other = directory.path().join("other.sock");
    let error = Daemon::start(options(&node, other.clone())).await.err().unwrap();
    assert!(error.to_string().contains("another sriov-manager has it"), "{error}");
    assert!(!other.exists(), "nobody is answered by one that has not got the node");
    let error = Daemon::start(options(&FakeNode::new(1, 7), socket.clone())).await.err().unwrap();
    assert!(matches!(error, RunError::Socket(_)), "{error}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_does_to_the_vfs_is_told_at_the_next_look() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    // A number that somebody made by hand is not made again at once, so that nobody can miss that it is gone.
    let counts = vec![v1::Count { pf: "ens1f0".into(), count: 2 }];
    asking.create(v1::CreateRequest { counts, dry_run: false, ..Default::default() }).await.unwrap();
    let mut watch = Watch::start(&mut asking).await;
    assert_eq!(watch.list.vfs.len(), 2);
    let kernel = Arc::clone(&node.kernel());
    let file = node.sysfs().file(node.pf(0), "sriov_numvfs");
    Kernel::write(&*kernel, &file, "0").unwrap();
    watch.until(|list| list.vfs.is_empty()).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acquire_that_nobody_waits_for_any_more_leaves_no_lease() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    client(&socket).await.acquire(acquire("driver", v1::Driver::Kernel)).await.unwrap();
    node.set(Scenario::UnbindHangs);
    let mut leaving = client(&socket).await;
    // It needs an unbind, which takes longer than this client waits.
    let asked = leaving.acquire(acquire("driver", v1::Driver::VfioPci));
    timeout(Duration::from_millis(300), asked).await.unwrap_err();
    assert_eq!(daemon.vfs().facts().leases.len(), 1, "a change of a lease goes on: asked again, it is there");
    node.heal();
    eventually("the change ends", || daemon.vfs().facts().leases.values().all(|lease| lease.stage == Stage::Lent))
        .await;
    let again = client(&socket).await.acquire(acquire("driver", v1::Driver::VfioPci)).await.unwrap().into_inner();
    assert!(again.steps.is_empty(), "whoever asks again has it: {again:?}");

    // The others have no driver: one more acquire makes one of them the kernel's, and its lease is new.
    let by_hand = node.vf(0, 2);
    Kernel::write(&*node.kernel(), &node.sysfs().probe_file(), &by_hand.to_string()).unwrap();
    daemon.vfs().rescan();
    let before = node.fingerprint();
    node.set(Scenario::UnbindHangs);
    let new = v1::AcquireRequest { vf: by_hand.to_string(), pools: Vec::new(), ..acquire("new", v1::Driver::VfioPci) };
    timeout(Duration::from_millis(300), leaving.acquire(new.clone())).await.unwrap_err();
    assert_eq!(daemon.vfs().facts().leases.len(), 2, "it is under way");
    node.heal();
    eventually("it is undone", || daemon.vfs().facts().leases.len() == 1).await;
    assert_eq!(node.fingerprint(), before);

    // Whoever asks again while it is undone waits for that, and has it.
    node.set(Scenario::UnbindHangs);
    timeout(Duration::from_millis(300), leaving.acquire(new.clone())).await.unwrap_err();
    let mut again = client(&socket).await;
    let again = tokio::spawn(async move { again.acquire(new).await });
    node.heal();
    let vf = again.await.unwrap().unwrap().into_inner().vf.unwrap();
    assert_eq!((vf.address, vf.driver.as_str()), (by_hand.to_string(), "vfio-pci"));
    let release = v1::ReleaseRequest { lease: "new".into(), wait_ms: 0, dry_run: false, ..Default::default() };
    leaving.release(release).await.unwrap();
    assert_eq!(node.fingerprint(), before);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_waits_for_a_holder_only_as_long_as_somebody_waits_for_the_release() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let vf = asking.acquire(acquire("one", v1::Driver::VfioPci)).await.unwrap().into_inner().vf.unwrap();
    let file = node.open_vfio(vf.address.parse().unwrap(), 4242, "testpmd");
    let release = v1::ReleaseRequest { lease: "one".into(), wait_ms: 600_000, dry_run: false, ..Default::default() };
    timeout(Duration::from_millis(200), asking.release(release.clone())).await.unwrap_err();
    assert_eq!(daemon.vfs().facts().leases.len(), 1, "the lease stays");

    // And no longer than the daemon lives.
    let looks = daemon.vfs().watch_unlocked();
    let before = *looks.borrow();
    let waiting = tokio::spawn(async move { asking.release(release).await });
    eventually("it has looked twice", || *looks.borrow() >= before + 2).await;
    timeout(Duration::from_secs(4), daemon.stop()).await.expect("a stop is not held up by who waits");
    let stopped = waiting.await.unwrap().unwrap_err();
    assert!(stopped.message().contains("sriov-manager is stopping"), "{stopped}");
    drop(file);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policies_file_is_followed_and_a_bad_one_changes_nothing_and_is_told() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let policies = |pool: &str, count: u32| {
        format!("pools:\n  - name: {pool}\n    pfs: [{{ name: ens1f0 }}]\n    num_vfs: {count}\n")
    };
    std::fs::write(at("policies.yaml"), policies("fast", 3)).unwrap();
    let file = PoliciesFile::load(&at("policies.yaml")).unwrap();
    let policies_now = file.config.policies.clone();
    let options = DaemonOptions { policies: policies_now, file: Some(file), ..options(&node, at("vf.sock")) };
    let daemon = Daemon::start(options).await.unwrap();
    let mut asking = client(&at("vf.sock")).await;
    let mut watch = Watch::start(&mut asking).await;
    let first = watch.list.clone();
    assert!(first.vfs.len() == 3 && first.vfs.iter().all(|vf| vf.pools == ["fast"]));

    // As an editor does it.
    let replace = |text: &str| {
        std::fs::write(at(".policies.yaml.swp"), text).unwrap();
        std::fs::rename(at(".policies.yaml.swp"), at("policies.yaml")).unwrap();
    };
    replace(&policies("quick", 4));
    let list = watch.until(|list| list.vfs.len() == 4 && list.vfs[0].state() == v1::VfState::Free).await;
    assert!(list.vfs.iter().all(|vf| vf.pools == ["quick"]), "{list:?}");
    let request = v1::AcquireRequest { pools: vec!["quick".into()], ..acquire("one", v1::Driver::None) };
    asking.acquire(request).await.unwrap();

    replace("pools:\n  - name: quick\n    pfs: [{ nam: ens1f0 }]\n");
    let list = watch.until(|list| !refused(list).is_empty()).await;
    assert!(refused(&list).contains("policies.yaml:3:"), "{}", refused(&list));
    assert!(refused(&list).contains("nam"), "{}", refused(&list));
    assert!(list.vfs.iter().all(|vf| vf.pools == ["quick"]), "those before hold on");
    std::fs::remove_file(at("policies.yaml")).unwrap();
    raise(Signal::SIGHUP).unwrap();
    watch.until(|list| refused(list).contains("put it back")).await;

    // A lease forbids another number, and the new pool does not know the lease: both are told, and both stay.
    std::fs::write(at("policies.yaml"), policies("other", 5)).unwrap();
    let list = watch.until(|list| refused(list).is_empty() && !list.pfs[0].short.is_empty()).await;
    assert!(list.pfs[0].short.contains("is lent as one"), "{list:?}");
    let lease = list.vfs[0].lease.clone().unwrap();
    assert_eq!((lease.id.as_str(), lease.forbidden.as_str()), ("one", "there is no pool quick any more"));
    let release = v1::ReleaseRequest { lease: "one".into(), wait_ms: 0, dry_run: false, ..Default::default() };
    asking.release(release).await.unwrap();
    raise(Signal::SIGHUP).unwrap();
    watch.until(|list| list.vfs.len() == 5 && list.pfs[0].short.is_empty()).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_cleaned_is_not_reset_at_every_look() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    asking.acquire(acquire("one", v1::Driver::VfioPci)).await.unwrap();
    node.set(Scenario::MacRefused);
    let release = v1::ReleaseRequest { lease: "one".into(), ..Default::default() };
    asking.release(release).await.unwrap_err();
    let resets = || node.log().iter().filter(|line| line.ends_with("/reset 1")).count();
    let (first, began) = (resets(), Instant::now());
    // The daemon looks every 50 ms.
    eventually("it is tried again, and again", || resets() > first + 1).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "the second time comes a second after the first");
    node.heal();
    eventually("it is free when it can be cleaned", || daemon.vfs().facts().leases.is_empty()).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_follows_the_list_over_a_restart_of_the_manager() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let mut cache = VfCache::follow(&socket, v1::WatchRequest::default());
    assert!(cache.latest().list.is_none());
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let followed = async |cache: &mut VfCache, holds: &dyn Fn(&Latest) -> bool| {
        let seen = async { while !holds(&cache.changed().await) {} };
        timeout(Duration::from_secs(10), seen).await.expect("the cache hears of it");
    };
    let lent = |count: usize| {
        move |latest: &Latest| {
            let list = latest.list.as_ref().filter(|_| latest.is_followed);
            list.is_some_and(|list| list.vfs.iter().filter(|vf| vf.state() == v1::VfState::Lent).count() == count)
        }
    };
    followed(&mut cache, &lent(0)).await;
    client(&socket).await.acquire(acquire("one", v1::Driver::None)).await.unwrap();
    followed(&mut cache, &lent(1)).await;
    daemon.stop().await;
    followed(&mut cache, &|latest| !latest.is_followed && latest.list.is_some()).await;
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    followed(&mut cache, &lent(1)).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_a_size_and_a_document_of_a_mebibyte_is_within_it() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let document = |bytes: usize| {
        let pools = "pools: [{ name: all, pfs: [{ driver: igb }] }]\n";
        let document = format!("{pools}#{}", "x".repeat(bytes - pools.len() - 1));
        v1::ApplyPoliciesRequest { document, dry_run: true }
    };
    asking.apply_policies(document(1 << 20)).await.unwrap();
    let refused = asking.apply_policies(document((1 << 20) + 1)).await.unwrap_err();
    assert!(
        refused.code() == Code::InvalidArgument && refused.message().contains("at most 1048576 bytes"),
        "{refused}"
    );
    // What the others say is short, and they wait with it.
    let list = v1::ListRequest { pools: vec!["x".repeat(100 << 10)], ..Default::default() };
    assert_eq!(asking.list(list).await.unwrap_err().code(), Code::OutOfRange);
    let many = |bytes: usize| v1::AcquireAllRequest {
        leases: vec![v1::AcquireRequest { vf: "x".repeat(bytes), ..acquire("pod", v1::Driver::None) }],
        ..Default::default()
    };
    assert_eq!(asking.acquire_all(many(100 << 10)).await.unwrap_err().code(), Code::InvalidArgument, "it is read");
    assert_eq!(asking.acquire_all(many(600 << 10)).await.unwrap_err().code(), Code::OutOfRange);
    let long = "x".repeat(5000);
    let owned = v1::AcquireRequest { owner: long.clone(), ..acquire("pod", v1::Driver::None) };
    let refused = [
        asking.acquire(owned).await.unwrap_err(),
        asking.release(v1::ReleaseRequest { lease: long.clone(), ..Default::default() }).await.unwrap_err(),
        asking.update(v1::UpdateRequest { lease: long, ..Default::default() }).await.unwrap_err(),
    ];
    for refused in refused {
        assert!(refused.message().contains("1 to 256 bytes"), "{refused}");
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    daemon.stop().await;
}

fn refused(list: &v1::ListResponse) -> String {
    list.node.clone().unwrap_or_default().policies_refused
}

async fn scrape(address: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the page is served");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .expect("the page is served");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("the page is served");
    text
}
