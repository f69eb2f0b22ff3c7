//! The forwarder of this node, asked for the wires of pods.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dpdk_forwarder_client::{AdminClient, connect, v1};
use thiserror::Error;
use tokio::sync::Mutex as AsyncMutex;
use tonic::{Code, Status, Streaming};

use super::pairs::PairState;
use super::place::Place;
use super::wire;
use crate::lease_name::OWNER;

/// The forwarder, and where its sockets are.
#[derive(Clone, Debug)]
pub struct Forwarder {
    socket: PathBuf,
    /// Where sockets of endpoints are.
    pub place: Place,
    /// Once there is one, it connects again by itself.
    client: Arc<AsyncMutex<Option<AdminClient>>>,
    /// Why it did not answer last; none: it did, or was not asked.
    problem: Arc<Mutex<Option<String>>>,
}

impl Forwarder {
    /// That whose admin socket is at this path. It need not be there yet.
    pub fn at(socket: impl Into<PathBuf>, place: Place) -> Self {
        let problem = "it has not answered yet: start it, or look at its log".to_owned();
        Self { socket: socket.into(), place, client: Arc::default(), problem: Arc::new(Mutex::new(Some(problem))) }
    }

    /// Why it does not answer.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the wire of a pair, or makes it what it should be, with its sockets where pods look for them.
    pub async fn put(&self, state: &PairState) -> Result<(), WireError> {
        for end in &state.pair.ends {
            let directory = |error| WireError::Directory { path: self.place.directory(&end.name.device), error };
            self.place.make(&end.name.device).map_err(directory)?;
        }
        self.ask_to_put(state).await?;
        if self.lost_socket(state).is_some() {
            // Somebody has removed it: only a listener that is made anew has one.
            self.ask_to_remove(state.pair.name()).await?;
            self.ask_to_put(state).await?;
        }
        match self.lost_socket(state) {
            Some(path) => Err(WireError::NotHere { path }),
            None => Ok(()),
        }
    }

    /// Removes the wire of a pair that no pod has, and its directories.
    pub async fn remove(&self, state: &PairState) -> Result<(), WireError> {
        self.ask_to_remove(state.pair.name()).await?;
        for end in &state.pair.ends {
            let directory = |error| WireError::Directory { path: self.place.directory(&end.name.device), error };
            self.place.remove(&end.name.device).map_err(directory)?;
        }
        Ok(())
    }

    /// Removes a wire of ours that is none of a pair's.
    pub async fn ask_to_remove(&self, name: &str) -> Result<(), WireError> {
        let request = v1::RemoveWireRequest { name: name.to_owned() };
        match self.client().await?.remove_wire(request).await {
            Err(status) if status.code() != Code::NotFound => Err(self.refused(&status)),
            _ => Ok(()),
        }
    }

    /// Whether a wire is as it should be for a pair.
    pub fn is_good(&self, wire: &v1::Wire, state: &PairState) -> bool {
        wire.name == state.pair.name() && wire::is_as(wire, &wire::spec(state, &self.place))
    }

    /// The pair of a wire, and who has it; none: it is no pair's.
    pub fn read(&self, wire: &v1::Wire) -> Option<PairState> {
        wire::read(wire.spec.as_ref()?, &self.place)
    }

    /// Whether somebody is connected at this end of a wire.
    pub async fn has_peer(&self, state: &PairState, id: &str) -> Result<bool, WireError> {
        let wires = self.list().await?;
        let wire = wires.iter().find(|wire| wire.name == state.pair.name());
        let mut ends = wire.into_iter().flat_map(|wire| &wire.ends).zip(&state.pair.ends);
        Ok(ends.any(|(end, pod)| pod.name.device == id && end.state != "listening"))
    }

    /// Our wires as they stand now.
    pub async fn list(&self) -> Result<Vec<v1::Wire>, WireError> {
        let answer = self.client().await?.list_wires(ours()).await.map_err(|status| self.refused(&status))?;
        self.answered(None);
        Ok(of_api(answer.into_inner()))
    }

    /// The same again and again.
    pub async fn watch(&self) -> Result<Watched<'_>, WireError> {
        let request = v1::WatchWiresRequest { interval_ms: WATCH_MS, filter: Some(ours()) };
        let stream = self.client().await?.watch_wires(request).await.map_err(|status| self.refused(&status))?;
        Ok(Watched { forwarder: self, stream: stream.into_inner() })
    }

    async fn ask_to_put(&self, state: &PairState) -> Result<(), WireError> {
        let request = v1::PutWireRequest { wire: Some(wire::spec(state, &self.place)), persist: None };
        let put = self.client().await?.put_wire(request).await;
        put.map(|_| self.answered(None)).map_err(|status| self.refused(&status))
    }

    fn lost_socket(&self, state: &PairState) -> Option<PathBuf> {
        let lost = state.pair.ends.iter().find(|end| !self.place.has_socket(&end.name.device, end.kind))?;
        Some(self.place.socket(&lost.name.device, lost.kind))
    }

    async fn client(&self) -> Result<AdminClient, WireError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let connected = connect(&self.socket).await.map_err(|error| {
            self.answered(Some(error.to_string()));
            WireError::Away(error.to_string())
        })?;
        Ok(client.insert(connected).clone())
    }

    fn refused(&self, status: &Status) -> WireError {
        // Only a status that we made ourselves, of a broken connection, has a source.
        if std::error::Error::source(status).is_none() && status.code() != Code::Unavailable {
            self.answered(None);
            return WireError::Refused(status.message().to_owned());
        }
        let message = format!("the forwarder on {} does not answer: {}", self.socket.display(), status.message());
        self.answered(Some(message.clone()));
        WireError::Away(message)
    }

    fn answered(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// Our wires, again and again.
pub struct Watched<'a> {
    forwarder: &'a Forwarder,
    stream: Streaming<v1::ListWiresResponse>,
}

impl Watched<'_> {
    /// As they stand, at once and then every second.
    pub async fn next(&mut self) -> Result<Vec<v1::Wire>, WireError> {
        let answer = self.stream.message().await.map_err(|status| self.forwarder.refused(&status))?;
        let ended = || self.forwarder.refused(&Status::unavailable("it ends"));
        let answer = answer.ok_or_else(ended)?;
        self.forwarder.answered(None);
        Ok(of_api(answer))
    }
}

fn ours() -> v1::ListWiresRequest {
    v1::ListWiresRequest { owner: Some(OWNER.to_owned()), ..Default::default() }
}

/// Those of the wires file are its own.
fn of_api(answer: v1::ListWiresResponse) -> Vec<v1::Wire> {
    answer.wires.into_iter().filter(|wire| wire.origin() == v1::Origin::Admin).collect()
}

/// Why a wire is not as it should be. Each may heal.
#[derive(Debug, Error)]
pub enum WireError {
    /// Nobody could be asked.
    #[error("{0}")]
    Away(String),
    /// The forwarder said no.
    #[error("the forwarder says: {0}")]
    Refused(String),
    /// A directory cannot be made, or removed.
    #[error("the directory {} of an endpoint: {error}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Nobody knows what it is joined with.
    #[error("{id} is no endpoint of the configuration, and no wire tells what it was joined with: delete its pod")]
    Unknown {
        /// Which.
        id: String,
    },
    /// The forwarder listens somewhere else.
    #[error(
        "the forwarder has made {} and it is not there: give dpdk-forwarder and device-plugin the same directory of the host",
        path.display()
    )]
    NotHere {
        /// What is missing.
        path: PathBuf,
    },
}

/// How often wires are looked at.
const WATCH_MS: u32 = 1000;
