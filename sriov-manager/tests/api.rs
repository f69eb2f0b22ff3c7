//! The daemon on a made-up node, asked over its socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use sriov_manager::config::PoliciesFile;
use sriov_manager::daemon::{Daemon, DaemonOptions, RunError};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::lease::Stage;
use sriov_manager::policy::{NumVfs, PfSelector, Policies, Pool};
use sriov_manager_client::cache::Latest;
use sriov_manager_client::v1::acquire_request::Choice;
use sriov_manager_client::{Client, VfCache, connect, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

fn options(node: &FakeNode, socket: PathBuf) -> DaemonOptions {
    let pfs = vec![PfSelector { driver: Some("igb".into()), ..PfSelector::default() }];
    let pool = Pool { name: "all".into(), pfs, num_vfs: Some(NumVfs::Exactly(3)), ..Pool::default() };
    let parts = node.options();
    DaemonOptions {
        sysfs: parts.sysfs,
        kernel: parts.kernel,
        state: parts.state,
        socket,
        metrics: Some(([127, 0, 0, 1], 0).into()),
        rescan: Duration::from_millis(50),
        policies: Policies { pools: vec![pool] },
        file: None,
        timeouts: parts.timeouts,
        observer: None,
    }
}

fn acquire(id: &str, driver: &str) -> v1::AcquireRequest {
    v1::AcquireRequest {
        id: id.into(),
        holder: "a test".into(),
        choice: Some(Choice::Pool("all".into())),
        driver: driver.into(),
        ..Default::default()
    }
}

async fn client(socket: &Path) -> Client {
    connect(socket).await.expect("the daemon serves its socket")
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_asked_for_watched_measured_and_outlive_the_daemon() {
    let node = FakeNode::new(2, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let list = asking.list(v1::ListRequest {}).await.unwrap().into_inner();
    assert_eq!((list.pfs.len(), list.vfs.len()), (2, 6), "the policies' VFs were made");
    assert!(list.vfs.iter().all(|vf| vf.state == "free" && vf.pools == ["all"]));

    let mut watch = asking.watch(v1::WatchRequest {}).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().vfs.len(), 6, "the first list comes at once");
    let v1::AcquireResponse { vf, steps } = asking.acquire(acquire("one", "vfio-pci")).await.unwrap().into_inner();
    let vf = vf.unwrap();
    assert_eq!((vf.driver.as_str(), vf.state.as_str()), ("vfio-pci", "lent"));
    assert!(!steps.is_empty());
    let seen = async {
        loop {
            let list = watch.message().await.unwrap().unwrap();
            if list.vfs.iter().any(|listed| listed.address == vf.address && listed.driver == "vfio-pci") {
                break;
            }
        }
    };
    timeout(Duration::from_secs(10), seen).await.expect("the watch tells of the lease");

    let metrics = scrape(daemon.metrics().unwrap()).await;
    let line = format!("ferrule_vf_lent{{pf=\"ens1f0\",vf=\"{}\"}} 1", vf.address);
    assert!(metrics.contains(&line), "{line} in\n{metrics}");

    // A graceful stop ends the watch, and the next daemon knows the lease.
    daemon.stop().await;
    assert!(!socket.exists());
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let again = asking.acquire(acquire("one", "vfio-pci")).await.unwrap().into_inner();
    assert_eq!((again.vf.unwrap().address, again.steps.len()), (vf.address.clone(), 0));
    let release = v1::ReleaseRequest { lease: "one".into(), wait_ms: 0, dry_run: false, ..Default::default() };
    assert_eq!(asking.release(release).await.unwrap().into_inner().vf, vf.address);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_codes_that_the_proto_promises() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    let code = |result: Result<tonic::Response<v1::AcquireResponse>, tonic::Status>| result.unwrap_err().code();
    let by_address = |vf: &str| v1::AcquireRequest { choice: Some(Choice::Vf(vf.into())), ..acquire("x", "kernel") };
    assert_eq!(code(asking.acquire(by_address("0000:ff:00.0")).await), Code::NotFound);
    assert_eq!(code(asking.acquire(by_address("nonsense")).await), Code::InvalidArgument);
    assert_eq!(code(asking.acquire(acquire("x", "dpdk")).await), Code::InvalidArgument);
    for id in ["a", "b", "c"] {
        asking.acquire(acquire(id, "none")).await.unwrap();
    }
    assert_eq!(code(asking.acquire(acquire("d", "none")).await), Code::ResourceExhausted);
    let taken = asking.list(v1::ListRequest {}).await.unwrap().into_inner().vfs[0].address.clone();
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
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_manager_is_refused_at_the_socket_and_at_the_state() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let error = Daemon::start(options(&node, socket.clone())).await.err().unwrap();
    assert!(matches!(error, RunError::Socket(_)), "{error}");
    let error = Daemon::start(options(&node, directory.path().join("other.sock"))).await.err().unwrap();
    assert!(error.to_string().contains("another sriov-manager has it"), "{error}");
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
    let mut watch = client(&socket).await.watch(v1::WatchRequest {}).await.unwrap().into_inner();
    watch.message().await.unwrap();
    let kernel = Arc::clone(&node.kernel());
    let file = node.sysfs().file(node.pf(0), "sriov_numvfs");
    sriov_manager::kernel::Kernel::write(&*kernel, &file, "0").unwrap();
    let gone = async { while !watch.message().await.unwrap().unwrap().vfs.is_empty() {} };
    timeout(Duration::from_secs(10), gone).await.expect("the next look sees it");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acquire_that_nobody_waits_for_any_more_leaves_no_lease() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    client(&socket).await.acquire(acquire("driver", "kernel")).await.unwrap();
    node.set(Scenario::UnbindHangs);
    let mut leaving = client(&socket).await;
    // It needs an unbind, which takes longer than this client waits.
    let asked = leaving.acquire(acquire("driver", "vfio-pci"));
    timeout(Duration::from_millis(300), asked).await.unwrap_err();
    assert_eq!(daemon.vfs().facts().leases.len(), 1, "a change of a lease goes on: asked again, it is there");
    node.heal();
    eventually("the change ends", || daemon.vfs().facts().leases.values().all(|lease| lease.stage == Stage::Lent))
        .await;
    let again = client(&socket).await.acquire(acquire("driver", "vfio-pci")).await.unwrap().into_inner();
    assert!(again.steps.is_empty(), "whoever asks again has it: {again:?}");

    // The others have no driver: one more acquire makes one of them the kernel's, and its lease is new.
    let by_hand = node.vf(0, 2);
    sriov_manager::kernel::Kernel::write(&*node.kernel(), &node.sysfs().probe_file(), &by_hand.to_string()).unwrap();
    daemon.vfs().rescan();
    let before = node.fingerprint();
    node.set(Scenario::UnbindHangs);
    let new = v1::AcquireRequest { choice: Some(Choice::Vf(by_hand.to_string())), ..acquire("new", "vfio-pci") };
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
    let vf = asking.acquire(acquire("one", "vfio-pci")).await.unwrap().into_inner().vf.unwrap();
    let file = node.open_vfio(vf.address.parse().unwrap(), 4242, "testpmd");
    let release = v1::ReleaseRequest { lease: "one".into(), wait_ms: 600_000, dry_run: false, ..Default::default() };
    timeout(Duration::from_millis(200), asking.release(release.clone())).await.unwrap_err();
    let idle = || daemon.vfs().view().vfs.iter().all(|vf| !vf.busy);
    eventually("nobody waits any more", idle).await;
    assert_eq!(daemon.vfs().facts().leases.len(), 1, "the lease stays");

    // And no longer than the daemon lives.
    let waiting = tokio::spawn(async move { asking.release(release).await });
    eventually("it waits", || daemon.vfs().view().vfs.iter().any(|vf| vf.busy)).await;
    timeout(Duration::from_secs(4), daemon.stop()).await.expect("a stop is not held up by who waits");
    let refused = waiting.await.unwrap().unwrap_err();
    assert!(refused.message().contains("sriov-manager is stopping"), "{refused}");
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
    let mut watch = asking.watch(v1::WatchRequest {}).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert!(first.vfs.len() == 3 && first.vfs.iter().all(|vf| vf.pools == ["fast"]));

    // As an editor does it.
    let replace = |text: &str| {
        std::fs::write(at(".policies.yaml.swp"), text).unwrap();
        std::fs::rename(at(".policies.yaml.swp"), at("policies.yaml")).unwrap();
    };
    replace(&policies("quick", 4));
    let list = until(&mut watch, |list| list.vfs.len() == 4 && list.vfs[0].state == "free").await;
    assert!(list.vfs.iter().all(|vf| vf.pools == ["quick"]), "{list:?}");
    let request = v1::AcquireRequest { choice: Some(Choice::Pool("quick".into())), ..acquire("one", "none") };
    asking.acquire(request).await.unwrap();

    replace("pools:\n  - name: quick\n    pfs: [{ nam: ens1f0 }]\n");
    let list = until(&mut watch, |list| !list.policies_refused.is_empty()).await;
    assert!(list.policies_refused.contains("policies.yaml:3:"), "{}", list.policies_refused);
    assert!(list.policies_refused.contains("nam"), "{}", list.policies_refused);
    assert!(list.vfs.iter().all(|vf| vf.pools == ["quick"]), "those before hold on");
    std::fs::remove_file(at("policies.yaml")).unwrap();
    raise(Signal::SIGHUP).unwrap();
    until(&mut watch, |list| list.policies_refused.contains("put it back")).await;

    // A lease forbids another number, and the new pool does not know the lease: both are told, and both stay.
    std::fs::write(at("policies.yaml"), policies("other", 5)).unwrap();
    let list = until(&mut watch, |list| list.policies_refused.is_empty() && !list.pfs[0].short.is_empty()).await;
    assert!(list.pfs[0].short.contains("is lent as one"), "{list:?}");
    let lease = list.vfs[0].lease.clone().unwrap();
    assert_eq!((lease.id.as_str(), lease.forbidden.as_str()), ("one", "there is no pool quick any more"));
    let release = v1::ReleaseRequest { lease: "one".into(), wait_ms: 0, dry_run: false, ..Default::default() };
    asking.release(release).await.unwrap();
    raise(Signal::SIGHUP).unwrap();
    until(&mut watch, |list| list.vfs.len() == 5 && list.pfs[0].short.is_empty()).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_cleaned_is_not_reset_at_every_look() {
    let node = FakeNode::new(1, 7);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let mut asking = client(&socket).await;
    asking.acquire(acquire("one", "vfio-pci")).await.unwrap();
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
    let mut cache = VfCache::follow(&socket);
    assert!(cache.latest().list.is_none());
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    let followed = async |cache: &mut VfCache, holds: &dyn Fn(&Latest) -> bool| {
        let seen = async { while !holds(&cache.changed().await) {} };
        timeout(Duration::from_secs(10), seen).await.expect("the cache hears of it");
    };
    let lent = |count: usize| {
        move |latest: &Latest| {
            let list = latest.list.as_ref().filter(|_| latest.is_followed);
            list.is_some_and(|list| list.vfs.iter().filter(|vf| vf.state == "lent").count() == count)
        }
    };
    followed(&mut cache, &lent(0)).await;
    client(&socket).await.acquire(acquire("one", "none")).await.unwrap();
    followed(&mut cache, &lent(1)).await;
    daemon.stop().await;
    followed(&mut cache, &|latest| !latest.is_followed && latest.list.is_some()).await;
    let daemon = Daemon::start(options(&node, socket.clone())).await.unwrap();
    followed(&mut cache, &lent(1)).await;
    daemon.stop().await;
}

async fn until(
    watch: &mut tonic::Streaming<v1::ListResponse>,
    holds: impl Fn(&v1::ListResponse) -> bool,
) -> v1::ListResponse {
    let seen = async {
        loop {
            let list = watch.message().await.expect("the daemon lives").expect("the daemon lives");
            if holds(&list) {
                return list;
            }
        }
    };
    timeout(Duration::from_secs(10), seen).await.expect("a list shows it")
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let looking = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), looking).await.unwrap_or_else(|_| panic!("not within 10 s: {what}"));
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
