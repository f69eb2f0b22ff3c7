//! The messages, clients and servers, made from the `.proto` files. The packages are named as the protocol names them, which is not as
//! its Go packages are named.

#![allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]

/// Asking for connections and closing them.
pub mod networkservice {
    tonic::include_proto!("networkservice");
}

/// Connections, their paths, and watching them.
pub mod connection {
    tonic::include_proto!("connection");
}

/// What a connection carries: addresses, routes, names.
pub mod connectioncontext {
    tonic::include_proto!("connectioncontext");
}

/// Services and their endpoints.
pub mod registry {
    tonic::include_proto!("registry");
}

/// Where a process gets its identity. Its messages have no package.
pub mod workload {
    tonic::include_proto!("_");
}

/// The descriptors of all of them.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("nsm_descriptor");
