//! For programs that ask a forwarder.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tonic::transport::{Channel, Endpoint};

use super::v1;

/// A client of the admin API.
pub type AdminClient = v1::admin_client::AdminClient<Channel>;

/// Connects to the forwarder whose admin socket is at `path`.
pub async fn connect(path: &Path) -> Result<AdminClient, ConnectError> {
    let failed = |problem: String| ConnectError { path: path.to_owned(), problem };
    let text = path.to_str().ok_or_else(|| failed("the path is not UTF-8".to_owned()))?;
    let endpoint = Endpoint::from_shared(format!("unix://{text}")).map_err(|error| failed(root_cause(&error)))?;
    let channel = endpoint.connect().await.map_err(|error| failed(root_cause(&error)))?;
    Ok(AdminClient::new(channel).max_decoding_message_size(ANSWER_MAX))
}

/// No forwarder could be reached.
#[derive(Debug, Error)]
#[error("no forwarder answers on {} ({problem}): start one with `dpdk-forwarder --config wires.yaml`", path.display())]
pub struct ConnectError {
    path: PathBuf,
    problem: String,
}

/// What the operating system said, without `(os error 111)`: the layers above it only say "transport error".
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    match root.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => "no such file".to_owned(),
        Some(kind @ (io::ErrorKind::ConnectionRefused | io::ErrorKind::PermissionDenied)) => kind.to_string(),
        _ => root.to_string(),
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
