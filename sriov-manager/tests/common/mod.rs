//! A daemon on a made-up node and its client, for several tests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrule_daemon::ApiSocket;
use sriov_manager::daemon::DaemonOptions;
use sriov_manager::fake::FakeNode;
use sriov_manager::policy::{NumVfs, PfSelector, Policies, Pool};
use sriov_manager_client::cache::apply;
use sriov_manager_client::{Client, connect, v1};
use tokio::time::timeout;

pub fn options(node: &FakeNode, socket: PathBuf) -> DaemonOptions {
    let pfs = vec![PfSelector { driver: Some("igb".into()), ..PfSelector::default() }];
    let pool = Pool { name: "all".into(), pfs, num_vfs: Some(NumVfs::Exactly(3)), ..Pool::default() };
    let parts = node.options();
    DaemonOptions {
        sysfs: parts.sysfs,
        kernel: parts.kernel,
        state: parts.state,
        socket: ApiSocket::at(socket),
        metrics: Some(([127, 0, 0, 1], 0).into()),
        rescan: Duration::from_millis(50),
        policies: Policies { pools: vec![pool] },
        file: None,
        timeouts: parts.timeouts,
        observer: None,
    }
}

pub fn acquire(id: &str, driver: v1::Driver) -> v1::AcquireRequest {
    let driver = driver.into();
    v1::AcquireRequest {
        id: id.into(),
        tenant: "a test".into(),
        pools: vec!["all".into()],
        driver,
        ..Default::default()
    }
}

/// A watch, and the list as it is known by it.
pub struct Watch {
    changes: tonic::Streaming<v1::WatchResponse>,
    pub list: v1::ListResponse,
}

impl Watch {
    pub async fn start(client: &mut Client) -> Self {
        Self::of(client, v1::WatchRequest::default()).await
    }

    pub async fn of(client: &mut Client, about: v1::WatchRequest) -> Self {
        let changes = client.watch(about).await.expect("the daemon lives").into_inner();
        let mut watch = Self { changes, list: v1::ListResponse::default() };
        watch.next().await;
        watch
    }

    pub async fn next(&mut self) -> v1::WatchResponse {
        let change = self.changes.message().await.expect("the daemon lives").expect("the daemon lives");
        apply(&mut self.list, change.clone());
        change
    }

    pub async fn until(&mut self, holds: impl Fn(&v1::ListResponse) -> bool) -> v1::ListResponse {
        let seen = async {
            while !holds(&self.list) {
                self.next().await;
            }
        };
        timeout(Duration::from_secs(10), seen).await.expect("a list shows it");
        self.list.clone()
    }
}

pub async fn client(socket: &Path) -> Client {
    connect(socket).await.expect("the daemon serves its socket")
}

pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let looking = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), looking).await.unwrap_or_else(|_| panic!("not within 10 s: {what}"));
}
