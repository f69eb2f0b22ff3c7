//! A registry over a real socket, and its clients.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};

use super::path::{RegistryPath, RegistrySegment};
use super::{
    LocalRegistry, Lookup, MemoryRegistry, Registration, RegistryCache, RegistryClient, RegistryLimits, RegistryServer,
};
use crate::identity::test_identities::Identities;
use crate::identity::{Certificate, Identity, IdentitySource, SpiffeIds};
use crate::policy::Owner;
use crate::proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use crate::proto::registry::network_service_endpoint_registry_server::NetworkServiceEndpointRegistry;
use crate::proto::registry::network_service_registry_server::{NetworkServiceRegistry, NetworkServiceRegistryServer};
use crate::proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceQuery, NetworkServiceResponse,
};
use crate::test_process::TestProcess;
use crate::token::test_tokens::signed_as;
use crate::transport::{
    Address, Allowed, Connection, DialOptions, KeptConnection, ListenLimits, Listener, Peer, server,
};

const DEADLINE: Duration = Duration::from_secs(30);

/// A registry at a socket, until it is dropped.
struct Served {
    registry: Arc<MemoryRegistry>,
    relays: SpiffeIds,
    address: Address,
    _process: TestProcess,
}

impl Served {
    async fn new(directory: &Path, identities: &Identities, limits: RegistryLimits) -> Self {
        let registry = Arc::new(MemoryRegistry::new(limits));
        let address = Address::Unix(directory.join("registry.sock"));
        let (sender, source) = IdentitySource::new(identities.identity("/registry"));
        let (process, bound) = (TestProcess::new(), address.clone());
        let bound = process.spawn(async move {
            Listener::bind(&bound, source, Allowed::AnyTrusted, ListenLimits::default()).await.unwrap()
        });
        let listener = bound.await.unwrap();
        let calls = RegistryServer::new(LocalRegistry::new(Arc::clone(&registry)), Duration::from_mins(10));
        let relays = calls.relays().clone();
        let router = server().add_service(calls.endpoints()).add_service(calls.services());
        let running = Arc::clone(&registry);
        process.spawn(async move {
            let _sender = sender;
            tokio::select! {
                () = running.run() => {}
                served = router.serve_with_incoming(listener.connections()) => served.unwrap(),
            }
        });
        Self { registry, relays, address, _process: process }
    }

    fn client(&self, identities: &Identities, path: &str) -> Arc<RegistryClient> {
        let (_, source) = IdentitySource::new(identities.identity(path));
        let options = DialOptions { timeout: DEADLINE, ..DialOptions::default() };
        Arc::new(RegistryClient::new(KeptConnection::new(self.address.clone(), source, options), DEADLINE))
    }
}

/// The file of a socket goes with its listener, a little later.
async fn gone(path: &Path) {
    let going = async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, going).await.expect("the file goes");
}

fn endpoint(name: &str) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint {
        name: name.to_owned(),
        network_service_names: vec!["vpn".to_owned()],
        url: format!("unix:///run/{name}.sock"),
        ..NetworkServiceEndpoint::default()
    }
}

fn service(name: &str) -> NetworkService {
    NetworkService { name: name.to_owned(), ..NetworkService::default() }
}

#[tokio::test]
async fn what_is_registered_is_found_with_its_owner_and_its_way() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let served = Served::new(directory.path(), &identities, RegistryLimits::default()).await;
    let client = served.client(&identities, "/nse");
    let registered = client.register(&endpoint("nse-1"), None).await.unwrap();
    assert_eq!(registered.path_ids, ["spiffe://example.org/nse", "spiffe://example.org/registry"]);
    assert!(registered.expiration_time.is_some() && registered.initial_registration_time.is_some());
    // What the answer said is no wish.
    let again = client.register(&registered, None).await.unwrap();
    assert!(again.expiration_time.unwrap().seconds >= registered.expiration_time.unwrap().seconds);
    client.register_service(&service("vpn")).await.unwrap();
    assert_eq!(client.find_services(service("vpn")).await.unwrap()[0].payload, "IP");
    assert!(client.find_services(service("dns")).await.unwrap().is_empty());
    let found =
        client.find_endpoints(NetworkServiceEndpoint { url: String::new(), ..endpoint("nse-1") }).await.unwrap();
    assert_eq!(found[0].endpoint, again);
    client.unregister(&registered, None).await.unwrap();
    client.unregister(&registered, None).await.unwrap();
    assert!(client.find_endpoints(NetworkServiceEndpoint::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_name_of_somebody_else_is_refused_and_so_is_what_is_no_registration() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let served = Served::new(directory.path(), &identities, RegistryLimits::default()).await;
    let [mine, theirs] = ["/nse", "/other"].map(|path| served.client(&identities, path));
    mine.register(&endpoint("nse-1"), None).await.unwrap();
    for refused in
        [theirs.register(&endpoint("nse-1"), None).await.map(drop), theirs.unregister(&endpoint("nse-1"), None).await]
    {
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    }
    assert_eq!(theirs.register(&endpoint(""), None).await.unwrap_err().code(), Code::InvalidArgument);
    // Without the path beside it, whoever calls.
    let connection = mine.connection().await.unwrap();
    let mut client = NetworkServiceEndpointRegistryClient::new(connection.calls());
    assert_eq!(client.register(endpoint("nse-2")).await.unwrap_err().code(), Code::PermissionDenied);
    // A path of somebody else's tokens.
    let mut request = Request::new(endpoint("nse-2"));
    let tokens = r#"{"Index":1,"PathSegments":[{"token":"a.b.c"},{"token":"d.e.f"}]}"#;
    request.metadata_mut().insert("path", tokens.parse().unwrap());
    assert_eq!(client.register(request).await.unwrap_err().code(), Code::PermissionDenied);
}

/// Registers as somebody who says that `tokens` came before it.
async fn register_after(
    served: &Served,
    caller: &Identity,
    tokens: &[String],
    endpoint: NetworkServiceEndpoint,
) -> Result<NetworkServiceEndpoint, Status> {
    let options = DialOptions { timeout: DEADLINE, ..DialOptions::default() };
    let connection = Connection::dial(&served.address, caller, &options).await.unwrap();
    let segments = tokens.iter().cloned().chain([String::new()]).map(|token| RegistrySegment { token }).collect();
    let mut request = Request::new(endpoint);
    let path = RegistryPath { index: u32::try_from(tokens.len()).unwrap(), segments: Some(segments) };
    path.write(request.metadata_mut()).unwrap();
    let mut client = NetworkServiceEndpointRegistryClient::new(connection.calls());
    client.register(request).await.map(Response::into_inner)
}

#[tokio::test]
async fn nobody_takes_a_name_over_by_saying_that_it_came_from_its_owner() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let limits = RegistryLimits { owned_max: 2, ..RegistryLimits::default() };
    let served = Served::new(directory.path(), &identities, limits).await;
    served.client(&identities, "/nse").register(&endpoint("nse-1"), None).await.unwrap();
    let thief = identities.identity("/thief");
    let forged = |subject: &str| {
        vec![signed_as(&thief.svid, &format!("spiffe://example.org/{subject}"), "spiffe://example.org/thief")]
    };
    let stolen = NetworkServiceEndpoint { url: "unix:///run/thief.sock".to_owned(), ..endpoint("nse-1") };
    let refused = register_after(&served, &thief, &forged("nse"), stolen).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let found = served.registry.find_endpoints(&NetworkServiceEndpoint::default());
    assert_eq!(found[0].network_service_endpoint.as_ref().unwrap().url, "unix:///run/nse-1.sock");
    // Whoever it says it comes from: what it registers is its own.
    for owner in ["a", "b"] {
        register_after(&served, &thief, &forged(owner), endpoint(owner)).await.unwrap();
    }
    let refused = register_after(&served, &thief, &forged("c"), endpoint("c")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
}

#[tokio::test]
async fn what_a_manager_registers_for_others_is_theirs() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let served = Served::new(directory.path(), &identities, RegistryLimits::default()).await;
    served.relays.add("spiffe://example.org/nsmgr/*").unwrap();
    let nse = identities.identity("/nse");
    let through = |manager: &str| vec![signed_as(&nse.svid, "spiffe://example.org/nse", manager)];
    for manager in ["/nsmgr/1", "/nsmgr/2"] {
        let manager = identities.identity(manager);
        let id = manager.svid.certificate().id().to_string();
        let registered = register_after(&served, &manager, &through(&id), endpoint("nse-1")).await.unwrap();
        assert_eq!(registered.path_ids[..2], ["spiffe://example.org/nse".to_owned(), id]);
    }
    served.client(&identities, "/nse").register(&endpoint("nse-1"), None).await.unwrap();
}

#[tokio::test]
async fn an_endpoint_whose_socket_does_not_come_hides_no_others() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let served = Served::new(directory.path(), &identities, RegistryLimits::default()).await;
    served.client(&identities, "/nse").register(&endpoint("nse-1"), None).await.unwrap();
    // As a registry of others lets itself be told.
    let bad = NetworkServiceEndpoint { url: "inode://1/2".to_owned(), ..endpoint("bad") };
    let owner = Owner::new(vec!["spiffe://example.org/bad".to_owned()], &SpiffeIds::default());
    let now = SystemTime::now();
    served.registry.register_endpoint(bad, &owner, now + DEADLINE, now).unwrap();
    let client = served.client(&identities, "/fwd");
    let names =
        |found: Vec<super::FoundEndpoint>| found.into_iter().map(|found| found.endpoint.name).collect::<Vec<_>>();
    assert_eq!(names(client.find_endpoints(NetworkServiceEndpoint::default()).await.unwrap()), ["nse-1"]);
    let cache = Arc::new(RegistryCache::new(client));
    let running = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { cache.run().await }
    });
    timeout(DEADLINE, cache.known()).await.expect("all is known");
    served.client(&identities, "/nse").register(&endpoint("nse-2"), None).await.unwrap();
    let followed = async {
        while names(cache.find_endpoints(NetworkServiceEndpoint::default(), Lookup::Known).await.unwrap())
            != ["nse-1", "nse-2"]
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, followed).await.expect("it goes on following");
    running.abort();
}

#[tokio::test]
async fn answers_that_nobody_reads_are_bounded_for_each_caller() {
    let identities = Identities::new("example.org");
    let [registry, greedy, other] = ["/registry", "/greedy", "/other"].map(|path| identities.identity(path));
    let memory = Arc::new(MemoryRegistry::new(RegistryLimits::default()));
    let owner = Owner::new(vec!["a".to_owned()], &SpiffeIds::default());
    for number in 0..20 {
        let now = SystemTime::now();
        memory.register_endpoint(endpoint(&number.to_string()), &owner, now + DEADLINE, now).unwrap();
    }
    let calls = RegistryServer::new(LocalRegistry::new(memory), Duration::from_mins(10));
    let find = async |caller: &Identity, name: &str| {
        let endpoint = NetworkServiceEndpoint { name: name.to_owned(), ..NetworkServiceEndpoint::default() };
        let query = NetworkServiceEndpointQuery { network_service_endpoint: Some(endpoint), watch: false };
        let mut request = Request::new(query);
        request.extensions_mut().insert(Peer::seen_by(&registry, caller));
        NetworkServiceEndpointRegistry::find(&calls, request).await
    };
    let mut unread = Vec::new();
    let refused = loop {
        match find(&greedy, "").await {
            Ok(answer) => unread.push(answer),
            Err(status) => break status,
        }
    };
    assert_eq!((refused.code(), unread.len()), (Code::ResourceExhausted, 256));
    assert!(find(&other, "").await.is_ok());
    let large = find(&other, &"x".repeat(5000)).await.err().unwrap();
    assert_eq!(large.code(), Code::InvalidArgument);
    drop(unread);
    let again = async {
        while find(&greedy, "").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, again).await.expect("it has gone");
}

/// Remembers over which connections it was asked. It denies what it is asked over the first one, and finds nothing ever.
#[derive(Clone, Default)]
struct Odd(Arc<std::sync::Mutex<Vec<Arc<Certificate>>>>);

#[tonic::async_trait]
impl NetworkServiceRegistry for Odd {
    type FindStream = tokio_stream::wrappers::ReceiverStream<Result<NetworkServiceResponse, Status>>;

    async fn register(&self, request: Request<NetworkService>) -> Result<Response<NetworkService>, Status> {
        if self.remember(&request) == 1 {
            return Err(Status::permission_denied("no sufficient privileges: the key is an old one"));
        }
        Ok(Response::new(request.into_inner()))
    }

    async fn find(&self, request: Request<NetworkServiceQuery>) -> Result<Response<Self::FindStream>, Status> {
        self.remember(&request);
        std::future::pending().await
    }

    async fn unregister(&self, _: Request<NetworkService>) -> Result<Response<()>, Status> {
        std::future::pending().await
    }
}

impl Odd {
    /// Of how many connections this is the last.
    fn remember<T>(&self, request: &Request<T>) -> usize {
        let peer = request.extensions().get::<Peer>().expect("every call has it");
        let mut asked = self.0.lock().unwrap();
        if asked.last().is_none_or(|last| !Arc::ptr_eq(last, peer.certificate())) {
            asked.push(Arc::clone(peer.certificate()));
        }
        asked.len()
    }

    /// Serves at a socket, for a client that waits for a second.
    async fn serve(&self, directory: &Path) -> (RegistryClient, tokio::task::JoinHandle<()>) {
        let identities = Identities::new("example.org");
        let address = Address::Unix(directory.join("s"));
        let (_, source) = IdentitySource::new(identities.identity("/registry"));
        let listener = Listener::bind(&address, source, Allowed::AnyTrusted, ListenLimits::default()).await.unwrap();
        let router = server().add_service(NetworkServiceRegistryServer::new(self.clone()));
        let serving = tokio::spawn(async move { router.serve_with_incoming(listener.connections()).await.unwrap() });
        let (_, source) = IdentitySource::new(identities.identity("/fwd"));
        let options = DialOptions { timeout: DEADLINE, ..DialOptions::default() };
        (RegistryClient::new(KeptConnection::new(address, source, options), Duration::from_secs(1)), serving)
    }
}

#[tokio::test]
async fn a_connection_over_which_no_answer_comes_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let odd = Odd::default();
    let (client, serving) = odd.serve(directory.path()).await;
    for connections in 1..=2 {
        let late = client.find_services(NetworkService::default()).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        assert_eq!(odd.0.lock().unwrap().len(), connections);
    }
    serving.abort();
}

#[tokio::test]
async fn what_is_denied_over_a_kept_connection_is_asked_for_once_more_over_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let odd = Odd::default();
    let (client, serving) = odd.serve(directory.path()).await;
    assert_eq!(client.register_service(&service("vpn")).await.unwrap().name, "vpn");
    assert_eq!(odd.0.lock().unwrap().len(), 2);
    serving.abort();
}

#[tokio::test]
async fn a_client_with_too_many_endpoints_is_refused_and_others_go_on() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let limits = RegistryLimits { owned_max: 3, ..RegistryLimits::default() };
    let served = Served::new(directory.path(), &identities, limits).await;
    let [greedy, other] = ["/greedy", "/other"].map(|path| served.client(&identities, path));
    for name in ["a", "b", "c"] {
        greedy.register(&endpoint(name), None).await.unwrap();
    }
    assert_eq!(greedy.register(&endpoint("d"), None).await.unwrap_err().code(), Code::ResourceExhausted);
    other.register(&endpoint("d"), None).await.unwrap();
}

#[tokio::test]
async fn a_watcher_that_never_reads_keeps_nobody_from_registering() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let limits = RegistryLimits { unread_max: 4, watchers_of_one_max: 1, ..RegistryLimits::default() };
    let served = Served::new(directory.path(), &identities, limits).await;
    let watcher = served.client(&identities, "/watcher");
    let connection = watcher.connection().await.unwrap();
    let mut client = NetworkServiceEndpointRegistryClient::new(connection.calls());
    let query = NetworkServiceEndpointQuery { network_service_endpoint: None, watch: true };
    let mut never_read = client.find(query.clone()).await.unwrap().into_inner();
    assert_eq!(client.find(query).await.unwrap_err().code(), Code::ResourceExhausted, "one may watch");
    let nse = served.client(&identities, "/nse");
    let mut large = endpoint("nse");
    large.url = format!("unix:///{}", "x".repeat(60 << 10));
    for number in 0..100 {
        let named = NetworkServiceEndpoint { name: format!("nse-{number}"), ..large.clone() };
        timeout(DEADLINE, nse.register(&named, None)).await.expect("an answer").unwrap();
    }
    // It is told of what was sent before, and then that it is too slow.
    let ended = timeout(DEADLINE, async {
        loop {
            if let Err(status) = never_read.message().await {
                return status;
            }
        }
    });
    assert_eq!(ended.await.expect("an end").code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_cache_knows_what_is_registered_and_forgets_when_the_registry_goes() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let served = Served::new(directory.path(), &identities, RegistryLimits::default()).await;
    let nse = served.client(&identities, "/nse");
    nse.register(&endpoint("nse-1"), None).await.unwrap();
    nse.register_service(&service("vpn")).await.unwrap();
    let cache = Arc::new(RegistryCache::new(served.client(&identities, "/fwd")));
    let running = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { cache.run().await }
    });
    timeout(DEADLINE, cache.known()).await.expect("all is known");
    let names = async || {
        let found = cache.find_endpoints(NetworkServiceEndpoint::default(), Lookup::Known).await.unwrap();
        found.into_iter().map(|found| found.endpoint.name).collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["nse-1"]);
    assert_eq!(cache.find_services(service("vpn"), Lookup::Known).await.unwrap().len(), 1);
    nse.register(&endpoint("nse-2"), None).await.unwrap();
    nse.unregister(&endpoint("nse-1"), None).await.unwrap();
    timeout(DEADLINE, async {
        while names().await != ["nse-2"] {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the cache follows");
    drop(served);
    let again = timeout(DEADLINE, async {
        while cache.find_endpoints(NetworkServiceEndpoint::default(), Lookup::Known).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    again.await.expect("nothing is known of a registry that is gone");
    running.abort();
}

#[tokio::test]
async fn a_registration_is_kept_over_the_registrys_restart_and_taken_out_at_the_end() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let first = Served::new(directory.path(), &identities, RegistryLimits::default()).await;
    let registration = Registration::new(first.client(&identities, "/nse"), endpoint("nse-1"), None);
    let mut registered = registration.is_registered();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(async move { registration.run(async { drop(stopped.await) }).await });
    timeout(DEADLINE, registered.wait_for(|is| *is)).await.expect("it is registered").unwrap();
    drop(first);
    timeout(DEADLINE, registered.wait_for(|is| !*is)).await.expect("it notices").unwrap();
    gone(&directory.path().join("registry.sock")).await;
    let second = Served::new(directory.path(), &identities, RegistryLimits::default()).await;
    timeout(DEADLINE, registered.wait_for(|is| *is)).await.expect("it is registered again").unwrap();
    assert_eq!(second.registry.find_endpoints(&NetworkServiceEndpoint::default()).len(), 1);
    stop.send(()).unwrap();
    timeout(DEADLINE, running).await.expect("it stops").unwrap();
    assert!(second.registry.find_endpoints(&NetworkServiceEndpoint::default()).is_empty());
}

#[test]
fn the_recorded_answer_of_a_registration_is_read() {
    let record: serde_json::Value = serde_json::from_str(include_str!("../../tests/data/register.json")).unwrap();
    let headers: serde_json::Value = serde_json::from_str(record["x"].as_str().unwrap()).unwrap();
    let mut answer = tonic::metadata::MetadataMap::new();
    answer.insert("path", headers["resp_header"]["path"][0].as_str().unwrap().parse().unwrap());
    let path = RegistryPath::read(&answer).unwrap();
    let subjects: Vec<_> = path
        .segments
        .iter()
        .flatten()
        .map(|segment| crate::token::Claims::parse(&segment.token).unwrap().subject)
        .collect();
    assert_eq!(path.index, 0);
    assert_eq!(subjects, ["spiffe://example.org/fwd", "spiffe://example.org/nsmgr", "spiffe://example.org/registry"]);
}
