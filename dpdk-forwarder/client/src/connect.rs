//! For programs that ask a forwarder.

use std::path::Path;

use ferrule_daemon::grpc;
use thiserror::Error;
use tonic::transport::Channel;

use crate::v1;

/// A client of the admin API.
pub type AdminClient = v1::admin_client::AdminClient<Channel>;

/// Connects to the forwarder whose admin socket is at `path`.
pub async fn connect(path: &Path) -> Result<AdminClient, ConnectError> {
    Ok(AdminClient::new(grpc::connect(path).await?).max_decoding_message_size(ANSWER_MAX))
}

/// No forwarder could be reached.
#[derive(Debug, Error)]
#[error("{}", .0.denied().unwrap_or_else(|| format!("no forwarder answers on {}: start one with `dpdk-forwarder --config wires.yaml`", .0)))]
pub struct ConnectError(#[from] grpc::ConnectError);

impl ConnectError {
    /// Whether there is one, and the caller may not ask it.
    pub fn is_denied(&self) -> bool {
        self.0.denied().is_some()
    }
}

/// Bytes of one answer: some hundred thousand wires.
const ANSWER_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_forwarder_is_told_with_its_socket_and_a_cure() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let error = connect(&path).await.unwrap_err().to_string();
        assert!(error.contains("admin.sock (no such file): start one with `dpdk-forwarder"), "{error}");
    }
}
