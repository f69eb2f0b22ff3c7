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
//! In reading order: `locks`, `acquire`, `release`, `create`, `recover`; `rules` (the policies, and other ones),
//! `reasons` (why a VF is not to be had), `view` (what others see), `error`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::address::{PciAddress, is_userspace_driver};
use crate::executor::{Executor, Observer, Point, Timeouts};
use crate::holders::{self, Holder, HostUse};
use crate::inventory::{Inventory, PhysicalFunction, VirtualFunction};
use crate::journal::{Facts, Journal, Record};
use crate::kernel::Kernel;
use crate::plan::Step;
use crate::policy::Policies;
use crate::sysfs::Sysfs;
use crate::watchdog::{CallError, Watchdog};

mod acquire;
mod apply;
mod backoff;
mod choose;
mod counts;
mod create;
mod error;
mod locks;
mod names;
mod reasons;
mod recover;
mod release;
mod rules;
mod view;

pub use acquire::{Acquired, Choice, Request};
pub use create::{Created, HostVfs};
pub use error::{OpenError, VfError};
pub use reasons::{Reason, obstacles};
pub use release::{ReleaseOptions, Remains};
pub use rules::{AdoptError, Adopted, Counts};

use backoff::Backoff;
use counts::CountsSeen;
use locks::LockRequest;
use names::Altnames;
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
    pub timeouts: Timeouts,
    /// Is told of every step.
    pub observer: Option<Observer>,
}

struct Inner {
    executor: Executor,
    state: Mutex<State>,
    /// A VF is unlocked, or nobody shall wait any more.
    freed: Condvar,
    /// Nobody shall wait any more.
    closing: AtomicBool,
    /// Counts changes of what others can see.
    generation: Arc<watch::Sender<u64>>,
    /// A call into the kernel that was given up has come back since somebody asked.
    returned: Arc<AtomicBool>,
    /// Other names of interfaces.
    altnames: Altnames,
    /// Held while the tree is looked at, so that an older look never replaces a newer one.
    looking: Mutex<()>,
    /// No other manager owns this tree, whatever its state directory.
    _tree: Flock<File>,
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
    /// What was last seen to with the numbers of VFs of PFs.
    counts: CountsSeen,
    /// VFs that are others than those that were at their addresses before.
    remade: BTreeSet<PciAddress>,
    /// Leases that could not be brought to what they should be.
    retries: Backoff,
    journal: Journal,
    /// Functions that somebody works on.
    locked: BTreeSet<PciAddress>,
    /// Names of leases that are being made.
    naming: BTreeSet<String>,
}

impl Vfs {
    /// Locks the state directory, finishes or undoes what was under way, makes the VFs that the policies want, and
    /// brings every lease back. What fails is logged and shown with its VF; it stops nothing else.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let Options { sysfs, kernel, state, policies, timeouts, observer } = options;
        let journal = Journal::open(&state)?;
        let tree = lock_tree(&sysfs)?;
        let inventory = Inventory::read(&sysfs).map_err(|source| OpenError::Sysfs { root: sysfs.path(""), source })?;
        let wrong = policies.check(&inventory);
        if !wrong.is_empty() {
            return Err(OpenError::Policies(wrong.join("; ")));
        }
        let generation = Arc::new(watch::Sender::new(0));
        let changed = Arc::clone(&generation);
        let returned = Arc::new(AtomicBool::new(false));
        let has_returned = Arc::clone(&returned);
        // Called on a thread that has none of our files: it must not be the one that ends us, and close them.
        let watchdog = Watchdog::new(kernel, move || {
            info!("a call into the kernel that was given up has come back");
            has_returned.store(true, Ordering::Relaxed);
            changed.send_modify(|generation| *generation += 1);
        });
        let inner = Inner {
            executor: Executor { sysfs, watchdog, timeouts, observer },
            state: Mutex::new(State {
                inventory,
                fresh: BTreeSet::new(),
                looks: 0,
                policies,
                policies_refused: None,
                short: BTreeMap::new(),
                counts: CountsSeen::default(),
                remade: BTreeSet::new(),
                retries: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
                journal,
                locked: BTreeSet::new(),
                naming: BTreeSet::new(),
            }),
            freed: Condvar::new(),
            closing: AtomicBool::new(false),
            generation,
            returned,
            altnames: Altnames::default(),
            looking: Mutex::default(),
            _tree: tree,
        };
        let vfs = Self(Arc::new(inner));
        vfs.recover();
        Ok(vfs)
    }

    /// Tells of every change of what [`Vfs::view`] shows. The value is a count.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// Looks at the tree again, and goes on with what could not be finished before, however often it was tried.
    pub fn rescan(&self) {
        self.look();
        {
            let mut state = self.lock();
            state.counts.forget_failures();
            state.retries.clear();
        }
        self.reconcile();
    }

    /// Whoever waits for a VF waits no longer: the daemon stops.
    pub(crate) fn close(&self) {
        self.0.closing.store(true, Ordering::Relaxed);
        // Under the lock, so that nobody is between the question and the wait.
        let _state = self.lock();
        self.0.freed.notify_all();
    }

    /// Whether a call into the kernel that was given up has come back since this was asked last: then something can be gone
    /// on with.
    pub(crate) fn take_returned(&self) -> bool {
        self.0.returned.swap(false, Ordering::Relaxed)
    }

    fn is_closing(&self) -> bool {
        self.0.closing.load(Ordering::Relaxed)
    }

    /// Looks at the whole tree again.
    pub(crate) fn look(&self) {
        let _looking = self.0.looking.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock().fresh.clear();
        let began = Instant::now();
        let inventory = Inventory::read(&self.0.executor.sysfs);
        debug!(microseconds = began.elapsed().as_micros(), "looked at every device");
        match inventory {
            Ok(mut inventory) => {
                let needs_altnames = self.lock().policies.names_nobody(&inventory);
                if needs_altnames {
                    self.add_altnames(&mut inventory);
                }
                let mut state = self.lock();
                inventory.adopt(&state.inventory, &state.fresh);
                state.looks += 1;
                let is_remade = |vf: &&VirtualFunction| {
                    state.inventory.vfs.get(&vf.address).is_some_and(|before| before.instance != vf.instance)
                };
                let remade: Vec<_> = inventory.vfs.values().filter(is_remade).map(|vf| vf.address).collect();
                state.remade.extend(remade);
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
            inventory.reread(&self.0.executor.sysfs, vfs);
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
        // Whoever panicked under the lock left every fact whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn executor(&self) -> &Executor {
        &self.0.executor
    }

    /// The disk is full at the record of this number from now on, counting from one.
    #[cfg(feature = "fake")]
    pub(crate) fn fail_record(&self, number: usize) {
        self.lock().journal.fail_at(number);
    }

    /// Makes a fact last, then tells who watches.
    fn record(&self, state: &mut State, record: &Record) -> Result<(), VfError> {
        let began = Instant::now();
        state.journal.record(record)?;
        debug!(microseconds = began.elapsed().as_micros(), "recorded");
        self.executor().observe(Point::Recorded(record));
        self.changed();
        Ok(())
    }

    /// Who uses a VF now: processes by their open files, then namespaces.
    fn holders(&self, vf: &VirtualFunction) -> Result<Vec<Holder>, CallError> {
        let executor = self.executor();
        let mut vf = vf.clone();
        vf.function.driver = executor.sysfs.driver(vf.address);
        vf.vfio_device = executor.sysfs.vfio_device(vf.address);
        let nodes = holders::nodes(&executor.sysfs, &vf);
        let mut holders = self.openers(vf.address, &nodes)?;
        let Some(driver) = vf.function.driver.as_deref() else { return Ok(holders) };
        if holders.is_empty() && !is_userspace_driver(driver) && executor.sysfs.netdevs(vf.address).is_empty() {
            let address = vf.address;
            let what = format!("look for the interface of {address} in other namespaces");
            let foreign = executor
                .watchdog
                .call(&what, &[address], executor.timeouts.call, move |kernel| kernel.foreign_netdev(address))?;
            holders.extend(foreign.map(|foreign| Holder::of_namespace(&executor.sysfs, foreign)));
        }
        Ok(holders)
    }

    /// Who has one of the nodes of a VF open. The kernel says at once whether a VFIO group is; `/proc` says by whom.
    fn openers(&self, vf: PciAddress, nodes: &[PathBuf]) -> Result<Vec<Holder>, CallError> {
        let executor = self.executor();
        let mut open = None;
        for node in nodes.iter().filter(|node| !node.starts_with("/dev/vfio/devices")) {
            let below = executor.sysfs.path(&node.strip_prefix("/").unwrap_or(node).to_string_lossy());
            let what = format!("open {}", node.display());
            let asked =
                executor.watchdog.call(&what, &[vf], executor.timeouts.call, move |kernel| kernel.is_vfio_open(&below));
            match asked {
                Ok(None) | Err(CallError::Refused(_)) => {}
                Ok(Some(is_open)) => {
                    open = Some((is_open, node));
                    break;
                }
                Err(stuck) => return Err(stuck),
            }
        }
        // A device that has a node of its own can be open without its group.
        let has_more = nodes.iter().any(|node| !node.starts_with("/dev/vfio") || node.starts_with("/dev/vfio/devices"));
        if matches!(open, Some((false, _))) && !has_more {
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let mut holders = holders::processes(&executor.sysfs, nodes);
        debug!(microseconds = began.elapsed().as_micros(), "looked for processes that hold it");
        if let (Some((true, node)), true) = (open, holders.is_empty()) {
            holders.push(Holder::Unseen { file: node.display().to_string() });
        }
        Ok(holders)
    }

    /// What the host itself does with the interface of a VF.
    fn host_use(&self, vf: &VirtualFunction) -> Result<Option<HostUse>, CallError> {
        let executor = self.executor();
        let Some((netdev, interface)) = executor.sysfs.interface(vf.address) else { return Ok(None) };
        let uppers = executor.sysfs.upper_netdevs(vf.address, &netdev);
        let mut uses: Vec<_> = uppers.iter().map(|upper| format!("{upper} is made of it")).collect();
        let what = format!("ask what {netdev} is used for");
        let asked = executor
            .watchdog
            .call(&what, &[vf.address], executor.timeouts.call, move |kernel| kernel.host_uses(interface));
        match asked {
            Ok(more) => uses.extend(more),
            // It went away meanwhile, and with it what was made of it.
            Err(CallError::Refused(refusal)) if refusal.errno == Errno::ENODEV => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok((!uses.is_empty()).then_some(HostUse { netdev, uses }))
    }

    /// The first function among those that steps take from their drivers that somebody uses, and who.
    fn disturbed(&self, vf: &VirtualFunction, steps: &[Step]) -> Result<Option<(PciAddress, Holder)>, CallError> {
        let unbound = |address: PciAddress| {
            steps.iter().any(|step| matches!(step, Step::Unbind { function, .. } if *function == address))
        };
        let members: Vec<_> = {
            let state = self.lock();
            vf.group_with.iter().filter_map(|member| state.inventory.vfs.get(member).cloned()).collect()
        };
        for function in [vf].into_iter().chain(&members).filter(|function| unbound(function.address)) {
            if let Some(holder) = self.holders(function)?.into_iter().next() {
                return Ok(Some((function.address, holder)));
            }
        }
        Ok(None)
    }
}

/// Locks the node itself: the directory of its PCI devices, which every process of the machine sees as the same one.
fn lock_tree(sysfs: &Sysfs) -> Result<Flock<File>, OpenError> {
    let path = sysfs.path("sys/bus/pci/devices");
    let failed = |source: io::Error| OpenError::Sysfs { root: sysfs.path(""), source };
    let directory = File::open(&path).map_err(failed)?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => OpenError::Owned { root: sysfs.path("") },
        errno => failed(errno.into()),
    })
}

impl State {
    fn vf(&self, vf: PciAddress) -> Result<&VirtualFunction, VfError> {
        self.inventory.vfs.get(&vf).ok_or_else(|| VfError::NoSuchVf { vf: vf.to_string() })
    }

    fn pf(&self, pf: PciAddress) -> Result<&PhysicalFunction, VfError> {
        self.inventory.pfs.get(&pf).ok_or_else(|| VfError::NoSuchPf { pf: pf.to_string() })
    }
}

impl Inner {
    fn boot_id(&self) -> String {
        let text = fs::read_to_string(self.executor.sysfs.path("proc/sys/kernel/random/boot_id"));
        text.unwrap_or_default().trim().to_owned()
    }
}

/// A lease that is not as it should be is left alone for so long at first.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// And for so long at last.
const RETRY_LONGEST: Duration = Duration::from_mins(1);
