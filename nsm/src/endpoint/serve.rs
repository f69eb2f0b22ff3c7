//! An endpoint as a process: it listens, is registered, and leaves.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::identity::IdentitySource;
use crate::proto::registry::{NetworkService, NetworkServiceEndpoint, NetworkServiceLabels};
use crate::registry::{Registration, RegistryClient};
use crate::service::{ConnectionServer, Handler};
use crate::transport::{Address, Allowed, ListenError, ListenLimits, Listener, server};

/// What an endpoint offers, and where.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Its name, which no other endpoint has.
    pub name: String,
    /// Its services.
    pub services: Vec<String>,
    /// By which services choose it.
    pub labels: BTreeMap<String, String>,
    /// What its services carry, which it registers; none: somebody else registers them, with the matches that choose among their endpoints.
    pub payload: Option<String>,
    /// The path of its socket.
    pub listen_on: PathBuf,
}

impl Offer {
    /// Serves connections until `stop`, then is unregistered. `told` is told whenever it is registered, and when it is not any more.
    pub fn serve<H: Handler>(
        self,
        calls: &ConnectionServer<H>,
        identity: IdentitySource,
        registry: Arc<RegistryClient>,
        stop: impl Future<Output = ()> + Send + 'static,
        told: impl Fn(bool) + Send + Sync + 'static,
    ) -> Pin<Box<dyn Future<Output = Result<(), OfferError>> + Send>> {
        let routes = server().add_service(calls.service()).add_service(calls.monitor().service());
        // Compiled here, and not again in each program that waits for it.
        Box::pin(async move {
            let address = Address::Unix(self.listen_on.clone());
            let listener = Listener::bind(&address, identity, Allowed::AnyTrusted, ListenLimits::default()).await?;
            let registration = Registration::with_socket(Arc::clone(&registry), self.registration(), &self.listen_on)
                .map_err(OfferError::Socket)?;
            let (stopped, stopping) = watch::channel(false);
            tokio::select! {
                served = routes.serve_with_incoming(listener.connections()) => Ok(served?),
                () = self.keep_registered(&registration, &registry, stopping, told) => Ok(()),
                // Nobody may have let us register yet.
                () = async {
                    stop.await;
                    stopped.send_replace(true);
                    sleep(UNREGISTER_MAX).await;
                } => Ok(()),
            }
        })
    }

    async fn keep_registered(
        &self,
        registration: &Registration,
        registry: &RegistryClient,
        mut stopping: watch::Receiver<bool>,
        told: impl Fn(bool),
    ) {
        self.register_services(registry).await;
        let mut registered = registration.is_registered();
        let telling = async {
            while registered.changed().await.is_ok() {
                let is_registered = *registered.borrow_and_update();
                if is_registered {
                    // Who registers us anew may have been started again, and know the services no more.
                    self.register_services(registry).await;
                }
                told(is_registered);
            }
        };
        let stop = async { drop(stopping.wait_for(|stop| *stop).await) };
        tokio::select! {
            () = registration.run(stop) => {}
            () = telling => {}
        }
    }

    async fn register_services(&self, registry: &RegistryClient) {
        let Some(payload) = &self.payload else { return };
        for service in &self.services {
            let service =
                NetworkService { name: service.clone(), payload: payload.clone(), ..NetworkService::default() };
            while let Err(status) = registry.register_service(&service).await {
                let problem = status.message();
                tracing::warn!(service = service.name, problem, "the service is not registered, trying again");
                sleep(RETRY).await;
            }
        }
    }

    fn registration(&self) -> NetworkServiceEndpoint {
        let labels = NetworkServiceLabels { labels: self.labels.clone() };
        NetworkServiceEndpoint {
            name: self.name.clone(),
            network_service_names: self.services.clone(),
            network_service_labels: self.services.iter().map(|service| (service.clone(), labels.clone())).collect(),
            ..NetworkServiceEndpoint::default()
        }
    }
}

/// Why an endpoint does not serve.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The socket cannot be passed.
    #[error("open our own socket: {0}")]
    Socket(#[source] io::Error),
    /// The server failed.
    #[error("the server of the endpoint failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

const RETRY: Duration = Duration::from_millis(200);
/// A registration is taken out within the time of one call.
const UNREGISTER_MAX: Duration = Duration::from_secs(6);
