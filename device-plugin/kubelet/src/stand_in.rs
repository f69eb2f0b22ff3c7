//! A kubelet's device manager, as far as a plugin can see it: registration by the rules of a release, lists, the choice of devices,
//! calls, checkpoint, and the list of pods. There are no containers and no API server.
//!
//! What it does is what kubelets 1.36.3 and 1.37.2 were seen to do. A [`Scenario`] makes it behave worse. Modules: `registration`
//! (who is connected), `devices` (what is known of devices, and which pod has which), `plugin` (calls of a plugin).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;
use tonic::transport::Server;

use crate::pod_resources::pod_resources_lister_server::PodResourcesListerServer;
use crate::v1beta1::registration_server::RegistrationServer;
use crate::v1beta1::{ContainerAllocateResponse, PreferredAllocationResponse};
use crate::{ConnectError, KUBELET_SOCKET};

mod devices;
mod plugin;
mod registration;

pub use devices::Counts;

use devices::Devices;
use plugin::Plugin;
use registration::{Lister, Registrar};

/// Whose rules of registration hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// A plugin is known by its resource alone: the end of an old connection cuts the new one.
    V1_36,
    /// By its resource and its socket: a socket that registers twice is never taken again.
    V1_37,
}

/// What the kubelet does worse than it should.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// It refuses this many registrations.
    Refuses(u32),
    /// It answers no registration, and does not connect to the plugin.
    HangsInRegister,
    /// It takes registrations, and asks for no list.
    OpensNoList,
    /// It does not know its pods yet: nobody is listed.
    ListsNobody,
    /// It tells of all pods, and not of one by its name, as kubelets before 1.34.
    TellsNoSinglePod,
    /// It refuses this many questions about pods: too many came at once.
    IsCrowded(u32),
}

/// Where a kubelet is, and how it behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of device plugins.
    pub plugins: PathBuf,
    /// The podresources socket.
    pub pod_resources: PathBuf,
    /// Whose rules hold.
    pub release: Release,
}

/// A kubelet. Its sockets stay on disk when it ends, as a real one's do.
pub struct Kubelet {
    options: Options,
    shared: Arc<Shared>,
    servers: Vec<JoinHandle<()>>,
}

/// What its tasks know together.
pub(crate) struct Shared {
    plugins: PathBuf,
    release: Release,
    devices: Mutex<Devices>,
    scenarios: Mutex<BTreeSet<Scenario>>,
    /// Counts everything that happens.
    ticks: watch::Sender<u64>,
}

impl Kubelet {
    /// Starts a kubelet that knows of no pod. As a real one it removes every socket in the directory first.
    pub fn start(options: Options) -> io::Result<Self> {
        Self::start_with(options, Devices::default())
    }

    fn start_with(options: Options, devices: Devices) -> io::Result<Self> {
        fs::create_dir_all(&options.plugins)?;
        remove_sockets(&options.plugins)?;
        let shared = Arc::new(Shared {
            plugins: options.plugins.clone(),
            release: options.release,
            devices: Mutex::new(devices),
            scenarios: Mutex::default(),
            ticks: watch::Sender::new(0),
        });
        let lister = PodResourcesListerServer::new(Lister(Arc::clone(&shared)));
        let registrar = RegistrationServer::new(Registrar(Arc::clone(&shared)));
        let pods = listen(&options.pod_resources)?;
        let plugins = listen(&options.plugins.join(KUBELET_SOCKET))?;
        let pods = Server::builder().add_service(lister).serve_with_incoming(UnixListenerStream::new(pods));
        let plugins = Server::builder().add_service(registrar).serve_with_incoming(UnixListenerStream::new(plugins));
        let servers = vec![tokio::spawn(async { drop(pods.await) }), tokio::spawn(async { drop(plugins.await) })];
        Ok(Self { options, shared, servers })
    }

    /// The kubelet ends and starts again: connections are cut, allocations are known, devices are not. The rules may be another
    /// release's. Those who are not told die of this.
    pub fn restart(self, release: Release) -> io::Result<Self> {
        let options = Options { release, ..self.options.clone() };
        let checkpoint = self.shared.devices().checkpoint();
        drop(self);
        Self::start_with(options, checkpoint)
    }

    /// The kubelet ends. Returns what starts it again.
    pub fn stop(self) -> Stopped {
        Stopped { options: self.options.clone(), checkpoint: self.shared.devices().checkpoint() }
    }

    /// From now on it behaves so.
    pub fn set(&self, scenario: Scenario) {
        self.shared.scenarios().insert(scenario);
    }

    /// It behaves again.
    pub fn heal(&self) {
        self.shared.scenarios().clear();
    }

    /// Cuts the connection to the plugin of a resource.
    pub fn drop_stream(&self, resource: &str) {
        self.shared.devices().cut(resource);
        self.shared.tick();
    }

    /// What the node's status would say of a resource; none: it was never registered.
    pub fn counts(&self, resource: &str) -> Option<Counts> {
        self.shared.devices().counts(resource)
    }

    /// Ids of devices of a resource that may be given away.
    pub fn healthy(&self, resource: &str) -> BTreeSet<String> {
        self.shared.devices().healthy(resource)
    }

    /// NUMA nodes of a device, as its plugin tells them.
    pub fn numa_nodes(&self, resource: &str, id: &str) -> Vec<i64> {
        self.shared.devices().numa_nodes(resource, id)
    }

    /// How many registrations it took so far.
    pub fn registrations(&self) -> u64 {
        self.shared.devices().registrations
    }

    /// How often it was asked for its pods.
    pub fn listings(&self) -> u64 {
        self.shared.devices().listings
    }

    /// How many lists of a resource are open now, whoever sends them.
    pub fn open_lists(&self, resource: &str) -> usize {
        self.shared.devices().open_lists(resource)
    }

    /// The most that were open at any moment.
    pub fn most_open_lists(&self) -> usize {
        self.shared.devices().most_open
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut ticks = self.shared.ticks.subscribe();
        let seen = async {
            while !holds(self) {
                // The sender is ours.
                let _ = ticks.changed().await;
            }
        };
        let is_late = tokio::time::timeout(UNTIL_MAX, seen).await.is_err();
        assert!(!is_late, "not within {} s: {what}", UNTIL_MAX.as_secs());
    }

    /// Admits one container of a pod that wants so many devices of a resource: those that the pod has left from an init container
    /// first, then those that the plugin prefers.
    pub async fn admit(
        &self,
        pod: &str,
        container: &str,
        resource: &str,
        count: usize,
    ) -> Result<ContainerAllocateResponse, Refusal> {
        self.admit_as(pod, container, resource, count, Container::Main).await
    }

    /// The same for an init container: its devices go to the next container of the pod, and no list shows them.
    pub async fn admit_init(
        &self,
        pod: &str,
        container: &str,
        resource: &str,
        count: usize,
    ) -> Result<ContainerAllocateResponse, Refusal> {
        self.admit_as(pod, container, resource, count, Container::Init).await
    }

    async fn admit_as(
        &self,
        pod: &str,
        container: &str,
        resource: &str,
        count: usize,
        kind: Container,
    ) -> Result<ContainerAllocateResponse, Refusal> {
        let (plugin, choice) = {
            let mut devices = self.shared.devices();
            let choice = devices.choose(pod, resource, count)?;
            (devices.plugin(resource)?, choice)
        };
        let mut ids = choice.reused;
        let missing = count - ids.len();
        if missing > 0 {
            let preferred = if plugin.options.get_preferred_allocation_available {
                plugin.prefer(&choice.available, &ids, count).await.map_err(Refusal::Preferred)?
            } else {
                PreferredAllocationResponse::default()
            };
            let preferred = preferred.container_responses.into_iter().flat_map(|container| container.device_ids);
            let known = |id: &String| choice.available.contains(id);
            ids.extend(preferred.filter(known).collect::<BTreeSet<_>>().into_iter().take(missing));
            let others: Vec<_> = choice.available.iter().filter(|id| !ids.contains(*id)).cloned().collect();
            let missing = count.saturating_sub(ids.len());
            ids.extend(others.into_iter().take(missing));
        }
        let asked_for = ids.iter().cloned().collect::<Vec<_>>();
        let answer = tokio::select! {
            // What was answered before the list ended is an answer.
            biased;
            answer = plugin.allocate(&asked_for) => answer,
            // A kubelet drops the connection with the list.
            () = self.shared.list_ends(resource) => Err(Status::unavailable("the client connection is closing")),
        };
        let answer = answer.map_err(Refusal::Allocate)?;
        self.shared.devices().allocated(pod, container, resource, &ids, kind, answer.clone());
        Ok(answer)
    }

    /// Calls Allocate with ids of the caller's choice, whatever was ever told of them.
    pub async fn allocate_ids(&self, resource: &str, ids: &[&str]) -> Result<ContainerAllocateResponse, Refusal> {
        let plugin = self.shared.devices().plugin(resource)?;
        let ids: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
        plugin.allocate(&ids).await.map_err(Refusal::Allocate)
    }

    /// Calls PreStartContainer with ids of the caller's choice.
    pub async fn start_ids(&self, resource: &str, ids: &[&str]) -> Result<(), Refusal> {
        let plugin = self.shared.devices().plugin(resource)?;
        let ids: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
        plugin.pre_start(&ids).await.map_err(Refusal::PreStart)
    }

    /// Asks which devices go first, with arguments of the caller's choice.
    pub async fn prefer(
        &self,
        resource: &str,
        available: &[&str],
        must_include: &[&str],
        size: i32,
    ) -> Result<Vec<String>, Refusal> {
        let plugin = self.shared.devices().plugin(resource)?;
        let words = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let answer = plugin.ask_preferred(words(available), words(must_include), size).await;
        let answer = answer.map_err(Refusal::Preferred)?;
        Ok(answer.container_responses.into_iter().flat_map(|container| container.device_ids).collect())
    }

    /// Starts a container that was admitted: its plugins are asked first. Returns what they gave it when it was admitted.
    pub async fn start_container(&self, pod: &str, container: &str) -> Result<Vec<ContainerAllocateResponse>, Refusal> {
        let wanted = self.shared.devices().of_container(pod, container);
        for (resource, ids) in wanted {
            // After a restart of the kubelet it does not know whether a plugin wants to be asked.
            let Ok(plugin) = self.shared.devices().plugin(&resource) else { continue };
            if plugin.options.pre_start_required {
                plugin.pre_start(&ids.into_iter().collect::<Vec<_>>()).await.map_err(Refusal::PreStart)?;
            }
        }
        Ok(self.shared.devices().answers(pod, container))
    }

    /// What a running pod meets when the kubelet was restarted and its container was down: each device that it has must be
    /// healthy, and nothing is allocated anew.
    pub fn admit_again(&self, pod: &str) -> Result<(), Refusal> {
        self.shared.devices().admit_again(pod)
    }

    /// A pod without devices runs from now on, and is listed.
    pub fn run_pod(&self, pod: &str) {
        self.shared.devices().run_pod(pod);
    }

    /// The pod has gone. The kubelet tells nobody.
    pub fn end_pod(&self, pod: &str) {
        self.shared.devices().end_pod(pod);
        self.shared.tick();
    }

    /// Devices that a pod has, by any of its containers.
    pub fn devices_of(&self, pod: &str) -> BTreeSet<String> {
        self.shared.devices().of_pod(pod)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
        self.shared.devices().cut_all();
    }
}

/// A kubelet that does not run.
pub struct Stopped {
    options: Options,
    checkpoint: Devices,
}

impl Stopped {
    /// It starts again.
    pub fn start(self) -> io::Result<Kubelet> {
        Kubelet::start_with(self.options, self.checkpoint)
    }
}

/// What kind of container has devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Container {
    Init,
    Main,
}

/// Why a pod does not run. All but the last are for good.
#[derive(Debug, Error)]
pub enum Refusal {
    /// No plugin is connected.
    #[error("no healthy devices present; cannot allocate unhealthy devices {0}")]
    NoHealthy(String),
    /// There are too few.
    #[error("requested number of devices unavailable for {resource}: requested {wanted}, available {available}")]
    TooFew {
        /// Of what.
        resource: String,
        /// How many.
        wanted: usize,
        /// How many there are.
        available: usize,
    },
    /// What it has is not healthy.
    #[error("previously allocated devices are no longer healthy: {0}")]
    NoLongerHealthy(String),
    /// The plugin refused advice, which is an error for the kubelet.
    #[error("GetPreferredAllocation: {}", .0.message())]
    Preferred(Status),
    /// The plugin refused the devices.
    #[error("Allocate: {}", .0.message())]
    Allocate(Status),
    /// The plugin refused a start. The kubelet tries again.
    #[error("PreStartContainer: {}", .0.message())]
    PreStart(Status),
}

impl Shared {
    fn devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scenarios(&self) -> MutexGuard<'_, BTreeSet<Scenario>> {
        self.scenarios.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, scenario: &Scenario) -> bool {
        self.scenarios().contains(scenario)
    }

    fn tick(&self) {
        self.ticks.send_modify(|ticks| *ticks += 1);
    }

    /// Returns when the list is closed that is open now.
    async fn list_ends(&self, resource: &str) {
        let mut ticks = self.ticks.subscribe();
        let open = self.devices().newest_list(resource);
        while self.devices().has_list(resource, open) {
            // The sender is ours.
            let _ = ticks.changed().await;
        }
    }

    async fn connect(&self, endpoint: &str) -> Result<Plugin, PluginError> {
        Plugin::connect(&self.plugins.join(endpoint)).await
    }
}

/// Why a plugin is not reached.
#[derive(Debug, Error)]
pub(crate) enum PluginError {
    #[error("failed to dial device plugin: {0}")]
    Connect(#[from] ConnectError),
    #[error("failed to get device plugin options: {}", .0.message())]
    Options(#[from] Status),
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    remove_if_there(path)?;
    UnixListener::bind(path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Top-level sockets, all of them; nothing else. A plugin whose list has ended removes its own meanwhile.
fn remove_sockets(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// A busy machine must not exhaust it.
const UNTIL_MAX: Duration = Duration::from_secs(30);
