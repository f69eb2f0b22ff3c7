//! The connection to a forwarder: its admin API on a Unix socket, with errors that a person can use.

use std::error::Error as _;
use std::path::{Path, PathBuf};

use clap::Args;
use dpdk_forwarder::admin::{AdminClient, ConnectError, connect};
use dpdk_forwarder::config::ADMIN_DEFAULT;
use ferrule_daemon::grpc::is_silent;
use thiserror::Error;
use tonic::{Status, Streaming};

use crate::text::natural_order;
pub use dpdk_forwarder::admin::v1 as proto;
use proto::{
    Change, ListWiresRequest, ListWiresResponse, PutWireRequest, RemoveWireRequest, WatchWiresRequest, WireSpec,
};

/// Which forwarder to ask.
#[derive(Clone, Debug, Args)]
pub struct AdminSocket {
    /// The forwarder's admin socket
    #[arg(long = "socket", env = "FERRULE_SOCKET", value_name = "PATH", default_value = ADMIN_DEFAULT)]
    pub path: PathBuf,
}

/// A forwarder that can be asked.
#[derive(Debug)]
pub struct Admin {
    client: AdminClient,
    socket: PathBuf,
}

impl Admin {
    /// Connects to the forwarder that serves `socket`.
    pub async fn connect(socket: &Path) -> Result<Self, AdminError> {
        Ok(Self { client: connect(socket).await?, socket: socket.to_owned() })
    }

    /// Every wire as it stands now, in natural order.
    pub async fn list(&mut self) -> Result<ListWiresResponse, AdminError> {
        self.list_some(ListWiresRequest::default()).await
    }

    /// The wires that are asked for as they stand now.
    pub async fn list_some(&mut self, which: ListWiresRequest) -> Result<ListWiresResponse, AdminError> {
        let response = self.client.list_wires(which).await;
        response.map(|response| in_order(response.into_inner())).map_err(|status| self.error(&status))
    }

    /// Every wire now, and again every interval.
    pub async fn watch(mut self, interval_ms: u32) -> Result<Watch, AdminError> {
        let response = self.client.watch_wires(WatchWiresRequest { interval_ms, filter: None }).await;
        let stream = response.map_err(|status| self.error(&status))?.into_inner();
        Ok(Watch { stream, admin: self })
    }

    /// Makes one wire what is asked for. `persist` says whether it is made again when the forwarder starts again; none:
    /// as the forwarder is set up.
    pub async fn put(&mut self, wire: WireSpec, persist: Option<bool>) -> Result<Change, AdminError> {
        let response = self.client.put_wire(PutWireRequest { wire: Some(wire), persist }).await;
        response.map(|response| response.get_ref().change()).map_err(|status| self.error(&status))
    }

    /// Removes one wire. `true`: only the journal had it, and a wire of the wires file that has its name stays.
    pub async fn remove(&mut self, name: String) -> Result<bool, AdminError> {
        let response = self.client.remove_wire(RemoveWireRequest { name }).await;
        response.map(|response| response.get_ref().journal_only).map_err(|status| self.error(&status))
    }

    fn error(&self, status: &Status) -> AdminError {
        if is_silent(status) {
            return AdminError::NoAnswer { socket: self.socket.clone() };
        }
        // Only a status that we made ourselves, of a broken connection, has a source.
        let is_broken = status.source().is_some();
        if is_broken { self.gone() } else { AdminError::Refused { message: status.message().to_owned() } }
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
            Ok(Some(response)) => Ok(in_order(response)),
            Ok(None) => Err(self.admin.gone()),
            Err(status) => Err(self.admin.error(&status)),
        }
    }
}

fn in_order(mut response: ListWiresResponse) -> ListWiresResponse {
    response.wires.sort_by(|a, b| natural_order(&a.name, &b.name));
    response
}

/// Why a forwarder could not be asked, or what it said instead.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Nobody serves the socket.
    #[error("{0} or name its socket with --socket")]
    NoForwarder(#[from] ConnectError),
    /// The connection ended.
    #[error("the forwarder on {socket} went away; `ferrule wires` shows whether it is back")]
    Gone {
        /// The socket.
        socket: PathBuf,
    },
    /// Somebody listens on the socket and says nothing at all.
    #[error("the forwarder on {socket} does not answer; is it stopped, or a debugger at work?")]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
    },
    /// What was to be asked for is wrong, so nobody was asked.
    #[error("{message}")]
    WrongText {
        /// One line for each thing that is wrong.
        message: String,
    },
    /// The forwarder's own words.
    #[error("{message}")]
    Refused {
        /// What it said.
        message: String,
    },
}
