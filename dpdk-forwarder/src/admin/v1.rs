//! The messages, the client and the server of the admin API, made from its `.proto`.

tonic::include_proto!("ferrule.admin.v1");

/// Its descriptors, for reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("admin_descriptor");
