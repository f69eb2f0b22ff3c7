//! The client's side of `sriov-manager`: for the device plugin, the forwarder and the command line.
//!
//! It knows what is asked and what is answered, and nothing of how VFs are made or bound: whoever lends them is another process.
//!
//! - [`v1`]: the messages, as `proto/ferrule/vf/v1/vf.proto` says them, with the server's side for the manager itself
//! - [`connect()`]: a connection to the manager of this node
//! - [`refusal()`]: why a call was refused, for programs
//! - [`cache`]: the list of VFs, kept up to date
//! - [`mac`]: addresses of interfaces
//! - [`tokens`]: what a pod shows a forwarder of Network Service Mesh for a VF that it has

mod attributes;
pub mod cache;
mod connect;
pub mod mac;
mod refusal;
pub mod tokens;
mod words;

pub use cache::VfCache;
pub use connect::{Client, ConnectError, connect};
pub use refusal::{refusal, refuse};

/// The messages, the client and the server of the API, made from its `.proto`.
#[allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("ferrule.vf.v1");

    /// Its descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("vf_descriptor");
}

#[allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
mod rpc {
    tonic::include_proto!("google.rpc");
}

/// Where the manager listens unless told otherwise.
pub const SOCKET_DEFAULT: &str = "/run/ferrule/vf.sock";
