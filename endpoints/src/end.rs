//! An end that a program of ours sends from and receives at, of any kind.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use ferrule_dataplane::port::Source;
use ferrule_dataplane::port::memif::handshake::HandshakeError;
use ferrule_dataplane::port::memif::ring::Sender;
use ferrule_dataplane::spec::MemifSpec;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use crate::memif::{Endpoint, EndpointError};
use crate::vhost_user::{Frontend, FrontendError, FrontendSpec};

/// One end of a wire, connected.
pub enum End {
    /// A memif interface.
    Memif(Endpoint),
    /// A vhost-user frontend.
    Vhost(Frontend),
}

/// What an end is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndSpec {
    /// A memif interface.
    Memif(MemifSpec),
    /// A vhost-user frontend.
    Vhost(FrontendSpec),
}

impl End {
    /// Connects to a peer, or waits for one.
    pub fn open(spec: &EndSpec, timeout: Duration) -> Result<Self, EndError> {
        match spec {
            EndSpec::Memif(spec) => Ok(Self::Memif(Endpoint::open(spec, timeout)?)),
            EndSpec::Vhost(spec) => Ok(Self::Vhost(Frontend::open(spec, timeout)?)),
        }
    }

    /// The control socket, by which the peer says something or goes; then ask [`Self::check_peer`].
    pub fn control(&self) -> BorrowedFd<'_> {
        match self {
            Self::Memif(endpoint) => endpoint.control(),
            Self::Vhost(frontend) => frontend.control(),
        }
    }

    /// Reads what the peer has said, without waiting.
    ///
    /// # Errors
    /// It has gone, and why.
    pub fn check_peer(&mut self) -> Result<(), EndError> {
        match self {
            Self::Memif(endpoint) => Ok(endpoint.check_peer()?),
            Self::Vhost(frontend) => Ok(frontend.check_peer()?),
        }
    }

    /// Sleeps until a peer of one of these ends rings for a frame, says something, one of the files `also` is readable, or `timeout` is
    /// over.
    pub fn sleep(ends: &mut [&mut Self], also: &[BorrowedFd<'_>], timeout: Duration) {
        for end in &mut *ends {
            end.each_receiver(|receiver| receiver.enable_notify(true));
        }
        // Looked at once more after asking for eventfds, as the protocols want.
        let mut frames = false;
        for end in &mut *ends {
            end.each_receiver(|receiver| frames |= receiver.refresh().unwrap_or(true));
        }
        if !frames {
            let mut waiting: Vec<_> = also.iter().map(|file| PollFd::new(*file, PollFlags::POLLIN)).collect();
            for end in &*ends {
                waiting.push(PollFd::new(end.control(), PollFlags::POLLIN));
                end.add_notify_fds(&mut waiting);
            }
            let _ = poll(&mut waiting, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
        }
        for end in ends {
            end.each_receiver(|receiver| {
                receiver.enable_notify(false);
                if let Some(eventfd) = receiver.notify_fd() {
                    // An eventfd holds 8 bytes; only whether it rings matters.
                    let _ = nix::unistd::read(eventfd, &mut [0; 8]);
                }
            });
        }
    }

    fn each_receiver(&mut self, mut tell: impl FnMut(&mut dyn Source)) {
        match self {
            Self::Memif(endpoint) => endpoint.queues.receivers.iter_mut().for_each(|receiver| tell(receiver)),
            Self::Vhost(frontend) => frontend.queues.receivers.iter_mut().for_each(|receiver| tell(receiver)),
        }
    }

    fn add_notify_fds<'a>(&'a self, waiting: &mut Vec<PollFd<'a>>) {
        let mut add = |eventfd: Option<BorrowedFd<'a>>| {
            waiting.extend(eventfd.map(|eventfd| PollFd::new(eventfd, PollFlags::POLLIN)));
        };
        match self {
            Self::Memif(endpoint) => endpoint.queues.receivers.iter().for_each(|receiver| add(receiver.notify_fd())),
            Self::Vhost(frontend) => frontend.queues.receivers.iter().for_each(|receiver| add(receiver.notify_fd())),
        }
    }

    /// Queues to send on.
    pub fn queues(&self) -> usize {
        match self {
            Self::Memif(endpoint) => endpoint.queues.senders.len(),
            Self::Vhost(frontend) => frontend.queues.senders.len(),
        }
    }

    /// Buffers of a queue to send on: after so many frames, each has had one.
    pub fn buffers(&self) -> u32 {
        match self {
            Self::Memif(endpoint) => endpoint.queues.senders.first().map_or(0, |sender| sender.slots().into()),
            Self::Vhost(frontend) => frontend.memory().spec().size,
        }
    }

    /// What the two sides agreed on, in a few words.
    pub fn agreement(&self) -> String {
        let queues = self.queues();
        match self {
            Self::Memif(endpoint) => {
                let size = endpoint.queues.senders.first().map_or(0, Sender::slots);
                format!("memif with {}, {queues} queue(s) of {size}", endpoint.peer)
            }
            Self::Vhost(frontend) => {
                let (size, features) = (frontend.memory().spec().size, frontend.features.0);
                format!("vhost-user, features {features:#x}, {queues} queue pair(s) of {size}")
            }
        }
    }
}

/// Why an end has no peer.
#[derive(Debug, Error)]
pub enum EndError {
    /// No memif peer.
    #[error(transparent)]
    Memif(#[from] EndpointError),
    /// The memif peer has gone.
    #[error("the memif peer: {0}")]
    MemifGone(#[from] HandshakeError),
    /// No vhost-user backend, or it has gone.
    #[error(transparent)]
    Vhost(#[from] FrontendError),
}
