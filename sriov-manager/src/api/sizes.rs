//! How large a request may be, by what it asks for: a message is read before its call has a place, and whoever sends parts of very
//! many would use up the memory of the manager.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use sriov_manager_client::v1::vfs_server::{SERVICE_NAME, VfsServer};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service as HttpService, http};
use tonic::server::NamedService;

use super::calls::Service;
use super::{DOCUMENT_MAX, is_root, peer};

/// A service that reads no message larger than calls of its kind have.
#[derive(Clone)]
pub(super) struct BySize {
    small: VfsServer<Service>,
    together: VfsServer<Service>,
    documents: VfsServer<Service>,
}

impl BySize {
    pub fn new(service: Service) -> Self {
        let service = Arc::new(service);
        let of = |max| VfsServer::from_arc(Arc::clone(&service)).max_decoding_message_size(max);
        Self { small: of(SMALL_MAX), together: of(TOGETHER_MAX), documents: of(DOCUMENTS_MAX) }
    }
}

impl NamedService for BySize {
    const NAME: &'static str = SERVICE_NAME;
}

impl HttpService<http::Request<Body>> for BySize {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let server = match method {
            "AcquireAll" => &mut self.together,
            "ApplyPolicies" if is_root(peer(request.extensions())) => &mut self.documents,
            _ => &mut self.small,
        };
        server.call(request)
    }
}

/// Bytes of a request: room for 256 pools, or for a few thousand VFs.
const SMALL_MAX: usize = 64 << 10;
/// Of one for 64 leases, each with 16 pools and a path.
const TOGETHER_MAX: usize = 512 << 10;
/// Of one with a document of policies, and room for what is said of one that is too long.
const DOCUMENTS_MAX: usize = 2 * DOCUMENT_MAX;
