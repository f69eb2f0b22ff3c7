//! What became of a job: what the threads of [`super::jobs`] tell control.

use ferrule_ffi::tap::Tap;
use ferrule_ffi::unix::UnixSocket;

use super::keys::{EndId, SocketJobId, WireKey};
use super::listen_address::ListenAddress;
use crate::port::kernel::{PairStatus, VethPair};
use crate::socket::{Listener, SocketError};
use crate::spec::SocketAddress;

/// What became of a job.
#[expect(clippy::large_enum_variant, reason = "a few lie in the inbox for a moment")]
pub enum Done {
    /// A job at the address of a socket.
    Socket(SocketJobId, SocketOutcome),
    /// The TAP interface of an end is there, or cannot be made.
    Tap(EndId, Result<Tap, MakeError>),
    /// A veth pair is there, or cannot be made.
    Veth(WireKey, Result<VethPair, MakeError>),
    /// What a wire had made is closed.
    Closed(WireKey),
    /// Interfaces were looked at.
    Looked(Look),
}

/// What became of a job at the address of a socket.
pub enum SocketOutcome {
    /// A socket listens there, or cannot.
    Bound(ListenAddress, Result<Listener, SocketError>),
    /// It is connected to whoever listens there, or cannot be.
    Connected(Result<UnixSocket, SocketError>),
    /// Whether each path leads to our socket.
    Checked(Vec<bool>),
    /// It is closed, and its file is gone.
    Closed,
    /// The job has panicked.
    Panicked(SocketAddress),
}

/// Why an interface was not made: at which of the ends the kernel said no, and why.
#[derive(Debug)]
pub struct MakeError {
    /// 0 or 1.
    pub end: usize,
    /// What was tried, on what, why not, and what to do.
    pub problem: String,
}

/// What the interfaces of all wires looked like.
#[derive(Default)]
pub struct Look {
    /// Each pair that was asked for.
    pub pairs: Vec<(WireKey, PairStatus)>,
    /// TAP interfaces that are gone.
    pub gone: Vec<EndId>,
}
