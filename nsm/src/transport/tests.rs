//! Two processes with identities, over real sockets.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ferrule_ffi::unix::{Kind, UnixSocket};
use rustix::fs::{Mode, OFlags, open};
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};

use super::tls::client_config;
use super::{Address, Allowed, Connection, DialOptions, KeptConnection, ListenLimits, Listener, Peer, server};
use crate::files::{FileError, Inode};
use crate::identity::test_identities::Identities;
use crate::identity::{Identity, IdentitySource};
use crate::proto::connection::Connection as Wire;
use crate::proto::networkservice::NetworkServiceRequest;
use crate::proto::networkservice::network_service_client::NetworkServiceClient;
use crate::proto::networkservice::network_service_server::{NetworkService, NetworkServiceServer};
use crate::test_process::TestProcess;
use crate::token::{Claims, Token};

const DEADLINE: Duration = Duration::from_secs(30);

/// Answers who called; given a file's name in `id`, it waits for that file and passes it back.
struct Echo;

#[tonic::async_trait]
impl NetworkService for Echo {
    async fn request(&self, request: Request<NetworkServiceRequest>) -> Result<Response<Wire>, Status> {
        let peer = request.extensions().get::<Peer>().expect("every call has it").clone();
        let token = Token::from_headers(request.metadata(), peer.certificate()).unwrap().expect("every call has one");
        let claims = Claims::verify(&token.text, peer.certificate())
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        assert_eq!(claims.audience, [peer.svid().certificate().id().to_string()]);
        let mut answer = request.into_inner().connection.unwrap_or_default();
        if let Ok(inode) = answer.id.parse::<Inode>() {
            let files = peer.files().expect("a Unix socket");
            let file = files.receive(inode, Duration::from_millis(200)).await;
            let file = file.map_err(|error| Status::invalid_argument(error.to_string()))?;
            assert_eq!(files.send(file).unwrap(), inode);
        }
        answer.labels.insert("peer".to_owned(), claims.subject);
        Ok(Response::new(answer))
    }

    async fn close(&self, _: Request<Wire>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

/// A server of some identity, until it is dropped.
struct Served {
    address: Address,
    identity: watch::Sender<Identity>,
    _process: TestProcess,
}

impl Served {
    async fn new(address: &Address, identity: Identity, allowed: Allowed, limits: ListenLimits) -> Self {
        let (identity, source) = IdentitySource::new(identity);
        let process = TestProcess::new();
        let bound = address.clone();
        let bound = process.spawn(async move { Listener::bind(&bound, source, allowed, limits).await.unwrap() });
        let listener = bound.await.unwrap();
        let address = listener.port().map_or(address.clone(), |port| Address::Tcp(format!("127.0.0.1:{port}")));
        let router = server().add_service(NetworkServiceServer::new(Echo));
        process.spawn(async move { router.serve_with_incoming(listener.connections()).await.unwrap() });
        Self { address, identity, _process: process }
    }

    async fn unix(directory: &Path, identity: Identity) -> Self {
        Self::new(&Address::Unix(directory.join("s")), identity, Allowed::AnyTrusted, ListenLimits::default()).await
    }

    async fn dial(&self, identity: &Identity) -> Connection {
        Connection::dial(&self.address, identity, &patient()).await.unwrap()
    }
}

fn patient() -> DialOptions {
    DialOptions { timeout: DEADLINE, ..DialOptions::default() }
}

async fn call(connection: &Connection, id: &str) -> Result<Wire, Status> {
    let wire = Wire { id: id.to_owned(), ..Wire::default() };
    let request = NetworkServiceRequest { connection: Some(wire), ..NetworkServiceRequest::default() };
    let mut client = NetworkServiceClient::new(connection.calls());
    timeout(DEADLINE, client.request(request)).await.expect("an answer").map(Response::into_inner)
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

fn path(name: &Path) -> OwnedFd {
    open(name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

#[tokio::test]
async fn both_ends_know_each_other_over_either_kind_of_socket() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    for address in [Address::Unix(directory.path().join("s")), "tcp://127.0.0.1:0".parse().unwrap()] {
        let served =
            Served::new(&address, identities.identity("/fwd"), Allowed::AnyTrusted, ListenLimits::default()).await;
        let connection = served.dial(&identities.identity("/nsmgr")).await;
        assert_eq!(connection.peer().certificate().id().as_str(), "spiffe://example.org/fwd");
        assert_eq!(call(&connection, "").await.unwrap().labels["peer"], "spiffe://example.org/nsmgr");
        assert_eq!(connection.peer().files().is_some(), matches!(address, Address::Unix(_)));
    }
    gone(&directory.path().join("s")).await;
}

#[tokio::test]
async fn federated_trust_domains_know_each_other() {
    let [ours, theirs] = ["example.org", "other.example"].map(Identities::new);
    let mut both = ours.0.bundles().unwrap();
    both.set(theirs.0.trust_domain().clone(), &[theirs.0.certificate().clone()]).unwrap();
    let hour = Duration::from_hours(1);
    let directory = tempfile::tempdir().unwrap();
    let served = Served::unix(directory.path(), ours.identity_for("/fwd", hour, both.clone())).await;
    let connection = served.dial(&theirs.identity_for("/nsmgr", hour, both)).await;
    assert_eq!(call(&connection, "").await.unwrap().labels["peer"], "spiffe://other.example/nsmgr");
}

#[tokio::test]
async fn strangers_are_refused_by_either_end() {
    let identities = Identities::new("example.org");
    // The same name, another key.
    let strangers = Identities::new("example.org");
    let hour = Duration::from_hours(1);
    let directory = tempfile::tempdir().unwrap();
    let served = Served::unix(directory.path(), identities.identity("/fwd")).await;
    let refused = Connection::dial(&served.address, &strangers.identity("/nsmgr"), &patient()).await;
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("invalid peer certificate"), "the client does not know the server: {refused}");
    let expired = identities.identity_for("/nsmgr", Duration::ZERO, identities.0.bundles().unwrap());
    // A certificate is good for the whole of its last second.
    while SystemTime::now() <= expired.svid.certificate().not_after() + Duration::from_secs(1) {
        sleep(Duration::from_millis(20)).await;
    }
    // In TLS 1.3 a client learns only with its first call that the server does not believe it.
    for identity in [strangers.identity_for("/nsmgr", hour, identities.0.bundles().unwrap()), expired] {
        match Connection::dial(&served.address, &identity, &patient()).await {
            Ok(connection) => assert!(call(&connection, "").await.is_err()),
            Err(error) => assert!(error.to_string().contains("cannot connect"), "{error}"),
        }
    }
    let good = served.dial(&identities.identity("/nsmgr")).await;
    assert!(call(&good, "").await.is_ok(), "others are served as before");
}

#[tokio::test]
async fn whoever_is_not_allowed_is_refused_though_trusted() {
    let identities = Identities::new("example.org");
    let [fwd, nsmgr, nsc] = ["/fwd", "/nsmgr", "/nsc"].map(|path| identities.identity(path));
    let directory = tempfile::tempdir().unwrap();
    let only = Allowed::Only(Arc::new(BTreeSet::from([nsmgr.svid.certificate().id().clone()])));
    let address = Address::Unix(directory.path().join("s"));
    let served = Served::new(&address, fwd, only.clone(), ListenLimits::default()).await;
    assert!(call(&served.dial(&nsmgr).await, "").await.is_ok());
    if let Ok(connection) = Connection::dial(&address, &nsc, &patient()).await {
        assert!(call(&connection, "").await.is_err());
    }
    let options = DialOptions { allowed: only, ..patient() };
    assert!(Connection::dial(&address, &nsmgr, &options).await.is_err(), "the forwarder is not the manager");
}

#[tokio::test]
async fn a_rotation_changes_new_connections_only() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let old = identities.identity("/fwd");
    let served = Served::unix(directory.path(), old.clone()).await;
    let nsmgr = identities.identity("/nsmgr");
    let before = served.dial(&nsmgr).await;
    let new = identities.identity("/fwd");
    served.identity.send_replace(new.clone());
    let after = served.dial(&nsmgr).await;
    assert_eq!(**before.peer().certificate(), *old.svid.certificate());
    assert_eq!(**after.peer().certificate(), *new.svid.certificate());
    // Tokens of either are checked against the certificate of their own connection.
    for connection in [before, after] {
        assert!(call(&connection, "").await.is_ok());
    }
}

#[tokio::test]
async fn files_go_with_calls_and_come_back_with_answers() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let served = Served::unix(directory.path(), identities.identity("/fwd")).await;
    let connection = served.dial(&identities.identity("/nsmgr")).await;
    let files = connection.peer().files().unwrap();
    for name in ["/proc/self/ns/net", "/", "/proc/self/ns/net"] {
        let inode = files.send(Arc::new(path(name.as_ref()))).unwrap();
        call(&connection, &inode.to_string()).await.unwrap();
        let back = files.receive(inode, DEADLINE).await.unwrap();
        assert_eq!(Inode::of(&back).unwrap(), inode);
    }
}

#[tokio::test]
async fn a_call_without_its_file_is_refused_soon_and_delays_no_other() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let served = Served::unix(directory.path(), identities.identity("/fwd")).await;
    let connection = served.dial(&identities.identity("/nsmgr")).await;
    let (late, other) = tokio::join!(call(&connection, "inode://4/1"), call(&connection, ""));
    let late = late.unwrap_err();
    assert_eq!(late.code(), Code::InvalidArgument);
    assert!(late.message().contains("inode://4/1 was named but did not arrive within 200ms"), "{late}");
    assert!(other.is_ok());
}

#[tokio::test]
async fn many_headers_are_taken_and_too_many_cost_their_own_call_only() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let served = Served::unix(directory.path(), identities.identity("/fwd")).await;
    let connection = served.dial(&identities.identity("/nsmgr")).await;
    let with_headers = |count: usize| {
        let mut request = Request::new(NetworkServiceRequest::default());
        for _ in 0..count {
            request
                .metadata_mut()
                .append("tracing-parent", MetadataValue::from_static("a-uuid-of-thirty-six-characters-12345"));
        }
        let mut client = NetworkServiceClient::new(connection.calls());
        async move { timeout(DEADLINE, client.request(request)).await.expect("an answer") }
    };
    // Each counts with its name and 32 bytes: some 8 KiB, then 80 KiB.
    assert!(with_headers(80).await.is_ok());
    assert!(with_headers(1000).await.is_err());
    assert!(call(&connection, "").await.is_ok());
}

#[tokio::test]
async fn whoever_connects_and_says_nothing_is_cut_and_keeps_nobody_out() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("s"));
    let handshake_timeout = Duration::from_secs(1);
    let limits = ListenLimits { handshakes_max: 1, handshake_timeout, ..ListenLimits::default() };
    let served = Served::new(&address, identities.identity("/fwd"), Allowed::AnyTrusted, limits).await;
    let mut silent = UnixStream::connect(directory.path().join("s")).await.unwrap();
    assert!(call(&served.dial(&identities.identity("/nsmgr")).await, "").await.is_ok());
    assert_eq!(timeout(DEADLINE, silent.read(&mut [0])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn silent_peers_that_come_again_and_again_keep_nobody_out() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("s"));
    let limits = ListenLimits { handshakes_max: 4, handshake_timeout: 2 * DEADLINE, ..ListenLimits::default() };
    let served = Served::new(&address, identities.identity("/fwd"), Allowed::AnyTrusted, limits).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(UnixStream::connect(directory.path().join("s")).await.unwrap());
    }
    let nsmgr = identities.identity("/nsmgr");
    assert!(call(&served.dial(&nsmgr).await, "").await.is_ok());
    assert_eq!(timeout(DEADLINE, silent[0].read(&mut [0])).await.expect("the first is cut").unwrap(), 0);
}

#[tokio::test]
async fn peers_that_reset_at_once_keep_nobody_out() {
    let identities = Identities::new("example.org");
    let address = Address::Tcp("127.0.0.1:0".to_owned());
    let served = Served::new(&address, identities.identity("/fwd"), Allowed::AnyTrusted, ListenLimits::default()).await;
    let Address::Tcp(host_port) = &served.address else { panic!("{:?}", served.address) };
    for _ in 0..400 {
        let reset = std::net::TcpStream::connect(host_port).unwrap();
        rustix::net::sockopt::set_socket_linger(&reset, Some(Duration::ZERO)).unwrap();
    }
    // Had each of them cost a tenth of a second, this would be too late.
    assert!(call(&served.dial(&identities.identity("/nsmgr")).await, "").await.is_ok());
}

#[tokio::test]
async fn files_of_somebody_unknown_are_not_taken() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("s"));
    let limits = ListenLimits { handshake_timeout: 2 * DEADLINE, ..ListenLimits::default() };
    let _served = Served::new(&address, identities.identity("/fwd"), Allowed::AnyTrusted, limits).await;
    let socket = UnixSocket::connect_path(Kind::Stream, &directory.path().join("s")).unwrap();
    let place = path("/".as_ref());
    // The first byte of a record of a handshake.
    socket.send(&[22], &[place.as_fd()]).unwrap();
    let cut = async {
        loop {
            match socket.receive(&mut [0; 64], 0) {
                Ok(None) => return,
                // What it had not read is lost.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
                Ok(Some(_)) => {}
            }
        }
    };
    timeout(DEADLINE, cut).await.expect("the end");
}

#[tokio::test]
async fn one_process_takes_no_more_connections_than_its_part() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("s"));
    let limits = ListenLimits { connections_of_one_max: 1, ..ListenLimits::default() };
    let served = Served::new(&address, identities.identity("/fwd"), Allowed::AnyTrusted, limits).await;
    let greedy = identities.identity("/greedy");
    let first = served.dial(&greedy).await;
    let refused = Connection::dial(&address, &greedy, &patient()).await.err().unwrap();
    assert!(refused.to_string().contains("cannot connect"), "{refused}");
    assert!(call(&served.dial(&identities.identity("/nsmgr")).await, "").await.is_ok());
    assert!(call(&first, "").await.is_ok());
    drop(first);
    let again = async {
        while Connection::dial(&address, &greedy, &patient()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, again).await.expect("its part is free again");
}

#[tokio::test]
async fn more_connections_than_may_be_wait_for_one_to_end() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("s"));
    let limits = ListenLimits { connections_max: 1, ..ListenLimits::default() };
    let served = Served::new(&address, identities.identity("/fwd"), Allowed::AnyTrusted, limits).await;
    let nsmgr = identities.identity("/nsmgr");
    let first = served.dial(&nsmgr).await;
    assert!(call(&first, "").await.is_ok());
    let options = DialOptions { timeout: Duration::from_millis(100), ..DialOptions::default() };
    let refused = Connection::dial(&address, &nsmgr, &options).await.err().unwrap();
    assert!(refused.to_string().contains("no answer within 100ms"), "{refused}");
    drop(first);
    assert!(call(&served.dial(&nsmgr).await, "").await.is_ok());
}

#[tokio::test]
async fn a_connection_that_ends_says_so_and_is_not_made_again() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let served = Served::unix(directory.path(), identities.identity("/fwd")).await;
    let connection = served.dial(&identities.identity("/nsmgr")).await;
    assert!(!connection.has_ended());
    let inode = Inode { device: 1, number: 2 };
    drop(served);
    timeout(DEADLINE, connection.ended()).await.expect("the end");
    assert!(connection.has_ended());
    assert_eq!(call(&connection, "").await.unwrap_err().code(), Code::Unavailable);
    let files = connection.peer().files().unwrap();
    assert_eq!(files.receive(inode, DEADLINE).await.unwrap_err(), FileError::Ended(inode));
}

#[tokio::test]
async fn a_kept_connection_is_made_again_when_it_ends_and_when_we_are_somebody_new() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let served = Served::unix(directory.path(), identities.identity("/nsmgr")).await;
    let (sender, source) = IdentitySource::new(identities.identity("/fwd"));
    let kept = KeptConnection::new(served.address.clone(), source, patient());
    let first = kept.get().await.unwrap();
    let same = |a: &Connection, b: &Connection| Arc::ptr_eq(a.peer().certificate(), b.peer().certificate());
    assert!(same(&first, &kept.get().await.unwrap()));
    sender.send_replace(identities.identity("/fwd"));
    let second = kept.get().await.unwrap();
    assert!(!same(&first, &second) && !first.has_ended());
    drop(served);
    timeout(DEADLINE, second.ended()).await.expect("the end");
    gone(&directory.path().join("s")).await;
    assert!(kept.get().await.is_err(), "nobody is there");
    let _served = Served::unix(directory.path(), identities.identity("/nsmgr")).await;
    assert!(call(&kept.get().await.unwrap(), "").await.is_ok());
}

#[tokio::test]
async fn a_kept_connection_is_made_again_when_half_of_the_other_sides_certificate_is_over() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let short = || identities.identity_for("/nsmgr", Duration::from_secs(6), identities.0.bundles().unwrap());
    let served = Served::unix(directory.path(), short()).await;
    let (_sender, source) = IdentitySource::new(identities.identity("/fwd"));
    let kept = KeptConnection::new(served.address.clone(), source, patient());
    let first = kept.get().await.unwrap();
    let new = short();
    served.identity.send_replace(new.clone());
    let second = async {
        loop {
            let connection = kept.get().await.unwrap();
            if !connection.is_same(&first) {
                return connection;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let second = timeout(DEADLINE, second).await.expect("another connection");
    assert_eq!(**second.peer().certificate(), *new.svid.certificate());
    assert!(SystemTime::now() < first.peer().certificate().not_after(), "before it runs out");
}

#[tokio::test]
async fn a_kept_connection_is_better_than_none() {
    let [identities, strangers] = [(); 2].map(|()| Identities::new("example.org"));
    let directory = tempfile::tempdir().unwrap();
    let served = Served::unix(directory.path(), identities.identity("/nsmgr")).await;
    let (sender, source) = IdentitySource::new(identities.identity("/fwd"));
    let kept = KeptConnection::new(served.address.clone(), source, patient());
    let first = kept.get().await.unwrap();
    // The other side does not know our new authority yet.
    sender.send_replace(strangers.identity("/fwd"));
    let still = kept.get().await.unwrap();
    assert!(still.is_same(&first) && call(&still, "").await.is_ok());
    kept.renew(&still).await;
    assert!(kept.get().await.is_err(), "it was given up");
}

#[tokio::test]
async fn those_who_wait_for_a_connection_share_one_try() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    // It takes connections and says nothing.
    let listener = tokio::net::UnixListener::bind(directory.path().join("s")).unwrap();
    let (_sender, source) = IdentitySource::new(identities.identity("/fwd"));
    let options = DialOptions { timeout: Duration::from_millis(300), ..DialOptions::default() };
    let kept = Arc::new(KeptConnection::new(Address::Unix(directory.path().join("s")), source, options));
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move { kept.get().await.is_err() })
        })
        .collect();
    for task in waiting {
        assert!(timeout(DEADLINE, task).await.expect("an answer").unwrap());
    }
    let listener = listener.into_std().unwrap();
    assert!(listener.accept().is_ok());
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "one has tried for all");
}

/// Has no certificate to show.
#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn whoever_shows_no_certificate_is_refused() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let _served = Served::unix(directory.path(), identities.identity("/fwd")).await;
    let config = client_config(&identities.identity("/nsmgr"), Allowed::AnyTrusted).unwrap();
    let mut nobody = ClientConfig::clone(&config);
    nobody.client_auth_cert_resolver = Arc::new(Nobody);
    let socket = UnixStream::connect(directory.path().join("s")).await.unwrap();
    let asked = async {
        let name = "localhost".try_into().unwrap();
        let mut tls = TlsConnector::from(Arc::new(nobody)).connect(name, socket).await?;
        // Over TLS 1.3 it is told with what comes first.
        tls.read(&mut [0; 64]).await
    };
    let refused = timeout(DEADLINE, asked).await.expect("an answer").unwrap_err();
    assert!(refused.to_string().contains("CertificateRequired"), "{refused}");
}

#[tokio::test]
async fn whoever_speaks_no_tls_gets_nothing() {
    let identities = Identities::new("example.org");
    let any: Address = "tcp://127.0.0.1:0".parse().unwrap();
    let served = Served::new(&any, identities.identity("/fwd"), Allowed::AnyTrusted, ListenLimits::default()).await;
    let Address::Tcp(address) = &served.address else { panic!("a port") };
    let mut plain = TcpStream::connect(address.parse::<SocketAddr>().unwrap()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, plain.read_to_end(&mut answer)).await.expect("the end");
    assert!(answer.first().is_none_or(|&kind| kind == 21), "an alert at most");
}

#[tokio::test]
async fn a_token_that_has_run_out_is_made_anew() {
    let identities = Identities::new("example.org");
    let directory = tempfile::tempdir().unwrap();
    let served = Served::unix(directory.path(), identities.identity("/fwd")).await;
    let options = DialOptions { token_lifetime: Duration::from_millis(1), ..patient() };
    let connection = Connection::dial(&served.address, &identities.identity("/nsmgr"), &options).await.unwrap();
    let start = SystemTime::now();
    while start.elapsed().unwrap() < Duration::from_millis(20) {
        assert!(call(&connection, "").await.is_ok());
    }
}
