//! An endpoint: it gives its clients addresses, and the place where its end of the link is to be.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tonic::Status;

use super::ipam::{Ipam, IpamError};
use crate::client::TOKEN;
use crate::files::Inode;
use crate::proto::connection::{Connection, Mechanism};
use crate::service::{Call, Handler, INODE_URL};
use crate::transport::Peer;

/// Serves connections of kernel interfaces, which its forwarder makes in a network namespace of the endpoint's.
pub struct KernelEndpoint {
    namespace: Arc<OwnedFd>,
    inode: Inode,
    ipam: Mutex<Ipam>,
    /// By the ids of their connections.
    interfaces: Mutex<BTreeMap<String, String>>,
    tokens: Mutex<Tokens>,
}

/// Of VFs that the endpoint's pod has.
#[derive(Default)]
struct Tokens {
    free: Vec<String>,
    /// By the ids of their connections.
    used: BTreeMap<String, String>,
}

impl KernelEndpoint {
    /// With its ends in this namespace, and addresses out of these prefixes.
    ///
    /// # Errors
    /// The kernel cannot say which file it is.
    pub fn new(namespace: Arc<OwnedFd>, prefixes: &[IpNet]) -> std::io::Result<Self> {
        let inode = Inode::of(&namespace)?;
        Ok(Self {
            namespace,
            inode,
            ipam: Mutex::new(Ipam::new(prefixes)),
            interfaces: Mutex::default(),
            tokens: Mutex::default(),
        })
    }

    /// With VFs for clients that have some themselves: one for each, as long as there are tokens.
    #[must_use]
    pub fn with_tokens(self, tokens: Vec<String>) -> Self {
        Self { tokens: Mutex::new(Tokens { free: tokens, used: BTreeMap::new() }), ..self }
    }

    /// What the answer says of the interface; its name stays as long as the connection. A client that has a VF has no other end beside it than
    /// a VF, or one that nobody makes (NOOP).
    fn mechanism(&self, id: &str, service: &str, beside_vf: bool) -> Mechanism {
        let token = if beside_vf { lock(&self.tokens).of(id) } else { None };
        if beside_vf && token.is_none() {
            return Mechanism { cls: "LOCAL".to_owned(), r#type: NOOP.to_owned(), parameters: BTreeMap::new() };
        }
        let name = name_of(&mut lock(&self.interfaces), id, service);
        let parameters = [(INODE_URL.to_owned(), self.inode.to_string()), ("name".to_owned(), name)];
        let mut parameters: BTreeMap<_, _> = parameters.into();
        parameters.extend(token.map(|token| (TOKEN.to_owned(), token)));
        Mechanism { cls: "LOCAL".to_owned(), r#type: KERNEL.to_owned(), parameters }
    }

    fn forget(&self, id: &str) {
        lock(&self.ipam).release(id);
        lock(&self.interfaces).remove(id);
        lock(&self.tokens).give_back(id);
    }
}

#[tonic::async_trait]
impl Handler for KernelEndpoint {
    async fn request(&self, call: Call) -> Result<Connection, Status> {
        let mut connection = call.connection;
        let is_wanted = |kind: &str| {
            let mut wanted = connection.mechanism.iter().chain(&call.preferences);
            wanted.any(|mechanism| mechanism.r#type == kind)
        };
        let beside_vf = is_wanted(NOOP);
        if !beside_vf && !is_wanted(KERNEL) {
            return Err(Status::unimplemented(
                "cannot support any of the requested mechanism: this endpoint has KERNEL only",
            ));
        }
        let files = call.peer.as_ref().and_then(Peer::files);
        let files = files.ok_or_else(|| {
            Status::failed_precondition("a namespace cannot be passed over TCP: connect to the endpoint's Unix socket")
        })?;
        let context = connection.context.get_or_insert_default();
        if let Some(ethernet) = &mut context.ethernet_context {
            // Our end, and the network that the ends of VFs are in, are not the client's to choose.
            ethernet.dst_mac.clear();
            ethernet.vlan_tag = 0;
        }
        let context = context.ip_context.get_or_insert_default();
        lock(&self.ipam).assign(&connection.id, context)?;
        connection.mechanism = Some(self.mechanism(&connection.id, &connection.network_service, beside_vf));
        // We call nobody: what lies behind was another's.
        let interface = connection.mechanism.as_ref().and_then(|mechanism| mechanism.parameters.get("name"));
        if let Some(path) = &mut connection.path {
            call.place.trim(path);
            if let (Some(segment), Some(interface)) = (path.path_segments.get_mut(call.place.own), interface) {
                segment.metrics.insert("server_interface".to_owned(), format!("{KERNEL}/{interface}"));
            }
        }
        if let Err(error) = files.send(Arc::clone(&self.namespace)) {
            if call.known.is_none() {
                self.forget(&connection.id);
            }
            return Err(Status::unavailable(format!("cannot pass the namespace: {error}")));
        }
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

const KERNEL: &str = "KERNEL";
const NOOP: &str = "NOOP";
/// IFNAMSIZ, less the zero at its end.
const INTERFACE_MAX: usize = 15;
const INTERFACE_SERVICE_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_with_a_vf_is_met_by_one_as_long_as_there_are_some() {
        let namespace = Arc::new(OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap()));
        let endpoint = KernelEndpoint::new(namespace, &[]).unwrap().with_tokens(vec!["sriov-1".to_owned()]);
        let token = |id: &str, beside_vf| {
            let mechanism = endpoint.mechanism(id, "s", beside_vf);
            (mechanism.r#type, mechanism.parameters.get(TOKEN).cloned())
        };
        let (kernel, vf) = (KERNEL.to_owned(), Some("sriov-1".to_owned()));
        assert_eq!(token("plain", false), (kernel.clone(), None));
        assert_eq!([token("a", true), token("a", true)], [(kernel.clone(), vf.clone()), (kernel.clone(), vf.clone())]);
        assert_eq!(token("b", true), (NOOP.to_owned(), None));
        endpoint.forget("a");
        assert_eq!(token("b", true), (kernel, vf));
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
