//! Calls of one plugin, over one connection.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::PluginError;
use crate::connect;
use crate::v1beta1::device_plugin_client::DevicePluginClient;
use crate::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, ContainerPreferredAllocationRequest,
    DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest, PreferredAllocationRequest,
    PreferredAllocationResponse,
};

/// A plugin that registered.
#[derive(Clone, Debug)]
pub(super) struct Plugin {
    pub options: DevicePluginOptions,
    client: DevicePluginClient<Channel>,
}

impl Plugin {
    pub async fn connect(socket: &Path) -> Result<Self, PluginError> {
        let mut client = DevicePluginClient::new(connect(socket).await?);
        let options = client.get_device_plugin_options(Empty {}).await?.into_inner();
        Ok(Self { options, client })
    }

    pub async fn list_and_watch(&self) -> Result<Streaming<ListAndWatchResponse>, Status> {
        Ok(self.client.clone().list_and_watch(Empty {}).await?.into_inner())
    }

    pub async fn prefer(
        &self,
        available: &BTreeSet<String>,
        must_include: &BTreeSet<String>,
        size: usize,
    ) -> Result<PreferredAllocationResponse, Status> {
        let size = i32::try_from(size).unwrap_or(i32::MAX);
        let all = available.union(must_include).cloned().collect();
        self.ask_preferred(all, must_include.iter().cloned().collect(), size).await
    }

    pub async fn ask_preferred(
        &self,
        available_device_ids: Vec<String>,
        must_include_device_ids: Vec<String>,
        allocation_size: i32,
    ) -> Result<PreferredAllocationResponse, Status> {
        let request =
            ContainerPreferredAllocationRequest { available_device_ids, must_include_device_ids, allocation_size };
        let request = PreferredAllocationRequest { container_requests: vec![request] };
        Ok(self.client.clone().get_preferred_allocation(request).await?.into_inner())
    }

    /// The kubelet asks for one container at a time, and looks at the first answer only.
    pub async fn allocate(&self, ids: &[String]) -> Result<ContainerAllocateResponse, Status> {
        let request =
            AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids: ids.to_vec() }] };
        let answer = self.client.clone().allocate(request).await?.into_inner();
        let first = answer.container_responses.into_iter().next();
        first.ok_or_else(|| Status::internal("no containers return in allocation response"))
    }

    pub async fn pre_start(&self, ids: &[String]) -> Result<(), Status> {
        let request = PreStartContainerRequest { devices_ids: ids.to_vec() };
        let answer = timeout(PRE_START_MAX, self.client.clone().pre_start_container(request)).await;
        answer.map_err(|_| Status::deadline_exceeded("context deadline exceeded"))?.map(drop)
    }
}

const PRE_START_MAX: Duration = Duration::from_secs(30);
