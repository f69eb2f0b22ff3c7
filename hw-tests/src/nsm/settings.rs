//! What all processes of a mesh are told.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::programs::Cast;

/// What all processes of a mesh have in common.
pub(super) struct MeshSettings {
    pub(super) directory: tempfile::TempDir,
    pub(super) cast: Cast,
    pub(super) options: MeshOptions,
    /// Where the registry listens, if it is a process of its own.
    pub(super) registry: Option<String>,
}

/// How a mesh is.
#[derive(Clone, Copy, Debug)]
pub struct MeshOptions {
    /// How long certificates live.
    pub certificates: Duration,
    /// How long tokens live.
    pub tokens: Duration,
    /// How long a request may take.
    pub request: Duration,
    /// How many clients have an identity.
    pub clients: usize,
    /// One or two.
    pub nodes: usize,
    /// What connections carry, where a case does not say.
    pub payload: &'static str,
    /// By which devices of the nodes connections leave into VLANs: what the file of the forwarders says.
    pub device_selector: Option<&'static str>,
    /// Whether nodes reach each other by IPv6 alone.
    pub is_ipv6: bool,
    /// Whether managers and forwarders send traces to port 4317 of their node.
    pub traces: bool,
}

impl Default for MeshOptions {
    fn default() -> Self {
        Self {
            certificates: Duration::from_hours(1),
            tokens: Duration::from_mins(10),
            request: Duration::from_secs(15),
            clients: 1,
            nodes: 1,
            payload: "ETHERNET",
            device_selector: None,
            is_ipv6: false,
            traces: false,
        }
    }
}

impl MeshSettings {
    /// A path in the directory of the mesh.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What each process is told.
    pub(super) fn set(&self, command: &mut Command, name: &str) {
        let identity = self.path("identity").join(format!("{name}.sock"));
        command.env("NSM_NAME", name).env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", identity.display()));
        command.env("NSM_MAX_TOKEN_LIFETIME", format!("{}s", self.options.tokens.as_secs()));
        command.env("NSM_REQUEST_TIMEOUT", format!("{}s", self.options.request.as_secs()));
        command.env("TMPDIR", self.directory.path()).env("NSM_LOG_LEVEL", "INFO");
    }

    /// Where a process of a node sends its traces.
    pub(super) fn set_traces(&self, command: &mut Command, node: IpAddr) {
        if self.options.traces {
            let endpoint = SocketAddr::new(node, TRACES_PORT).to_string();
            command.env("TELEMETRY", "true").env("NSM_OPEN_TELEMETRY_ENDPOINT", endpoint);
        }
    }

    /// Who may speak for clients, as our programs are told.
    pub(super) fn relays(&self) -> Vec<String> {
        let ids = (1..=self.options.nodes).flat_map(|number| [format!("nsmgr-{number}"), format!("fwd-{number}")]);
        ids.flat_map(|name| ["--relay".to_owned(), format!("spiffe://ferrule.local/{name}")]).collect()
    }
}

/// Where a collector listens.
pub(super) const TRACES_PORT: u16 = 4317;

/// The name of a client, and of its identity.
pub fn client_name(number: usize) -> String {
    format!("nsc-{number}")
}

/// What clients ask for.
pub const SERVICE: &str = "icmp-responder";
/// Their interface.
pub const INTERFACE: &str = "nsm-1";
