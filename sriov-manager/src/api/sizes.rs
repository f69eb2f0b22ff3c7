//! How large a request may be, by what it asks for, and how much of them one user may have under way: a message is read before its
//! call has a place, and whoever sends parts of very many would use up the memory of the manager.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use sriov_manager_client::v1::vfs_server::{SERVICE_NAME, VfsServer};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service as HttpService, http};
use tonic::server::NamedService;

use super::calls::Service;
use super::memory::{Memory, Room};
use super::{DOCUMENT_MAX, is_root, peer};

/// A service that reads no message larger than calls of its kind have, and no more of them at once than there is room for.
#[derive(Clone)]
pub(super) struct BySize {
    small: VfsServer<Service>,
    together: VfsServer<Service>,
    documents: VfsServer<Service>,
    /// Messages that are not whole yet.
    unended: Arc<Memory>,
}

impl BySize {
    pub fn new(service: Service) -> Self {
        let service = Arc::new(service);
        let of = |max| VfsServer::from_arc(Arc::clone(&service)).max_decoding_message_size(max);
        let unended = Arc::new(Memory::new(UNENDED));
        Self { small: of(SMALL_MAX), together: of(TOGETHER_MAX), documents: of(DOCUMENTS_MAX), unended }
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
        let peer = peer(request.extensions());
        let (server, max) = match method {
            "AcquireAll" => (&self.together, TOGETHER_MAX),
            "ApplyPolicies" if is_root(peer) => (&self.documents, DOCUMENTS_MAX),
            _ => (&self.small, SMALL_MAX),
        };
        let (mut server, unended, uid) = (server.clone(), Arc::clone(&self.unended), peer.credentials.uid);
        Box::pin(async move {
            match unended.room(uid, max).await {
                Ok(room) => server.call(request.map(|body| Body::new(UnendedBody { body, _room: room }))).await,
                Err(refused) => Ok(refused.into_http()),
            }
        })
    }
}

/// A message that is not whole yet: what is read of it has room until then.
struct UnendedBody {
    body: Body,
    _room: Room,
}

impl http_body::Body for UnendedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What there may be too much of.
const UNENDED: &str = "requests under way that are not whole: end them";
/// Bytes of a request: room for 256 pools, or for a few thousand VFs.
const SMALL_MAX: usize = 64 << 10;
/// Of one for 64 leases, each with 16 pools and a path.
const TOGETHER_MAX: usize = 512 << 10;
/// Of one with a document of policies, and room for what is said of one that is too long.
const DOCUMENTS_MAX: usize = 2 * DOCUMENT_MAX;
