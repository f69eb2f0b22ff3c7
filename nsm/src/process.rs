//! What each process of a mesh is told on its command line, or by the variables of the programs in Go: its manager, and where its identity
//! comes from.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::endpoint::Offer;
use crate::identity::{IdentitySource, SpiffeIdError, WorkloadError, WorkloadSocket};
use crate::registry::RegistryClient;
use crate::service::{ConnectionServer, Handler};
use crate::transport::{Address, AddressError, Allowed, DialOptions, KeptConnection};

/// A process of the mesh.
#[derive(Clone, Debug, Args)]
pub struct ProcessArgs {
    /// Where its identity comes from: the socket of a SPIFFE Workload API
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "URL", default_value = IDENTITY_DEFAULT)]
    pub spiffe_socket: String,
    /// How long its tokens live at most
    #[arg(long, env = "NSM_MAX_TOKEN_LIFETIME", value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    pub token_lifetime: Duration,
    /// How long it may take to connect to somebody
    #[arg(long, env = "NSM_DIAL_TIMEOUT", value_name = "TIME", default_value = "750ms", value_parser = humantime::parse_duration)]
    pub dial_timeout: Duration,
}

impl ProcessArgs {
    /// Waits for the identity.
    pub async fn identity(&self) -> Result<IdentitySource, ProcessError> {
        let socket: WorkloadSocket = self.spiffe_socket.parse()?;
        Ok(Box::pin(socket.identity()).await?)
    }

    /// How it connects to others.
    pub fn dial_options(&self) -> DialOptions {
        DialOptions { allowed: Allowed::AnyTrusted, timeout: self.dial_timeout, token_lifetime: self.token_lifetime }
    }

    /// A connection to somebody that is kept.
    pub fn kept(&self, address: &str, identity: IdentitySource) -> Result<KeptConnection, ProcessError> {
        let address: Address = address.parse()?;
        Ok(KeptConnection::new(address, identity, self.dial_options()))
    }

    /// The registry that the manager at an address stands for.
    pub fn registry(&self, manager: &str, identity: IdentitySource) -> Result<Arc<RegistryClient>, ProcessError> {
        Ok(Arc::new(RegistryClient::new(self.kept(manager, identity)?, REGISTRY_TIMEOUT)))
    }
}

/// Who is trusted by a process that others call.
#[derive(Clone, Debug, Default, Args)]
pub struct Trusted {
    /// Who may speak for others, a manager or a forwarder: a SPIFFE ID, or all below one as in `spiffe://domain/nsm/*`
    #[arg(long = "relay", value_name = "ID")]
    pub relays: Vec<String>,
    /// Who may see all connections
    #[arg(long = "observer", value_name = "ID")]
    pub observers: Vec<String>,
}

impl Trusted {
    /// Has those who serve connections trust them.
    pub fn tell<H: Handler>(&self, calls: &ConnectionServer<H>) -> Result<(), SpiffeIdError> {
        for relay in &self.relays {
            calls.relays().add(relay)?;
        }
        for observer in &self.observers {
            calls.monitor().observers().add(observer)?;
        }
        Ok(())
    }
}

/// An endpoint.
#[derive(Clone, Debug, Args)]
pub struct OfferArgs {
    /// Its name, which no other endpoint has
    #[arg(long, env = "NSM_NAME")]
    pub name: Option<String>,
    /// The services that it offers
    #[arg(long = "service", env = "NSM_SERVICE_NAMES", value_name = "NAME", value_delimiter = ',')]
    pub services: Vec<String>,
    /// Labels by which its services choose it, `name:value`
    #[arg(long = "label", env = "NSM_LABELS", value_name = "NAME:VALUE", value_delimiter = ',', value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// What its connections carry: ETHERNET or IP
    #[arg(long, env = "NSM_PAYLOAD", default_value = "ETHERNET")]
    pub payload: String,
    /// Whether it registers its services, without matches; a service that chooses among its endpoints is registered by somebody else
    #[arg(long, env = "NSM_REGISTER_SERVICE", value_name = "BOOL")]
    pub register_service: Option<bool>,
    /// The manager of the node
    #[arg(long, env = "NSM_CONNECT_TO", value_name = "URL", default_value = MANAGER_DEFAULT)]
    pub connect_to: String,
    /// Where it listens; its file is passed on, and the path means nothing to others
    #[arg(long, value_name = "PATH")]
    pub listen_on: Option<PathBuf>,
}

impl OfferArgs {
    /// What it offers, under its name or that one, with its services registered if it was told so, or if that is the rule for its kind.
    pub fn offer(&self, name: &str, registers: bool) -> Result<Offer, ProcessError> {
        if self.services.is_empty() {
            return Err(ProcessError::NoService);
        }
        let name = self.name.as_deref().unwrap_or(name);
        Ok(Offer {
            name: name.to_owned(),
            services: self.services.clone(),
            labels: self.labels.iter().cloned().collect(),
            payload: self.register_service.unwrap_or(registers).then(|| self.payload.clone()),
            listen_on: self.listen_on.clone().unwrap_or_else(|| format!("{RUN}/endpoint-{name}.sock").into()),
        })
    }
}

/// Why a process of the mesh has no identity, or nobody to call.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is no identity for us.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// An address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A name is none.
    #[error(transparent)]
    Id(#[from] SpiffeIdError),
    /// There is nothing to be registered.
    #[error("an endpoint offers a service: name it with --service or NSM_SERVICE_NAMES")]
    NoService,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("`{text}`; `name:value` is wanted"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Where sockets of endpoints are.
const RUN: &str = "/run/ferrule";
/// Where `ferrule nsm up` gives a person's commands an identity.
pub const IDENTITY_DEFAULT: &str = "unix:///run/ferrule/nsm/identity/ferrule.sock";
/// Where its manager listens.
pub const MANAGER_DEFAULT: &str = "unix:///run/ferrule/nsm/nsm.io.sock";
/// A manager forgets a registration so long before it runs out.
pub const REGISTRY_TIMEOUT: Duration = Duration::from_secs(5);
