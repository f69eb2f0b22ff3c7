//! The control side of the engine: one thread that leads the handshakes, joins and parts the ends,
//! and takes back what workers return.
//!
//! [`Shared`] is what the thread and the callers of the engine share: a state under a lock that no
//! worker ever takes. Every event is handled in bounded time: at most [`MESSAGES_PER_EVENT`] messages
//! of one peer, and at most [`HANDSHAKES_MAX`] unfinished handshakes or [`CALLERS_MAX`] frontends to be for each listening socket.
//!
//! - [`wire`]: one wire, its ends and lanes;
//! - [`state`]: what happens to all of them;
//! - [`disconnect`]: why an end and its peer part; [`log_limit`]: what of it is said in the log.

pub mod disconnect;
pub mod log_limit;
pub mod state;
pub mod wire;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ferrule_ffi::notifier::eventfd;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

use crate::control::state::State;
use crate::mailbox::Mailbox;
use crate::settings::Settings;
use crate::worker::{LANES_MAX, Returned, WorkerHandle};

/// The control thread, and what it shares with the engine's callers.
pub struct Control {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the control thread and the engine's callers share.
pub struct Shared {
    state: Mutex<State>,
    /// Something about a wire changed that somebody may be waiting for.
    changed: Condvar,
    returned: Arc<Mailbox<Returned>>,
    wake: EventFd,
}

impl Control {
    /// Starts the workers and the thread.
    pub fn start(settings: &Settings) -> io::Result<Self> {
        let returned = Arc::new(Mailbox::new(LANES_MAX * settings.workers.len().max(1))?);
        let start = |(number, &cpu)| WorkerHandle::start(number, cpu, settings, Arc::clone(&returned));
        let workers = settings.workers.iter().enumerate().map(start).collect::<io::Result<Vec<_>>>()?;
        let state = State::new(workers)?;
        let wake = eventfd()?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        state.epoll.add(&wake, EpollEvent::new(edge, WAKE))?;
        state.epoll.add(returned.notify_fd(), EpollEvent::new(edge, WAKE))?;
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), returned, wake });
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("control".to_owned()).spawn(move || shared.run())?
        };
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The state, locked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    /// Makes the thread look at what a caller changed.
    pub fn wake(&self) {
        self.shared.wake();
    }

    /// Waits until `done` is true of the state, or `deadline` has passed. Whether it is true.
    pub fn wait(&self, deadline: Instant, mut done: impl FnMut(&State) -> bool) -> bool {
        let mut state = self.state();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.state().stopping = true;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Workers stop here, so that no lane is with one when the rest of the state is dropped.
        let workers = std::mem::take(&mut self.state().workers);
        drop(workers);
    }
}

impl Shared {
    fn run(&self) {
        let epoll = Arc::clone(&self.lock().epoll);
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        loop {
            let deadline = self.lock().deadline();
            let timeout = if self.returned.may_sleep() { until(deadline) } else { EpollTimeout::ZERO };
            let count = epoll.wait(&mut events, timeout).unwrap_or(0);
            self.returned.awake();
            let mut state = self.lock();
            if state.stopping {
                return;
            }
            while let Some(returned) = self.returned.take() {
                state.returned(returned);
            }
            for event in &events[..count] {
                if event.data() != WAKE {
                    state.readable(event.data());
                }
            }
            state.on_time(Instant::now());
            state.let_callers_in();
            drop(state);
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Our own, non-blocking: it fails only when it has been rung 2^64 times.
        let _ = self.wake.write(1);
    }
}

/// The time to sleep, rounded up so that the deadline has passed when it is over.
fn until(deadline: Option<Instant>) -> EpollTimeout {
    let Some(deadline) = deadline else { return EpollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now()).min(SLEEP_MAX);
    if left.is_zero() {
        return EpollTimeout::ZERO;
    }
    EpollTimeout::from(u16::try_from(left.as_millis()).map_or(u16::MAX, |ms| ms.saturating_add(1)))
}

/// Messages of one peer handled at a time, before others have their turn.
pub const MESSAGES_PER_EVENT: usize = 16;
/// Unfinished handshakes of one listening socket; beyond, one goes. Each can hold as many regions as
/// a connection, of which a process has some thousands.
pub const HANDSHAKES_MAX: usize = 64;
/// Frontends that wait at one door to be let in; beyond, one goes. Each is a descriptor and a part of one message.
pub const CALLERS_MAX: usize = 256;
/// How long a handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
const EVENTS_MAX: usize = 64;
const SLEEP_MAX: Duration = Duration::from_mins(1);
/// The event of both eventfds of the control thread itself; sockets have tokens from 1 on.
const WAKE: u64 = 0;
