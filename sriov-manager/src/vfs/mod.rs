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
//! In reading order: `claim`, `acquire`, `release`, `create`, `recover`; `rules` (the policies, and other ones),
//! `reasons` (why a VF is not to be had), `view` (what others see), `error`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::address::PciAddress;
use crate::hands::{Hands, Observer, Point, Timeouts};
use crate::holders::{self, Holder};
use crate::inventory::{Inventory, PhysicalFunction, VirtualFunction};
use crate::journal::{Facts, Journal, Record};
use crate::kernel::Kernel;
use crate::policy::Policies;
use crate::sysfs::Sysfs;
use crate::watchdog::{CallError, Watchdog};

mod acquire;
mod claim;
mod create;
mod error;
mod reasons;
mod recover;
mod release;
mod rules;
mod view;

pub use acquire::{Acquired, Choice, Request};
pub use create::Created;
pub use error::{OpenError, VfError};
pub use reasons::{Reason, obstacles};
pub use rules::{AdoptError, Adopted, Counts};

use claim::Wants;
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
    pub patience: Timeouts,
    /// Is told of every step.
    pub observer: Option<Observer>,
}

struct Inner {
    hands: Hands,
    state: Mutex<State>,
    /// A claim ended, or nobody shall wait any more.
    freed: Condvar,
    /// Nobody shall wait any more.
    closing: AtomicBool,
    /// Counts changes of what others can see.
    generation: watch::Sender<u64>,
    /// Held while the tree is looked at, so that an older look never replaces a newer one.
    looking: Mutex<()>,
}

struct State {
    inventory: Inventory,
    /// VFs that were looked at since the last look at the whole tree began.
    fresh: BTreeSet<PciAddress>,
    /// Looks at the whole tree.
    looks: u64,
    policies: Policies,
    /// Why the policies are not those that were wanted last.
    policies_refused: Option<String>,
    /// PFs that have not got the number of VFs that the policies want, and why.
    short: BTreeMap<PciAddress, String>,
    journal: Journal,
    /// Functions that somebody works on.
    claimed: BTreeSet<PciAddress>,
    /// Names of leases that are being made.
    naming: BTreeSet<String>,
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
                state: Mutex::new(State {
                    inventory,
                    fresh: BTreeSet::new(),
                    looks: 0,
                    policies,
                    policies_refused: None,
                    short: BTreeMap::new(),
                    journal,
                    claimed: BTreeSet::new(),
                    naming: BTreeSet::new(),
                }),
                freed: Condvar::new(),
                closing: AtomicBool::new(false),
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

    /// Whoever waits for a VF waits no longer: the daemon stops.
    pub(crate) fn close(&self) {
        self.0.closing.store(true, Ordering::Relaxed);
        // Under the lock, so that nobody is between the question and the wait.
        let _state = self.lock();
        self.0.freed.notify_all();
    }

    fn is_closing(&self) -> bool {
        self.0.closing.load(Ordering::Relaxed)
    }

    /// Looks at the whole tree again.
    pub(crate) fn look(&self) {
        let _looking = self.0.looking.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock().fresh.clear();
        let began = Instant::now();
        let inventory = Inventory::read(&self.0.hands.sysfs);
        debug!(microseconds = began.elapsed().as_micros(), "looked at every device");
        match inventory {
            Ok(mut inventory) => {
                let mut state = self.lock();
                inventory.adopt(&state.inventory, &state.fresh);
                state.looks += 1;
                if state.inventory != inventory {
                    state.inventory = inventory;
                    drop(state);
                    self.changed();
                }
            }
            Err(error) => warn!(%error, "cannot look at the PCI devices; what is known stays as it was"),
        }
    }

    /// Looks at some VFs again.
    fn look_at(&self, vfs: &BTreeSet<PciAddress>) {
        loop {
            let (mut inventory, looks) = {
                let state = self.lock();
                (state.inventory.clone(), state.looks)
            };
            inventory.reread(&self.0.hands.sysfs, vfs);
            let mut state = self.lock();
            // A look at the whole tree that came in between may have seen newer things.
            if state.looks == looks {
                state.inventory.adopt(&inventory, vfs);
                state.fresh.extend(vfs);
                return;
            }
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
        let began = Instant::now();
        state.journal.record(record)?;
        debug!(microseconds = began.elapsed().as_micros(), "recorded");
        self.hands().observe(Point::Recorded(record));
        self.changed();
        Ok(())
    }

    /// Who uses a VF now: processes by their open files, then namespaces.
    fn holders(&self, vf: &VirtualFunction) -> Result<Vec<Holder>, CallError> {
        let hands = self.hands();
        let mut vf = vf.clone();
        vf.function.driver = hands.sysfs.driver(vf.address);
        vf.vfio_device = hands.sysfs.vfio_device(vf.address);
        let began = Instant::now();
        let mut holders = holders::processes(&hands.sysfs, &vf);
        debug!(microseconds = began.elapsed().as_micros(), "looked for processes that hold it");
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
}

impl Inner {
    fn boot_id(&self) -> String {
        let text = fs::read_to_string(self.hands.sysfs.path("proc/sys/kernel/random/boot_id"));
        text.unwrap_or_default().trim().to_owned()
    }
}
