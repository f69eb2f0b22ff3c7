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
use crate::leases::LeaseName;

/// The kubelet's podresources API.
#[derive(Clone, Debug)]
pub struct PodResources {
    socket: PathBuf,
}

impl PodResources {
    /// That whose socket is at this path. It need not be there yet.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Every device of every pod, of whatever plugin. A device that several containers of a pod have is there once.
    pub async fn list(&self) -> Result<Listing, ListError> {
        timeout(LIST_WAIT, self.ask()).await?
    }

    /// The same where nobody can wait; none: not known.
    pub async fn list_soon(&self) -> Option<Listing> {
        timeout(SOON, self.ask()).await.ok()?.ok()
    }

    async fn ask(&self) -> Result<Listing, ListError> {
        let client = PodResourcesListerClient::new(connect(&self.socket).await?);
        let mut client = client.max_decoding_message_size(ANSWER_MAX);
        let answer = client.list(ListPodResourcesRequest {}).await?.into_inner();
        let mut listing = Listing::new();
        for pod in answer.pod_resources {
            let name = format!("pod {}/{}", pod.namespace, pod.name);
            for devices in pod.containers.into_iter().flat_map(|container| container.devices) {
                for id in devices.device_ids {
                    listing.insert(LeaseName::new(&devices.resource_name, &id), name.clone());
                }
            }
        }
        Ok(listing)
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

const LIST_WAIT: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_millis(300);
/// Bytes of one answer: a node has at most some hundred pods, which tell of their memory and CPUs as well.
const ANSWER_MAX: usize = 16 << 20;
