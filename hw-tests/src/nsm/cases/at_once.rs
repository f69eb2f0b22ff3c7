//! Many requests at once: they wait for one handshake with the next process, and not for one each.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ferrule_nsm::proto::connection::Connection;
use ferrule_nsm::service::NextHop;
use tokio::task::JoinSet;
use tonic::Status;

use super::wait_until;
use crate::TIMEOUT;
use crate::nsm::caller::{Caller, file, kernel, request};
use crate::nsm::mesh::{Mesh, SERVICE, client_name};
use crate::nsm::pod::MeshPod;

pub(super) fn hundred_requests(mesh: &mut Mesh) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    mesh.far().start_endpoint(&endpoint_pod, "10.0.0.0/16", "ETHERNET")?;
    let client = Client::new(mesh, &client_pod)?;
    // The first one waits for the forwarders to be registered.
    wait_until("a connection is made", || Ok(client.ask_all("first", 1).is_ok()))?;
    let before = sockets(mesh)?;
    let began = Instant::now();
    let made = client.ask_all("c", MANY)?;
    mesh.figure("100 are asked for at once: all are made after", began.elapsed().as_secs_f64() * 1e3, "ms");
    client_pod.wait_interfaces(1 + MANY, TIMEOUT)?;
    let mut after = Vec::new();
    let few = wait_until("processes have one connection to each other", || {
        after = sockets(mesh)?;
        Ok(before.iter().zip(&after).all(|(before, after)| *after < before + MANY / 2))
    });
    ensure!(
        few.is_ok(),
        "for {MANY} connections the sockets of managers and forwarders became {before:?} to {after:?}"
    );
    let began = Instant::now();
    client.close_all(made)?;
    mesh.figure("and closed after", began.elapsed().as_secs_f64() * 1e3, "ms");
    client_pod.wait_interfaces(1, TIMEOUT)?;
    endpoint_pod.wait_interfaces(1, TIMEOUT)
}

/// The sockets of all managers and forwarders.
fn sockets(mesh: &Mesh) -> Result<Vec<usize>> {
    let of = |name| mesh.nodes().iter().map(move |node| node.open_sockets(name));
    of("manager").chain(of("forwarder")).collect()
}

/// Calls a manager over one connection.
struct Client {
    caller: Caller,
    next: NextHop,
    namespace: Arc<OwnedFd>,
}

impl Client {
    fn new(mesh: &mut Mesh, pod: &MeshPod) -> Result<Self> {
        let caller = Caller::at(mesh.path(&format!("identity/{}.sock", client_name(0))))?;
        let next = caller.dial(&mesh.near().manager_url())?;
        Ok(Self { caller, next, namespace: file(&pod.netns().path())? })
    }

    /// So many connections at once.
    fn ask_all(&self, prefix: &str, count: usize) -> Result<Vec<Connection>> {
        let mut asking = JoinSet::new();
        for number in 0..count {
            let name = format!("{prefix}{number}");
            let message = request(&client_name(0), &name, SERVICE, kernel(&self.namespace, &name)?);
            let (next, files) = (self.next.clone(), [Arc::clone(&self.namespace)]);
            let asked = async move { next.request(message, &files, LIMIT).await.map_err(Status::from) };
            asking.spawn_on(asked, self.caller.runtime().handle());
        }
        let answers: Vec<_> = self.caller.runtime().block_on(asking.join_all());
        Ok(answers.into_iter().collect::<Result<_, _>>()?)
    }

    fn close_all(&self, made: Vec<Connection>) -> Result<()> {
        let mut closing = JoinSet::new();
        for connection in made {
            let (next, files) = (self.next.clone(), [Arc::clone(&self.namespace)]);
            let closed = async move { next.close(connection, &files, LIMIT).await };
            closing.spawn_on(closed, self.caller.runtime().handle());
        }
        let answers: Vec<_> = self.caller.runtime().block_on(closing.join_all());
        Ok(answers.into_iter().collect::<Result<_, _>>()?)
    }
}

const MANY: usize = 100;
const LIMIT: Duration = Duration::from_mins(1);
