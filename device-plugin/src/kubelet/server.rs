//! What the kubelet asks of one resource.

use std::sync::Arc;

use ferrule_kubelet::v1beta1::device_plugin_server::DevicePlugin;
use ferrule_kubelet::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerPreferredAllocationResponse, DevicePluginOptions, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::warn;

use crate::allocate::Allocator;
use crate::resources::DeviceList;
use crate::under_way::UnderWay;

/// Answers for one resource, while one registration of it lasts.
pub(super) struct ResourceServer {
    pub resource: String,
    pub allocator: Arc<Allocator>,
    pub list: watch::Receiver<DeviceList>,
    pub stream: watch::Sender<ListStream>,
    /// Calls of Allocate under way.
    pub calls: watch::Sender<usize>,
    /// The list is to be closed.
    pub closing: watch::Receiver<bool>,
}

/// The list that the kubelet has open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ListStream {
    /// It has not opened it yet.
    #[default]
    Awaited,
    Open,
    /// It is closed, by whom ever: it is never opened again.
    Ended,
}

#[tonic::async_trait]
impl DevicePlugin for ResourceServer {
    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        let options = DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true };
        Ok(Response::new(options))
    }

    type ListAndWatchStream = ReceiverStream<Result<ListAndWatchResponse, Status>>;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let is_first = self.stream.send_if_modified(|stream| {
            let is_first = *stream == ListStream::Awaited;
            if is_first {
                *stream = ListStream::Open;
            }
            is_first
        });
        if !is_first {
            // Two open lists of a resource make a kubelet cut one of them.
            return Err(Status::failed_precondition("the list was opened already; register again for another one"));
        }
        let (sender, receiver) = mpsc::channel(1);
        let (list, closing, stream) = (self.list.clone(), self.closing.clone(), self.stream.clone());
        tokio::spawn(async move {
            send_lists(list, closing, sender).await;
            stream.send_replace(ListStream::Ended);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let prefer = |request: &ferrule_kubelet::v1beta1::ContainerPreferredAllocationRequest| {
            let device_ids = self.allocator.prefer(
                &self.resource,
                &request.available_device_ids,
                &request.must_include_device_ids,
                request.allocation_size,
            );
            ContainerPreferredAllocationResponse { device_ids }
        };
        let container_responses = request.into_inner().container_requests.iter().map(prefer).collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let _under_way = UnderWay::new(&self.calls);
        let mut container_responses = Vec::new();
        for container in request.into_inner().container_requests {
            let allocated = self.allocator.allocate(&self.resource, &container.devices_ids).await;
            container_responses.push(allocated.map_err(|error| Status::failed_precondition(error.to_string()))?);
        }
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        let ids = request.into_inner().devices_ids;
        self.allocator.prepare(&self.resource, &ids).await.map_err(|error| {
            warn!(resource = self.resource, devices = ids.join(","), %error, "a container's start is put off");
            self.allocator.counters.start_failed(&self.resource);
            Status::failed_precondition(error.to_string())
        })?;
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

/// The first list at once, and each that is another one, until nobody wants them any more.
async fn send_lists(
    mut list: watch::Receiver<DeviceList>,
    mut closing: watch::Receiver<bool>,
    sender: mpsc::Sender<Result<ListAndWatchResponse, Status>>,
) {
    list.mark_changed();
    loop {
        let devices = tokio::select! {
            _ = closing.wait_for(|closing| *closing) => return,
            () = sender.closed() => return,
            changed = list.changed() => match changed {
                Ok(()) => list.borrow_and_update().clone(),
                // The resource is no more.
                Err(_) => return,
            },
        };
        let devices = devices.map(|devices| devices.to_vec()).unwrap_or_default();
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => return,
            sent = sender.send(Ok(ListAndWatchResponse { devices })) => if sent.is_err() { return },
        }
    }
}
