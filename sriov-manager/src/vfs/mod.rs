//! Every VF of the node and who has which: the one writer of VF state.
//!
//! Three rules hold it together.
//!
//! - **Nothing is done that the journal does not know.** A fact is on the disk before the first step that it allows,
//!   so a start after a kill knows what may be half done, and what each VF was before.
//! - **Nobody waits under the lock.** The mutex guards what is known and is held for moments. Whoever works on a VF
//!   locks it and the VFs of its IOMMU group, and works without the mutex; others wait for that, with a limit.
//! - **One way back.** A failed acquire, a release and a start after a kill all bring a VF back to what it was by
//!   the same plan.
//!
//! In reading order: `locks`; `request`; `acquire` with `choose` and `apply`, `handover`, `release`, `until` (leases that end by
//! themselves), `claims` (VFs that have an owner); `create` with `blockers`, `recover`; `rules` (the policies, and other
//! ones) with `documents` (as the API gives them), `held` (who uses a VF), `reason` and `reasons` (why a VF is not available), `view` (what others see) with `details` (what is asked for it), `error`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::address::PciAddress;
use crate::attributes::Mac;
use crate::executor::{Executor, Observer, Point, Timeouts};
use crate::inventory::{Inventory, PhysicalFunction, VirtualFunction};
use crate::journal::{Facts, Journal, Record};
use crate::kernel::Kernel;
use crate::lease::Lease;
use crate::plan::Current;
use crate::policy::Policies;
use crate::sysfs::Sysfs;
use crate::uevent::News;
use crate::watchdog::{Stop, Watchdog};

mod acquire;
mod apply;
mod backoff;
mod blockers;
mod choose;
mod claims;
mod counts;
mod create;
mod details;
mod documents;
mod error;
mod handover;
mod held;
mod locks;
mod names;
mod parallel;
mod reason;
mod reasons;
mod recover;
mod release;
mod request;
mod rules;
mod until;
mod view;

pub use claims::Claimed;
pub use create::{Created, HostVfs};
pub use details::PfDetails;
pub use documents::{Applied, PolicyChange};
pub use error::{OpenError, VfError};
pub use locks::{Caller, WhenBusy};
pub use reason::Reason;
pub use reasons::obstacles;
pub use recover::Recovery;
pub use release::Remains;
pub(crate) use release::pause_before_next_look;
pub use request::{Acquired, Again, Choice, Order, Place, Request};
pub(crate) use request::{check_how_many, check_name};
pub use rules::{AdoptError, Adopted, Counts};

use backoff::Backoff;
use counts::CountsSeen;
use locks::LockRequest;
use names::Altnames;
use view::Shown;
pub use view::{PfView, PoliciesView, VfView, View};

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
    /// What there is to be, and who may have it.
    pub policies: Policies,
    /// How long anything may take.
    pub timeouts: Timeouts,
    /// Is told of every step.
    pub observer: Option<Observer>,
}

struct Inner {
    executor: Executor,
    state: Mutex<State>,
    /// Held while a fact is written, and until it is in the state: so the order in the file is that in which facts became true.
    /// Never taken under the lock of the state, which nobody holds while the disk is waited for.
    journal: Mutex<Journal>,
    /// A VF is unlocked, or nobody is to wait any more.
    freed: Condvar,
    /// The same, for whoever waits without a thread.
    unlocked: watch::Sender<u64>,
    /// Nobody is to wait any more.
    stop: Arc<Stop>,
    /// Counts moments at which what others can see may have changed.
    ticks: Arc<watch::Sender<u64>>,
    /// What others saw last.
    shown: Mutex<Shown>,
    /// How far the start is.
    recovery: watch::Sender<Recovery>,
    /// A call into the kernel that was given up has come back since somebody asked.
    returned: Arc<AtomicBool>,
    /// Other names of interfaces.
    altnames: Altnames,
    /// Calls for details.
    questions: Watchdog,
    /// Looks at paths that clients named.
    questions_about_paths: Watchdog,
    /// How many of each user are under way.
    path_questions: Arc<Mutex<BTreeMap<u32, usize>>>,
    /// Held while the tree is looked at, so that an older look never replaces a newer one.
    looking: Mutex<()>,
    /// Held while VFs get an owner, so that they do not get two, and while they are lent anew or a PF is cordoned: whoever claims or
    /// cordons knows of every lease that was before.
    claiming: Mutex<()>,
    /// Held while other policies are made to hold.
    applying: Mutex<()>,
    /// No other manager owns this tree, whatever its state directory.
    _tree: Flock<File>,
}

/// What is known. A clone is a look at it that holds up nobody.
#[derive(Clone)]
struct State {
    inventory: Arc<Inventory>,
    /// VFs that were looked at since the last look at the whole tree began.
    fresh: BTreeSet<PciAddress>,
    /// Looks at the whole tree.
    looks: u64,
    policies: Arc<Policies>,
    /// Why the policies are not those that were wanted last.
    policies_refused: Option<String>,
    /// Why nobody knows which policies hold: those of the start, or that were given over the API, cannot be used. Who may have which
    /// VF is in them, so nothing is lent.
    policies_unknown: Option<String>,
    /// The file that the policies come from, and that is followed.
    policies_file: Option<PathBuf>,
    /// The number of those that every PF has been made to have.
    policies_reached: u64,
    /// PFs that have not got the number of VFs that the policies want, and why.
    short: BTreeMap<PciAddress, String>,
    /// What was last seen to with the numbers of VFs of PFs.
    counts: CountsSeen,
    /// VFs with a lease that are others than before, and that nobody has compared with it since.
    remade: BTreeSet<PciAddress>,
    /// The addresses that PFs were made with, as far as they told.
    cards: BTreeMap<PciAddress, Mac>,
    /// Leases that could not be brought to what they should be.
    retries: Backoff,
    /// VFs that could not be lent lately, for reasons that nobody sees before: others of a pool are tried first.
    failed_to_lend: Backoff,
    facts: Arc<Facts>,
    /// Functions that somebody works on.
    locked: BTreeSet<PciAddress>,
    /// Names of leases that are being made.
    naming: BTreeSet<String>,
}

impl Vfs {
    /// [`Vfs::load`] and [`Vfs::recover`].
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let vfs = Self::load(options)?;
        vfs.recover();
        Ok(vfs)
    }

    /// Locks the state directory and reads what it remembers, and what the tree shows: enough to answer questions. Nothing is
    /// touched yet.
    pub fn load(options: Options) -> Result<Self, OpenError> {
        let Options { sysfs, kernel, state, policies, timeouts, observer } = options;
        let (journal, facts) = Journal::open(&state)?;
        let tree = lock_tree(&sysfs)?;
        let inventory = Inventory::read(&sysfs).map_err(|source| OpenError::Sysfs { root: sysfs.path(""), source })?;
        let wrong = policies.check(&inventory);
        // A node that is another one than it was does not keep its leases from being brought back and released.
        let unusable = (!wrong.is_empty()).then(|| wrong.join("\n"));
        let policies = if unusable.is_none() { policies } else { Policies::default() };
        if let Some(problem) = &unusable {
            error!(
                problem,
                "the policies contradict each other on this node; nothing is lent before they are put right"
            );
        }
        let ticks = Arc::new(watch::Sender::new(0));
        let changed = Arc::clone(&ticks);
        let returned = Arc::new(AtomicBool::new(false));
        let has_returned = Arc::clone(&returned);
        let stop = Arc::new(Stop::default());
        // Called on a thread that has none of our files: it must not be the one that ends us, and close them.
        let watchdog = Watchdog::new(kernel, Arc::clone(&stop), move || {
            info!("a call into the kernel that was given up has come back");
            has_returned.store(true, Ordering::Relaxed);
            changed.send_modify(|ticks| *ticks += 1);
        });
        let state = State {
            inventory: Arc::new(inventory),
            fresh: BTreeSet::new(),
            looks: 0,
            policies: Arc::new(policies),
            policies_refused: unusable.clone(),
            policies_unknown: unusable,
            policies_file: None,
            policies_reached: 0,
            short: BTreeMap::new(),
            counts: CountsSeen::default(),
            remade: BTreeSet::new(),
            cards: BTreeMap::new(),
            retries: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
            failed_to_lend: Backoff::new(PASS_OVER_FIRST, PASS_OVER_LONGEST),
            facts: Arc::new(facts),
            locked: BTreeSet::new(),
            naming: BTreeSet::new(),
        };
        let inner = Inner {
            state: Mutex::new(state),
            journal: Mutex::new(journal),
            freed: Condvar::new(),
            unlocked: watch::Sender::new(0),
            stop,
            ticks,
            shown: Mutex::default(),
            recovery: watch::Sender::new(Recovery::Counts),
            returned,
            altnames: Altnames::default(),
            questions: watchdog.for_questions(),
            questions_about_paths: watchdog.for_questions(),
            path_questions: Arc::default(),
            looking: Mutex::default(),
            claiming: Mutex::default(),
            applying: Mutex::default(),
            _tree: tree,
            executor: Executor { sysfs, watchdog, timeouts, observer },
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Tells when [`Vfs::view`] may show something else. The value is a count.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.ticks.subscribe()
    }

    /// Tells when somebody works on a VF no more, for whoever was told [`VfError::Busy`].
    pub fn watch_unlocked(&self) -> watch::Receiver<u64> {
        self.0.unlocked.subscribe()
    }

    /// Whether somebody works on a VF at this moment, and no VFs come or go.
    pub fn is_lending(&self) -> bool {
        let state = self.lock();
        let is_pf = |function: &PciAddress| state.inventory.pfs.contains_key(function);
        !state.locked.is_empty() && !state.locked.iter().any(is_pf)
    }

    /// How far the start is.
    pub fn watch_recovery(&self) -> watch::Receiver<Recovery> {
        self.0.recovery.subscribe()
    }

    /// How long an operation on the same VF is waited for.
    pub fn busy_timeout(&self) -> Duration {
        self.executor().timeouts.busy
    }

    /// Looks at the tree again, and goes on with what could not be finished before, however often it was tried.
    pub fn rescan(&self) {
        self.look();
        {
            let mut state = self.lock();
            state.counts.forget_failures();
            state.retries.clear();
            state.failed_to_lend.clear();
        }
        self.reconcile();
    }

    /// Whoever waits for a VF waits no longer: the daemon stops.
    pub(crate) fn close(&self) {
        self.0.stop.begin();
        // Under the lock, so that nobody is between the question and the wait.
        let _state = self.lock();
        self.0.freed.notify_all();
        self.0.unlocked.send_modify(|count| *count += 1);
    }

    /// Whether a call into the kernel that was given up has come back since this was asked last: then something can be gone
    /// on with.
    pub(crate) fn take_returned(&self) -> bool {
        self.0.returned.swap(false, Ordering::Relaxed)
    }

    fn is_closing(&self) -> bool {
        self.0.stop.has_begun()
    }

    /// Whether somebody works on what news are about.
    pub(crate) fn works_on(&self, news: &News) -> bool {
        let locked = &self.lock().locked;
        if news.is_more { !locked.is_empty() } else { !locked.is_disjoint(&news.functions) }
    }

    /// Looks at what news are about.
    pub(crate) fn look_for(&self, news: &News) {
        let knows_all = || {
            let state = self.lock();
            news.functions.iter().all(|function| state.inventory.vfs.contains_key(function))
        };
        if news.is_more || !knows_all() {
            return self.look();
        }
        self.look_at(&news.functions);
        self.changed();
    }

    /// Looks at the whole tree again.
    pub(crate) fn look(&self) {
        let _looking = self.0.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let before = {
            let mut state = self.lock();
            state.fresh.clear();
            state.inventory.clone()
        };
        let began = Instant::now();
        let inventory = Inventory::read_after(&self.0.executor.sysfs, &before);
        debug!(microseconds = began.elapsed().as_micros(), "looked at every device");
        match inventory {
            Ok(mut inventory) => {
                let needs_altnames = self.lock().policies.names_nobody(&inventory);
                if needs_altnames {
                    self.add_altnames_to_look(&mut inventory);
                }
                let mut state = self.lock();
                inventory.adopt(&state.inventory, &state.fresh);
                state.looks += 1;
                state.cards.retain(|pf, _| inventory.pfs.contains_key(pf));
                state.note_remade(&inventory);
                if *state.inventory != inventory {
                    state.inventory = Arc::new(inventory);
                }
                drop(state);
                // Not all that is shown is of the inventory: a driver may have been loaded.
                self.changed();
            }
            Err(error) => warn!(%error, "cannot look at the PCI devices; what is known stays as it was"),
        }
    }

    /// Looks at some VFs again. Only their PFs are taken along: a node may have thousands of others.
    fn look_at(&self, vfs: &BTreeSet<PciAddress>) {
        loop {
            let (known, looks) = {
                let state = self.lock();
                (Arc::clone(&state.inventory), state.looks)
            };
            let is_theirs = |pf: &&PhysicalFunction| pf.vfs.values().any(|vf| vfs.contains(vf));
            let pfs = known.pfs.values().filter(is_theirs).map(|pf| (pf.address, pf.clone())).collect();
            // What does not change of them is not read again.
            let there = vfs.iter().filter_map(|vf| Some((*vf, known.vfs.get(vf)?.clone()))).collect();
            drop(known);
            let mut seen = Inventory { pfs, vfs: there };
            seen.reread(&self.0.executor.sysfs, vfs);
            let mut state = self.lock();
            // A look at the whole tree that came in between may have seen newer things.
            if state.looks == looks {
                let is_news = |vf: &PciAddress| {
                    seen.vfs.get(vf).is_some_and(|vf| state.inventory.vfs.get(&vf.address) != Some(vf))
                };
                if vfs.iter().any(is_news) {
                    state.note_remade(&seen);
                    Arc::make_mut(&mut state.inventory).adopt(&seen, vfs);
                }
                state.fresh.extend(vfs);
                return;
            }
        }
    }

    /// What others can see may be something else now.
    fn changed(&self) {
        self.0.ticks.send_modify(|ticks| *ticks += 1);
    }

    /// What the journal knows.
    pub fn facts(&self) -> Facts {
        let facts = Arc::clone(&self.lock().facts);
        Arc::unwrap_or_clone(facts)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked under the lock left every fact whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn executor(&self) -> &Executor {
        &self.0.executor
    }

    /// The disk below the journal behaves so from now on.
    #[cfg(feature = "fake")]
    pub fn set_disk(&self, disk: crate::journal::FakeDisk) {
        self.0.journal.lock().unwrap_or_else(PoisonError::into_inner).set_disk(disk);
    }

    /// Makes a fact last, then true, then tells who watches. The lock of the state must not be held.
    fn record(&self, record: &Record) -> Result<(), VfError> {
        let began = Instant::now();
        let mut journal = self.0.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let facts_with = || {
            let mut facts = self.facts();
            facts.learn(record.clone());
            facts
        };
        journal.write(record, facts_with)?;
        {
            let mut state = self.lock();
            Arc::make_mut(&mut state.facts).learn(record.clone());
            if let Record::Lease { vf, lease: None } = record {
                // The next lease of it has not failed.
                state.retries.forget(*vf);
            }
        }
        drop(journal);
        debug!(microseconds = began.elapsed().as_micros(), "recorded");
        self.executor().observe(Point::Recorded(record));
        self.changed();
        Ok(())
    }

    fn record_lease(&self, vf: PciAddress, lease: Option<Lease>) -> Result<(), VfError> {
        self.record(&Record::Lease { vf, lease: lease.map(Box::new) })
    }

    /// A VF as it is now, and which card its PF is.
    fn current(&self, vf: &VirtualFunction) -> Result<Current, VfError> {
        let look = |error| VfError::Ask { tried: format!("look at {}", vf.address), error };
        let current = self.executor().current(vf).map_err(look)?;
        if let Some(card) = current.card {
            self.lock().cards.insert(vf.pf, card);
        }
        Ok(current)
    }
}

/// Locks the node itself: a file of its PCI bus, which every process of the machine sees as the same one. Only root can open it,
/// so nobody else can hold the lock.
fn lock_tree(sysfs: &Sysfs) -> Result<Flock<File>, OpenError> {
    let failed = |source: io::Error| OpenError::Sysfs { root: sysfs.path(""), source };
    let file = OpenOptions::new().write(true).open(sysfs.probe_file()).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => OpenError::Owned { root: sysfs.path("") },
        errno => failed(errno.into()),
    })
}

impl State {
    /// A VF that is another one than at the last look, or that came back since, has nothing of what its lease wants.
    fn note_remade(&mut self, seen: &Inventory) {
        let is_remade = |vf: &PciAddress| {
            let instance = |inventory: &Inventory| inventory.vfs.get(vf).map(|vf| vf.instance);
            instance(seen).is_some() && instance(seen) != instance(&self.inventory)
        };
        let remade = self.facts.leases.keys().copied().filter(is_remade);
        self.remade.extend(remade);
    }

    /// Whether a lease is of this VF: another one, or another card, may have come to its address.
    fn is_of(&self, lease: &Lease, vf: &VirtualFunction) -> bool {
        let cards = lease.card.zip(self.cards.get(&vf.pf).copied());
        lease.is_of(vf) && cards.is_none_or(|(then, now)| then == now)
    }

    fn vf(&self, vf: PciAddress) -> Result<&VirtualFunction, VfError> {
        self.inventory.vfs.get(&vf).ok_or_else(|| VfError::NoSuchVf { vf: vf.to_string() })
    }

    fn pf(&self, pf: PciAddress) -> Result<&PhysicalFunction, VfError> {
        self.inventory.pfs.get(&pf).ok_or_else(|| VfError::NoSuchPf { pf: pf.to_string() })
    }
}

/// A lease that is not as it should be is left alone for so long at first.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// And for so long at last.
const RETRY_LONGEST: Duration = Duration::from_mins(1);
/// A VF that could not be lent is the last choice for so long at first.
const PASS_OVER_FIRST: Duration = Duration::from_secs(30);
/// And for so long at last.
const PASS_OVER_LONGEST: Duration = Duration::from_mins(10);
