//! From the identity to the registration, and back.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ferrule_daemon::Phase;
use ferrule_dataplane::engine::{Event, Subscription, WireChange};
use ferrule_ffi::netlink::NetlinkError;
use ferrule_nsm::identity::{IdentitySource, SpiffeIds, WorkloadError, WorkloadSocket};
use ferrule_nsm::monitor::Monitor;
use ferrule_nsm::proto::registry::{NetworkServiceEndpoint, NetworkServiceLabels};
use ferrule_nsm::registry::{Registration, RegistryCache, RegistryClient};
use ferrule_nsm::service::ConnectionServer;
use ferrule_nsm::trace::{self, TraceError};
use ferrule_nsm::transport::{
    Address, AddressError, Allowed, DialOptions, KeptConnection, ListenError, ListenLimits, Listener, server,
};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tracing::{info, warn};

use super::breakout::Breakouts;
use super::device_selector::DeviceSelector;
use super::handler::MeshForwarder;
use super::joint::{Means, connection_of};
use super::next_hop::NextHops;
use super::reservation::Holders;
use super::settings::NsmSettings;
use super::tunnel::{default_address, find_site};
use super::vf::{SriovConfig, VfLender, VfLenderSettings};
use crate::wires::Wires;

/// Serves the mesh until the forwarder has stopped. It waits for its identity and for its manager as long as they take.
pub(crate) async fn serve(
    settings: NsmSettings,
    wires: Arc<Wires>,
    mut phase: watch::Receiver<Phase>,
) -> Result<(), MeshError> {
    let socket: WorkloadSocket = spiffe_socket(&settings)?.parse()?;
    let identity = tokio::select! {
        identity = socket.identity() => identity?,
        () = draining(phase.clone()) => return Ok(()),
    };
    info!(id = %identity.current().svid.certificate().id(), "this forwarder has an identity");
    let traces_to = settings.traces_to.clone();
    let traces_to = traces_to.or_else(|| trace::endpoint_of_environment(|name| std::env::var(name).ok()));
    let _traces = traces_to.map(|endpoint| trace::start(&endpoint, &settings.name)).transpose()?;
    Box::pin(serve_as(settings, identity, wires, phase.clone())).await?;
    let _ = phase.wait_for(|phase| *phase == Phase::Stopped).await;
    Ok(())
}

async fn draining(mut phase: watch::Receiver<Phase>) {
    // An error means that the spine is gone, which is an end as well.
    let _ = phase.wait_for(|phase| matches!(phase, Phase::Draining | Phase::Stopped)).await;
}

async fn serve_as(
    settings: NsmSettings,
    identity: IdentitySource,
    wires: Arc<Wires>,
    phase: watch::Receiver<Phase>,
) -> Result<(), MeshError> {
    let options = DialOptions {
        allowed: Allowed::AnyTrusted,
        timeout: settings.dial_timeout,
        token_lifetime: settings.token_lifetime,
    };
    let manager = KeptConnection::new(settings.connect_to.parse()?, identity.clone(), options.clone());
    let registry = Arc::new(RegistryClient::new(manager, REGISTRY_TIMEOUT));
    let known = Arc::new(RegistryCache::new(Arc::clone(&registry)));
    let hops = NextHops::new(Arc::clone(&known), identity.clone(), options);
    let events = wires.subscribe(EVENTS_MAX);
    let cannot = |error: NetlinkError| MeshError::Tunnels(error.to_string());
    let tunnels_at = match settings.tunnel_ip {
        Some(address) => Some(address),
        None => default_address().map_err(cannot)?,
    };
    let site = tunnels_at.map(|address| find_site(address, settings.vxlan_port).map_err(cannot)).transpose()?;
    // What VFs were before outlives the machine.
    let may_have_leftovers = wires.interface_owner().may_have_leftovers() || settings.sriov_state.is_dir();
    let vfs = Arc::new(VfLender::new(lender_settings(&settings)?));
    let (vnis, wireguards, holders) = (Arc::default(), Arc::default(), Holders::default());
    let selector = settings.device_selector.as_deref().map(DeviceSelector::load).transpose();
    let breakouts = Arc::new(Breakouts::new(selector.map_err(MeshError::Devices)?.unwrap_or_default()));
    let means = Means { wires: Arc::clone(&wires), vnis, wireguards, holders, vfs, breakouts };
    let handler = MeshForwarder::new(means, hops, settings.mechanism_priority.clone(), site);
    let calls = ConnectionServer::new(&settings.name, settings.token_lifetime, handler);
    tell_of_failures(events, &wires, calls.monitor().clone()).map_err(MeshError::Threads)?;
    drop(wires);
    let address: Address = settings.listen_on.parse()?;
    let Address::Unix(path) = &address else { return Err(MeshError::NoPath(address)) };
    let listener = Listener::bind(&address, identity, Allowed::AnyTrusted, ListenLimits::default()).await?;
    let registration =
        Registration::with_socket(Arc::clone(&registry), endpoint(&settings), path).map_err(MeshError::Socket)?;
    let trusting = trust_manager(registration.is_registered(), registry, calls.relays().clone());
    let routes =
        server().add_service(calls.service()).add_service(calls.monitor().service()).add_service(health().await);
    info!(
        name = settings.name,
        listen_on = settings.listen_on,
        connect_to = settings.connect_to,
        tunnels_at = tunnels_at.map_or_else(|| "none".to_owned(), |address| address.to_string()),
        "a forwarder of the mesh"
    );
    let reaping = async {
        if may_have_leftovers {
            // Whoever wants a connection has asked for it again by then.
            sleep(settings.token_lifetime).await;
            on_thread(&calls, MeshForwarder::remove_leftovers).await;
        }
        std::future::pending::<()>().await;
    };
    // It is taken out of the registry before its socket goes.
    let ending = async {
        tokio::join!(registration.run(draining(phase.clone())), async {
            draining(phase.clone()).await;
            on_thread(&calls, MeshForwarder::leave).await;
        })
    };
    tokio::select! {
        served = routes.serve_with_incoming(listener.connections()) => Ok(served?),
        () = trusting => Ok(()),
        () = known.run() => Ok(()),
        () = reaping => Ok(()),
        _ = ending => Ok(()),
    }
}

/// Where the VFs of pods come from.
fn lender_settings(settings: &NsmSettings) -> Result<VfLenderSettings, MeshError> {
    let config = settings.sriov_config.as_deref().map(SriovConfig::load).transpose().map_err(MeshError::Sriov)?;
    Ok(VfLenderSettings {
        manager: ferrule_ethdev::leases().manager().to_owned(),
        tokens: settings.sriov_tokens.clone(),
        state: settings.sriov_state.clone(),
        config,
        root: "/".into(),
    })
}

async fn on_thread(calls: &ConnectionServer<MeshForwarder>, work: fn(&MeshForwarder)) {
    let calls = calls.clone();
    if let Err(error) = spawn_blocking(move || work(calls.handler())).await {
        warn!(%error, "a thread of the mesh failed");
    }
}

/// Why there is no forwarder of the mesh.
#[derive(Debug, Error)]
pub(crate) enum MeshError {
    /// Nobody says who we are.
    #[error("no Workload API is named: set SPIFFE_ENDPOINT_SOCKET, or `spiffe_socket` in the section `nsm:`")]
    NoIdentity,
    /// No identity can be had.
    #[error("the identity of this forwarder: {0}")]
    Identity(#[from] WorkloadError),
    /// An address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Files cannot be passed there.
    #[error("{0} is no unix:///path: a manager passes namespaces over such a socket only")]
    NoPath(Address),
    /// Tunnels cannot begin there.
    #[error("the address of tunnels, `tunnel_ip` or NSM_TUNNEL_IP: {0}")]
    Tunnels(String),
    /// Traces cannot be sent.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// The device selector is wrong.
    #[error("the device selector, `device_selector` or NSM_DEVICE_SELECTOR_FILE: {0}")]
    Devices(String),
    /// The SR-IOV configuration is wrong.
    #[error("the SR-IOV configuration, `sriov_config` or NSM_SRIOV_CONFIG_FILE: {0}")]
    Sriov(String),
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The socket cannot be passed.
    #[error("open our own socket: {0}")]
    Socket(io::Error),
    /// No thread can be had.
    #[error("start a thread: {0}")]
    Threads(io::Error),
    /// The server failed.
    #[error("the server for the mesh failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

fn spiffe_socket(settings: &NsmSettings) -> Result<String, MeshError> {
    let named = settings.spiffe_socket.clone().or_else(|| std::env::var("SPIFFE_ENDPOINT_SOCKET").ok());
    named.filter(|socket| !socket.is_empty()).ok_or(MeshError::NoIdentity)
}

fn endpoint(settings: &NsmSettings) -> NetworkServiceEndpoint {
    let labels = NetworkServiceLabels { labels: settings.labels.clone() };
    NetworkServiceEndpoint {
        name: settings.name.clone(),
        network_service_names: vec![settings.service.clone()],
        network_service_labels: [(settings.service.clone(), labels)].into(),
        ..NetworkServiceEndpoint::default()
    }
}

/// Whoever we are registered with speaks for its clients. It never ends.
async fn trust_manager(mut registered: watch::Receiver<bool>, registry: Arc<RegistryClient>, relays: SpiffeIds) {
    while registered.wait_for(|is_registered| *is_registered).await.is_ok() {
        if let Ok(connection) = registry.connection().await {
            relays.add_id(connection.peer().certificate().id());
        }
        if registered.changed().await.is_err() {
            break;
        }
    }
    std::future::pending::<()>().await;
}

async fn health() -> HealthServer<HealthService> {
    let reporter = HealthReporter::new();
    for name in ["", "networkservice.NetworkService", "connection.MonitorConnection"] {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }
    HealthServer::new(HealthService::from_health_reporter(reporter))
}

/// A connection whose wire has failed is down: its client asks for it again, and it is made anew.
fn tell_of_failures(events: Subscription, wires: &Arc<Wires>, monitor: Monitor) -> io::Result<()> {
    // Not held: the engine ends with the last who holds it, and this thread with the engine.
    let wires: Weak<Wires> = Arc::downgrade(wires);
    let tell = move || {
        while let Some(event) = events.next_event() {
            match event {
                Event::Wire { wire, change: WireChange::Failed { .. } } => {
                    if let Some(id) = connection_of(&wire) {
                        monitor.down(id);
                    }
                }
                // What was missed is looked up.
                Event::Lagged(_) => {
                    let Some(wires) = wires.upgrade() else { return };
                    for listed in wires.list().iter().filter(|listed| !listed.status.is_up()) {
                        if let Some(id) = connection_of(&listed.status.spec.name) {
                            monitor.down(id);
                        }
                    }
                }
                _ => {}
            }
        }
    };
    std::thread::Builder::new().name("nsm-events".to_owned()).spawn(tell).map(drop)
}

/// A manager forgets a registration so long before it runs out.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(5);
/// Events that we may be behind.
const EVENTS_MAX: usize = 1024;
