//! The Workload API, the server's side, for one machine: an identity for each socket.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::authority::{Authority, AuthorityError};
use super::spiffe_id::SpiffeId;
use super::workload_client::HEADER;
use crate::proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use crate::proto::workload::{X509svid, X509svidRequest, X509svidResponse};
use crate::transport::{ListenError, PlainListener};

/// Gives identities of one authority. A socket is an identity, and only the user of this process may connect to it, and root.
#[derive(Clone)]
pub struct WorkloadApi {
    authority: Arc<Authority>,
    lifetime: Duration,
}

impl WorkloadApi {
    /// Certificates live for `lifetime`, and a new one comes when half of it is over. With less than 30 s no registration lasts.
    pub fn new(authority: Arc<Authority>, lifetime: Duration) -> Self {
        Self { authority, lifetime }
    }

    /// Whoever connects to the socket at `path` is `id`, until `stop`. A socket that a dead process left there is replaced. Those who
    /// still listen then hear its end.
    ///
    /// # Errors
    /// The socket cannot be made or served.
    pub async fn serve(self, path: &Path, id: SpiffeId, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        // The file goes at the end.
        let (connections, _file) = PlainListener::bind(path)?.connections(CONNECTIONS_MAX);
        let (stopping, stopped) = watch::channel(false);
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        let service = OneIdentity { api: self, id, streams, stopped: stopped.clone() };
        let mut signal = stopped;
        let serving = Server::builder()
            .max_concurrent_streams(16)
            .http2_max_header_list_size(8 << 10)
            .add_service(SpiffeWorkloadApiServer::new(service))
            .serve_with_incoming_shutdown(connections, async move { drop(signal.wait_for(|is| *is).await) });
        // A client that says nothing more is not waited for.
        let stopping = async move {
            stop.await;
            stopping.send_replace(true);
            sleep(STOP_MAX).await;
        };
        tokio::select! {
            served = serving => Ok(served?),
            () = stopping => Ok(()),
        }
    }

    fn message(&self, id: &SpiffeId) -> Result<X509svidResponse, AuthorityError> {
        let issued = self.authority.issue(id, self.lifetime)?;
        let svid = X509svid {
            spiffe_id: id.to_string(),
            x509_svid: issued.certificate.to_vec(),
            x509_svid_key: issued.key.secret_pkcs8_der().to_vec(),
            bundle: self.authority.certificate().to_vec(),
            hint: String::new(),
        };
        Ok(X509svidResponse { svids: vec![svid], ..X509svidResponse::default() })
    }
}

/// Why a socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It cannot be made.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The server failed.
    #[error("the Workload API's server failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// What one socket gives.
struct OneIdentity {
    api: WorkloadApi,
    id: SpiffeId,
    streams: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for OneIdentity {
    type FetchX509SVIDStream = Pin<Box<dyn Stream<Item = Result<X509svidResponse, Status>> + Send>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        if request.metadata().get(HEADER).is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument(format!("the header {HEADER}: true is missing")));
        }
        let Ok(permit) = Arc::clone(&self.streams).try_acquire_owned() else {
            return Err(Status::resource_exhausted(format!(
                "{STREAMS_MAX} streams of this identity are open: close one"
            )));
        };
        // One message waits at most: who does not read gets the newest late, and costs no more than that.
        let (sender, receiver) = mpsc::channel(1);
        let (api, id, mut stopped) = (self.api.clone(), self.id.clone(), self.stopped.clone());
        tokio::spawn(async move {
            let _permit = permit;
            loop {
                let message = api.message(&id).map_err(|error| refusal(&error));
                let is_last = message.is_err();
                if sender.send(message).await.is_err() || is_last {
                    return;
                }
                tokio::select! {
                    () = sleep(api.lifetime / 2) => {}
                    () = sender.closed() => return,
                    () = async { drop(stopped.wait_for(|is| *is).await) } => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Asking again helps only if the library failed.
fn refusal(error: &AuthorityError) -> Status {
    match error {
        AuthorityError::TrustDomain(..) => Status::invalid_argument(error.to_string()),
        AuthorityError::Certificate(_) => Status::unavailable(error.to_string()),
    }
}

/// More processes of one identity are a mistake.
const STREAMS_MAX: usize = 64;
const CONNECTIONS_MAX: usize = 128;
const STOP_MAX: Duration = Duration::from_secs(1);
