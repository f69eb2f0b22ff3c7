//! The kubelet's device APIs, both sides, and a stand-in for the part of it that gives devices to pods.
//!
//! It knows no VF: the device plugin brings the devices. The stand-in is what tests and demos talk to where there is no cluster.
//!
//! - [`v1beta1`]: the device plugin API, as `proto/device_plugin.proto` says it
//! - [`pod_resources`]: who has which device, as `proto/pod_resources.proto` says it
//! - [`connect()`]: a connection to a socket of the kubelet, or of a plugin
//! - [`stand_in`]: a kubelet's device manager

mod connect;
pub mod stand_in;

pub use connect::{ConnectError, connect};

/// The device plugin API.
#[allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

/// The podresources API.
#[allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod pod_resources {
    tonic::include_proto!("v1");
}

/// The only version of the device plugin API that a kubelet takes.
pub const VERSION: &str = "v1beta1";
/// `Device.health` of a device that may be given to a pod.
pub const HEALTHY: &str = "Healthy";
/// `Device.health` of one that may not.
pub const UNHEALTHY: &str = "Unhealthy";
/// The socket where plugins register, in the directory of device plugins.
pub const KUBELET_SOCKET: &str = "kubelet.sock";
/// Where the kubelet looks for plugins: `--root-dir` does not move it.
pub const PLUGINS_DIRECTORY: &str = "/var/lib/kubelet/device-plugins";
/// The socket of the podresources API: `--root-dir` moves it.
pub const POD_RESOURCES_SOCKET: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";
