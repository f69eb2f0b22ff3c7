//! The kubelet's side of the plugin: registered, served and watched, one socket for each resource.
//!
//! The rules are the kubelet's, of all releases that there are: never two open lists of a resource, and for each try to register a
//! socket name that was never used before. Modules: `directory` (what happens where the kubelet listens), `endpoint` (one resource,
//! registered again and again), `server` (what the kubelet asks), `endpoints` (all of them).

mod directory;
mod endpoint;
mod endpoints;
mod server;

pub use directory::{Directory, KubeletSocket};
pub use endpoint::Endpoint;
pub use endpoints::{Endpoints, keep_following};
