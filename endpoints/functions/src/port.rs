//! What is at a side of a hop: an end with a peer, or an interface of the kernel.

use std::time::Duration;

use ferrule_dataplane::port::Source as _;
use ferrule_dataplane::port::kernel::KernelError;
use ferrule_dataplane::spec::KernelSpec;
use ferrule_endpoints::end::{End, EndError, EndSpec};
use ferrule_endpoints::kernel::{InterfaceGone, KernelInterface};
use thiserror::Error;

/// A side that is there.
pub enum HopPort {
    /// With a peer.
    Peer(Box<End>),
    /// Ours, with the kernel behind it.
    Kernel(KernelInterface),
}

/// What a side is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortSpec {
    /// One with a peer.
    Peer(EndSpec),
    /// An interface.
    Kernel(KernelSpec),
}

impl From<EndSpec> for PortSpec {
    fn from(spec: EndSpec) -> Self {
        Self::Peer(spec)
    }
}

impl HopPort {
    /// Waits for a peer, or makes the interface.
    pub fn open(spec: &PortSpec, timeout: Duration) -> Result<Self, PortError> {
        match spec {
            PortSpec::Peer(spec) => Ok(Self::Peer(Box::new(End::open(spec, timeout)?))),
            PortSpec::Kernel(spec) => Ok(Self::Kernel(KernelInterface::make(spec)?)),
        }
    }

    /// Looks whether it is there still, without waiting. An error says why not.
    pub fn check_peer(&mut self) -> Result<(), PortError> {
        match self {
            Self::Peer(end) => Ok(end.check_peer()?),
            Self::Kernel(interface) => Ok(interface.check()?),
        }
    }

    /// Tells whoever is here whether anybody is at the other side. A peer has no way to know.
    pub fn set_link(&self, up: bool) {
        if let Self::Kernel(interface) = self {
            interface.set_carrier(up);
        }
    }

    /// What was agreed on with the peer, or what the interface is.
    pub fn agreement(&self) -> String {
        match self {
            Self::Peer(end) => end.agreement(),
            Self::Kernel(interface) => interface.words().to_owned(),
        }
    }

    /// Sleeps until a frame comes in at one of these, a peer says something, or `timeout` is over.
    pub fn sleep(ports: &mut [Option<Self>; 2], timeout: Duration) {
        let (mut peers, mut interfaces) = (Vec::new(), Vec::new());
        for port in ports.iter_mut().flatten() {
            match port {
                Self::Peer(end) => peers.push(&mut **end),
                Self::Kernel(interface) => interfaces.push(interface),
            }
        }
        // A frame that was read ahead already makes no file readable.
        let mut receivers = interfaces.iter_mut().flat_map(|interface| &mut interface.queues.receivers);
        if !receivers.any(|receiver| receiver.refresh().unwrap_or(true)) {
            let files: Vec<_> = interfaces.iter().map(|interface| interface.descriptor()).collect();
            End::sleep(&mut peers, &files, timeout);
        }
    }
}

/// Does `$work` with the queues of a port, which are of another type for each kind.
macro_rules! with_queues {
    ($port:expr, $which:ident, $queues:ident => $work:expr) => {
        match $port {
            $crate::port::HopPort::Peer(end) => match &mut **end {
                ::ferrule_endpoints::end::End::Memif(end) => {
                    let $queues = &mut end.queues.$which[..];
                    $work
                }
                ::ferrule_endpoints::end::End::Vhost(end) => {
                    let $queues = &mut end.queues.$which[..];
                    $work
                }
            },
            $crate::port::HopPort::Kernel(interface) => {
                let $queues = &mut interface.queues.$which[..];
                $work
            }
        }
    };
}
pub(crate) use with_queues;

/// Why a side is not there.
#[derive(Debug, Error)]
pub enum PortError {
    /// No peer.
    #[error(transparent)]
    Peer(#[from] EndError),
    /// The interface was not made.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The interface went.
    #[error(transparent)]
    Gone(#[from] InterfaceGone),
}
