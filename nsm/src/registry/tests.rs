//! A registry over a real socket, and its clients.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::{Code, Request};

use super::path::RegistryPath;
use super::{
    LocalRegistry, MemoryRegistry, Registration, RegistryCache, RegistryClient, RegistryLimits, RegistryServer,
};
use crate::identity::IdentitySource;
use crate::identity::test_identities::Identities;
use crate::proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use crate::proto::registry::{NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery};
use crate::test_process::TestProcess;
use crate::transport::{Address, Allowed, DialOptions, KeptConnection, ListenLimits, Listener, server};

const DEADLINE: Duration = Duration::from_secs(30);

/// A registry at a socket, until it is dropped.
struct Served {
    registry: Arc<MemoryRegistry>,
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
        let router = server().add_service(calls.endpoints()).add_service(calls.services());
        let running = Arc::clone(&registry);
        process.spawn(async move {
            let _sender = sender;
            tokio::select! {
                () = running.run() => {}
                served = router.serve_with_incoming(listener.connections()) => served.unwrap(),
            }
        });
        Self { registry, address, _process: process }
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
    let limits = RegistryLimits { unread_max: 4, watchers_max: 1, ..RegistryLimits::default() };
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
        let found = cache.find_endpoints(NetworkServiceEndpoint::default()).await.unwrap();
        found.into_iter().map(|found| found.endpoint.name).collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["nse-1"]);
    assert_eq!(cache.find_services(service("vpn")).await.unwrap().len(), 1);
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
        while cache.find_endpoints(NetworkServiceEndpoint::default()).await.is_ok() {
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
