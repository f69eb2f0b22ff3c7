//! Ports of a kind that another crate has: a NIC through DPDK, for one.
//!
//! Such a crate has three types of its own. What a wire says of an end is an [`ExternalPort`], and goes into a wire as
//! [`EndSpec::External`](crate::spec::EndSpec::External). That makes a [`Device`](super::device::Device), with a
//! [`Source`](super::Source) and a [`Target`](super::Target) for each of its queues. This crate needs to know no more:
//! the wire is made, changed, counted, recalled and removed like any other.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use thiserror::Error;

use super::device::{DeviceContext, DeviceSpec, MadeDevice};
use crate::spec::{Attachment, EndIdentity, FieldError, Mode, PortSpec};

/// What a wire says of an end of such a kind: a value that was checked when it was read, and is shown by `Display` in
/// tables and logs.
pub trait ExternalPort: Any + fmt::Debug + fmt::Display + Send + Sync {
    /// One word for its kind, as in settings and metrics: `vf`.
    fn kind(&self) -> &'static str;

    /// What it takes for itself, in a few words: `vf 0000:3b:02.1`. Two ends of which it is the same cannot both be there. None: whatever
    /// it takes, another one of the same words can be there beside it.
    fn identity(&self) -> Option<String>;

    /// Whether `other` says the same. If so, a wire that is asked for once more is left alone; if not, it is made anew.
    /// A type with `PartialEq` says `other.downcast_ref() == Some(self)`.
    fn is_same(&self, other: &dyn ExternalPort) -> bool;

    /// Everything that is wrong with it on its own, each with the field it is about.
    fn check(&self) -> Vec<FieldError> {
        Vec::new()
    }

    /// What its frames begin with.
    fn mode(&self) -> Mode {
        Mode::Ethernet
    }

    /// Whether its frames may have checksums and segments that are left to whoever gets them: then a guest at the other
    /// end is offered to leave them.
    fn takes_offloads(&self) -> bool {
        false
    }

    /// Makes the device and its queues, when the wire is made and whenever the device was lost. On a thread of its own: it
    /// may be slow. A failure leaves nothing behind.
    ///
    /// # Errors
    /// It cannot be made. A wire that is new is not made then; one that has lost its device waits, and tries again.
    fn make(&self, context: &DeviceContext) -> Result<MadeDevice, DeviceError>;
}

impl dyn ExternalPort {
    /// The value, if it is of this type.
    pub fn downcast_ref<T: ExternalPort>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// Why a device was not made.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{tried} {device}: {reason}; {cure}")]
pub struct DeviceError {
    /// What was tried: `start the queues of`.
    pub tried: String,
    /// On what: `vf 0000:3b:02.1`.
    pub device: String,
    /// Why it was not possible.
    pub reason: String,
    /// What to do.
    pub cure: String,
}

/// An end of a wire that is such a port.
#[derive(Clone, Debug)]
pub struct ExternalSpec(Arc<dyn ExternalPort>);

impl<T: ExternalPort> From<T> for ExternalSpec {
    fn from(port: T) -> Self {
        Self(Arc::new(port))
    }
}

impl Deref for ExternalSpec {
    type Target = dyn ExternalPort;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl PartialEq for ExternalSpec {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.is_same(&*other.0)
    }
}

impl Eq for ExternalSpec {}

impl fmt::Display for ExternalSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PortSpec for ExternalSpec {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn check(&self) -> Vec<FieldError> {
        self.0.check().into_iter().map(|error| error.below(self.0.kind())).collect()
    }

    fn identity(&self) -> Option<EndIdentity> {
        Some(EndIdentity { netns: None, words: self.0.identity()? })
    }

    fn attachment(&self) -> Attachment<'_> {
        Attachment::Device(self)
    }

    fn mode(&self) -> Mode {
        self.0.mode()
    }

    fn takes_offloads(&self) -> bool {
        self.0.takes_offloads()
    }
}

impl DeviceSpec for ExternalSpec {
    fn make(&self, context: &DeviceContext) -> Result<MadeDevice, String> {
        self.0.make(context).map_err(|error| error.to_string())
    }

    fn is_made_by_kernel(&self) -> bool {
        false
    }

    fn comes_back(&self) -> bool {
        true
    }

    fn share(&self) -> Arc<dyn DeviceSpec> {
        Arc::new(self.clone())
    }
}
