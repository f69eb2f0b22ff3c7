//! Every VF of the node, with a ledger of who has which: the one writer of VF state.
//!
//! Three rules hold it together.
//!
//! - **Nothing is done that the journal does not know.** A fact is on the disk before the first step that it allows,
//!   so a start after a kill knows what may be half done, and what each VF was before.
//! - **Nobody waits under the lock.** The lock guards the ledger and is held for moments. Whoever works on a VF
//!   claims it and the VFs of its IOMMU group, and works without the lock; others wait for the claim, with a limit.
//! - **One way back.** A failed acquire, a release and a start after a kill all bring a VF back to what it was by
//!   the same plan.
//!
//! In reading order: `acquire`, `release`, `create`, `recover`; `reasons` (why a VF is not to be had), `view` (what
//! others see).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::address::PciAddress;
use crate::hands::{Hands, Observer, Patience, Point, StepError};
use crate::holders::{self, Holder};
use crate::inventory::{Inventory, PhysicalFunction, VirtualFunction};
use crate::journal::{Facts, Journal, JournalError, Record};
use crate::kernel::Kernel;
use crate::policy::Policies;
use crate::sysfs::Sysfs;
use crate::watchdog::{CallError, Watchdog};

mod acquire;
mod create;
mod reasons;
mod recover;
mod release;
mod view;

pub use acquire::{Acquired, Choice, Request};
pub use create::Created;
pub use reasons::{Reason, obstacles};
pub use view::{PfView, VfView, View};

/// Every VF of the node. Clones are the same node.
#[derive(Clone)]
pub struct Vfs(Arc<Inner>);

/// How to own a node's VFs.
pub struct Options {
    /// The tree.
    pub sysfs: Sysfs,
    /// What acts on it.
    pub kernel: Arc<dyn Kernel>,
    /// Where the journal is.
    pub state: PathBuf,
    /// What there shall be, and who may have it.
    pub policies: Policies,
    /// How long anything may take.
    pub patience: Patience,
    /// Is told of every step.
    pub observer: Option<Observer>,
}

struct Inner {
    hands: Hands,
    policies: Policies,
    state: Mutex<State>,
    /// A claim ended.
    freed: Condvar,
    /// Counts changes of what others can see.
    generation: watch::Sender<u64>,
    /// Held while the tree is looked at, so that an older look never replaces a newer one.
    looking: Mutex<()>,
}

struct State {
    inventory: Inventory,
    journal: Journal,
    /// Functions that somebody works on.
    claimed: BTreeSet<PciAddress>,
}

impl Vfs {
    /// Locks the state directory, finishes or undoes what was under way, makes the VFs that the policies want, and
    /// brings every lease back. What fails is logged and shown with its VF; it stops nothing else.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let Options { sysfs, kernel, state, policies, patience, observer } = options;
        let journal = Journal::open(&state)?;
        let inventory = Inventory::read(&sysfs).map_err(|source| OpenError::Sysfs { root: sysfs.path(""), source })?;
        let wrong = policies.check(&inventory);
        if !wrong.is_empty() {
            return Err(OpenError::Policies(wrong.join("; ")));
        }
        let inner = Arc::new_cyclic(|inner: &Weak<Inner>| {
            let inner = inner.clone();
            let watchdog = Watchdog::new(kernel, move || {
                if let Some(inner) = inner.upgrade() {
                    info!("a call into the kernel that was given up has come back");
                    Self(inner).changed();
                }
            });
            Inner {
                hands: Hands { sysfs, watchdog, patience, observer },
                policies,
                state: Mutex::new(State { inventory, journal, claimed: BTreeSet::new() }),
                freed: Condvar::new(),
                generation: watch::Sender::new(0),
                looking: Mutex::default(),
            }
        });
        let vfs = Self(inner);
        vfs.recover()?;
        Ok(vfs)
    }

    /// Tells of every change of what [`Vfs::view`] shows. The value is a count.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// Looks at the tree again, and goes on with what could not be finished before.
    pub fn rescan(&self) {
        self.look();
        self.tend();
    }

    /// Looks at the tree again.
    fn look(&self) {
        let _looking = self.0.looking.lock().unwrap_or_else(PoisonError::into_inner);
        match Inventory::read(&self.0.hands.sysfs) {
            Ok(inventory) => {
                let mut state = self.lock();
                if state.inventory != inventory {
                    state.inventory = inventory;
                    drop(state);
                    self.changed();
                }
            }
            Err(error) => warn!(%error, "cannot look at the PCI devices; what is known stays as it was"),
        }
    }

    fn changed(&self) {
        self.0.generation.send_modify(|generation| *generation += 1);
    }

    /// What the journal knows, for tests and tools.
    pub fn facts(&self) -> Facts {
        self.lock().journal.facts().clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked under the lock left a ledger whose every fact was whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hands(&self) -> &Hands {
        &self.0.hands
    }

    /// Makes a fact last, then tells who watches.
    fn record(&self, state: &mut State, record: &Record) -> Result<(), VfError> {
        state.journal.record(record)?;
        self.hands().observe(Point::Recorded(record));
        self.changed();
        Ok(())
    }

    /// Waits until what `decide` wants is free, and claims it. `decide` is asked again after every wait.
    fn claim<T>(&self, mut decide: impl FnMut(&State) -> Result<(T, Wants), VfError>) -> Result<(T, Claim), VfError> {
        let deadline = Instant::now() + self.hands().patience.busy;
        let mut state = self.lock();
        loop {
            let (value, Wants { functions, quiet }) = decide(&state)?;
            let taken = functions.iter().chain(&quiet).find(|function| state.claimed.contains(function)).copied();
            let Some(function) = taken else {
                state.claimed.extend(&functions);
                return Ok((value, Claim { vfs: self.clone(), functions }));
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(VfError::Busy { function });
            }
            let waited = self.0.freed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Who uses a VF now: processes by their open files, then namespaces.
    fn holders(&self, vf: &VirtualFunction) -> Result<Vec<Holder>, CallError> {
        let hands = self.hands();
        let mut vf = vf.clone();
        vf.function.driver = hands.sysfs.driver(vf.address);
        vf.vfio_device = hands.sysfs.vfio_device(vf.address);
        let mut holders = holders::processes(&hands.sysfs, &vf);
        let hidden = vf.function.driver.is_some() && hands.sysfs.netdevs(vf.address).is_empty();
        if holders.is_empty() && hidden && vf.function.driver.as_deref() != Some(crate::address::VFIO_PCI) {
            let address = vf.address;
            let what = format!("look for the interface of {address} in other namespaces");
            let foreign = hands
                .watchdog
                .call(&what, &[address], hands.patience.call, move |kernel| kernel.foreign_netdev(address))?;
            holders.extend(foreign.map(|foreign| Holder::of_namespace(&hands.sysfs, foreign)));
        }
        Ok(holders)
    }
}

impl State {
    fn vf(&self, vf: PciAddress) -> Result<&VirtualFunction, VfError> {
        self.inventory.vfs.get(&vf).ok_or(VfError::NoSuchVf { vf })
    }

    fn pf(&self, pf: PciAddress) -> Result<&PhysicalFunction, VfError> {
        self.inventory.pfs.get(&pf).ok_or_else(|| VfError::NoSuchPf { pf: pf.to_string() })
    }

    /// What an operation on a VF has to have for itself.
    fn wants(vf: &VirtualFunction) -> Wants {
        Wants { functions: vf.group_with.iter().copied().chain([vf.address]).collect(), quiet: BTreeSet::from([vf.pf]) }
    }
}

/// What an operation works on.
struct Wants {
    /// Nobody else may work on these meanwhile.
    functions: BTreeSet<PciAddress>,
    /// Nobody may be working on these at the beginning.
    quiet: BTreeSet<PciAddress>,
}

/// Functions that nobody else works on while it lives.
struct Claim {
    vfs: Vfs,
    functions: BTreeSet<PciAddress>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // In this order: whoever waits decides by what is true now.
        self.vfs.look();
        self.vfs.lock().claimed.retain(|function| !self.functions.contains(function));
        self.vfs.0.freed.notify_all();
        self.vfs.changed();
    }
}

/// Why the node's VFs cannot be owned.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The tree cannot be read.
    #[error("look for PCI devices below {}: {source}; `--root` names the directory that holds `sys`", root.display())]
    Sysfs {
        /// The root.
        root: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The policies contradict each other on this node.
    #[error("{0}")]
    Policies(String),
    /// What was under way cannot be recorded.
    #[error(transparent)]
    Recover(#[from] VfError),
}

/// Why something was not done.
#[derive(Debug, Error)]
pub enum VfError {
    /// There is none.
    #[error("there is no VF {vf}; `ferrule vf list` shows those that are there")]
    NoSuchVf {
        /// The address.
        vf: PciAddress,
    },
    /// There is none.
    #[error("there is no PF {pf}; name it by its address or its interface, as `ferrule vf list` shows them")]
    NoSuchPf {
        /// Its name or address.
        pf: String,
    },
    /// There is none.
    #[error("there is no pool {pool}; there are: {there}")]
    NoSuchPool {
        /// The name.
        pool: String,
        /// Those that are there.
        there: String,
    },
    /// There is none.
    #[error("there is no lease {lease}; `ferrule vf list` shows those that are there")]
    NoSuchLease {
        /// Its name, or the address of its VF.
        lease: String,
    },
    /// The request cannot be meant.
    #[error("{0}")]
    Wrong(String),
    /// The name of the lease is in use for another VF.
    #[error("the lease {id} is there already, of {vf}; release it first, or choose another name")]
    IdTaken {
        /// The name.
        id: String,
        /// Its VF.
        vf: PciAddress,
    },
    /// The VF is not to be had.
    #[error("{vf} is not to be had: {}", reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Unavailable {
        /// The VF.
        vf: PciAddress,
        /// Why.
        reasons: Vec<Reason>,
    },
    /// No VF of a pool is to be had.
    #[error("no VF of the pool {pool} is to be had: {summary}; `ferrule vf explain` tells of each")]
    NoneFree {
        /// The pool.
        pool: String,
        /// How many there are, and why the first is not.
        summary: String,
    },
    /// Somebody may not have it.
    #[error("the user {uid} may not {tried}; `who` of the pool in the policies says who may")]
    NotAllowed {
        /// Who asked.
        uid: u32,
        /// For what.
        tried: String,
    },
    /// VFs of a PF are lent.
    #[error("the VFs of {pf} stay as they are: {vf} is lent as {id} to {holder}; release it first")]
    Lent {
        /// The PF.
        pf: String,
        /// The VF.
        vf: PciAddress,
        /// The lease.
        id: String,
        /// To whom.
        holder: String,
    },
    /// Somebody uses it.
    #[error("{tried}: {vf} is held: {holder}; end the holder, then ask again")]
    Held {
        /// What was tried.
        tried: String,
        /// The VF.
        vf: PciAddress,
        /// By whom.
        holder: Holder,
    },
    /// Somebody else works on it for too long.
    #[error("{function}: another operation works on it and has not ended; ask again")]
    Busy {
        /// The function.
        function: PciAddress,
    },
    /// A step failed, and everything is as it was before.
    #[error("{0}")]
    Step(StepError),
    /// A step failed, and so did the way back.
    #[error("{error}; and it could not be undone, which is tried again and again: {undo}")]
    NotUndone {
        /// What failed.
        error: StepError,
        /// What failed on the way back.
        undo: String,
    },
    /// The kernel could not be asked.
    #[error("{tried}: {error}")]
    Ask {
        /// What was tried.
        tried: String,
        /// Why not.
        error: CallError,
    },
    /// It was done, and is not what was wanted.
    #[error("{vf} is not as it was set: {left}; something else changes it")]
    NotAsWanted {
        /// The VF.
        vf: PciAddress,
        /// The steps that would still be needed.
        left: String,
    },
    /// The journal cannot be written, so nothing was done.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Inner {
    fn boot_id(&self) -> String {
        let text = fs::read_to_string(self.hands.sysfs.path("proc/sys/kernel/random/boot_id"));
        text.unwrap_or_default().trim().to_owned()
    }
}
