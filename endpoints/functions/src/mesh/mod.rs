//! Functions of chains that the mesh composes: an endpoint of Network Service Mesh with a function for each of its connections.
//!
//! It serves memif ends, asks the manager of its node for the next hop under its own labels, and stands between the two. A router gives its clients
//! addresses itself, and has others behind it: [`lease`] of a NAT44, [`npt_lease`] of an NPTv6.

pub mod lease;
pub mod npt_lease;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Args;
use ferrule_dataplane::spec::{MemifSpec, Mode, Role, SocketAddress};
use ferrule_endpoints::end::EndSpec;
use ferrule_nsm::endpoint::{Between, MemifEnds, MiddleEndpoint, OfferError};
use ferrule_nsm::process::{OfferArgs, ProcessArgs, ProcessError, Trusted};
use ferrule_nsm::proto::connection::Connection;
use ferrule_nsm::proto::connectioncontext::ConnectionContext;
use ferrule_nsm::service::ConnectionServer;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode as FileMode;
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tonic::Status;
use tracing::{error, info, warn};

use self::lease::{Lease, Leases};
use self::npt_lease::NptLeases;
use crate::config::FunctionSettings;
use crate::function::Side;
use crate::hop::HopEvent;
use crate::packet::Link;
use crate::running::{Functions, Narrow};

/// What an endpoint of the mesh is told.
#[derive(Clone, Debug, Args)]
pub struct MeshArgs {
    #[command(flatten)]
    offer: OfferArgs,
    #[command(flatten)]
    trusted: Trusted,
    #[command(flatten)]
    process: ProcessArgs,
}

/// Serves connections as an endpoint of this name, unless it is told another one, until `stop`.
pub async fn serve(
    name: String,
    args: MeshArgs,
    functions: Arc<Functions>,
    stop: impl Future<Output = ()> + Send + 'static,
    told: impl Fn(bool) + Send + Sync + 'static,
) -> Result<(), MeshError> {
    let MeshArgs { offer: offered, trusted, process } = args;
    // Its chain has a service with matches, which somebody else registers.
    let offer = offered.offer(&name, false)?;
    let mut stop = Box::pin(stop);
    // That may take however long.
    let identity = tokio::select! {
        identity = process.identity() => identity?,
        () = &mut stop => return Ok(()),
    };
    let namespace = open("/proc/self/ns/net", OFlag::O_PATH | OFlag::O_CLOEXEC, FileMode::empty());
    let ends = namespace.map_err(Into::into).and_then(|namespace| MemifEnds::new(Arc::new(namespace)));
    let ends = ends.map_err(MeshError::Namespace)?;
    let between = Arc::new(MeshFunctions {
        functions: Arc::clone(&functions),
        leases: Arc::default(),
        npt_leases: Mutex::default(),
    });
    let manager = offered.connect_to.parse().map_err(ProcessError::from)?;
    let middle =
        MiddleEndpoint::new(between, ends, offer.labels.clone(), &manager, identity.clone(), process.dial_options());
    let calls = ConnectionServer::new(&offer.name, process.token_lifetime, middle);
    trusted.tell(&calls).map_err(ProcessError::from)?;
    let registry = process.registry(&offered.connect_to, identity.clone())?;
    let (name, services) = (offer.name.clone(), offer.services.join(", "));
    let told = move |is_registered| {
        let word = if is_registered { "registered" } else { "not registered" };
        info!("endpoint {name} of {services}: {word}");
        told(is_registered);
    };
    let monitor = calls.monitor().clone();
    tokio::select! {
        served = offer.serve(&calls, identity, registry, stop, told) => Ok(served?),
        never = end_dead(&functions, |id| monitor.down(id)) => match never {},
    }
}

/// A function whose thread has ended by itself ends, and no other with it: whoever asked for its connection is told, asks again, and has another one.
async fn end_dead(functions: &Functions, tell: impl Fn(&str)) -> Infallible {
    loop {
        for (connection, running) in functions.take_dead() {
            error!(connection, "a thread of the function ended by itself, its panic is above: the connection is down");
            // Its other threads are waited for.
            let _ = spawn_blocking(move || drop(running)).await;
            tell(&connection);
        }
        sleep(LOOK).await;
    }
}

/// Why a function is no endpoint of the mesh.
#[derive(Debug, Error)]
pub enum MeshError {
    /// It has no identity, or nobody to call.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its ends are nowhere.
    #[error("open our own network namespace: {0}")]
    Namespace(#[source] std::io::Error),
    /// It does not serve.
    #[error(transparent)]
    Offer(#[from] OfferError),
}

/// A function for each connection.
struct MeshFunctions {
    functions: Arc<Functions>,
    leases: Arc<Mutex<Leases>>,
    npt_leases: Mutex<NptLeases>,
}

impl MeshFunctions {
    /// What the function of a connection has of the settings of all.
    fn narrow(&self, id: &str) -> Narrow {
        let (leases, id) = (Arc::clone(&self.leases), id.to_owned());
        Box::new(move |settings| match (settings, lock(&leases).of(&id)) {
            (FunctionSettings::Nat44(nat), Some(Lease { outside, mtu, .. })) => {
                FunctionSettings::Nat44(nat.of_one(u32::from(outside)).with_mtu(mtu))
            }
            _ => settings.clone(),
        })
    }
}

fn lock<T>(leases: &Mutex<T>) -> MutexGuard<'_, T> {
    leases.lock().unwrap_or_else(PoisonError::into_inner)
}

fn link_of(connection: &Connection) -> Link {
    if connection.payload == IP { Link::Ip } else { Link::Ethernet }
}

#[tonic::async_trait]
impl Between for MeshFunctions {
    fn ask(&self, asked: &Connection) -> Result<ConnectionContext, Status> {
        // It would read frames of the one kind as those of the other.
        if self.functions.get(&asked.id).is_some_and(|running| running.link() != link_of(asked)) {
            let problem = "a connection has another payload than before: close it, and ask for a new one";
            return Err(Status::invalid_argument(problem));
        }
        let context = asked.context.clone().unwrap_or_default();
        let settings = self.functions.settings();
        if let Some(router) = settings.router().filter(|_| asked.payload == IP) {
            return Err(Status::unimplemented(format!(
                "{router} is a router between two Ethernet networks, and the payload of this service is IP"
            )));
        }
        let nat = match settings {
            FunctionSettings::Nat44(nat) => nat,
            FunctionSettings::Nptv6(npt) => {
                return Ok(lock(&self.npt_leases).take(&asked.id, &npt, &context)?.behind(&npt, &context));
            }
            FunctionSettings::Passthrough | FunctionSettings::Firewall { .. } | FunctionSettings::Gateway => {
                return Ok(context);
            }
        };
        let (before, lease) = {
            let mut leases = lock(&self.leases);
            (leases.of(&asked.id), leases.take(&asked.id, &nat, &context)?)
        };
        if before.is_some_and(|before| before != lease) {
            self.functions.narrow_again(&asked.id);
        }
        Ok(lease.behind(&nat, &context))
    }

    fn answer(&self, id: &str, behind: ConnectionContext) -> ConnectionContext {
        let nat = match self.functions.settings() {
            FunctionSettings::Nat44(nat) => nat,
            FunctionSettings::Nptv6(npt) => {
                let inside = lock(&self.npt_leases).of(id);
                return inside.map_or(behind.clone(), |inside| npt_lease::in_front(inside, &npt, behind));
            }
            FunctionSettings::Passthrough | FunctionSettings::Firewall { .. } | FunctionSettings::Gateway => {
                return behind;
            }
        };
        let (lease, is_other_mtu) = {
            let mut leases = lock(&self.leases);
            (leases.of(id), leases.set_mtu(id, behind.mtu))
        };
        if is_other_mtu {
            self.functions.narrow_again(id);
        }
        lease.map_or(behind.clone(), |lease| lease.in_front(&nat, behind))
    }

    async fn join(&self, connection: &Connection, [served, theirs]: [&str; 2]) -> Result<(), Status> {
        let link = link_of(connection);
        let end = |socket: &str, role| {
            let socket: SocketAddress =
                socket.parse().map_err(|error| Status::invalid_argument(format!("the socket of a memif: {error}")))?;
            let mode = if link == Link::Ip { Mode::Ip } else { Mode::Ethernet };
            Ok::<_, Status>(EndSpec::Memif(MemifSpec { mode, ..MemifSpec::new(socket, role) }))
        };
        let ends = [end(served, Role::Server)?, end(theirs, Role::Client)?];
        let id = &connection.id;
        if let Some(running) = self.functions.get(id).filter(|running| running.hop().is_alive()) {
            for (side, end) in Side::BOTH.into_iter().zip(ends) {
                running.hop().set_end(side, end);
            }
            return Ok(());
        }
        let client = connection.path.as_ref().and_then(|path| path.path_segments.first());
        let client = client.map(|segment| segment.name.chars().take(SHOWN_MAX).collect::<String>());
        let say = {
            let (id, client) = (id.clone(), client.unwrap_or_default());
            move |side: Side, event| say(&id, &client, side, event)
        };
        let started = self.functions.start(id, link, ends, self.narrow(id), say);
        started.map_err(|error| Status::resource_exhausted(error.to_string()))
    }

    async fn part(&self, id: &str) {
        let running = self.functions.remove(id);
        // Its threads are waited for: until then it answers for its addresses.
        let _ = spawn_blocking(move || drop(running)).await;
        lock(&self.leases).give_back(id);
        lock(&self.npt_leases).give_back(id);
    }
}

fn say(connection: &str, client: &str, side: Side, event: HopEvent) {
    let side = side.word();
    match event {
        HopEvent::Connected { agreement } => info!(connection, client, side, "connected: {agreement}"),
        HopEvent::Gone { reason } => info!(connection, client, side, "the peer has gone: {reason}"),
        HopEvent::Waiting { reason } => warn!(connection, client, side, "no peer yet: {reason}; trying again"),
    }
}

/// The payload without Ethernet headers.
const IP: &str = "IP";
const SHOWN_MAX: usize = 64;
/// Between two looks at the threads.
const LOOK: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;
    use tokio::time::timeout;

    use super::*;

    fn passthroughs() -> MeshFunctions {
        let functions = Arc::new(Functions::new(FunctionSettings::Passthrough));
        MeshFunctions { functions, leases: Arc::default(), npt_leases: Mutex::default() }
    }

    fn connection(id: &str, payload: &str) -> Connection {
        Connection { id: id.to_owned(), payload: payload.to_owned(), ..Connection::default() }
    }

    fn sockets(id: &str) -> [String; 2] {
        ["served", "theirs"].map(|end| format!("@ferrule-mesh-{}-{id}-{end}", std::process::id()))
    }

    #[tokio::test]
    async fn a_function_that_ends_by_itself_takes_no_other_with_it() {
        let mesh = passthroughs();
        let join =
            async |id: &str| mesh.join(&connection(id, "ETHERNET"), sockets(id).each_ref().map(String::as_str)).await;
        join("a").await.unwrap();
        join("b").await.unwrap();
        mesh.functions.get("a").unwrap().hop().order(|_| panic!("of the test"));
        let (tell, mut told) = unbounded_channel();
        let ending = end_dead(&mesh.functions, |id| tell.send(id.to_owned()).unwrap());
        let down = tokio::select! {
            never = ending => match never {},
            down = timeout(DEADLINE, told.recv()) => down.unwrap(),
        };
        assert_eq!(down.as_deref(), Some("a"));
        let is_alive = |id: &str| mesh.functions.get(id).is_some_and(|running| running.hop().is_alive());
        assert!(!is_alive("a") && is_alive("b"));
        // Whoever asked for it asks again.
        join("a").await.unwrap();
        assert!(is_alive("a"));
        mesh.part("a").await;
        mesh.part("b").await;
    }

    const DEADLINE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_connection_keeps_its_payload() {
        let mesh = passthroughs();
        let connection = |payload: &str| connection("payload", payload);
        let sockets = sockets("payload");
        let join = async |payload: &str| mesh.join(&connection(payload), sockets.each_ref().map(String::as_str)).await;
        join("ETHERNET").await.unwrap();
        join("ETHERNET").await.unwrap();
        assert_eq!(mesh.ask(&connection("IP")).unwrap_err().code(), tonic::Code::InvalidArgument);
        mesh.part("payload").await;
        mesh.ask(&connection("IP")).unwrap();
        join("IP").await.unwrap();
        mesh.part("payload").await;
    }
}
