//! An endpoint over a real socket, and a client that calls it as a forwarder does.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::Endpoint;
use crate::files::Inode;
use crate::identity::test_identities::Identities;
use crate::identity::{Identity, IdentitySource};
use crate::monitor::Follower;
use crate::path::Place;
use crate::proto::connection::{Connection, Mechanism, State};
use crate::proto::connectioncontext::EthernetContext;
use crate::proto::networkservice::NetworkServiceRequest;
use crate::service::{ConnectionServer, INODE_URL, MechanismFiles, NextHop};
use crate::test_process::TestProcess;
use crate::transport::{Address, Allowed, Connection as Channel, DialOptions, ListenLimits, Listener, server};

const DEADLINE: Duration = Duration::from_secs(30);
const LIFETIME: Duration = Duration::from_mins(10);

/// An endpoint of two addresses at a socket, and a caller.
struct Mesh {
    endpoint: Option<TestProcess>,
    address: Address,
    caller: Identity,
    namespace: Arc<OwnedFd>,
}

impl Mesh {
    async fn new(directory: &Path) -> Self {
        let identities = Identities::new("example.org");
        let namespace = open("/proc/self/ns/net", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let namespace = Arc::new(namespace);
        let address = Address::Unix(directory.join("nse.sock"));
        let handler = Endpoint::new(Arc::clone(&namespace), &["10.0.0.0/31".parse().unwrap()]).unwrap();
        let calls = ConnectionServer::new("nse", LIFETIME, handler);
        let (sender, source) = IdentitySource::new(identities.identity("/nse"));
        let (process, bound) = (TestProcess::new(), address.clone());
        let bound = process.spawn(async move {
            Listener::bind(&bound, source, Allowed::AnyTrusted, ListenLimits::default()).await.unwrap()
        });
        let listener = bound.await.unwrap();
        let router = server().add_service(calls.service()).add_service(calls.monitor().service());
        process.spawn(async move {
            let _sender = sender;
            router.serve_with_incoming(listener.connections()).await.unwrap();
        });
        Self { endpoint: Some(process), address, caller: identities.identity("/fwd"), namespace }
    }

    async fn dial(&self) -> NextHop {
        let options = DialOptions { timeout: DEADLINE, ..DialOptions::default() };
        NextHop::new(Channel::dial(&self.address, &self.caller, &options).await.unwrap())
    }
}

/// The caller's connection, as it asks for it.
fn first(id: &str) -> Connection {
    let mut connection = Connection { id: id.to_owned(), network_service: "vpn".to_owned(), ..Connection::default() };
    Place::enter(&mut connection, "fwd").unwrap();
    connection
}

async fn ask(hop: &NextHop, connection: Connection, kind: &str) -> Result<Connection, Status> {
    let mechanism_preferences =
        vec![Mechanism { cls: "LOCAL".to_owned(), r#type: kind.to_owned(), ..Mechanism::default() }];
    Ok(hop
        .request(NetworkServiceRequest { connection: Some(connection), mechanism_preferences }, &[], DEADLINE)
        .await?)
}

#[tokio::test]
async fn a_client_gets_addresses_and_the_namespace_and_gives_them_back() {
    let directory = tempfile::tempdir().unwrap();
    let mesh = Mesh::new(directory.path()).await;
    let hop = mesh.dial().await;
    let answer = ask(&hop, first("a"), "KERNEL").await.unwrap();
    let context = answer.context.as_ref().unwrap().ip_context.as_ref().unwrap();
    assert_eq!((context.src_ip_addrs[0].as_str(), context.dst_ip_addrs[0].as_str()), ("10.0.0.1/32", "10.0.0.0/32"));
    let mechanism = answer.mechanism.clone().unwrap();
    let files = MechanismFiles::receive(hop.connection().peer().files(), [&mechanism]).await.unwrap();
    assert_eq!(Inode::of(files.of(&mechanism).unwrap()).unwrap(), Inode::of(&mesh.namespace).unwrap());
    // A refresh changes nothing but tokens.
    let again = hop
        .request(
            NetworkServiceRequest { connection: Some(answer.clone()), ..Default::default() },
            &files.all(),
            DEADLINE,
        )
        .await
        .unwrap();
    assert_eq!((&again.context, &again.mechanism), (&answer.context, &answer.mechanism));
    assert_eq!(ask(&hop, first("b"), "KERNEL").await.unwrap_err().code(), Code::ResourceExhausted);
    hop.close(again, &files.all(), DEADLINE).await.unwrap();
    ask(&hop, first("b"), "KERNEL").await.unwrap();
}

#[tokio::test]
async fn what_it_does_not_have_is_refused_and_takes_no_address() {
    let directory = tempfile::tempdir().unwrap();
    let mesh = Mesh::new(directory.path()).await;
    let hop = mesh.dial().await;
    let refused = ask(&hop, first("a"), "VFIO").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().starts_with("cannot support any of the requested mechanism"), "{refused}");
    ask(&hop, first("b"), "KERNEL").await.unwrap();
}

#[tokio::test]
async fn a_client_chooses_the_address_of_its_own_interface_and_neither_ours_nor_the_vlan() {
    let directory = tempfile::tempdir().unwrap();
    let mesh = Mesh::new(directory.path()).await;
    let hop = mesh.dial().await;
    let mut connection = first("a");
    let src_mac = "02:00:00:00:00:01".to_owned();
    let wanted = EthernetContext { src_mac: src_mac.clone(), dst_mac: "02:00:00:00:00:02".to_owned(), vlan_tag: 7 };
    connection.context.get_or_insert_default().ethernet_context = Some(wanted);
    let answer = ask(&hop, connection, "KERNEL").await.unwrap();
    let told = answer.context.unwrap().ethernet_context;
    assert_eq!(told, Some(EthernetContext { src_mac, ..EthernetContext::default() }));
}

#[tokio::test]
async fn whoever_watches_learns_that_the_endpoint_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::new(directory.path()).await;
    let hop = mesh.dial().await;
    let answer = ask(&hop, first("a"), "KERNEL").await.unwrap();
    let (sender, mut told) = mpsc::unbounded_channel();
    let follower = Follower::new(answer.clone());
    let following = tokio::spawn(follower.follow(hop.connection().calls(), move |changed| drop(sender.send(changed))));
    // A refresh is told, with its new tokens.
    let again = ask(&hop, answer, "KERNEL").await.unwrap();
    mesh.endpoint.take();
    let mut last = None;
    timeout(DEADLINE, async {
        while let Some(changed) = told.recv().await {
            assert_eq!((&changed.id, &changed.mechanism), (&again.id, &again.mechanism));
            last = Some(changed);
        }
    })
    .await
    .expect("the end");
    assert_eq!(last.unwrap().state(), State::Down);
    following.await.unwrap();
}

#[tokio::test]
async fn from_others_only_files_that_were_passed_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let mesh = Mesh::new(directory.path()).await;
    let hop = mesh.dial().await;
    let files = hop.connection().peer().files();
    let naming =
        |url: &str| Mechanism { parameters: [(INODE_URL.to_owned(), url.to_owned())].into(), ..Mechanism::default() };
    for url in ["file:///proc/1/ns/net", "inode://4/1"] {
        let refused = MechanismFiles::receive(files, [&naming(url)]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{url}");
    }
    let refused = MechanismFiles::receive(None, [&naming("file:///proc/1/ns/net")]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "over TCP too");
    // Over TCP none can come, and none is waited for.
    assert!(MechanismFiles::receive(None, [&naming("inode://4/1")]).await.unwrap().all().is_empty());
}
