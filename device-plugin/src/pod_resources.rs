//! Who has which device, as the kubelet lists it.

use std::path::PathBuf;
use std::time::Duration;

use ferrule_kubelet::pod_resources::ListPodResourcesRequest;
use ferrule_kubelet::pod_resources::pod_resources_lister_client::PodResourcesListerClient;
use ferrule_kubelet::{ConnectError, connect};
use thiserror::Error;
use tokio::time::{error::Elapsed, timeout};
use tonic::Status;

use crate::grants::Listing;
use crate::lease_name::LeaseName;

/// The kubelet's podresources API.
#[derive(Clone, Debug)]
pub struct PodResources {
    socket: PathBuf,
    witness: Witness,
}

/// What makes a list of pods believed when it does not have one: a kubelet that has just started, and does not reach the API server,
/// lists none.
#[derive(Clone, Debug)]
pub struct Witness {
    /// Our own pod, as `pod NAMESPACE/NAME`: a list without it is not whole. None: a list of no pod at all is not.
    pub own_pod: Option<String>,
    /// How long after its start a kubelet is not believed.
    pub settle: Duration,
}

/// Who has what.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    /// Every device of every pod.
    pub listing: Listing,
    /// Whether who is not listed is not there.
    pub is_whole: bool,
}

impl PodResources {
    /// That whose socket is at this path. It need not be there yet.
    pub fn at(socket: impl Into<PathBuf>, witness: Witness) -> Self {
        Self { socket: socket.into(), witness }
    }

    /// Every device of every pod, of whatever plugin. A device that several containers of a pod have is there once.
    pub async fn list(&self) -> Result<Pods, ListError> {
        timeout(LIST_WAIT, self.ask()).await?
    }

    /// The same where nobody can wait; none: not known.
    pub async fn list_soon(&self) -> Option<Listing> {
        Some(timeout(SOON, self.ask()).await.ok()?.ok()?.listing)
    }

    async fn ask(&self) -> Result<Pods, ListError> {
        let client = PodResourcesListerClient::new(connect(&self.socket).await?);
        let mut client = client.max_decoding_message_size(ANSWER_MAX);
        let answer = client.list(ListPodResourcesRequest {}).await?.into_inner();
        let mut listing = Listing::new();
        let mut has_witness = false;
        for pod in answer.pod_resources {
            let name = format!("{POD}{}/{}", pod.namespace, pod.name);
            has_witness |= self.witness.own_pod.as_ref().is_none_or(|own| *own == name);
            for devices in pod.containers.into_iter().flat_map(|container| container.devices) {
                for id in devices.device_ids {
                    listing.insert(LeaseName::new(&devices.resource_name, &id), name.clone());
                }
            }
        }
        Ok(Pods { listing, is_whole: has_witness && self.kubelet_age() >= self.witness.settle })
    }

    /// The kubelet makes its socket when it starts.
    fn kubelet_age(&self) -> Duration {
        let made = std::fs::metadata(&self.socket).and_then(|socket| socket.modified());
        made.ok().and_then(|made| made.elapsed().ok()).unwrap_or_default()
    }
}

/// Why it is not known who has what.
#[derive(Debug, Error)]
pub enum ListError {
    /// Nobody answers.
    #[error("{0}: mount the kubelet's directory `pod-resources` into the plugin's pod")]
    Connect(#[from] ConnectError),
    /// The kubelet refuses.
    #[error("ask the kubelet for its pods: {}", .0.message())]
    Refused(#[from] Status),
    /// It takes too long.
    #[error("ask the kubelet for its pods: no answer within {} s", LIST_WAIT.as_secs())]
    Late(#[from] Elapsed),
}

/// What the words for a pod begin with.
pub const POD: &str = "pod ";
const LIST_WAIT: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_millis(300);
/// Bytes of one answer: a node has at most some hundred pods, which tell of their memory and CPUs as well.
const ANSWER_MAX: usize = 16 << 20;
