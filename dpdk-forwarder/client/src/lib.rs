//! The client's side of `dpdk-forwarder`: for the device plugin, the command line, and the forwarder's own journal.
//!
//! It knows what is asked and what is answered, and nothing of how frames are moved: the engine is in another process.
//!
//! - [`v1`]: the messages, as `proto/ferrule/admin/v1/admin.proto` says them, with the server's side for the forwarder itself
//! - [`connect()`]: a connection to the forwarder of this node

mod connect;

pub use connect::{AdminClient, ConnectError, connect};

/// The messages, the client and the server of the admin API, made from its `.proto`.
#[allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("ferrule.admin.v1");

    /// Its descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("admin_descriptor");
}

/// Where the admin API listens unless told otherwise.
pub const ADMIN_DEFAULT: &str = "/run/ferrule/admin.sock";
