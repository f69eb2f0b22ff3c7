//! An endpoint: it gives its clients addresses, and the place where its end of the link is to be.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tonic::Status;

use super::ipam::{Ipam, IpamError};
use super::memif::{MEMIF, MemifEnds, SOCKET_FILE, memif_socket};
use crate::client::TOKEN;
use crate::files::Inode;
use crate::proto::connection::{Connection, Mechanism};
use crate::service::{Call, Handler, INODE_URL};
use crate::transport::Peer;

/// Serves connections: kernel interfaces, which its forwarder makes in a network namespace of the endpoint's; memif sockets there, at which a
/// program of the endpoint listens; VFs of its pod.
pub struct Endpoint {
    namespace: Arc<OwnedFd>,
    inode: Inode,
    sockets: MemifEnds,
    offers: Vec<EndpointMechanism>,
    ipam: Mutex<Ipam>,
    /// By the ids of their connections.
    interfaces: Mutex<BTreeMap<String, String>>,
    tokens: Mutex<Tokens>,
    memifs: Option<Box<dyn MemifServer>>,
}

/// What an endpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointMechanism {
    /// Interfaces of the kernel; those of VFs for clients that have a VF, as long as there are tokens.
    Kernel,
    /// Sockets of memif.
    Memif,
    /// VFs on VFIO, for clients that have a VF, as long as there are tokens.
    Vfio,
}

impl EndpointMechanism {
    fn name(self) -> &'static str {
        match self {
            Self::Kernel => KERNEL,
            Self::Memif => MEMIF,
            Self::Vfio => VFIO,
        }
    }
}

/// A socket of memif for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemifSocket {
    /// The id of the connection.
    pub connection: String,
    /// An abstract name in the endpoint's namespace, `@...`.
    pub socket: String,
    /// Whether packets have no Ethernet header.
    pub is_ip: bool,
    /// The endpoint's addresses.
    pub addresses: Vec<IpAddr>,
}

/// Who listens at the sockets of an endpoint's connections. The forwarder comes to them as a memif client.
pub trait MemifServer: Send + Sync + 'static {
    /// There is a connection, or it has other addresses than before: again and again it may be the same.
    fn open(&self, socket: MemifSocket);

    /// The connection of this id is there no more.
    fn close(&self, connection: &str);
}

/// Of VFs that the endpoint's pod has.
#[derive(Default)]
struct Tokens {
    free: Vec<String>,
    /// By the ids of their connections.
    used: BTreeMap<String, String>,
}

impl Endpoint {
    /// With its ends in this namespace, and addresses out of these prefixes.
    ///
    /// # Errors
    /// The kernel cannot say which file it is.
    pub fn new(namespace: Arc<OwnedFd>, prefixes: &[IpNet]) -> std::io::Result<Self> {
        let inode = Inode::of(&namespace)?;
        Ok(Self {
            sockets: MemifEnds::new(Arc::clone(&namespace))?,
            namespace,
            inode,
            offers: vec![EndpointMechanism::Kernel],
            ipam: Mutex::new(Ipam::new(prefixes)),
            interfaces: Mutex::default(),
            tokens: Mutex::default(),
            memifs: None,
        })
    }

    /// With these mechanisms in the place of KERNEL alone. Which of them a connection has is the forwarder's to choose.
    #[must_use]
    pub fn with_mechanisms(self, offers: &[EndpointMechanism]) -> Self {
        Self { offers: offers.to_vec(), ..self }
    }

    /// With somebody who listens at sockets of memif.
    #[must_use]
    pub fn with_memifs(self, server: impl MemifServer) -> Self {
        Self { memifs: Some(Box::new(server)), ..self }
    }

    /// With VFs for clients that have some themselves: one for each, as long as there are tokens.
    #[must_use]
    pub fn with_tokens(self, tokens: Vec<String>) -> Self {
        Self { tokens: Mutex::new(Tokens { free: tokens, used: BTreeMap::new() }), ..self }
    }

    /// What the answer says of the endpoint's end, which stays what it is as long as the connection; none: nothing of what is wanted is had. A
    /// client that has a VF has no other end beside it than a VF, or one that nobody makes (NOOP).
    fn mechanism(&self, id: &str, service: &str, wanted: &[&str]) -> Result<Mechanism, Status> {
        let has = |offer: EndpointMechanism| self.offers.contains(&offer) && wanted.contains(&offer.name());
        if wanted.contains(&NOOP) {
            let kind = [EndpointMechanism::Vfio, EndpointMechanism::Kernel].into_iter().find(|offer| has(*offer));
            let token = kind.and_then(|_| lock(&self.tokens).of(id));
            return Ok(match (kind, token) {
                (Some(EndpointMechanism::Vfio), Some(token)) => local(VFIO, [(TOKEN, token)]),
                (Some(_), Some(token)) => {
                    let name = name_of(&mut lock(&self.interfaces), id, service);
                    local(KERNEL, [(INODE_URL, self.inode.to_string()), ("name", name), (TOKEN, token)])
                }
                _ => local(NOOP, []),
            });
        }
        let offers = [EndpointMechanism::Kernel, EndpointMechanism::Memif];
        let offer = |wanted: &&str| offers.into_iter().find(|offer| offer.name() == *wanted && has(*offer));
        match wanted.iter().find_map(offer) {
            Some(EndpointMechanism::Memif) => self.sockets.served(id),
            Some(EndpointMechanism::Kernel | EndpointMechanism::Vfio) => {
                let name = name_of(&mut lock(&self.interfaces), id, service);
                Ok(local(KERNEL, [(INODE_URL, self.inode.to_string()), ("name", name)]))
            }
            None => {
                let offers: Vec<_> = self.offers.iter().map(|offer| offer.name()).collect();
                let offers = offers.join(", ");
                Err(Status::unimplemented(format!(
                    "cannot support any of the requested mechanism: this endpoint has {offers}"
                )))
            }
        }
    }

    /// Whoever listens there is told of a connection's socket, or that it has none any more.
    fn tell(&self, connection: &Connection) {
        let Some(server) = &self.memifs else { return };
        let Some(socket) = connection.mechanism.as_ref().and_then(memif_socket) else {
            return server.close(&connection.id);
        };
        let ip = connection.context.as_ref().and_then(|context| context.ip_context.as_ref());
        let texts = ip.map_or(&[][..], |ip| &ip.dst_ip_addrs);
        let addresses = texts.iter().filter_map(|text| Some(text.parse::<IpNet>().ok()?.addr())).collect();
        let is_ip = connection.payload == IP;
        server.open(MemifSocket { connection: connection.id.clone(), socket: socket.to_owned(), is_ip, addresses });
    }

    fn forget(&self, id: &str) {
        lock(&self.ipam).release(id);
        lock(&self.interfaces).remove(id);
        lock(&self.tokens).give_back(id);
        if let Some(memifs) = &self.memifs {
            memifs.close(id);
        }
    }
}

#[tonic::async_trait]
impl Handler for Endpoint {
    async fn request(&self, call: Call) -> Result<Connection, Status> {
        let mut connection = call.connection;
        let files = call.peer.as_ref().and_then(Peer::files);
        let files = files.ok_or_else(|| {
            Status::failed_precondition("a namespace cannot be passed over TCP: connect to the endpoint's Unix socket")
        })?;
        // What a connection has comes first, then what its forwarder would rather have.
        let wanted: Vec<_> =
            connection.mechanism.iter().chain(&call.preferences).map(|wanted| wanted.r#type.as_str()).collect();
        let mechanism = self.mechanism(&connection.id, &connection.network_service, &wanted)?;
        let context = connection.context.get_or_insert_default();
        if let Some(ethernet) = &mut context.ethernet_context {
            // Our end, and the network that the ends of VFs are in, are not the client's to choose.
            ethernet.dst_mac.clear();
            ethernet.vlan_tag = 0;
        }
        let context = context.ip_context.get_or_insert_default();
        let assigned = lock(&self.ipam).assign(&connection.id, context);
        if let Err(error) = assigned {
            if call.known.is_none() {
                self.forget(&connection.id);
            }
            return Err(error.into());
        }
        let end = ["name", SOCKET_FILE, TOKEN].into_iter().find_map(|key| mechanism.parameters.get(key));
        let end = format!("{}/{}", mechanism.r#type, end.map_or("", String::as_str));
        connection.mechanism = Some(mechanism);
        // We call nobody: what lies behind was another's.
        if let Some(path) = &mut connection.path {
            call.place.trim(path);
            if let Some(segment) = path.path_segments.get_mut(call.place.own) {
                segment.metrics.insert("server_interface".to_owned(), end);
            }
        }
        if let Err(error) = files.send(Arc::clone(&self.namespace)) {
            if call.known.is_none() {
                self.forget(&connection.id);
            }
            return Err(Status::unavailable(format!("cannot pass the namespace: {error}")));
        }
        self.tell(&connection);
        Ok(connection)
    }

    async fn close(&self, call: Call) -> Result<(), Status> {
        self.forget(&call.connection.id);
        Ok(())
    }
}

impl From<IpamError> for Status {
    fn from(error: IpamError) -> Self {
        match error {
            IpamError::Full(_) => Self::resource_exhausted(error.to_string()),
            IpamError::Excluded(_) | IpamError::TooManyExcluded(_) => Self::invalid_argument(error.to_string()),
        }
    }
}

/// The name of a connection's interface, which no other connection has: of a hundred, two would be alike in one case of fourteen.
fn name_of(interfaces: &mut BTreeMap<String, String>, id: &str, service: &str) -> String {
    if let Some(name) = interfaces.get(id) {
        return name.clone();
    }
    let mut name = interface_name(service);
    while interfaces.values().any(|other| *other == name) {
        name = interface_name(service);
    }
    interfaces.insert(id.to_owned(), name.clone());
    name
}

/// Some of the service's name, and letters by chance.
fn interface_name(service: &str) -> String {
    let is_plain = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '-' || *letter == '_';
    let mut name: String = service.chars().filter(is_plain).take(INTERFACE_SERVICE_MAX).collect();
    name.push('-');
    let random = crate::path::new_id();
    let rest = INTERFACE_MAX - name.len();
    name.extend(random.chars().filter(char::is_ascii_alphanumeric).take(rest));
    name
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tokens {
    /// The one of a connection, which it keeps.
    fn of(&mut self, id: &str) -> Option<String> {
        if !self.used.contains_key(id) {
            self.used.insert(id.to_owned(), self.free.pop()?);
        }
        self.used.get(id).cloned()
    }

    fn give_back(&mut self, id: &str) {
        self.free.extend(self.used.remove(id));
    }
}

fn local<const N: usize>(kind: &str, parameters: [(&str, String); N]) -> Mechanism {
    let parameters = parameters.map(|(key, value)| (key.to_owned(), value)).into();
    Mechanism { cls: "LOCAL".to_owned(), r#type: kind.to_owned(), parameters }
}

const KERNEL: &str = "KERNEL";
const VFIO: &str = "VFIO";
const IP: &str = "IP";
const NOOP: &str = "NOOP";
/// IFNAMSIZ, less the zero at its end.
const INTERFACE_MAX: usize = 15;
const INTERFACE_SERVICE_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::monitor::Monitor;
    use crate::path::Place;
    use crate::service::Answered;

    #[test]
    fn a_client_with_a_vf_is_met_by_one_as_long_as_there_are_some() {
        let namespace = Arc::new(OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap()));
        let endpoint = |offers: &[EndpointMechanism]| {
            let endpoint = Endpoint::new(Arc::clone(&namespace), &[]).unwrap().with_mechanisms(offers);
            endpoint.with_tokens(vec!["sriov-1".to_owned()])
        };
        let token = |endpoint: &Endpoint, id: &str, wanted: &[&str]| {
            let mechanism = endpoint.mechanism(id, "s", wanted).ok()?;
            let has_namespace = mechanism.parameters.contains_key(INODE_URL);
            Some((mechanism.r#type, mechanism.parameters.get(TOKEN).cloned(), has_namespace))
        };
        let beside_vf = [NOOP, KERNEL, VFIO];
        for (kind, offers, has_namespace) in [
            (KERNEL, &[EndpointMechanism::Kernel][..], true),
            (VFIO, &[EndpointMechanism::Kernel, EndpointMechanism::Vfio], false),
            (VFIO, &[EndpointMechanism::Vfio], false),
        ] {
            let endpoint = endpoint(offers);
            let vf = Some((kind.to_owned(), Some("sriov-1".to_owned()), has_namespace));
            assert_eq!(
                [token(&endpoint, "a", &beside_vf), token(&endpoint, "a", &beside_vf)],
                [vf.clone(), vf.clone()]
            );
            assert_eq!(token(&endpoint, "b", &beside_vf), Some((NOOP.to_owned(), None, false)));
            endpoint.forget("a");
            assert_eq!(token(&endpoint, "b", &beside_vf), vf);
            let plain = offers.contains(&EndpointMechanism::Kernel).then(|| (KERNEL.to_owned(), None, true));
            assert_eq!(token(&endpoint, "plain", &[KERNEL]), plain);
        }
        assert_eq!(
            token(&endpoint(&[EndpointMechanism::Memif]), "a", &beside_vf),
            Some((NOOP.to_owned(), None, false))
        );
    }

    #[test]
    fn whoever_asks_chooses_and_what_a_connection_has_stays() {
        let namespace = Arc::new(OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap()));
        let endpoint = Endpoint::new(namespace, &[]).unwrap();
        let kind =
            |endpoint: &Endpoint, wanted: &[&str]| endpoint.mechanism("a", "s", wanted).ok().map(|found| found.r#type);
        assert_eq!(kind(&endpoint, &[MEMIF]), None);
        let endpoint = endpoint.with_mechanisms(&[EndpointMechanism::Kernel, EndpointMechanism::Memif]);
        assert_eq!(kind(&endpoint, &[MEMIF, KERNEL]).as_deref(), Some(MEMIF));
        assert_eq!(kind(&endpoint, &[KERNEL, MEMIF, KERNEL]).as_deref(), Some(KERNEL));
        assert_eq!(kind(&endpoint, &["VHOST_USER", VFIO]), None);
        let memif = endpoint.mechanism("a", "s", &[MEMIF]).unwrap();
        assert_eq!(memif.parameters[SOCKET_FILE], "@ferrule/nse/a/memif.socket");
    }

    #[tokio::test]
    async fn what_cannot_be_passed_takes_nothing() {
        let namespace = Arc::new(OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap()));
        let endpoint = Endpoint::new(namespace, &[]).unwrap().with_tokens(vec!["sriov-1".to_owned()]);
        let call = Call {
            connection: Connection { id: "a".to_owned(), ..Connection::default() },
            preferences: vec![local(NOOP, []), local(KERNEL, [])],
            known: None,
            place: Place { own: 0, caller: 0 },
            peer: None,
            limit: Duration::from_secs(1),
            monitor: Monitor::default(),
            answered: Answered::default(),
        };
        assert_eq!(endpoint.request(call).await.unwrap_err().code(), tonic::Code::FailedPrecondition);
        assert_eq!((lock(&endpoint.tokens).free.len(), lock(&endpoint.interfaces).len()), (1, 0));
    }

    #[test]
    fn a_connection_that_is_by_memif_no_more_has_no_socket_any_more() {
        struct Listeners(Arc<Mutex<Vec<String>>>);

        impl MemifServer for Listeners {
            fn open(&self, socket: MemifSocket) {
                lock(&self.0).push(socket.socket);
            }

            fn close(&self, _: &str) {
                lock(&self.0).clear();
            }
        }

        let namespace = Arc::new(OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap()));
        let sockets = Arc::<Mutex<Vec<String>>>::default();
        let endpoint = Endpoint::new(namespace, &[]).unwrap().with_memifs(Listeners(Arc::clone(&sockets)));
        let tell = |mechanism| {
            endpoint.tell(&Connection { mechanism: Some(mechanism), ..Connection::default() });
            lock(&sockets).clone()
        };
        assert_eq!(tell(local(MEMIF, [(SOCKET_FILE, "@a".to_owned())])), ["@a"]);
        assert!(tell(local(KERNEL, [])).is_empty());
    }

    #[test]
    fn no_two_connections_have_one_name_and_each_keeps_its_own() {
        let mut interfaces = BTreeMap::new();
        let names: Vec<_> = (0..1000).map(|id| name_of(&mut interfaces, &id.to_string(), "icmp-responder")).collect();
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
        assert_eq!(name_of(&mut interfaces, "7", "icmp-responder"), names[7]);
    }

    #[test]
    fn an_interface_has_a_name_that_the_kernel_takes() {
        for service in ["icmp-responder", "", "a/b c", "überlang-überlang"] {
            let name = interface_name(service);
            assert_eq!(name.len(), INTERFACE_MAX, "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{name}");
        }
        assert!(interface_name("icmp-responder").starts_with("icmp-respo-"));
        assert_ne!(interface_name("x"), interface_name("x"));
    }
}
