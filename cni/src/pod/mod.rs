//! The devices of a pod, without Multus: the plugin is chained behind the one that makes the pod's own interface, asks the kubelet which
//! devices the pod has, and attaches the pod to a network for each.
//!
//! - [`devices`]: what a pod has, as the kubelet says;
//! - [`networks`]: what becomes of it: networks of its resource, and what the pod's annotation says;
//! - [`record`]: what has to be known later;
//! - [`add()`], [`del()`], [`check()`], [`gc()`]: the commands.

mod add;
mod del;
pub mod devices;
pub mod networks;
pub mod record;

pub use add::add;
pub use del::{check, del, gc};

use crate::network::Network;
use crate::protocol::CniError;

/// Whether a network is no network, but whatever devices a pod has: an entry of a conflist that says so.
pub fn is_of_pods(network: &Network) -> Result<bool, CniError> {
    Ok(network.keys().word("devices", &[("pod", true)])?.unwrap_or(false))
}
