//! The Workload API, both sides, over a real socket.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::{Code, Request};

use super::test_identities::Identities;
use super::workload_client::HEADER;
use super::{Authority, SpiffeId, WorkloadApi, WorkloadError, WorkloadSocket};
use crate::proto::workload::X509svidRequest;
use crate::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::test_process::TestProcess;

const DEADLINE: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_hours(1);

/// A Workload API at a path, until it is stopped.
struct Served {
    process: TestProcess,
    path: PathBuf,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Served {
    fn new(path: &Path, authority: Authority, lifetime: Duration) -> Self {
        let (stop, stopped) = oneshot::channel();
        let id = SpiffeId::new(authority.trust_domain(), "/fwd").unwrap();
        let (api, path) = (WorkloadApi::new(Arc::new(authority), lifetime), path.to_owned());
        let process = TestProcess::new();
        let task = process.spawn({
            let path = path.clone();
            async move { api.serve(&path, id, async { drop(stopped.await) }).await.unwrap() }
        });
        Self { process, path, stop, task }
    }

    async fn client(&self) -> SpiffeWorkloadApiClient<tonic::transport::Channel> {
        let connecting = async {
            loop {
                if let Ok(channel) = WorkloadSocket::at(&self.path).connect().await {
                    return channel;
                }
                tokio::task::yield_now().await;
            }
        };
        SpiffeWorkloadApiClient::new(timeout(DEADLINE, connecting).await.expect("a server"))
    }
}

#[tokio::test]
async fn a_process_gets_its_identity_and_each_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Identities::new("example.org").0;
    let expected = authority.certificate().clone();
    let path = directory.path().join("fwd.sock");
    let socket = WorkloadSocket::at(&path);
    // Nobody is there yet: it waits.
    let waiting = tokio::spawn(async move { socket.identity().await });
    let _served = Served::new(&path, authority, Duration::from_secs(2));
    let mut source = timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
    // Whoever may open it has the key.
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let first = source.current();
    assert_eq!(first.svid.certificate().id().as_str(), "spiffe://example.org/fwd");
    let anchor = &first.bundles.of(first.svid.certificate().id().trust_domain())[0];
    assert_eq!(*anchor, webpki::anchor_from_trusted_cert(&expected).unwrap());
    let second = timeout(DEADLINE, source.next()).await.expect("a rotation").unwrap();
    assert_ne!(second.svid.certificate(), first.svid.certificate());
    assert_eq!(second.svid.certificate().id(), first.svid.certificate().id());
}

#[tokio::test]
async fn a_workload_api_that_comes_back_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fwd.sock");
    let first = Served::new(&path, Identities::new("example.org").0, HOUR);
    let mut source = timeout(DEADLINE, WorkloadSocket::at(&path).identity()).await.unwrap().unwrap();
    drop(first.process);
    let _ = first.task.await;
    let authority = Identities::new("example.org").0;
    let expected = webpki::anchor_from_trusted_cert(authority.certificate()).unwrap().to_owned();
    let _second = Served::new(&path, authority, HOUR);
    let identity = timeout(DEADLINE, source.next()).await.expect("an identity").unwrap();
    assert_eq!(identity.bundles.of(identity.svid.certificate().id().trust_domain())[0], expected);
}

#[tokio::test]
async fn a_call_without_the_header_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let served = Served::new(&directory.path().join("fwd.sock"), Identities::new("example.org").0, HOUR);
    let mut client = served.client().await;
    let refused = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let _ = served.stop.send(());
    timeout(DEADLINE, served.task).await.expect("it stops").unwrap();
    assert!(!served.path.exists(), "its file goes with it");
}

#[tokio::test]
async fn it_stops_though_somebody_listens_and_somebody_says_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let served = Served::new(&directory.path().join("fwd.sock"), Identities::new("example.org").0, HOUR);
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert(HEADER, "true".parse().unwrap());
    let mut stream = served.client().await.fetch_x509svid(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let _silent = tokio::net::UnixStream::connect(&served.path).await.unwrap();
    let _ = served.stop.send(());
    timeout(DEADLINE, served.task).await.expect("it stops").unwrap();
    assert!(!served.path.exists(), "its file goes with it");
    assert!(!matches!(timeout(DEADLINE, stream.message()).await.expect("an end"), Ok(Some(_))));
}

#[tokio::test]
async fn streams_that_nobody_reads_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let served = Served::new(&directory.path().join("fwd.sock"), Identities::new("example.org").0, HOUR);
    let mut open = Vec::new();
    let refused = timeout(DEADLINE, async {
        loop {
            let mut client = served.client().await;
            let mut request = Request::new(X509svidRequest {});
            request.metadata_mut().insert(HEADER, "true".parse().unwrap());
            match client.fetch_x509svid(request).await {
                Ok(stream) => open.push((client, stream)),
                Err(status) => return status,
            }
        }
    })
    .await
    .expect("a refusal");
    assert_eq!((refused.code(), open.len()), (Code::ResourceExhausted, 64));
}

#[tokio::test]
async fn a_refusal_for_good_ends_the_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fwd.sock");
    // Of a trust domain that is not the authority's: it can never give this one.
    let api = WorkloadApi::new(Arc::new(Identities::new("example.org").0), HOUR);
    let id = SpiffeId::new(&"other.example".parse().unwrap(), "/fwd").unwrap();
    let serving = {
        let path = path.clone();
        tokio::spawn(async move { api.serve(&path, id, std::future::pending()).await })
    };
    let refused = timeout(DEADLINE, WorkloadSocket::at(&path).identity()).await.expect("an answer");
    assert!(matches!(refused, Err(WorkloadError::Refused(..))), "{refused:?}");
    serving.abort();
}
