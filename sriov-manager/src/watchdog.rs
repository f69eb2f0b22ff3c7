//! Calls into the kernel that may never come back, made so that nobody waits for them beyond a deadline.
//!
//! An unbind of `vfio-pci` waits without end for a process that holds the device, inside the kernel, where
//! nothing can interrupt it. So each call has a thread of its own. One that is late is given up: its caller gets
//! an error, the functions it is about are called stuck, and nothing more is tried on them until the call
//! returns after all. That costs one sleeping thread for each stuck function, and nothing else: it has no file of the process
//! open, so that whoever starts after a kill finds the lock and the socket free.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferrule_ffi::netlink::NetlinkError;
use ferrule_ffi::private_files;
use nix::errno::Errno;
use thiserror::Error;

use crate::address::PciAddress;
use crate::kernel::Kernel;

/// Makes calls into a kernel.
#[derive(Clone)]
pub struct Watchdog {
    kernel: Arc<dyn Kernel>,
    stuck: Arc<Mutex<LateCalls>>,
    returned: Arc<dyn Fn() + Send + Sync>,
}

/// A call that has not come back.
#[derive(Clone, Debug)]
pub struct Stuck {
    /// What was asked.
    pub what: String,
    /// When.
    pub since: Instant,
}

#[derive(Default)]
struct LateCalls {
    next: u64,
    calls: BTreeMap<u64, (Vec<PciAddress>, Stuck)>,
}

impl Watchdog {
    /// `returned` is called when a call that was given up has come back.
    pub fn new(kernel: Arc<dyn Kernel>, returned: impl Fn() + Send + Sync + 'static) -> Self {
        Self { kernel, stuck: Arc::default(), returned: Arc::new(returned) }
    }

    /// Makes a call, and waits for it until the deadline. `about`: the functions that are stuck if it does not
    /// come back.
    pub fn call<T: Send + 'static>(
        &self,
        what: &impl fmt::Display,
        about: &[PciAddress],
        timeout: Duration,
        work: impl FnOnce(&dyn Kernel) -> Result<T, NetlinkError> + Send + 'static,
    ) -> Result<T, CallError> {
        if let Some((function, stuck)) = about.iter().find_map(|&function| Some((function, self.stuck(function)?))) {
            return Err(CallError::Before { function, what: stuck.what, seconds: stuck.since.elapsed().as_secs() });
        }
        let since = Instant::now();
        let call = Call { id: self.late_calls().take_id(), watchdog: self.clone() };
        let id = call.id;
        let (sender, receiver) = sync_channel(1);
        let spawned = private_files::spawn("sysfs", move || {
            let result = work(&*call.watchdog.kernel);
            // The call ends, in `drop`, after its result is there: see below.
            let _ = sender.send(result);
            drop(call);
        });
        if let Err(error) = spawned {
            return Err(CallError::Refused(error.into()));
        }
        let broken =
            || CallError::Refused(NetlinkError { errno: Errno::EIO, hint: Some("the call's thread died".into()) });
        match receiver.recv_timeout(timeout) {
            Ok(result) => result.map_err(CallError::Refused),
            Err(RecvTimeoutError::Disconnected) => Err(broken()),
            Err(RecvTimeoutError::Timeout) => {
                let mut table = self.late_calls();
                // It may have come back between the deadline and the lock; once it has, it ends only under the lock.
                match receiver.try_recv() {
                    Ok(result) => result.map_err(CallError::Refused),
                    Err(TryRecvError::Disconnected) => Err(broken()),
                    Err(TryRecvError::Empty) => {
                        let what = what.to_string();
                        table.calls.insert(id, (about.to_vec(), Stuck { what: what.clone(), since }));
                        Err(CallError::Late { what, seconds: timeout.as_secs() })
                    }
                }
            }
        }
    }

    /// The call that a function is stuck in.
    pub fn stuck(&self, function: PciAddress) -> Option<Stuck> {
        let table = self.late_calls();
        table.calls.values().find(|(about, _)| about.contains(&function)).map(|(_, stuck)| stuck.clone())
    }

    fn late_calls(&self) -> MutexGuard<'_, LateCalls> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").field("stuck", &self.late_calls().calls.len()).finish_non_exhaustive()
    }
}

impl LateCalls {
    fn take_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// A call under way; it ends when its thread does, also by a panic.
struct Call {
    id: u64,
    watchdog: Watchdog,
}

impl Drop for Call {
    fn drop(&mut self) {
        let was_stuck = self.watchdog.late_calls().calls.remove(&self.id).is_some();
        if was_stuck {
            (self.watchdog.returned)();
        }
    }
}

/// Why a call did not do what was asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CallError {
    /// The kernel said no.
    #[error("{0}")]
    Refused(NetlinkError),
    /// It has not come back.
    #[error("{what} has not come back after {seconds} s")]
    Late {
        /// What was asked.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// An earlier one has not come back.
    #[error("{function} is stuck: {what} has not come back for {seconds} s")]
    Before {
        /// The function.
        function: PciAddress,
        /// What was asked.
        what: String,
        /// How long ago.
        seconds: u64,
    },
}

impl CallError {
    /// What the kernel said.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refusal) => Some(refusal.errno),
            Self::Late { .. } | Self::Before { .. } => None,
        }
    }
}
