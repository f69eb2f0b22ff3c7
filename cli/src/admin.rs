//! The connection to a forwarder: its admin API on a Unix socket, with errors that a person can use.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use proto::admin_client::AdminClient;
use proto::{AddWireRequest, ListWiresRequest, ListWiresResponse, RemoveWireRequest, WatchWiresRequest};

/// The generated messages, client and server of `ferrule.admin.v1`.
#[allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated; the .proto file says it all")]
pub mod proto {
    tonic::include_proto!("ferrule.admin.v1");
}

/// One connection to one forwarder. It is not made again when it breaks.
#[derive(Debug)]
pub struct Admin {
    client: AdminClient<Channel>,
    socket: PathBuf,
}

impl Admin {
    /// Connects to the forwarder that serves `socket`.
    pub async fn connect(socket: &Path) -> Result<Self, AdminError> {
        let none = |reason| AdminError::NoForwarder { socket: socket.to_owned(), reason };
        let stream = UnixStream::connect(socket).await.map_err(|error| none(reason(&error)))?;
        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().map(TokioIo::new);
            async { stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset)) }
        });
        // The URI only fills the `:authority` header.
        let endpoint = Endpoint::from_static("http://forwarder");
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| none(reason(&error)))?;
        Ok(Self { client: AdminClient::new(channel), socket: socket.to_owned() })
    }

    /// Every wire as it stands now.
    pub async fn list(&mut self) -> Result<ListWiresResponse, AdminError> {
        let response = self.client.list_wires(ListWiresRequest {}).await;
        response.map(tonic::Response::into_inner).map_err(|status| self.error(&status))
    }

    /// Every wire now, and again every interval.
    pub async fn watch(mut self, interval_ms: u32) -> Result<Watch, AdminError> {
        let response = self.client.watch_wires(WatchWiresRequest { interval_ms }).await;
        let stream = response.map_err(|status| self.error(&status))?.into_inner();
        Ok(Watch { stream, admin: self })
    }

    /// Makes one wire of one entry of the wires file.
    pub async fn add(&mut self, yaml: String) -> Result<(), AdminError> {
        let response = self.client.add_wire(AddWireRequest { yaml }).await;
        response.map(drop).map_err(|status| self.error(&status))
    }

    /// Removes one wire.
    pub async fn remove(&mut self, name: String) -> Result<(), AdminError> {
        let response = self.client.remove_wire(RemoveWireRequest { name }).await;
        response.map(drop).map_err(|status| self.error(&status))
    }

    fn error(&self, status: &Status) -> AdminError {
        // Only a status that we made ourselves, of a broken connection, has a source.
        let broken = status.source().is_some() || status.code() == Code::Unavailable;
        if broken { self.gone() } else { AdminError::Refused { message: status.message().to_owned() } }
    }

    fn gone(&self) -> AdminError {
        AdminError::Gone { socket: self.socket.clone() }
    }
}

/// What a forwarder sends again and again.
#[derive(Debug)]
pub struct Watch {
    stream: Streaming<ListWiresResponse>,
    admin: Admin,
}

impl Watch {
    /// Waits for the next answer.
    pub async fn next(&mut self) -> Result<ListWiresResponse, AdminError> {
        match self.stream.message().await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(self.admin.gone()),
            Err(status) => Err(self.admin.error(&status)),
        }
    }
}

/// Why a forwarder could not be asked, or what it said instead.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Nobody serves the socket.
    #[error(
        "no forwarder answers on {socket} ({reason}): start one with `dpdk-forwarder --config wires.yaml` \
         or name its socket with --socket"
    )]
    NoForwarder {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The connection ended.
    #[error("the forwarder on {socket} went away; `ferrule wires` shows whether it is back")]
    Gone {
        /// The socket.
        socket: PathBuf,
    },
    /// The forwarder's own words.
    #[error("{message}")]
    Refused {
        /// What it said.
        message: String,
    },
}

/// The innermost cause in a few words, without `(os error 111)`.
fn reason(error: &(dyn StdError + 'static)) -> String {
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
