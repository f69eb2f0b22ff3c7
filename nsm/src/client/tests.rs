//! A client in a whole mesh, which loses one process after the other.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Client, Liveness, Wanted};
use crate::identity::IdentitySource;
use crate::proto::connection::{Connection, State};
use crate::test_mesh::{DEADLINE, Manner, Mesh, first, patient, way};
use crate::transport::KeptConnection;

/// The data path is as a test says, which counts how often it is asked.
struct Told {
    is_alive: watch::Receiver<bool>,
    asked: watch::Sender<u32>,
}

#[tonic::async_trait]
impl Liveness for Told {
    async fn is_alive(&self, _: &Connection) -> bool {
        self.asked.send_modify(|asked| *asked += 1);
        *self.is_alive.borrow()
    }
}

/// A client that runs.
struct Running {
    connection: watch::Receiver<Option<Arc<Connection>>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    fn new(mesh: &Mesh) -> Self {
        Self::checked_by(mesh, None)
    }

    fn checked_by(mesh: &Mesh, liveness: Option<Told>) -> Self {
        let (_, source) = IdentitySource::new(mesh.identities.identity("/nsc"));
        let manager = KeptConnection::new(mesh.address("nsmgr"), source, patient());
        let wanted = Wanted::kernel("vpn", "nsm-1", Arc::clone(&mesh.namespace)).unwrap();
        let mut client = Client::new("nsc", manager, wanted, DEADLINE);
        if let Some(liveness) = liveness {
            client = client.checked_by(liveness);
        }
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
    // Which interfaces are at its ends, the path says.
    let segments = &connection.path.as_ref().unwrap().path_segments;
    assert_eq!(segments[0].metrics["client_interface"], "KERNEL/nsm-1");
    assert!(segments[3].metrics["server_interface"].starts_with("KERNEL/vpn-"));
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

#[tokio::test]
async fn a_dead_data_path_is_made_anew_though_all_say_that_it_is_up() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    mesh.forwarder("fwd", Manner::Honest).await;
    let (alive, is_alive) = watch::channel(true);
    let mut client = Running::checked_by(&mesh, Some(Told { is_alive, asked: watch::Sender::new(0) }));
    let before = client.until(goes_through("fwd")).await;
    let interface = |connection: &Connection| connection.path.as_ref().unwrap().path_segments[3].metrics.clone();
    alive.send_replace(false);
    // The endpoint has closed the old one, and names the interface of the new one anew.
    let is_another =
        |connection: &Connection| goes_through("fwd")(connection) && interface(connection) != interface(&before);
    client.until(is_another).await;
    alive.send_replace(true);
    client.until(goes_through("fwd")).await;
}

#[tokio::test]
async fn a_data_path_that_lives_is_kept_while_processes_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    mesh.forwarder("fwd", Manner::Honest).await;
    let (_alive, is_alive) = watch::channel(true);
    let asked = watch::Sender::new(0);
    let mut told = asked.subscribe();
    let mut client = Running::checked_by(&mesh, Some(Told { is_alive, asked }));
    let before = client.until(goes_through("fwd")).await;
    mesh.kill("fwd").await;
    client.until(|connection| connection.state() == State::Down).await;
    // Each further time that it has failed it looks at the data path, and goes on asking for the same connection.
    let before_failures = *told.borrow_and_update();
    timeout(DEADLINE, told.wait_for(|asked| *asked >= before_failures + 3)).await.expect("it looks").unwrap();
    assert!(client.connection.borrow().is_some(), "it was not given up");
    mesh.forwarder("fwd", Manner::Honest).await;
    let after = client.until(goes_through("fwd")).await;
    assert_eq!(way(&after)[..2], way(&before)[..2]);
}
