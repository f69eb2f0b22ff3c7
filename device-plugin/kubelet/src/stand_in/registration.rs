//! Who is connected, by the rules of a release; and the list of pods.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{PluginError, Release, Scenario, Shared};
use crate::VERSION;
use crate::pod_resources::pod_resources_lister_server::PodResourcesLister;
use crate::pod_resources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, GetPodResourcesRequest, GetPodResourcesResponse,
    ListPodResourcesRequest, ListPodResourcesResponse,
};
use crate::v1beta1::registration_server::Registration;
use crate::v1beta1::{Empty, RegisterRequest};

/// Takes registrations.
pub(super) struct Registrar(pub Arc<Shared>);

/// Lists pods.
pub(super) struct Lister(pub Arc<Shared>);

#[tonic::async_trait]
impl Registration for Registrar {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let shared = &self.0;
        if shared.has(&Scenario::HangsInRegister) {
            std::future::pending::<()>().await;
        }
        if refuses_once(shared) {
            return Err(Status::unknown("the kubelet is in a mood"));
        }
        check(&request)?;
        let RegisterRequest { endpoint, resource_name: resource, .. } = request;
        if shared.release == Release::V1_37 {
            let is_twice = shared.devices().sockets.insert((resource.clone(), endpoint.clone()));
            if !is_twice {
                let path = shared.plugins.join(&endpoint);
                return Err(Status::unknown(format!("device plugin already connected: {}", path.display())));
            }
        }
        let connected = timeout(DIAL_MAX, shared.connect(&endpoint)).await;
        let connected = connected.map_err(|_| "failed to dial device plugin: context deadline exceeded".to_owned());
        let plugin = connected
            .and_then(|connected| connected.map_err(|error: PluginError| error.to_string()))
            .map_err(Status::unknown)?;
        let id = shared.devices().registered(&resource, plugin.clone());
        shared.tick();
        if !shared.has(&Scenario::OpensNoList) {
            let watched = tokio::spawn(watch(Arc::clone(shared), resource.clone(), id, plugin));
            shared.devices().watched_by(&resource, id, watched.abort_handle());
        }
        Ok(Response::new(Empty {}))
    }
}

/// Takes over every list of a plugin, until it ends.
async fn watch(shared: Arc<Shared>, resource: String, id: u64, plugin: super::Plugin) {
    if let Ok(mut lists) = plugin.list_and_watch().await {
        shared.devices().opened(&resource, id);
        shared.tick();
        while let Ok(Some(list)) = lists.message().await {
            shared.devices().listed(&resource, list.devices);
            shared.tick();
        }
    }
    shared.devices().closed(&resource, id, shared.release);
    shared.tick();
}

fn refuses_once(shared: &Shared) -> bool {
    takes_one(shared, |scenario| match scenario {
        Scenario::Refuses(left) if *left > 0 => Some(Scenario::Refuses(left - 1)),
        _ => None,
    })
}

fn is_crowded(shared: &Shared) -> Result<(), Status> {
    let is_crowded = takes_one(shared, |scenario| match scenario {
        Scenario::IsCrowded(left) if *left > 0 => Some(Scenario::IsCrowded(left - 1)),
        _ => None,
    });
    if is_crowded { Err(Status::resource_exhausted("rejected by rate limit")) } else { Ok(()) }
}

/// Whether some of what is counted is left; then it is one less.
fn takes_one(shared: &Shared, counted: impl Fn(&Scenario) -> Option<Scenario>) -> bool {
    let mut scenarios = shared.scenarios();
    let found = scenarios.iter().find_map(|scenario| Some((scenario.clone(), counted(scenario)?)));
    let Some((before, after)) = found else { return false };
    scenarios.remove(&before);
    scenarios.insert(after);
    true
}

fn check(request: &RegisterRequest) -> Result<(), Status> {
    if request.version != VERSION {
        let version = &request.version;
        return Err(Status::unknown(format!(
            "requested API version {version:?} is not supported by kubelet. Supported version is [{VERSION:?}]"
        )));
    }
    let name = &request.resource_name;
    let is_extended = name.split_once('/').is_some_and(|(domain, name)| {
        !domain.is_empty() && !name.is_empty() && !domain.ends_with("kubernetes.io") && !domain.starts_with("requests.")
    });
    if is_extended { Ok(()) } else { Err(Status::unknown(format!("the ResourceName {name:?} is invalid"))) }
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(&self, _: Request<ListPodResourcesRequest>) -> Result<Response<ListPodResourcesResponse>, Status> {
        is_crowded(&self.0)?;
        self.0.devices().listings += 1;
        self.0.tick();
        if self.0.has(&Scenario::ListsNobody) {
            return Ok(Response::new(ListPodResourcesResponse::default()));
        }
        Ok(Response::new(self.0.devices().list()))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Ok(Response::new(AllocatableResourcesResponse { devices: self.0.devices().allocatable() }))
    }

    async fn get(&self, request: Request<GetPodResourcesRequest>) -> Result<Response<GetPodResourcesResponse>, Status> {
        is_crowded(&self.0)?;
        if self.0.has(&Scenario::TellsNoSinglePod) {
            return Err(Status::unknown("PodResources API Get method disabled"));
        }
        self.0.devices().listings += 1;
        self.0.tick();
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let pods = self.0.devices().list().pod_resources;
        let pod = pods.into_iter().find(|pod| pod.name == pod_name && pod.namespace == pod_namespace);
        let missing = || Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found"));
        Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(pod.ok_or_else(missing)?) }))
    }
}

/// Sockets that registered, by resource.
pub(super) type Sockets = BTreeSet<(String, String)>;

const DIAL_MAX: std::time::Duration = std::time::Duration::from_secs(10);
