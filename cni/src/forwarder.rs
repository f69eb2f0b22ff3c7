//! `dpdk-forwarder`: the wires of pods.

use std::path::Path;

use dpdk_forwarder_client::{AdminClient, connect, v1};
use thiserror::Error;
use tonic::{Code as Status, Response};

use crate::asking::{ANSWER_WAIT, Asking};
use crate::protocol::{CniError, Code};

/// A forwarder that answers.
pub struct Forwarder(Asking<AdminClient>);

impl Forwarder {
    /// Connects to that whose admin socket is at this path.
    pub fn connect(socket: &Path) -> Result<Self, ForwarderError> {
        Asking::connect(connect(socket)).map(Self).map_err(ForwarderError::Away)
    }

    /// Makes a wire, or makes the wire of that name what is asked.
    pub fn put(&mut self, wire: v1::WireSpec) -> Result<(), ForwarderError> {
        let request = v1::PutWireRequest { wire: Some(wire), persist: None };
        self.ask(async |client| client.put_wire(request).await).map(drop)
    }

    /// Removes a wire. One that is not there is good as it is.
    pub fn remove(&mut self, name: &str) -> Result<(), ForwarderError> {
        let request = v1::RemoveWireRequest { name: name.to_owned() };
        match self.ask(async |client| client.remove_wire(request).await) {
            Err(ForwarderError::Refused { code: Status::NotFound, .. }) => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Whether a wire is there.
    pub fn has(&mut self, name: &str) -> Result<bool, ForwarderError> {
        Ok(self.wires()?.iter().any(|wire| wire.name == name))
    }

    /// All wires of ours.
    pub fn wires(&mut self) -> Result<Vec<v1::WireSpec>, ForwarderError> {
        let ours = v1::ListWiresRequest { owner: Some(OWNER.to_owned()), ..Default::default() };
        let wires = self.ask(async |client| client.list_wires(ours).await)?.wires;
        Ok(wires.into_iter().filter_map(|wire| wire.spec).collect())
    }

    fn ask<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut AdminClient) -> Result<Response<T>, tonic::Status>,
    ) -> Result<T, ForwarderError> {
        let late = || format!("dpdk-forwarder has not answered for {} s: look at its log", ANSWER_WAIT.as_secs());
        let answer = self.0.ask(call).ok_or_else(|| ForwarderError::Away(late()))?;
        answer.map_err(|status| match status.code() {
            Status::Unavailable => {
                ForwarderError::Away(format!("dpdk-forwarder does not answer: {}", status.message()))
            }
            code => ForwarderError::Refused { message: status.message().to_owned(), code },
        })
    }
}

/// Why a forwarder did not do it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ForwarderError {
    /// Nobody could be asked.
    #[error("{0}")]
    Away(String),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// In words.
        message: String,
        /// For programs.
        code: Status,
    },
}

impl From<ForwarderError> for CniError {
    fn from(error: ForwarderError) -> Self {
        let is_passing = matches!(
            error,
            ForwarderError::Away(_)
                | ForwarderError::Refused {
                    code: Status::Aborted | Status::DeadlineExceeded | Status::ResourceExhausted,
                    ..
                }
        );
        Self::new(if is_passing { Code::TryAgain } else { Code::Failed }, error.to_string())
    }
}

/// Whose wires they are.
pub const OWNER: &str = "cni";
