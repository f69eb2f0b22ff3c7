//! The forwarder's part in a connection: the next hop is asked, then both ends are joined.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrule_dataplane::spec::NetNs;
use ferrule_nsm::files::Inode;
use ferrule_nsm::monitor::Follower;
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use ferrule_nsm::proto::networkservice::NetworkServiceRequest;
use ferrule_nsm::registry::{FoundEndpoint, Lookup};
use ferrule_nsm::service::{Call, Handler, MechanismFiles, NextHop, limit_mtu, time_to_close};
use ferrule_nsm::transport::{Address, Peer};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::breakout::{Breakouts, VLAN};
use super::context::Side;
use super::end::{
    EndKind, IP, MeshEnd, beside_tunnel, is_tunnel_of, noop_of_another_node, open_namespace, preferences,
};
use super::joint::{Joint, Means, wire_name};
use super::leftovers;
use super::making::{Made, Makings, Removal};
use super::next_hop::{Candidates, NextHops};
use super::reservation::Reservation;
use super::vxlan::TunnelSite;
use super::wireguard::{self, WIREGUARD};
use super::wish::{ClientEnd, ClientWish};

/// Joins the ends of connections.
pub(super) struct MeshForwarder {
    means: Means,
    hops: NextHops,
    priority: Vec<String>,
    /// Where tunnels to other nodes begin; none: there are none.
    site: Option<TunnelSite>,
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
    /// What no other connection of the client has.
    only: Option<ClientEnd>,
    /// What the client has passed.
    client_file: Option<Arc<OwnedFd>>,
    /// What the endpoint has passed, which goes with each call below.
    files: Vec<Arc<OwnedFd>>,
    joint: Joint,
    /// Of the tunnel's number and port.
    reservation: Reservation,
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
struct Answer {
    connection: Connection,
    joint: Made<Joint>,
    client_file: Option<Arc<OwnedFd>>,
    files: Vec<Arc<OwnedFd>>,
}

impl MeshForwarder {
    pub(super) fn new(means: Means, hops: NextHops, priority: Vec<String>, site: Option<TunnelSite>) -> Self {
        Self { means, hops, priority, site, joined: Mutex::default(), making: Makings::default() }
    }

    /// The forwarder ends, and nothing of it stays in pods. Nobody is called: who wants a connection asks for it again. Blocks.
    pub(super) fn leave(&self) {
        self.making.close(LEAVE_MAX);
        let all = std::mem::take(&mut *self.joined());
        for (id, joined) in all {
            if let Err(status) = joined.joint.remove(&self.means) {
                tracing::warn!(id, %status, "what joined the ends of a connection is not removed");
            }
        }
    }

    /// Removes what a forwarder that was killed has left, and nobody has asked for. Blocks.
    pub(super) fn remove_leftovers(&self) {
        let claim = |id: &str| {
            let turn = self.making.begin(id).ok()?;
            (!self.joined().contains_key(id)).then_some(turn)
        };
        let removed = leftovers::remove_everywhere(self.means.wires.interface_owner(), claim)
            + self.means.vfs.give_back_left(claim);
        if removed > 0 {
            tracing::info!(removed, "removed what a forwarder that was killed had left, and nobody asked for");
        }
    }

    /// Asks one endpoint, and joins it with the client.
    async fn try_endpoint(
        &self,
        found: &FoundEndpoint,
        call: &Call,
        asked: &mut ClientWish,
        until: Instant,
    ) -> Result<Connection, Status> {
        let before = self.joined().get(&call.connection.id).cloned();
        let same = before.as_ref().filter(|before| before.endpoint == found.endpoint.name);
        let mut connection = call.connection.clone();
        connection.network_service_endpoint_name.clone_from(&found.endpoint.name);
        connection.mechanism = same.and_then(|same| same.below.mechanism.clone());
        let mechanism_preferences = self.preferences(found, asked, &connection)?;
        let message = NetworkServiceRequest { connection: Some(connection), mechanism_preferences };
        let files = same.map_or(&[][..], |same| &same.files);
        let mut tries = 0;
        loop {
            let again = same.map(|same| &same.next);
            let asking = Box::pin(self.hops.request(found, message.clone(), files, again, until));
            let (next, below) = asking.await?;
            let status = match self.join(call, asked, &next, &below, before.as_ref()).await {
                Ok(answer) => return Ok(self.keep(answer, before, found, call, asked, (next, below), until).await),
                Err(status) => status,
            };
            if same.is_some() {
                return Err(status);
            }
            // What was not joined is of no use there.
            let _ = Box::pin(next.close(below, &[], time_to_close(until))).await;
            tries += 1;
            if status.code() != Code::AlreadyExists || tries == NUMBER_TRIES {
                return Err(status);
            }
            // Whoever chooses the tunnel's number does so again.
            if let Some(site) = self.site.filter(|_| asked.kind.is_none()) {
                asked.renumber(&call.connection.id, &site, &self.means.vnis)?;
            }
        }
    }

    /// Remembers what was made. What was there by another endpoint is closed.
    #[expect(clippy::too_many_arguments, reason = "it is the end of one function")]
    async fn keep(
        &self,
        answer: Answer,
        before: Option<Joined>,
        found: &FoundEndpoint,
        call: &Call,
        asked: &ClientWish,
        (next, below): (NextHop, Connection),
        until: Instant,
    ) -> Connection {
        let Answer { mut connection, joint, client_file, files } = answer;
        connection.network_service_endpoint_name.clone_from(&found.endpoint.name);
        let following = Self::follow(&next, &connection, call);
        let (endpoint, only) = (found.endpoint.name.clone(), asked.only.clone());
        let (joint, turn) = joint.claim();
        joint.settle(&self.means);
        let reservation = asked.reservation.clone();
        let joined = Joined { endpoint, next, below, only, client_file, files, joint, reservation, following };
        self.joined().insert(connection.id.clone(), joined);
        drop(turn);
        if let Some(before) = before.filter(|before| before.endpoint != found.endpoint.name) {
            // It may be gone: then it has nothing to be closed.
            let _ = self.close_below(before, until).await;
        }
        connection
    }

    /// What an endpoint of this node, or the manager of another one, is asked for.
    fn preferences(
        &self,
        found: &FoundEndpoint,
        asked: &ClientWish,
        connection: &Connection,
    ) -> Result<Vec<Mechanism>, Status> {
        let payload = connection.payload.as_str();
        // An endpoint elsewhere may only say which VLAN leads to what it stands for. That is Ethernet.
        let leaves = self.means.breakouts.preference(connection).filter(|_| has_ethernet(payload, asked.kind));
        let address = found.address().map_err(|error| Status::unavailable(error.to_string()))?;
        match (address, asked.kind, &self.site) {
            (Address::Unix(_), Some(kind), _) => Ok(preferences(kind, payload, &self.priority)),
            (Address::Unix(_), None, _) => Ok(beside_tunnel(payload, &self.priority)),
            // A VF is at the network of its NIC, and so is what is on another node.
            (Address::Tcp(_), Some(EndKind::Noop | EndKind::KernelVf | EndKind::Vfio), _) => Ok(noop_of_another_node()),
            (Address::Tcp(_), Some(EndKind::Kernel | EndKind::Memif), Some(site)) if payload == IP => {
                let tunnel = self.means.wireguards.preference(&connection.id, site)?;
                Ok(std::iter::once(tunnel).chain(leaves).collect())
            }
            (Address::Tcp(_), Some(kind), _) if payload == IP && self.site.is_some() => {
                Err(Status::unimplemented(format!(
                    "the endpoint is on another node, and the payload is IP: that is WireGuard, which this forwarder has for KERNEL and MEMIF, and not for {}",
                    kind.name()
                )))
            }
            (Address::Tcp(_), Some(_), None) if leaves.is_some() => Ok(leaves.into_iter().collect()),
            (Address::Tcp(_), Some(_), Some(site)) => Ok(std::iter::once(site.preference()).chain(leaves).collect()),
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
    ) -> Result<Answer, Status> {
        let theirs = below.mechanism.clone().ok_or_else(|| Status::internal("the endpoint has chosen no mechanism"))?;
        let passed = MechanismFiles::receive(next.connection().peer().files(), [&theirs]).await?;
        let known = before.map_or(&[][..], |before| &before.files);
        let files = keep(passed.of(&theirs).into_iter(), known);
        let client_file = keep(asked.file.iter(), before.map_or(&[][..], |before| before.client_file.as_slice())).pop();
        let (theirs_file, file) = (files.first().cloned(), client_file.clone());
        let (means, mut answer) = (self.means.clone(), below.clone());
        let (mechanism, own) = (asked.mechanism.clone(), call.place.own);
        let before = before.map(|before| before.joint.clone());
        let (site, is_tunnel, carried) = (self.site, asked.kind.is_none(), asked.carried());
        let is_elsewhere = next.connection().peer().files().is_none();
        let may_leave = is_elsewhere && has_ethernet(&call.connection.payload, asked.kind);
        // When the call is cut off, what is being made has its number and its port until it is undone.
        let reservation = asked.reservation.clone();
        let turn = self.making.begin(&call.connection.id)?;
        let making = spawn_blocking(move || {
            // A pod of this node, say, is asked for no VLAN, and chooses none.
            if theirs.r#type == VLAN && !may_leave {
                return Err(Status::failed_precondition("the endpoint has chosen VLAN, which it was not asked for"));
            }
            let vlan = (theirs.r#type == VLAN).then(|| means.breakouts.place(&answer, &theirs)).transpose()?;
            if let Some(place) = &vlan {
                limit_mtu(&mut answer, Breakouts::mtu(place)?);
            }
            // Whoever has answered may have said more than that.
            limit_mtu(&mut answer, carried);
            if let Some(site) = site.filter(|_| theirs.r#type == WIREGUARD) {
                limit_mtu(&mut answer, wireguard::mtu(&site));
            }
            let mut client = match site.filter(|_| is_tunnel) {
                Some(site) => MeshEnd::remote(Side::Client, mechanism, &site)?,
                None => MeshEnd::local(Side::Client, &answer, &mechanism, file.as_ref())?,
            };
            let endpoint = match (vlan, site.filter(|_| is_tunnel_of(&theirs, &answer.payload))) {
                (Some(vlan), _) => MeshEnd::outside(theirs, vlan),
                (None, Some(site)) => MeshEnd::remote(Side::Endpoint, theirs, &site)?,
                (None, None) => MeshEnd::local(Side::Endpoint, &answer, &theirs, theirs_file.as_ref())?,
            };
            let joint = Joint::plan(&answer, [&client, &endpoint], before.as_ref(), &means)?;
            joint.make(before.as_ref(), &means)?;
            client.mechanism.parameters.extend(joint.told_to_client(&means));
            let metrics = joint.metrics([&client, &endpoint], &means);
            if let Some(segment) = answer.path.as_mut().and_then(|path| path.path_segments.get_mut(own)) {
                segment.metrics = metrics;
            }
            answer.mechanism = Some(client.mechanism);
            let undo = move |joint: Joint| {
                joint.undo(before.as_ref(), &means);
                drop(reservation);
            };
            Ok::<_, Status>((answer, Made::new(joint, turn, undo)))
        });
        let made = making.await.map_err(|error| Status::internal(format!("the ends were not joined: {error}")))?;
        made.map(|(connection, joint)| Answer { connection, joint, client_file, files })
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

    /// A client that was started again asks for its interface, or by its token, by another connection. That of before is in the way, and nobody's.
    async fn make_way(&self, id: &str, wanted: &ClientEnd, until: Instant) {
        let before = {
            let joined = self.joined();
            let is_before = |(other, joined): &(&String, &Joined)| *other != id && joined.only.as_ref() == Some(wanted);
            joined.iter().find(is_before).map(|(other, _)| other.clone())
        };
        if let Some((other, (joined, removal))) = before.and_then(|other| Some((other.clone(), self.part(&other)?))) {
            tracing::info!(
                id,
                before = other,
                "the client has the same end by another connection already: that is closed"
            );
            if let Err(status) = self.take_down(joined, removal, until).await {
                tracing::warn!(id = other, %status, "the connection was not closed cleanly");
            }
        }
    }

    /// What was joined is no connection's from now on. Nothing is made in its place until it is removed.
    fn part(&self, id: &str) -> Option<(Joined, Removal)> {
        let mut all = self.joined();
        all.remove(id).map(|joined| (joined, self.making.begin_removal(id)))
    }

    /// Closes what was joined, here and at the next process. What is begun here goes on when the call is cut off.
    async fn take_down(&self, joined: Joined, removal: Removal, until: Instant) -> Result<(), Status> {
        let (means, joint, reservation) = (self.means.clone(), joined.joint.clone(), joined.reservation.clone());
        let removing = spawn_blocking(move || {
            let turn = removal.turn();
            let removed = joint.remove(&means);
            drop((reservation, turn));
            removed
        });
        let (below, removed) = tokio::join!(self.close_below(joined, until), removing);
        let removed = removed.map_err(|error| Status::internal(format!("the wire was not removed: {error}")))?;
        match (below, removed) {
            (Ok(()), done) | (done, Ok(())) => done,
            (Err(below), Err(own)) => {
                Err(Status::new(own.code(), format!("{}; and the endpoint: {}", own.message(), below.message())))
            }
        }
    }

    async fn close_below(&self, joined: Joined, until: Instant) -> Result<(), Status> {
        joined.following.0.abort();
        Box::pin(self.hops.close(&joined.next, &joined.endpoint, joined.below, &joined.files, until)).await
    }

    /// Asks the candidates one after the other until one is joined with the client.
    async fn ask_all(&self, call: &mut Call, asked: &mut ClientWish, until: Instant) -> Result<Connection, Status> {
        let known = match Box::pin(self.hops.candidates(&call.connection, Lookup::Known)).await {
            // What is known has run out: the news may be on its way.
            Err(status) if status.code() == Code::NotFound => {
                Box::pin(self.hops.candidates(&call.connection, Lookup::Anew)).await?
            }
            known => known?,
        };
        let done = Box::pin(self.ask_each(&known, call, asked, until)).await;
        match done {
            // Who is known may have gone a moment ago, and another one be there instead.
            Err(status) if status.code() == Code::Unavailable => {
                let now = Box::pin(self.hops.candidates(&call.connection, Lookup::Anew)).await;
                match now.ok().filter(|now| now.differ_from(&known)) {
                    Some(now) => Box::pin(self.ask_each(&now, call, asked, until)).await,
                    None => Err(status),
                }
            }
            done => done,
        }
    }

    async fn ask_each(
        &self,
        Candidates { endpoints, payload }: &Candidates,
        call: &mut Call,
        asked: &mut ClientWish,
        until: Instant,
    ) -> Result<Connection, Status> {
        if let Some(payload) = payload {
            call.connection.payload.clone_from(payload);
        }
        let mut failures = String::new();
        let mut last = Status::unavailable("no endpoint was asked");
        for (at, found) in endpoints.iter().enumerate() {
            if at > 0 && Instant::now() >= until {
                return Err(Status::new(last.code(), format!("{failures}no time is left for the others")));
            }
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

    fn joined(&self) -> MutexGuard<'_, BTreeMap<String, Joined>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Handler for MeshForwarder {
    async fn request(&self, mut call: Call) -> Result<Connection, Status> {
        let until = Instant::now() + call.limit;
        let id = call.connection.id.clone();
        wire_name(&id)?;
        let mut asked = ClientWish::read(&call, self.site.as_ref(), &self.means).await?;
        limit_mtu(&mut call.connection, asked.carried());
        if let Some(only) = &asked.only {
            self.make_way(&id, only, until).await;
        }
        Box::pin(self.ask_all(&mut call, &mut asked, until)).await
    }

    async fn close(&self, call: Call) -> Result<(), Status> {
        let until = Instant::now() + call.limit;
        match self.part(&call.connection.id) {
            Some((joined, removal)) => self.take_down(joined, removal, until).await,
            None => Ok(()),
        }
    }

    /// What a forwarder that was killed has made of it is removed, and the endpoint is told.
    async fn close_unknown(&self, call: Call) -> Result<(), Status> {
        let until = Instant::now() + call.limit;
        let Call { mut connection, peer, .. } = call;
        let mechanism = connection.mechanism.take();
        let files = MechanismFiles::receive(peer.as_ref().and_then(Peer::files), &mechanism).await.unwrap_or_default();
        let netns = mechanism.as_ref().and_then(|mechanism| open_namespace(files.of(mechanism)?).ok());
        let id = connection.id.clone();
        let below = self.hops.close_unknown(connection, until);
        let Ok(turn) = self.making.begin(&id) else { return below.await };
        let means = self.means.clone();
        let removing = spawn_blocking(move || {
            let of_namespace = match netns {
                Some(netns) => leftovers::remove_of(means.wires.interface_owner(), &NetNs::Open(netns), &id).map(drop),
                None => Ok(()),
            };
            let vfs = means.vfs.give_back_unknown(&id);
            drop(turn);
            vfs?;
            of_namespace.map_err(|error| Status::internal(format!("remove what is left of it: {error}")))
        });
        let (below, removed) = tokio::join!(below, removing);
        below.and(removed.unwrap_or_else(|error| Err(Status::internal(error.to_string()))))
    }
}

/// Whether an end has Ethernet headers: an interface of the kernel does, whatever its payload is called.
fn has_ethernet(payload: &str, kind: Option<EndKind>) -> bool {
    payload != IP || kind == Some(EndKind::Kernel)
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

/// So often a tunnel gets another number because its own is taken.
const NUMBER_TRIES: usize = 4;
/// What is being made when the forwarder ends is waited for so long.
const LEAVE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
