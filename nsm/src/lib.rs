//! Network Service Mesh: its messages, and what every process of a mesh does with them.
//!
//! It is no forwarder: it knows nothing of wires, interfaces or namespaces.
//!
//! - [`proto`]: the messages, as the files in `proto` say them
//! - [`identity`]: who we are and whom we believe: SPIFFE identities and the Workload API
//! - [`transport`]: mutual TLS with these identities over Unix and TCP sockets, and gRPC over that
//! - [`token`]: what processes show each other in each call
//! - [`path`]: the way of a connection; [`policy`]: who is believed on it
//! - [`registry`]: which services there are, and who offers them
//! - [`monitor`]: what becomes of connections
//! - [`service`]: serving connections
//! - [`endpoint`]: an endpoint with addresses for its clients, or with what is next in their chain behind it
//! - [`manager`]: which forwarder a connection goes through; [`client`]: keeps one connection
//! - [`trace`]: what calls tell a collector, if one is named
//! - [`files`]: network namespaces and sockets that are passed beside calls
//! - [`process`]: what each process is told on its command line

pub mod client;
pub mod endpoint;
mod feed;
pub mod files;
pub mod identity;
pub mod manager;
pub mod monitor;
pub mod path;
pub mod policy;
pub mod process;
pub mod proto;
mod quota;
pub mod registry;
pub mod service;
#[cfg(test)]
mod test_mesh;
#[cfg(test)]
mod test_process;
pub mod token;
pub mod trace;
pub mod transport;

/// An error with what caused it: transport errors say nothing by themselves.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
