//! The forwarder's part in a connection: the next hop is asked, then both ends are joined.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferrule_nsm::files::Inode;
use ferrule_nsm::monitor::Follower;
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use ferrule_nsm::proto::networkservice::NetworkServiceRequest;
use ferrule_nsm::registry::FoundEndpoint;
use ferrule_nsm::service::{Call, Handler, MechanismFiles, NextHop};
use ferrule_nsm::transport::{Address, Peer};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::Instant;
use tonic::Status;

use super::context::Side;
use super::end::{EndKind, IP, MeshEnd, preferences, unsupported};
use super::joint::{Joint, SharedWires, wire_name};
use super::making::{MadeJoint, Makings};
use super::next_hop::{Candidates, NextHops};
use super::vxlan::{MTU, TunnelSite, VXLAN, Vnis, Vxlan};

/// Joins the ends of connections by wires.
pub(super) struct MeshForwarder {
    wires: SharedWires,
    hops: NextHops,
    priority: Vec<String>,
    /// Where tunnels to other nodes begin; none: there are none.
    site: Option<TunnelSite>,
    vnis: Vnis,
    /// By the ids of their connections.
    joined: Mutex<BTreeMap<String, Joined>>,
    making: Makings,
}

/// A connection that was made.
#[derive(Clone)]
struct Joined {
    /// Who serves it.
    endpoint: String,
    next: NextHop,
    /// As the next process has answered it, in our place.
    below: Connection,
    /// What the client has passed.
    client_file: Option<Arc<OwnedFd>>,
    /// What the endpoint has passed, which goes with each call below.
    files: Vec<Arc<OwnedFd>>,
    joint: Joint,
    following: Arc<Following>,
}

/// The next process is watched as long as the last of these lives.
struct Following(AbortHandle);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What joins both ends, and what the client is answered.
struct Made {
    answer: Connection,
    joint: MadeJoint,
    client_file: Option<Arc<OwnedFd>>,
    files: Vec<Arc<OwnedFd>>,
}

/// What the client has asked for, judged.
struct ClientWish {
    /// None: by a tunnel.
    kind: Option<EndKind>,
    mechanism: Mechanism,
    file: Option<Arc<OwnedFd>>,
}

impl MeshForwarder {
    pub(super) fn new(wires: SharedWires, hops: NextHops, priority: Vec<String>, site: Option<TunnelSite>) -> Self {
        Self {
            wires,
            hops,
            priority,
            site,
            vnis: Vnis::default(),
            joined: Mutex::default(),
            making: Makings::default(),
        }
    }

    /// Asks one endpoint, and joins it with the client.
    async fn try_endpoint(
        &self,
        found: &FoundEndpoint,
        call: &Call,
        asked: &ClientWish,
        until: Instant,
    ) -> Result<Connection, Status> {
        let before = self.joined().get(&call.connection.id).cloned();
        let same = before.as_ref().filter(|before| before.endpoint == found.endpoint.name);
        let mut connection = call.connection.clone();
        connection.network_service_endpoint_name.clone_from(&found.endpoint.name);
        connection.mechanism = same.and_then(|same| same.below.mechanism.clone());
        let mechanism_preferences = self.preferences(found, asked, &connection.payload)?;
        let message = NetworkServiceRequest { connection: Some(connection), mechanism_preferences };
        let files = same.map_or(&[][..], |same| &same.files);
        let asking = Box::pin(self.hops.request(same.map(|same| &same.next), found, message, files, until));
        let (next, below) = asking.await?;
        match self.join(call, asked, &next, &below, same).await {
            Ok(Made { mut answer, joint, client_file, files }) => {
                answer.network_service_endpoint_name.clone_from(&found.endpoint.name);
                let following = Self::follow(&next, &answer, call);
                let endpoint = found.endpoint.name.clone();
                let joined = Joined { endpoint, next, below, client_file, files, joint: joint.claim(), following };
                self.joined().insert(answer.id.clone(), joined);
                if let Some(before) = before.filter(|before| before.endpoint != found.endpoint.name) {
                    // It may be gone: then it has nothing to be closed.
                    let _ = self.close_below(before, until).await;
                }
                Ok(answer)
            }
            Err(status) => {
                if same.is_none() {
                    // What was not joined is of no use there.
                    let left = until.saturating_duration_since(Instant::now());
                    let _ = Box::pin(next.close(below, &[], left)).await;
                }
                Err(status)
            }
        }
    }

    /// What an endpoint of this node, or the manager of another one, is asked for.
    fn preferences(&self, found: &FoundEndpoint, asked: &ClientWish, payload: &str) -> Result<Vec<Mechanism>, Status> {
        let address = found.address().map_err(|error| Status::unavailable(error.to_string()))?;
        match (address, asked.kind, &self.site) {
            // What comes by a tunnel goes into a kernel interface.
            (Address::Unix(_), kind, _) => {
                let asked = preferences(kind.unwrap_or(EndKind::Kernel), payload, &self.priority);
                Ok(asked
                    .into_iter()
                    .filter(|wanted| kind.is_some() || wanted.r#type == EndKind::Kernel.name())
                    .collect())
            }
            (Address::Tcp(_), Some(EndKind::Kernel), Some(_)) if payload == IP => Err(Status::unimplemented(
                "the endpoint is on another node, and the payload is IP: this forwarder has VXLAN only, which carries Ethernet frames",
            )),
            (Address::Tcp(_), Some(EndKind::Kernel), Some(site)) => Ok(vec![site.preference()]),
            (Address::Tcp(_), Some(_), Some(_)) => {
                Err(Status::unimplemented("the endpoint is on another node, and tunnels end in kernel interfaces"))
            }
            (Address::Tcp(_), None, _) => Err(Status::unimplemented("a tunnel does not lead into another tunnel")),
            (Address::Tcp(_), _, None) => Err(Status::failed_precondition(
                "the endpoint is on another node, and this forwarder has no tunnels, since no default route says where: set `tunnel_ip`, or NSM_TUNNEL_IP",
            )),
        }
    }

    /// Makes what joins both ends, and says what the client is answered.
    async fn join(
        &self,
        call: &Call,
        asked: &ClientWish,
        next: &NextHop,
        below: &Connection,
        before: Option<&Joined>,
    ) -> Result<Made, Status> {
        let theirs = below.mechanism.clone().ok_or_else(|| Status::internal("the endpoint has chosen no mechanism"))?;
        let passed = MechanismFiles::receive(next.connection().peer().files(), [&theirs]).await?;
        let known = before.map_or(&[][..], |before| &before.files);
        let files = keep(passed.of(&theirs).into_iter(), known);
        let client_file = keep(asked.file.iter(), before.map_or(&[][..], |before| before.client_file.as_slice())).pop();
        let (theirs_file, file) = (files.first().cloned(), client_file.clone());
        let (wires, mut answer) = (Arc::clone(&self.wires), below.clone());
        let (mechanism, own) = (asked.mechanism.clone(), call.place.own);
        let before = before.map(|before| before.joint.clone());
        let (site, is_tunnel) = (self.site, asked.kind.is_none());
        let turn = self.making.begin(&call.connection.id)?;
        let making = spawn_blocking(move || {
            let client = match site.filter(|_| is_tunnel) {
                Some(site) => {
                    let tunnel = Vxlan::answered(&mechanism, &site)?;
                    MeshEnd::remote(mechanism, tunnel)
                }
                None => MeshEnd::local(Side::Client, &answer, &mechanism, file.as_ref())?,
            };
            let endpoint = match site.filter(|_| theirs.r#type == VXLAN) {
                Some(site) => {
                    let tunnel = Vxlan::asked(&theirs, &site)?;
                    MeshEnd::remote(theirs, tunnel)
                }
                None => MeshEnd::local(Side::Endpoint, &answer, &theirs, theirs_file.as_ref())?,
            };
            let joint = Joint::plan(&answer, &client, &endpoint)?;
            joint.make(before.as_ref(), &wires)?;
            let metrics = joint.metrics([&client, &endpoint], &wires);
            if let Some(segment) = answer.path.as_mut().and_then(|path| path.path_segments.get_mut(own)) {
                segment.metrics = metrics;
            }
            answer.mechanism = Some(client.mechanism);
            let wires = before.is_none().then_some(wires);
            Ok::<_, Status>((answer, MadeJoint { joint, unclaimed: wires, turn: Some(turn) }))
        });
        let made = making.await.map_err(|error| Status::internal(format!("the ends were not joined: {error}")))?;
        made.map(|(answer, joint)| Made { answer, joint, client_file, files })
    }

    /// Watches a connection at the next process.
    fn follow(next: &NextHop, answer: &Connection, call: &Call) -> Arc<Following> {
        let (calls, monitor, answered) = (next.connection().calls(), call.monitor.clone(), call.answered.clone());
        let follower = Follower::new(answer.clone());
        let following = tokio::spawn(async move {
            // What is told before the answer would be of a connection that nobody knows.
            answered.wait().await;
            follower.follow(calls, move |changed| monitor.change(changed)).await;
        });
        Arc::new(Following(following.abort_handle()))
    }

    async fn close_below(&self, joined: Joined, until: Instant) -> Result<(), Status> {
        joined.following.0.abort();
        Box::pin(self.hops.close(&joined.next, &joined.endpoint, joined.below, &joined.files, until)).await
    }

    fn joined(&self) -> MutexGuard<'_, BTreeMap<String, Joined>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Handler for MeshForwarder {
    async fn request(&self, mut call: Call) -> Result<Connection, Status> {
        let until = Instant::now() + call.limit;
        wire_name(&call.connection.id)?;
        let asked = self.asked(&call).await?;
        if asked.kind.is_none() {
            let mtu = asked.mechanism.parameters.get(MTU).and_then(|mtu| mtu.parse().ok()).unwrap_or(0);
            let context = call.connection.context.get_or_insert_default();
            context.mtu = [context.mtu, mtu].into_iter().filter(|mtu| *mtu > 0).min().unwrap_or(0);
        }
        let made = Box::pin(self.ask_all(&mut call, &asked, until)).await;
        if made.is_err() && asked.kind.is_none() && !self.joined().contains_key(&call.connection.id) {
            self.vnis.give_back(&call.connection.id);
        }
        made
    }

    async fn close(&self, call: Call) -> Result<(), Status> {
        let until = Instant::now() + call.limit;
        let Some(joined) = self.joined().remove(&call.connection.id) else { return Ok(()) };
        let (wires, joint) = (Arc::clone(&self.wires), joined.joint.clone());
        let removing = spawn_blocking(move || joint.remove(&wires));
        let (below, removed) = tokio::join!(self.close_below(joined, until), removing);
        self.vnis.give_back(&call.connection.id);
        let removed = removed.map_err(|error| Status::internal(format!("the wire was not removed: {error}")))?;
        match (below, removed) {
            (Ok(()), done) | (done, Ok(())) => done,
            (Err(below), Err(own)) => {
                Err(Status::new(own.code(), format!("{}; and the endpoint: {}", own.message(), below.message())))
            }
        }
    }
}

impl MeshForwarder {
    /// The first of what the client wants that we can have, or what the connection has already.
    async fn asked(&self, call: &Call) -> Result<ClientWish, Status> {
        let is_tunnel = |mechanism: &Mechanism| mechanism.r#type == VXLAN && self.site.is_some();
        let can_have = |mechanism: &&Mechanism| is_tunnel(mechanism) || EndKind::of(mechanism).is_some();
        let mechanism = call.connection.mechanism.as_ref();
        let mechanism =
            mechanism.or_else(|| call.preferences.iter().find(can_have)).cloned().ok_or_else(unsupported)?;
        if let Some(site) = self.site.filter(|_| is_tunnel(&mechanism)) {
            return Ok(ClientWish {
                kind: None,
                mechanism: site.answer(&call.connection.id, &mechanism, &self.vnis)?,
                file: None,
            });
        }
        let kind = EndKind::of(&mechanism).ok_or_else(unsupported)?;
        let files = MechanismFiles::receive(call.peer.as_ref().and_then(Peer::files), [&mechanism]).await?;
        let file = files.of(&mechanism).cloned();
        Ok(ClientWish { kind: Some(kind), mechanism, file })
    }

    /// Asks the candidates one after the other until one is joined with the client.
    async fn ask_all(&self, call: &mut Call, asked: &ClientWish, until: Instant) -> Result<Connection, Status> {
        let Candidates { endpoints, payload } = Box::pin(self.hops.candidates(&call.connection)).await?;
        if let Some(payload) = payload {
            call.connection.payload = payload;
        }
        let mut failures = String::new();
        let mut last = Status::unavailable("no endpoint was asked");
        for (at, found) in endpoints.iter().enumerate() {
            match Box::pin(self.try_endpoint(found, call, asked, until)).await {
                Ok(answer) => return Ok(answer),
                Err(status) => {
                    let (name, problem) = (&found.endpoint.name, status.message());
                    // The last one first, as the Go forwarders say it.
                    failures = format!("{at}. An error during select endpoint {name} --> {problem}: {failures}");
                    last = status;
                }
            }
        }
        Err(Status::new(last.code(), format!("{failures}all candidates have failed")))
    }
}

/// The files that were passed, or those of before if they are the same ones: wires name them by their descriptors, and must not change
/// for a file that came once more.
fn keep<'a>(passed: impl Iterator<Item = &'a Arc<OwnedFd>>, known: &'a [Arc<OwnedFd>]) -> Vec<Arc<OwnedFd>> {
    let inode = |file: &Arc<OwnedFd>| Inode::of(file).ok();
    let kept = |new: &'a Arc<OwnedFd>| {
        let same = known.iter().find(|old| inode(old).is_some() && inode(old) == inode(new));
        Arc::clone(same.unwrap_or(new))
    };
    passed.map(kept).collect()
}
