//! What became of a job: what the threads of [`super::jobs`] tell control.

use std::sync::Arc;

use ferrule_ffi::unix::UnixSocket;

use super::keys::{EndId, SocketJobId, WireKey};
use super::listen_address::ListenAddress;
use crate::port::any::LaneEnd;
use crate::port::device::{Device, LossNotice};
use crate::port::kernel::{PairStatus, VethPair};
use crate::socket::{Listener, SocketError};
use crate::spec::SocketAddress;
use crate::status::DeviceStatus;

/// What became of a job.
pub enum Done {
    /// A job at the address of a socket.
    Socket(SocketJobId, SocketOutcome),
    /// What became of the device of an end that has this number.
    Device(EndId, u64, DeviceNews),
    /// A veth pair is there, or cannot be made.
    Veth(WireKey, Result<VethPair, MakeError>),
    /// What a wire had made is closed.
    Closed(WireKey),
    /// Interfaces were looked at.
    Looked(Look),
    /// The interfaces of one wire were; none: nobody could.
    LookedAt(WireKey, Option<PairStatus>),
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

/// What became of a device.
pub enum DeviceNews {
    /// It is there, or cannot be made: what was tried, on what, why not, and what to do.
    Made(Result<NewDevice, String>),
    /// It has said what it is doing, or that it is lost.
    Status(Result<DeviceStatus, String>),
    /// It has said, of its own accord, that it is lost.
    Lost,
    /// It is closed.
    Closed,
}

/// A device as a job has made it.
pub struct NewDevice {
    /// Its rings, for the end. They are dropped before the device, wherever nobody wants it any more.
    pub rings: LaneEnd,
    /// The device.
    pub device: Arc<dyn Device>,
    /// What it said of itself then.
    pub status: DeviceStatus,
    /// By which it says that it is lost, or has said so already.
    pub loss: LossNotice,
}

/// Why a veth pair was not made: at which of the ends the kernel said no, and why.
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
    /// Each device that was asked for, with its number.
    pub devices: Vec<(EndId, u64, Result<DeviceStatus, String>)>,
}
