//! Why a VF is not to be had.

use sriov_manager_client::{ConnectError, refusal, v1};
use thiserror::Error;
use tonic::{Code, Status};

use super::ANSWER_MAX;

/// Why a VF is not to be had.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// There is no manager.
    #[error(transparent)]
    NoManager(#[from] ConnectError),
    /// It has gone away before it answered.
    #[error("sriov-manager has gone away before it answered ({0})")]
    Broken(String),
    /// It does not answer.
    #[error("sriov-manager has not answered for {ANSWER_MAX:?}")]
    Late,
    /// It says no.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// It cannot be asked.
    #[error("no runtime ({0})")]
    NoRuntime(std::io::Error),
    /// Another forwarder has a wire of that name.
    #[error("the lease `{name}` is of {tenant}")]
    OfAnother {
        /// What it is called.
        name: String,
        /// Whose it is.
        tenant: String,
    },
    /// It is gone, or of another VF by now.
    #[error("the lease `{name}` is not of {address} any more")]
    Changed {
        /// What it is called.
        name: String,
        /// The VF that it was of.
        address: String,
    },
    /// The manager lends a VF and does not say which.
    #[error("the manager names no VF")]
    NoVf,
    /// DPDK cannot poll it.
    #[error("{0} is of NVIDIA (Mellanox), and DPDK polls these by the kernel's driver, not by vfio-pci")]
    Mellanox(String),
    /// The device before it is not closed yet.
    #[error("the lease `{0}` is still in use by the device before")]
    InUse(String),
}

impl LeaseError {
    /// What to do.
    pub fn cure(&self) -> &'static str {
        match self {
            Self::NoManager(_) | Self::Broken(_) => {
                "a wire of the file or the journal is then made by itself, any other has to be added again"
            }
            Self::Late | Self::NoRuntime(_) => {
                "see its log; a wire of the file or the journal is tried again, any other has to be added again"
            }
            Self::Refused(_) | Self::NoVf => "`ferrule vf list` shows who has which VF",
            Self::OfAnother { .. } => "rename one of the wires, or give it back with `ferrule vf release`",
            Self::Mellanox(_) => "choose a VF of another NIC",
            Self::InUse(_) | Self::Changed { .. } => "the wire is tried again",
        }
    }

    /// Whether another question would find the manager no better.
    pub(super) fn is_about_manager(&self) -> bool {
        matches!(self, Self::NoManager(_) | Self::Broken(_) | Self::Late | Self::NoRuntime(_))
    }

    /// Whether the manager refuses for this reason.
    pub(super) fn is_refusal(&self, kind: v1::RefusalKind) -> bool {
        matches!(self, Self::Refused(status) if refusal(status).is_some_and(|refusal| refusal.kind() == kind))
    }
}

impl From<Status> for LeaseError {
    fn from(status: Status) -> Self {
        // What the manager itself says has details.
        if status.code() == Code::Unavailable && refusal(&status).is_none() {
            return Self::Broken(status.message().to_owned());
        }
        Self::Refused(Box::new(status))
    }
}
