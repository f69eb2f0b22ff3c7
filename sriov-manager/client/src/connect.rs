//! For programs that ask.

use std::path::Path;

use ferrule_daemon::grpc;
use thiserror::Error;
use tonic::transport::Channel;

use crate::v1;

/// A client of the API.
pub type Client = v1::vfs_client::VfsClient<Channel>;

/// Connects to the manager whose socket is at `path`.
pub async fn connect(path: &Path) -> Result<Client, ConnectError> {
    Ok(Client::new(grpc::connect(path).await?).max_decoding_message_size(ANSWER_MAX))
}

/// No manager could be reached.
#[derive(Debug, Error)]
#[error("{}", .0.denied().unwrap_or_else(|| format!("no sriov-manager answers on {}: start one with `sriov-manager`", .0)))]
pub struct ConnectError(#[from] grpc::ConnectError);

impl ConnectError {
    /// Whether there is one, and the caller may not ask it.
    pub fn is_denied(&self) -> bool {
        self.0.denied().is_some()
    }
}

/// Bytes of one answer: far more than a node has VFs.
const ANSWER_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_manager_is_told_with_its_socket_and_a_cure() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vf.sock");
        let error = connect(&path).await.unwrap_err().to_string();
        assert!(error.contains("vf.sock (no such file): start one with `sriov-manager`"), "{error}");
    }
}
