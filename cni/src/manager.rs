//! `sriov-manager`, asked one thing after the other.

use std::path::Path;

use sriov_manager_client::{Client, connect, refusal, v1};
use thiserror::Error;
use tonic::{Code as Status, Response};

use crate::asking::{ANSWER_WAIT, Asking};
use crate::protocol::{CniError, Code};

/// A manager that answers.
pub struct Manager(Asking<Client>);

impl Manager {
    /// Connects to that whose socket is at this path.
    pub fn connect(socket: &Path) -> Result<Self, ManagerError> {
        Asking::connect(connect(socket)).map(Self).map_err(ManagerError::Away)
    }

    /// What it says of a VF; none: it knows none of that address.
    pub fn vf(&mut self, device: &str) -> Result<Option<v1::Vf>, ManagerError> {
        let list = self.ask(async |client| client.list(v1::ListRequest::default()).await)?;
        Ok(list.vfs.into_iter().find(|vf| vf.address == device))
    }

    /// All leases, those of VFs that are not there as well.
    pub fn leases(&mut self) -> Result<Vec<v1::Lease>, ManagerError> {
        let list = self.ask(async |client| client.list(v1::ListRequest::default()).await)?;
        Ok(list.vfs.into_iter().filter_map(|vf| vf.lease).chain(list.lost).collect())
    }

    /// Lends a VF, or makes one that is lent what is asked; answers how it is then.
    pub fn acquire(&mut self, request: &v1::AcquireRequest) -> Result<v1::Vf, ManagerError> {
        let answer = self.ask(async |client| client.acquire(request.clone()).await)?;
        Ok(answer.vf.unwrap_or_default())
    }

    /// Takes a VF back. A lease that is not there is good as it is.
    pub fn release(&mut self, lease: &str) -> Result<(), ManagerError> {
        let request = v1::ReleaseRequest { lease: lease.to_owned(), wait_ms: HOLDER_WAIT_MS, ..Default::default() };
        match self.ask(async |client| client.release(request).await) {
            Err(ManagerError::Refused { kind: v1::RefusalKind::NoSuchLease, .. }) => Ok(()),
            answer => answer.map(drop),
        }
    }

    fn ask<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut Client) -> Result<Response<T>, tonic::Status>,
    ) -> Result<T, ManagerError> {
        let late = || format!("sriov-manager has not answered for {} s: look at its log", ANSWER_WAIT.as_secs());
        let answer = self.0.ask(call).ok_or_else(|| ManagerError::Away(late()))?;
        answer.map_err(|status| match refusal(&status) {
            Some(refusal) => ManagerError::Refused {
                message: status.message().to_owned(),
                kind: refusal.kind(),
                is_passing: refusal.retryable || status.code() == Status::Aborted,
            },
            None => ManagerError::Away(format!("sriov-manager does not answer: {}", status.message())),
        })
    }
}

/// Why a manager did not do it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ManagerError {
    /// Nobody could be asked.
    #[error("{0}")]
    Away(String),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// In words.
        message: String,
        /// For programs.
        kind: v1::RefusalKind,
        /// The same may succeed later by itself.
        is_passing: bool,
    },
}

impl From<ManagerError> for CniError {
    fn from(error: ManagerError) -> Self {
        let code = match &error {
            ManagerError::Away(_) | ManagerError::Refused { is_passing: true, .. } => Code::TryAgain,
            ManagerError::Refused { .. } => Code::Failed,
        };
        Self::new(code, error.to_string())
    }
}

/// The interface has just come home; whoever looked at it may take a moment to let go.
const HOLDER_WAIT_MS: u32 = 2000;
