//! The control side of the engine: one thread owns all of its state, without a lock.
//!
//! ```text
//!   callers ---- requests ----> inbox ----> control thread ----> jobs: makers, closers, reapers
//!      ^                          ^              |    ^                        |
//!      |                          `--------------|----|----- what became of them
//!      |                                         |    |
//!      `-- snapshot, answers, events ------------'    `--- lanes ---> workers
//! ```
//! Every event is handled in bounded time: at most [`MESSAGES_PER_EVENT`] messages of one peer, and at most
//! [`HANDSHAKES_MAX`] unfinished handshakes or [`PENDING_MAX`] frontends for each listening socket. What may be slow in
//! the kernel is a job of another thread.
//!
//! - [`keys`]: what everything is found by; [`inbox`]: what other threads say; [`jobs`]: what other threads do; [`done`]: what
//!   became of that; [`poller`]: sockets and deadlines;
//! - [`snapshot`]: what readers see; [`events`]: what subscribers hear; [`health`]: whether all threads are there;
//! - [`wire`] and [`end`]: one wire, its ends and lanes; [`state`]: all of them;
//! - `make` and `remove`: wires are made, changed and removed; `lanes`: they are joined and parted;
//! - [`device`]: ends without a peer; `recover`: they are lost and made again; `look`: how they are looked after;
//! - `sockets`: what looks up the path of a socket, and may hang there;
//! - [`listener`]: listening sockets; [`listen_address`]: where; [`accept`]: who is let in there; [`handshake`] and [`pending`]: peers there that no end has yet;
//! - `connect`: ends that go to their peers; [`any`]: the kinds of peers, joined; `memif` and `vhost_user`: each of them;
//! - `trace`: copies of a wire's frames go to whoever looks at them;
//! - [`disconnect`]: why an end and its peer part; [`log_limit`] and [`token_bucket`]: how often is too often.

pub mod accept;
pub mod any;
mod connect;
pub mod device;
pub mod disconnect;
pub mod done;
pub mod end;
pub mod events;
pub mod handshake;
pub mod health;
pub mod inbox;
pub mod jobs;
pub mod keys;
mod lanes;
pub mod listen_address;
pub mod listener;
pub mod listener_ends;
pub mod log_limit;
mod look;
mod make;
mod memif;
pub mod pending;
pub mod poller;
mod recover;
mod remove;
pub mod snapshot;
mod socket_files;
pub mod socket_jobs;
mod sockets;
pub mod state;
pub mod token_bucket;
mod trace;
mod vhost_user;
pub mod wire;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use health::{HealthCell, ThreadGuard};
use inbox::{ControlMessage, Inbox};
use jobs::Jobs;
use poller::Poller;
use snapshot::{Snapshot, WorkerCell};
use state::State;

use crate::mailbox::Mailbox;
pub use crate::port::MESSAGES_PER_EVENT;
use crate::port::kernel::InterfaceOwner;
use crate::settings::Settings;
use crate::worker::{LANES_MAX, WorkerHandle};

/// The control thread, and the ways to it.
pub struct Control {
    /// Where requests go.
    pub inbox: Inbox,
    /// What readers see.
    pub snapshot: Arc<Snapshot>,
    /// Whether all threads are there.
    pub health: HealthCell,
    /// Whose the interfaces are.
    pub owner: Arc<InterfaceOwner>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Starts the workers and the thread.
    pub fn start(settings: &Settings, owner: Arc<InterfaceOwner>) -> io::Result<Self> {
        let (inbox, messages) = Inbox::new()?;
        let health = HealthCell::default();
        let returned = Arc::new(Mailbox::new(LANES_MAX * settings.workers.len().max(1))?);
        let start = |(number, &cpu)| {
            let guard = ThreadGuard::new(&health, &inbox);
            WorkerHandle::start(number, cpu, settings, Arc::clone(&returned), guard)
        };
        let workers = settings.workers.iter().enumerate().map(start).collect::<io::Result<Vec<_>>>()?;
        let cell = |worker: &WorkerHandle| {
            let (cpu, busy) = worker.meter();
            WorkerCell { cpu, busy, queues: AtomicUsize::new(0) }
        };
        let snapshot = Arc::new(Snapshot::new(workers.iter().map(cell).collect()));
        let poller = Poller::new(&[inbox.notify_fd(), returned.notify_fd()])?;
        let jobs = Jobs::new(inbox.clone(), Arc::clone(&owner), &health)?;
        let mut state = State::new(poller, jobs, workers, Arc::clone(&snapshot))?;
        let guard = ThreadGuard::new(&health, &inbox);
        let thread = thread::Builder::new().name("control".to_owned()).spawn(move || {
            let _guard = guard;
            state.run(&messages, &returned);
            state.stop(messages);
        })?;
        Ok(Self { inbox, snapshot, health, owner, thread: Some(thread) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.inbox.post(ControlMessage::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Unfinished handshakes of one listening socket; beyond, one goes.
pub const HANDSHAKES_MAX: usize = 64;
/// Frontends that wait at one listening socket; beyond, one goes. Each is a descriptor and a part of one message.
pub const PENDING_MAX: usize = 256;
/// How long a handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
