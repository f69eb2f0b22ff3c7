//! What one user may have under way, told by calls that wait.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Response, Status};

use super::super::limits::Limits;
use super::*;
use crate::PciAddress;
use crate::fake::{FakeNode, OpenFile};
use crate::vfs::Options;
use sriov_manager_client::v1::vfs_server::Vfs as _;

/// A user without credentials may have two calls of each kind.
fn service(node: &FakeNode, recover: bool) -> (Service, watch::Sender<Phase>) {
    let vfs = Vfs::load(Options { ..node.options() }).unwrap();
    if recover {
        vfs.recover();
        vfs.create(node.pf(0), 1).unwrap();
    }
    let few = |kind| Limits::new(kind, 4, 2);
    let places =
        Places { changes: few("changes"), questions: few("questions"), lists: few("lists"), watches: few("watches") };
    let (phase, serving) = watch::channel(Phase::Serving);
    (Service::new(vfs, serving, places), phase)
}

fn acquire(id: &str, vf: PciAddress) -> v1::AcquireRequest {
    let driver = v1::Driver::VfioPci.into();
    v1::AcquireRequest { id: id.into(), tenant: "a test".into(), vf: vf.to_string(), driver, ..Default::default() }
}

/// A VF that is lent as `held` and that a process has open.
async fn held(node: &FakeNode, service: &Service) -> OpenFile {
    service.acquire(Request::new(acquire("held", node.vf(0, 0)))).await.unwrap();
    node.open_vfio(node.vf(0, 0), 4242, "testpmd")
}

/// Has calls wait until one more is refused, and again when one of them has gone.
async fn two_wait_and_a_third_is_refused<T>(call: impl AsyncFn() -> Result<Response<T>, Status>) {
    let wait = async |mut call: Pin<&mut dyn Future<Output = Result<Response<T>, Status>>>| {
        let polled = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Pending), "it waits: {:?}", polled.map(Result::err));
    };
    let (first, mut second) = (pin!(call()), Box::pin(call()));
    wait(first).await;
    wait(second.as_mut()).await;
    let refused = call().await.err().expect("a third is too many");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    drop(second);
    wait(pin!(call())).await;
}

#[tokio::test]
async fn whoever_waits_for_a_holder_has_a_place_of_his_user() {
    let node = FakeNode::new(1, 7);
    let (service, _phase) = service(&node, true);
    let _file = held(&node, &service).await;
    let release = v1::ReleaseRequest { lease: "held".into(), wait_ms: 60_000, ..Default::default() };
    two_wait_and_a_third_is_refused(async || service.release(Request::new(release.clone())).await).await;
    let to = Some(acquire("next", node.vf(0, 0)));
    let hand_over = v1::HandOverRequest { from: "held".into(), to, wait_ms: 60_000 };
    two_wait_and_a_third_is_refused(async || service.hand_over(Request::new(hand_over.clone())).await).await;
}

#[tokio::test]
async fn whoever_waits_for_the_start_has_a_place_of_his_user() {
    let node = FakeNode::new(1, 7);
    let (service, _phase) = service(&node, false);
    let wanted = acquire("pod", node.vf(0, 0));
    two_wait_and_a_third_is_refused(async || service.acquire(Request::new(wanted.clone())).await).await;
    let handed = v1::HandOverRequest { from: "pod".into(), to: Some(wanted), wait_ms: 0 };
    two_wait_and_a_third_is_refused(async || service.hand_over(Request::new(handed.clone())).await).await;
}

#[tokio::test]
async fn a_watch_has_a_place_of_its_user_until_its_client_leaves() {
    let node = FakeNode::new(1, 7);
    let (service, _phase) = service(&node, true);
    let watch = async || service.watch(Request::new(v1::WatchRequest::default())).await;
    let mut first = watch().await.unwrap().into_inner();
    assert!(first.next().await.unwrap().unwrap().is_whole);
    let second = watch().await.unwrap();
    let refused = watch().await.err().expect("a third is too many");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    service.list(Request::new(v1::ListRequest::default())).await.expect("a list has a place of its own");
    drop(second);
    watch().await.expect("one has left");
}

#[tokio::test]
async fn too_many_pools_or_leases_of_one_request_are_refused_before_they_are_read() {
    let node = FakeNode::new(1, 7);
    let (service, _phase) = service(&node, true);
    let pools: Vec<_> = (0..257).map(|number| format!("pool {number}")).collect();
    let list = service.list(Request::new(v1::ListRequest { pools, ..Default::default() })).await.unwrap_err();
    assert!(list.code() == Code::InvalidArgument && list.message().contains("pools: at most 256"), "{list}");
    let pools: Vec<_> = (0..257).map(|number| format!("pool {number}")).collect();
    let claim = service.claim(Request::new(v1::ClaimRequest { owner: "plugin".into(), pools, vfs: Vec::new() })).await;
    assert!(claim.unwrap_err().message().contains("pools: at most 256"));
    // Nothing of it can be read.
    let leases = vec![v1::AcquireRequest::default(); 65];
    let all = v1::AcquireAllRequest { leases, same_pf: false, dry_run: false };
    let all = service.acquire_all(Request::new(all)).await.unwrap_err();
    assert!(all.message().contains("leases: 1 to 64 at once are wanted, not 65"), "{all}");
}

#[tokio::test]
async fn only_root_takes_what_the_host_itself_uses() {
    let node = FakeNode::new(1, 7);
    let (service, _phase) = service(&node, true);
    let forced = v1::AcquireRequest { force: true, ..acquire("pod", node.vf(0, 0)) };
    let refused = service.acquire(Request::new(forced)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    service.acquire(Request::new(acquire("pod", node.vf(0, 0)))).await.unwrap();
    let to = Some(v1::AcquireRequest { force: true, ..acquire("next", node.vf(0, 0)) });
    let forced = v1::HandOverRequest { from: "pod".into(), to, wait_ms: 0 };
    let refused = service.hand_over(Request::new(forced)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

#[test]
fn what_a_call_asks_for_is_read_once_and_a_failure_is_not_remembered() {
    let known = OnceLock::new();
    let wrong = || Err(VfError::Wrong("not now".to_owned()));
    read_once::<u32>(&known, wrong).unwrap_err();
    assert_eq!(read_once(&known, || Ok(7)).unwrap(), 7);
    assert_eq!(read_once(&known, || Ok(8)).unwrap(), 7, "a process of that number may be another one now");
}

#[tokio::test]
async fn a_vf_is_named_by_its_address_or_in_a_way_that_people_have() {
    let node = FakeNode::new(1, 7);
    let (service, _phase) = service(&node, true);
    let short = node.vf(0, 0).to_string().trim_start_matches("0000:").to_owned();
    let claim = |vf: &str| v1::ClaimRequest { owner: "plugin".into(), vfs: vec![vf.into()], ..Default::default() };
    let claimed = service.claim(Request::new(claim(&short))).await.unwrap().into_inner();
    assert_eq!(claimed.vfs, [node.vf(0, 0).to_string()]);
    assert_eq!(service.claim(Request::new(claim("eth9"))).await.unwrap_err().code(), Code::NotFound);
    let by_plugin = v1::AcquireRequest { vf: short, owner: "plugin".into(), ..acquire("pod", node.vf(0, 0)) };
    assert_eq!(
        service.acquire(Request::new(by_plugin)).await.unwrap().into_inner().vf.unwrap().address,
        claimed.vfs[0]
    );
}
