//! Calls that are cut off, as the server in front of the handler does it.

use std::os::unix::net::UnixListener;
use std::path::Path;

use ferrule_dataplane::engine::Engine;
use ferrule_dataplane::settings::Settings;
use ferrule_nsm::identity::{Authority, Identity, IdentitySource, Svid};
use ferrule_nsm::monitor::Monitor;
use ferrule_nsm::path::{Place, new_id};
use ferrule_nsm::registry::{RegistryCache, RegistryClient};
use ferrule_nsm::service::Answered;
use ferrule_nsm::transport::{DialOptions, KeptConnection};
use tokio::task::yield_now;

use super::super::reservation::Holders;
use super::super::vf::{VfLender, VfLenderSettings};
use super::*;
use crate::wires::Wires;

const DEADLINE: Duration = Duration::from_mins(1);

fn site() -> TunnelSite {
    TunnelSite { address: [127, 0, 0, 1].into(), port: 4789, link_mtu: 1500 }
}

/// A forwarder whose manager is at this socket.
fn forwarder(manager: &Path, directory: &Path) -> MeshForwarder {
    let authority = Authority::new("example.org".parse().unwrap()).unwrap();
    let issued = authority.issue(&"spiffe://example.org/fwd".parse().unwrap(), DEADLINE).unwrap();
    let svid = Arc::new(Svid::new(vec![issued.certificate], &issued.key).unwrap());
    let (_, identity) = IdentitySource::new(Identity { svid, bundles: Arc::new(authority.bundles().unwrap()) });
    let options = DialOptions { timeout: DEADLINE, ..DialOptions::default() };
    let manager = KeptConnection::new(Address::Unix(manager.to_owned()), identity.clone(), options.clone());
    let registry = RegistryCache::new(Arc::new(RegistryClient::new(manager, DEADLINE)));
    let hops = NextHops::new(Arc::new(registry), identity, options);
    let wires = Arc::new(Wires::new(Engine::start(&Settings::new(vec![0])).unwrap(), None));
    let at = |name: &str| directory.join(name);
    let settings = VfLenderSettings {
        manager: at("vf.sock"),
        tokens: at("tokens"),
        state: at("vfs"),
        config: None,
        root: directory.to_owned(),
    };
    let (vnis, wireguards, holders) = (Arc::default(), Arc::default(), Holders::default());
    let (vfs, breakouts) = (Arc::new(VfLender::new(settings)), Arc::default());
    let means = Means { wires, vnis, wireguards, holders, vfs, breakouts };
    MeshForwarder::new(means, hops, Vec::new(), Some(site()))
}

fn call(mechanism: Mechanism) -> Call {
    let connection = Connection {
        id: new_id(),
        network_service: "vpn".to_owned(),
        mechanism: Some(mechanism),
        ..Connection::default()
    };
    Call {
        connection,
        preferences: Vec::new(),
        known: None,
        place: Place { own: 1, caller: 0 },
        peer: None,
        limit: DEADLINE,
        monitor: Monitor::default(),
        answered: Answered::default(),
    }
}

#[tokio::test]
async fn a_call_that_is_cut_off_keeps_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nsmgr.sock");
    // It takes connections, and never says a word.
    let _silent = UnixListener::bind(&socket).unwrap();
    let forwarder = Arc::new(forwarder(&socket, directory.path()));
    let call = call(site().preference());
    let id = call.connection.id.clone();
    let asking = tokio::spawn({
        let (forwarder, call) = (Arc::clone(&forwarder), call.clone());
        async move { forwarder.request(call).await }
    });
    let until = Instant::now() + DEADLINE;
    while !forwarder.means.vnis.has(&id) {
        assert!(Instant::now() < until && !asking.is_finished(), "the tunnel has got no number");
        yield_now().await;
    }
    asking.abort();
    let _ = asking.await;
    forwarder.close(call).await.unwrap();
    assert!(!forwarder.means.vnis.has(&id), "its number is free");
}
