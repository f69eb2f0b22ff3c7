//! VFs of a real manager on a node made of files. Interfaces that move are seen in the lab.

use std::fs;
use std::sync::Arc;

use ferrule_daemon::ApiSocket;
use sriov_manager::daemon::{Daemon, DaemonOptions};
use sriov_manager::fake::FakeNode;
use sriov_manager::policy::{NumVfs, PfSelector, Policies, Pool};
use tokio::task::spawn_blocking;

use super::super::VfEnd;
use super::*;

const OWNER: &str = "device-plugin";
const NAME: &str = "worker.domain/10G";

/// A node whose plugin has given its first VF to a pod, on the kernel's driver.
struct Site {
    node: FakeNode,
    manager: Daemon,
    client: Client,
    directory: tempfile::TempDir,
    lease: String,
    token: String,
    /// What the operator has put the VF into; 0: none.
    vlan: u32,
}

impl Site {
    async fn start() -> Self {
        Self::start_in(0).await
    }

    async fn start_in(vlan: u32) -> Self {
        let node = FakeNode::new(1, 7);
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vf.sock");
        let pfs = vec![PfSelector { vendor: Some(0x8086), ..PfSelector::default() }];
        let pool = Pool { name: "all".into(), pfs, num_vfs: Some(NumVfs::Exactly(2)), ..Pool::default() };
        let parts = node.options();
        let options = DaemonOptions {
            sysfs: parts.sysfs,
            kernel: parts.kernel,
            state: parts.state,
            socket: ApiSocket::at(&socket),
            metrics: None,
            rescan: Duration::from_millis(50),
            policies: Policies { pools: vec![pool] },
            file: None,
            timeouts: parts.timeouts,
            observer: None,
        };
        let manager = Daemon::start(options).await.unwrap();
        let mut client = connect(&socket).await.unwrap();
        let vf = node.vf(0, 0).to_string();
        let claim = v1::ClaimRequest { owner: OWNER.to_owned(), pools: Vec::new(), vfs: vec![vf.clone()] };
        client.claim(claim).await.unwrap();
        let request = request(&vf, vlan);
        let lease = request.id.clone();
        let vf = client.acquire(request).await.unwrap().into_inner().vf.unwrap();
        let token = Tokens::at(directory.path().join("tokens")).issue(&lease).unwrap();
        let class = node.sysfs().path("sys/class");
        for (device, number) in
            [("misc/vfio".to_owned(), "10:196\n"), (format!("vfio/{}", vf.iommu_group()), "240:3\n")]
        {
            fs::create_dir_all(class.join(&device)).unwrap();
            fs::write(class.join(device).join("dev"), number).unwrap();
        }
        Self { node, manager, client, directory, lease, token, vlan }
    }

    /// The pod has gone, and its VF is the next one's.
    async fn next_pod(&mut self, vlan: u32) {
        let before = self.since().await;
        self.vlan = vlan;
        let until = Instant::now() + Duration::from_mins(1);
        // Leases are told apart by seconds.
        while self.since().await == before {
            assert!(Instant::now() < until, "all leases began at {before:?}");
            let release = v1::ReleaseRequest { lease: self.lease.clone(), ..v1::ReleaseRequest::default() };
            self.client.release(release).await.unwrap();
            self.client.acquire(request(&self.node.vf(0, 0).to_string(), vlan)).await.unwrap();
        }
        self.token = Tokens::at(self.directory.path().join("tokens")).issue(&self.lease).unwrap();
    }

    async fn since(&mut self) -> Option<u64> {
        let list = self.client.list(v1::ListRequest::default()).await.unwrap().into_inner();
        list.vfs.into_iter().find_map(|vf| vf.lease.filter(|lease| lease.id == self.lease)).map(|lease| lease.since)
    }

    fn lender_with(&self, config: Option<SriovConfig>) -> Arc<VfLender> {
        let at = |name: &str| self.directory.path().join(name);
        let root = self.node.sysfs().path("");
        let (manager, tokens, state) = (at("vf.sock"), at("tokens"), at("vfs"));
        Arc::new(VfLender::new(VfLenderSettings { manager, tokens, state, config, root }))
    }

    fn lender(&self) -> Arc<VfLender> {
        self.lender_with(None)
    }

    fn end(&self, vlan: u32) -> VfEnd {
        VfEnd { token: self.token.clone(), form: VfForm::Vfio, mac: "02:00:00:00:00:09".parse().unwrap(), vlan }
    }

    async fn make(&self, lender: &Arc<VfLender>, connection: &str, vlan: u32) -> Result<VfLink, Status> {
        let (lender, end, connection) = (Arc::clone(lender), self.end(vlan), connection.to_owned());
        let making = spawn_blocking(move || {
            let link = VfLink::plan(&connection, &end, None, &lender)?;
            let made = link.make(&lender);
            // As whoever asked for it does.
            made.inspect_err(|_| drop(link.remove(&lender))).map(|_| link)
        });
        making.await.unwrap()
    }

    /// Its driver, its MAC address and its VLAN as they are lent, whether it may be trusted, and whose it is.
    async fn lent(&mut self) -> Option<(v1::Driver, String, u32, bool, String)> {
        let list = self.client.list(v1::ListRequest::default()).await.unwrap().into_inner();
        let lease = list.vfs.into_iter().find_map(|vf| vf.lease.filter(|lease| lease.id == self.lease))?;
        let driver = lease.driver();
        let told = lease.attributes.unwrap();
        let (mac, vlan) = (told.mac.unwrap_or_default(), told.vlan.map_or(0, |vlan| vlan.id));
        Some((driver, mac, vlan, told.trust.unwrap_or_default(), lease.tenant))
    }

    async fn is_as_before(&mut self) {
        let tenant = "pod default/one".to_owned();
        assert_eq!(self.lent().await, Some((v1::Driver::Kernel, String::new(), self.vlan, true, tenant)));
        let left: Vec<_> = fs::read_dir(self.directory.path().join("vfs")).unwrap().collect();
        assert_eq!(left.len(), 1, "the lock alone: {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_is_what_its_connection_wants_and_its_pods_as_before_when_that_ends() {
    let mut site = Site::start().await;
    let lender = site.lender();
    let link = site.make(&lender, "a", 7).await.unwrap();
    let pod = "pod default/one".to_owned();
    let mac = "02:00:00:00:00:09".to_owned();
    assert_eq!(site.lent().await, Some((v1::Driver::VfioPci, mac.clone(), 7, true, pod.clone())));
    let told = link.parameters(&lender);
    let vf = site.node.vf(0, 0).to_string();
    let group = told["iommuGroup"].clone();
    let wanted = [
        ("pciAddress", vf.as_str()),
        ("iommuGroup", group.as_str()),
        ("vfioMajor", "10"),
        ("vfioMinor", "196"),
        ("deviceMajor", "240"),
        ("deviceMinor", "3"),
    ];
    assert_eq!(told, wanted.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    let refused = site.make(&lender, "b", 0).await.unwrap_err();
    assert!(refused.message().contains("another connection, a"), "{refused}");
    assert_eq!(site.lent().await.unwrap().2, 7, "who was refused changes nothing");
    remove(&lender, link).await;
    site.is_as_before().await;
    let link = site.make(&lender, "b", 0).await.unwrap();
    assert_eq!(site.lent().await, Some((v1::Driver::VfioPci, mac, 0, true, pod)));
    remove(&lender, link).await;
    site.is_as_before().await;
    site.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_that_the_operator_has_put_into_a_vlan_stays_there() {
    let mut site = Site::start_in(5).await;
    let lender = site.lender();
    let refused = site.make(&lender, "a", 7).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("VLAN 7") && refused.message().contains("VLAN 5"), "{refused}");
    site.is_as_before().await;
    for asked in [0, 5] {
        let link = site.make(&lender, "a", asked).await.unwrap();
        assert_eq!(site.lent().await.unwrap().2, 5);
        remove(&lender, link).await;
        site.is_as_before().await;
    }
    site.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_pod_has_its_vf_whatever_a_connection_of_the_one_before_was_and_keeps_what_it_has() {
    let mut site = Site::start().await;
    let lender = site.lender();
    let before = site.make(&lender, "a", 7).await.unwrap();
    // It was killed, and has closed nothing.
    site.next_pod(9).await;
    let again = spawn_blocking({
        let (lender, before) = (Arc::clone(&lender), before.clone());
        move || before.make(&lender)
    });
    assert_eq!(again.await.unwrap().unwrap_err().code(), Code::FailedPrecondition, "its client asks again");
    assert_eq!(site.lent().await.unwrap().2, 9);
    let link = site.make(&lender, "b", 0).await.unwrap();
    let made = site.lent().await;
    assert_eq!(made.as_ref().map(|lent| (lent.0, lent.2)), Some((v1::Driver::VfioPci, 9)));
    // Its time is over.
    remove(&lender, before).await;
    assert_eq!(site.lent().await, made);
    remove(&lender, link).await;
    site.is_as_before().await;

    // The next one has no connection, and the one before it is closed by its time, or by the forwarder that comes next.
    let before = site.make(&lender, "c", 0).await.unwrap();
    site.next_pod(11).await;
    remove(&lender, before).await;
    site.is_as_before().await;
    drop((site.make(&lender, "d", 0).await.unwrap(), lender, "killed"));
    site.next_pod(12).await;
    assert_eq!(left(&site.lender(), |_| Some(())).await, 1);
    site.is_as_before().await;
    site.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_forwarder_has_changed_is_given_back_unless_it_is_asked_for_again() {
    let mut site = Site::start().await;
    drop((site.make(&site.lender(), "a", 7).await.unwrap(), "killed"));
    let next = site.lender();
    // Its client has asked again: what it was before is still known.
    let link = site.make(&next, "a", 8).await.unwrap();
    assert_eq!(left(&next, |connection| (connection != "a").then_some(())).await, 0);
    assert_eq!(site.lent().await.unwrap().2, 8);
    remove(&next, link).await;
    site.is_as_before().await;
    drop((site.make(&next, "a", 7).await.unwrap(), "killed"));
    drop(next);
    // Nobody asks, and the client closes it, or its time is over.
    let next = site.lender();
    assert_eq!(left(&next, |_| Some(())).await, 1);
    site.is_as_before().await;
    drop((site.make(&next, "a", 7).await.unwrap(), "killed"));
    drop(next);
    let next = site.lender();
    let given = spawn_blocking({
        let next = Arc::clone(&next);
        move || (next.give_back_unknown("b"), next.give_back_unknown("a"))
    });
    let (other, own) = given.await.unwrap();
    assert_eq!((other.unwrap(), own.unwrap()), (false, true));
    site.is_as_before().await;
    // Another connection by the same token: the one before is given back first.
    drop((site.make(&next, "a", 7).await.unwrap(), "killed"));
    drop(next);
    let next = site.lender();
    let link = site.make(&next, "b", 0).await.unwrap();
    assert_eq!(site.lent().await.unwrap().2, 0);
    remove(&next, link).await;
    site.is_as_before().await;
    site.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_has_gone_takes_its_vf_with_it() {
    let mut site = Site::start().await;
    let lender = site.lender();
    let link = site.make(&lender, "a", 7).await.unwrap();
    let release = v1::ReleaseRequest { lease: site.lease.clone(), ..v1::ReleaseRequest::default() };
    site.client.release(release).await.unwrap();
    remove(&lender, link).await;
    assert_eq!(site.lent().await, None, "nobody is lent it anew");
    let refused = site.make(&lender, "b", 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    Tokens::at(site.directory.path().join("tokens")).void(&site.lease).unwrap();
    let refused = site.make(&lender, "b", 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    site.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_configuration_does_not_name_is_refused() {
    let mut site = Site::start().await;
    let refused = site.make(&site.lender_with(Some(SriovConfig::default())), "a", 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains(NAME), "{refused}");
    assert_eq!(site.lent().await.unwrap().0, v1::Driver::Kernel);
    site.manager.stop().await;
}

/// As the plugin asks for a pod.
fn request(vf: &str, vlan: u32) -> v1::AcquireRequest {
    let vlan = (vlan != 0).then(|| v1::Vlan { id: vlan, ..v1::Vlan::default() });
    v1::AcquireRequest {
        id: format!("{NAME}@{vf}"),
        tenant: "pod default/one".to_owned(),
        vf: vf.to_owned(),
        driver: v1::Driver::Kernel.into(),
        attributes: Some(v1::Attributes { vlan, trust: Some(true), ..v1::Attributes::default() }),
        owner: OWNER.to_owned(),
        ..v1::AcquireRequest::default()
    }
}

async fn remove(lender: &Arc<VfLender>, link: VfLink) {
    let lender = Arc::clone(lender);
    spawn_blocking(move || link.remove(&lender)).await.unwrap().unwrap();
}

async fn left(lender: &Arc<VfLender>, claim: impl Fn(&str) -> Option<()> + Send + 'static) -> usize {
    let lender = Arc::clone(lender);
    spawn_blocking(move || lender.give_back_left(claim)).await.unwrap()
}
