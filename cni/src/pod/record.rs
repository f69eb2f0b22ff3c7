//! What has to be known of a pod later: what it was to be attached to, whatever the rules say by then.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::call::Call;
use crate::network::Network;
use crate::protocol::{AddResult, Attachment, CniError, Command, Environment};
use crate::store;

/// What a pod was to be attached to, in the order in which it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// One for each device.
    pub parts: Vec<Part>,
}

/// A device of a pod, and the network that it is attached to by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its resource.
    pub resource: String,
    /// What the interface is called in the pod.
    pub interface: String,
    /// The whole configuration of the network, with the device in it.
    pub config: Value,
}

/// The record of a pod.
pub type PodAttachment = store::Record<PodRecord>;

impl Part {
    /// Does something as if a runtime had asked for it, of this part alone.
    pub fn run<T>(
        &self,
        call: &Call<'_>,
        pod: &PodAttachment,
        command: Command,
        previous: Option<AddResult>,
        work: impl FnOnce(&Call<'_>, &Attachment) -> Result<T, CniError>,
    ) -> Result<T, CniError> {
        let mut network = Network::read(self.config.to_string().as_bytes())?;
        network.previous = previous;
        let about = format!("network `{}` of {}", network.name, self.resource);
        // What the runtime says of addresses is meant for the pod's own interface.
        let is_of_pod = |key: &str| key.starts_with("K8S_") || key == "IgnoreUnknown";
        let told = call.environment.attachment.as_ref().map(|told| told.args.clone()).unwrap_or_default();
        let attachment = Attachment {
            container: pod.container.clone(),
            interface: self.interface.clone(),
            netns: Some(pod.netns.clone()).filter(|netns| !netns.as_os_str().is_empty()),
            args: told.into_iter().filter(|(key, _)| is_of_pod(key)).collect(),
        };
        let path = call.environment.path.clone();
        let environment = Environment { command, attachment: Some(attachment.clone()), path };
        work(&call.of(&environment, &network), &attachment).map_err(|error| error.about(&about))
    }
}

/// Of the records' folder.
pub const KIND: &str = "pod";
