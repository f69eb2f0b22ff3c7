//! Next processes, called over connections that are kept: a handshake costs more than a call, and a hundred calls at once wait for one.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use tonic::{Code, Status};

use super::next_hop::NextHop;
use super::server::time_to_close;
use crate::files::Inode;
use crate::identity::IdentitySource;
use crate::policy::is_token_denied;
use crate::proto::connection::Connection;
use crate::proto::networkservice::NetworkServiceRequest;
use crate::registry::FoundEndpoint;
use crate::transport::{Address, DialOptions, KeptConnection};

/// Calls processes that were found. Each has one connection, and another one when very many connections of the mesh go over that.
pub struct KeptHops {
    identity: IdentitySource,
    options: DialOptions,
    kept: Mutex<BTreeMap<HopPlace, KeptHop>>,
}

/// Where a process listens. One that was started again listens at another socket, whatever its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HopPlace {
    Socket(Inode),
    Address(Address),
}

struct KeptHop {
    connection: Arc<KeptConnection>,
    used: Instant,
}

impl KeptHops {
    /// Calls as this identity.
    pub fn new(identity: IdentitySource, options: DialOptions) -> Self {
        Self { identity, options, kept: Mutex::default() }
    }

    /// A process, over the connection that is kept, or the first one.
    pub async fn get(&self, found: &FoundEndpoint) -> Result<NextHop, Status> {
        share(&self.kept(found)?).await
    }

    /// Whether a connection of before may still be used to close what was made over it: it has not ended, and we are there who we are now.
    pub fn is_good(&self, next: &NextHop) -> bool {
        let connection = next.connection();
        !connection.has_ended() && Arc::ptr_eq(connection.peer().svid(), &self.identity.current().svid)
    }

    /// Asks for a connection, over the place that it had `before`, if that still serves. Where a token is denied over an older connection, it is asked for again over a new one: there the other side shows the
    /// certificate with which it signs its tokens now. So is what an older one did not bring to its end, since the other side has gone
    /// meanwhile. What a first request has made though its answer is not believed is closed again.
    pub async fn request(
        &self,
        found: &FoundEndpoint,
        message: NetworkServiceRequest,
        files: &[Arc<OwnedFd>],
        before: Option<&NextHop>,
        is_first: bool,
        until: Instant,
    ) -> Result<(NextHop, Connection), Status> {
        let left = || until.saturating_duration_since(Instant::now());
        let (asked, kept) = (Instant::now(), self.kept(found)?);
        // Very many that are refreshed together would need as many places again.
        let serves = |before: &&NextHop| before.is_of(&kept) && before.connection().is_fresh(&self.identity.current());
        let mut next = match before.filter(serves) {
            Some(before) => before.clone(),
            None => share(&kept).await?,
        };
        let mut may_repeat = next.connection().since() < asked;
        loop {
            let error = match Box::pin(next.request(message.clone(), files, left())).await {
                Ok(answer) => return Ok((next, answer)),
                Err(error) => error,
            };
            let (code, connection) = (error.status.code(), next.connection());
            let is_past = is_token_denied(&error.status) || connection.has_ended();
            if is_past || code == Code::DeadlineExceeded {
                connection.give_up();
                kept.renew(connection).await;
            }
            if is_past
                && std::mem::take(&mut may_repeat)
                && let Ok(renewed) = share(&kept).await
            {
                next = renewed;
                continue;
            }
            if let Some(made) = error.made.filter(|_| is_first) {
                // It says no more than the error does.
                let _ = Box::pin(next.close(*made, files, time_to_close(until))).await;
            }
            return Err(error.status);
        }
    }

    /// Closes a connection at a process that may know it.
    pub async fn close(
        &self,
        found: &FoundEndpoint,
        connection: Connection,
        files: &[Arc<OwnedFd>],
        until: Instant,
    ) -> Result<(), Status> {
        let next = self.get(found).await?;
        Box::pin(next.close(connection, files, until.saturating_duration_since(Instant::now()))).await
    }

    fn kept(&self, found: &FoundEndpoint) -> Result<Arc<KeptConnection>, Status> {
        let address = found.address().map_err(|error| Status::unavailable(error.to_string()))?;
        let inode =
            |socket| Inode::of(socket).map_err(|error| Status::unavailable(format!("an endpoint's socket: {error}")));
        let place = match &found.socket {
            Some(socket) => HopPlace::Socket(inode(socket)?),
            None => HopPlace::Address(address.clone()),
        };
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get_mut(&place) {
            known.used = Instant::now();
            return Ok(Arc::clone(&known.connection));
        }
        all.retain(|_, hop| !hop.connection.is_idle());
        if all.len() >= KEPT_MAX {
            // What goes over its connection goes on.
            let oldest = all.iter().min_by_key(|(_, hop)| hop.used).map(|(place, _)| place.clone());
            oldest.and_then(|oldest| all.remove(&oldest));
        }
        let connection = KeptConnection::new(address, self.identity.clone(), self.options.clone());
        // Whoever has it in hand goes on with it when it is not kept here any more.
        let connection = Arc::new(connection.by_way_of(found.socket.clone()));
        let hop = KeptHop { connection: Arc::clone(&connection), used: Instant::now() };
        all.insert(place, hop);
        Ok(connection)
    }
}

/// The connection of now, if it has room; a new one otherwise.
async fn share(kept: &Arc<KeptConnection>) -> Result<NextHop, Status> {
    loop {
        let connection = kept.get().await?;
        match NextHop::shared(&connection, kept) {
            Some(next) => return Ok(next),
            None => kept.renew(&connection).await,
        }
    }
}

/// Processes whose connections are kept.
const KEPT_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::proto::registry::NetworkServiceEndpoint;
    use crate::test_mesh::{DEADLINE, Manner, Mesh, first, mechanism, patient};

    fn is_same(a: &NextHop, b: &NextHop) -> bool {
        let certificate = |hop: &NextHop| Arc::clone(hop.connection().peer().certificate());
        Arc::ptr_eq(&certificate(a), &certificate(b))
    }

    /// A mesh, the hops of its forwarder, and where its manager is.
    async fn hops(directory: &std::path::Path) -> (Mesh, KeptHops, FoundEndpoint) {
        let mut mesh = Mesh::with_endpoint(directory).await;
        let url = mesh.address("nsmgr").to_string();
        let endpoint = NetworkServiceEndpoint { name: "nsmgr".to_owned(), url, ..NetworkServiceEndpoint::default() };
        let hops = KeptHops::new(mesh.source("fwd"), patient());
        (mesh, hops, FoundEndpoint { endpoint, socket: None })
    }

    #[tokio::test]
    async fn a_connection_is_kept_without_anybody_who_uses_it_and_made_again_when_it_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let (mut mesh, hops, found) = hops(directory.path()).await;
        let first = hops.get(&found).await.unwrap();
        assert!(is_same(&first, &hops.get(&found).await.unwrap()));
        mesh.replace_manager().await;
        first.connection().ended().await;
        let second = hops.get(&found).await.unwrap();
        assert!(!is_same(&first, &second) && !second.connection().has_ended());
        assert!(hops.is_good(&second) && !hops.is_good(&first));
    }

    #[tokio::test]
    async fn a_socket_that_was_passed_is_open_for_whoever_still_connects_by_it() {
        let directory = tempfile::tempdir().unwrap();
        let (_mesh, hops, mut found) = hops(directory.path()).await;
        let socket = rustix::fs::open(directory.path().join("nsmgr"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        found.socket = Some(Arc::new(socket.unwrap()));
        let kept = hops.kept(&found).unwrap();
        // Others are kept in its place, and nobody else knows the socket any more.
        hops.kept.lock().unwrap().clear();
        drop(found);
        assert!(share(&kept).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_denied_for_another_reason_than_a_token_costs_no_connection() {
        let directory = tempfile::tempdir().unwrap();
        let (mut mesh, hops, mut found) = hops(directory.path()).await;
        mesh.serve_forwarder("fwd", "nsmgr", Manner::Denies).await;
        found.endpoint.url = mesh.address("fwd").to_string();
        let first_hop = hops.get(&found).await.unwrap();
        let message = NetworkServiceRequest { connection: Some(first("a")), ..NetworkServiceRequest::default() };
        let until = Instant::now() + DEADLINE;
        let denied = hops.request(&found, message, &[], None, true, until).await.err().unwrap();
        assert_eq!(denied.code(), Code::PermissionDenied);
        assert!(is_same(&first_hop, &hops.get(&found).await.unwrap()));
    }

    #[tokio::test]
    async fn whoever_asks_again_needs_no_other_place() {
        let directory = tempfile::tempdir().unwrap();
        let (mesh, hops, mut found) = hops(directory.path()).await;
        found.endpoint.url = mesh.address("nse").to_string();
        let (until, wanted) = (Instant::now() + DEADLINE, vec![mechanism(BTreeMap::new())]);
        let message =
            |connection| NetworkServiceRequest { connection: Some(connection), mechanism_preferences: wanted.clone() };
        let (next, answer) = hops.request(&found, message(first("a")), &[], None, true, until).await.unwrap();
        let mut others = Vec::new();
        while others.last().is_none_or(|other| is_same(&next, other)) {
            others.push(hops.get(&found).await.unwrap());
        }
        let (again, _) = hops.request(&found, message(answer.clone()), &[], Some(&next), false, until).await.unwrap();
        assert!(is_same(&next, &again));
        // Unless somebody has waited there in vain.
        next.connection().give_up();
        let (again, _) = hops.request(&found, message(answer), &[], Some(&next), false, until).await.unwrap();
        assert!(!is_same(&next, &again));
    }

    #[tokio::test]
    async fn a_connection_that_very_many_go_over_gets_another_one_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let (_mesh, hops, found) = hops(directory.path()).await;
        let mut all = vec![hops.get(&found).await.unwrap()];
        while is_same(&all[0], all.last().unwrap()) {
            all.push(hops.get(&found).await.unwrap());
            assert!(all.len() < 1024, "a server of ours has no more calls at once");
        }
        assert!(all.len() > 100 && !all[0].connection().has_ended());
    }
}
