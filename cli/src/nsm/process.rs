//! What each process of the mesh is told: its name, its manager, and where its identity comes from.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ferrule_nsm::identity::{IdentitySource, WorkloadSocket};
use ferrule_nsm::registry::RegistryClient;
use ferrule_nsm::service::{ConnectionServer, Handler};
use ferrule_nsm::transport::{Address, Allowed, DialOptions, KeptConnection};

use super::NsmError;

/// A process of the mesh.
#[derive(Clone, Debug, Args)]
pub(super) struct ProcessArgs {
    /// Where its identity comes from: the socket of a SPIFFE Workload API
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "URL", default_value = IDENTITY_DEFAULT)]
    pub(super) spiffe_socket: String,
    /// How long its tokens live at most
    #[arg(long, env = "NSM_MAX_TOKEN_LIFETIME", value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    pub(super) token_lifetime: Duration,
    /// How long it may take to connect to somebody
    #[arg(long, env = "NSM_DIAL_TIMEOUT", value_name = "TIME", default_value = "750ms", value_parser = humantime::parse_duration)]
    pub(super) dial_timeout: Duration,
}

impl ProcessArgs {
    /// Waits for the identity.
    pub(super) async fn identity(&self) -> Result<IdentitySource, NsmError> {
        let socket: WorkloadSocket = self.spiffe_socket.parse()?;
        Ok(Box::pin(socket.identity()).await?)
    }

    pub(super) fn dial_options(&self) -> DialOptions {
        DialOptions { allowed: Allowed::AnyTrusted, timeout: self.dial_timeout, token_lifetime: self.token_lifetime }
    }

    /// A connection to somebody that is kept.
    pub(super) fn kept(&self, address: &str, identity: IdentitySource) -> Result<KeptConnection, NsmError> {
        let address: Address = address.parse()?;
        Ok(KeptConnection::new(address, identity, self.dial_options()))
    }

    /// The registry that the manager at an address stands for.
    pub(super) fn registry(&self, manager: &str, identity: IdentitySource) -> Result<Arc<RegistryClient>, NsmError> {
        Ok(Arc::new(RegistryClient::new(self.kept(manager, identity)?, REGISTRY_TIMEOUT)))
    }
}

/// Who is trusted by a process that others call.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Trusted {
    /// Who may speak for others, a manager or a forwarder: a SPIFFE ID, or all below one as in `spiffe://domain/nsm/*`
    #[arg(long = "relay", value_name = "ID")]
    pub(super) relays: Vec<String>,
    /// Who may see all connections
    #[arg(long = "observer", value_name = "ID")]
    pub(super) observers: Vec<String>,
}

impl Trusted {
    /// Has those who serve connections trust them.
    pub(super) fn tell<H: Handler>(&self, calls: &ConnectionServer<H>) -> Result<(), NsmError> {
        for relay in &self.relays {
            calls.relays().add(relay)?;
        }
        for observer in &self.observers {
            calls.monitor().observers().add(observer)?;
        }
        Ok(())
    }
}

/// Where `ferrule nsm up` gives a person's commands an identity.
pub(super) const IDENTITY_DEFAULT: &str = "unix:///run/ferrule/nsm/identity/ferrule.sock";
/// Where its manager listens.
pub(super) const MANAGER_DEFAULT: &str = "unix:///run/ferrule/nsm/nsm.io.sock";
/// A manager forgets a registration so long before it runs out.
pub(super) const REGISTRY_TIMEOUT: Duration = Duration::from_secs(5);
