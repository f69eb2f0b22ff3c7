//! A client in a whole mesh, which loses one process after the other.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Client, Wanted};
use crate::identity::IdentitySource;
use crate::proto::connection::{Connection, State};
use crate::test_mesh::{DEADLINE, Manner, Mesh, first, patient, way};
use crate::transport::KeptConnection;

/// A client that runs.
struct Running {
    connection: watch::Receiver<Option<Arc<Connection>>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    fn new(mesh: &Mesh) -> Self {
        let (_, source) = IdentitySource::new(mesh.identities.identity("/nsc"));
        let manager = KeptConnection::new(mesh.address("nsmgr"), source, patient());
        let wanted = Wanted::kernel("vpn", "nsm-1", Arc::clone(&mesh.namespace)).unwrap();
        let client = Client::new("nsc", manager, wanted, DEADLINE);
        let connection = client.connection();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move { client.run(async { drop(stopped.await) }).await });
        Self { connection, stop, task }
    }

    async fn until(&mut self, is: impl Fn(&Connection) -> bool) -> Arc<Connection> {
        let found = self.connection.wait_for(|connection| connection.as_deref().is_some_and(&is));
        let found = timeout(DEADLINE, found).await.expect("it comes to that").unwrap();
        Arc::clone(found.as_ref().expect("it was looked at"))
    }
}

fn goes_through(name: &'static str) -> impl Fn(&Connection) -> bool {
    move |connection| connection.state() == State::Up && way(connection)[2].0 == name
}

#[tokio::test]
async fn it_connects_as_soon_as_it_can_and_closes_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    let mut client = Running::new(&mesh);
    // There is no forwarder yet: it goes on asking.
    mesh.forwarder("fwd", Manner::Honest).await;
    let connection = client.until(goes_through("fwd")).await;
    assert_eq!(connection.id, "nsc-0");
    assert_eq!(connection.mechanism.as_ref().unwrap().parameters["name"], "nsm-1");
    client.stop.send(()).unwrap();
    timeout(DEADLINE, client.task).await.expect("it ends").unwrap();
    let other = mesh.client().await;
    mesh.ask(&other, first("b")).await.expect("its addresses are free again");
}

#[tokio::test]
async fn it_heals_when_its_forwarder_comes_back_or_another_comes() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    mesh.forwarder("fwd", Manner::Honest).await;
    let mut client = Running::new(&mesh);
    let before = client.until(goes_through("fwd")).await;
    mesh.kill("fwd").await;
    client.until(|connection| connection.state() == State::Down).await;
    mesh.forwarder("fwd", Manner::Honest).await;
    let after = client.until(goes_through("fwd")).await;
    assert_eq!(way(&after)[..2], way(&before)[..2]);
    mesh.kill("fwd").await;
    mesh.forwarder("other", Manner::Honest).await;
    client.until(goes_through("other")).await;
    // A new certificate of the manager's does not keep it from healing.
    mesh.rotate("nsmgr");
    mesh.kill("other").await;
    mesh.forwarder("third", Manner::Honest).await;
    client.until(goes_through("third")).await;
}
