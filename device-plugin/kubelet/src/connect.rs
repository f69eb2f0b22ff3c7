//! Connections between the kubelet and plugins.

use std::error::Error;
use std::path::{Path, PathBuf};

use futures_core::future::BoxFuture;
use thiserror::Error;
use tonic::transport::{Channel, Endpoint};

/// Connects to a socket of the kubelet or of a plugin. Nothing is sent to keep the connection alive: the kubelet's gRPC library
/// parts with a client that does that often.
pub fn connect(path: &Path) -> BoxFuture<'_, Result<Channel, ConnectError>> {
    // Compiled here, and not again in each program that waits for it.
    Box::pin(async move {
        let failed = |error: &dyn Error| ConnectError { path: path.to_owned(), problem: root_cause(error) };
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).map_err(|error| failed(&error))?;
        endpoint.connect().await.map_err(|error| failed(&error))
    })
}

/// Nobody answers at a socket.
#[derive(Debug, Error)]
#[error("connect to {}: {problem}", path.display())]
pub struct ConnectError {
    path: PathBuf,
    problem: String,
}

/// What the operating system said: the layers above it only say "transport error".
fn root_cause(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}
