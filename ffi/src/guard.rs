//! What happens when a page of a peer's memory is missing.
//!
//! The CPU then raises SIGBUS at the access. The handler finds the mapping by its address. If its pages are counted
//! ([`Meter`]) and the budget has room, the page is populated and the access repeated. Otherwise (the budget is used up,
//! or the peer has truncated the file) the handler puts anonymous zero pages over the whole mapping and marks it dead; the
//! thread goes on as if nothing had happened, and whoever owns the region sees the mark after its burst. A fault that is
//! not ours goes to the handler that was there before. A SIGBUS that is no fault of the thread that takes it says nothing
//! of what anybody uses: no mapping is touched for it ([`Origin`]).

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, Once, PoisonError};

use nix::errno::Errno;

use crate::health::{Health, MemoryLost};
use crate::meter::Meter;

/// A mapping under guard; it leaves the table when this is dropped.
pub(crate) struct Guarded {
    slot: usize,
    /// The table holds a plain pointer to it.
    _owner: Box<Owner>,
}

impl Guarded {
    /// Puts `len` bytes at `base` under guard. `health` is marked dead when a page of it is missing and `meter`, if there
    /// is one, does not populate it.
    pub(crate) fn new(base: usize, len: usize, health: Arc<Health>, meter: Option<Meter>) -> io::Result<Self> {
        install();
        let slot = FREE.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let owner = Box::new(Owner { health, meter });
        TABLE[slot].set(base, len, std::ptr::from_ref(&*owner).cast_mut());
        Ok(Self { slot, _owner: owner })
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        TABLE[self.slot].set(0, 0, std::ptr::null_mut());
        FREE.lock().unwrap_or_else(PoisonError::into_inner).put_back(self.slot);
    }
}

/// Whom a missing page concerns.
struct Owner {
    health: Arc<Health>,
    meter: Option<Meter>,
}

/// One guarded range. Written under the lock of `FREE`'s owner of the slot, read by the handler
/// without any lock: `version` is odd while the rest changes.
struct Entry {
    version: AtomicU32,
    base: AtomicUsize,
    len: AtomicUsize,
    owner: AtomicPtr<Owner>,
}

impl Entry {
    const fn empty() -> Self {
        Self {
            version: AtomicU32::new(0),
            base: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            owner: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    fn set(&self, base: usize, len: usize, owner: *mut Owner) {
        self.version.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.base.store(base, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.owner.store(owner, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The range, if it holds `address` and is not being changed. The range of a fault is never
    /// being changed: the faulting thread holds its region.
    fn holding(&self, address: usize) -> Option<(usize, usize, *mut Owner)> {
        let version = self.version.load(Ordering::Acquire);
        let base = self.base.load(Ordering::Relaxed);
        let len = self.len.load(Ordering::Relaxed);
        let owner = self.owner.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let steady = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        (steady && address.wrapping_sub(base) < len).then_some((base, len, owner))
    }
}

/// Slots of the table that nobody holds: those never used lie from `fresh` on.
struct Free {
    returned: Vec<usize>,
    fresh: usize,
    held: usize,
    /// How many may be held; 0: not asked yet.
    most: usize,
}

impl Free {
    fn take(&mut self) -> io::Result<usize> {
        if self.held >= self.most {
            // The limit of the system may have been raised.
            self.most = mappings_max();
        }
        if self.held >= self.most {
            let text = format!(
                "{} pieces of peers' memory are mapped, and no more may be: a process may have vm.max_map_count = {} \
                 mappings, and this one keeps some for itself (raise it by sysctl, or have fewer peers)",
                self.held,
                max_map_count()
            );
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        self.held += 1;
        Ok(self.returned.pop().unwrap_or_else(|| {
            self.fresh += 1;
            USED.store(self.fresh, Ordering::Release);
            self.fresh - 1
        }))
    }

    fn put_back(&mut self, slot: usize) {
        self.held -= 1;
        self.returned.push(slot);
    }
}

/// How many regions can be mapped at a time.
fn mappings_max() -> usize {
    let all = max_map_count();
    (all - all / KEPT_SHARE).min(REGIONS_MAX)
}

fn max_map_count() -> usize {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT_MAX_MAP_COUNT)
}

/// Installs the handler, once.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is a valid one (no flags, an empty mask).
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_sigbus as *const () as usize;
        // SA_NODEFER is absent: a fault inside the handler would end the process, as it should.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: as above; the kernel fills it.
        let mut before: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: `on_sigbus` has the signature that SA_SIGINFO asks for and does only what is safe
        // in a signal handler; both pointers are valid.
        let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) };
        assert_eq!(result, 0, "sigaction with a valid signal and valid pointers cannot fail");
        let leaked: &'static libc::sigaction = Box::leak(Box::new(before));
        PREVIOUS.store(std::ptr::from_ref(leaked).cast_mut(), Ordering::Release);
    });
}

/// What a SIGBUS stems from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// An access of this thread, which is made once more when the handler returns.
    Access,
    /// The kernel says that memory is broken which nobody is using: an access to it raises a signal of its own.
    Notice,
    /// `kill` and its like.
    Sent,
}

impl Origin {
    /// By `si_code`. Nobody else can send a positive one (`rt_sigqueueinfo`).
    fn of(code: libc::c_int) -> Self {
        match code {
            libc::BUS_MCEERR_AO => Self::Notice,
            1.. => Self::Access,
            ..=0 => Self::Sent,
        }
    }
}

/// The handler. Async-signal-safe: atomics, ioctl, mmap, madvise, sigaction and raise only.
extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let errno = Errno::last_raw();
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    match Origin::of(code) {
        Origin::Access if absorb(address, code) => {}
        // Not ours, or nothing can be done: the previous handler decides when the access is repeated.
        Origin::Access => set_previous(),
        Origin::Notice => {}
        Origin::Sent => end_by_default(),
    }
    Errno::set_raw(errno);
}

/// Lets the access at `address`, which this thread repeats when the handler returns, go on; `false`: it is not ours, or
/// nothing can be done.
fn absorb(address: usize, code: libc::c_int) -> bool {
    let used = USED.load(Ordering::Acquire);
    // Missing pages of one mapping are used one after the other.
    let last = LAST.load(Ordering::Relaxed);
    let mut slots = std::iter::once(last).chain(0..used);
    let found = slots.find_map(|slot| {
        let found = TABLE[slot].holding(address)?;
        LAST.store(slot, Ordering::Relaxed);
        Some(found)
    });
    found.is_some_and(|(base, len, owner)| {
        // SAFETY: `Guarded` keeps the owner for as long as the entry stands, and this thread uses the mapping at this
        // instant: its access raised the signal.
        let owner = unsafe { &*owner };
        // The page is there, and its memory is broken: it is not populated again.
        if code == libc::BUS_MCEERR_AR {
            return replace(base, len, owner, MemoryLost::NotPopulated { errno: libc::EHWPOISON });
        }
        resolve(address, base, len, owner)
    })
}

fn set_previous() {
    let previous = PREVIOUS.load(Ordering::Acquire);
    if !previous.is_null() {
        // SAFETY: the pointer is to a leaked, never changed sigaction.
        unsafe { libc::sigaction(libc::SIGBUS, previous, std::ptr::null_mut()) };
    }
}

/// Does what a SIGBUS that was sent does without a handler. The previous handler would do: but Rust's own takes itself out
/// and returns, and the process would live on without this guard.
fn end_by_default() {
    let previous = PREVIOUS.load(Ordering::Acquire);
    // SAFETY: the pointer, if it is one, is to a leaked, never changed sigaction.
    let was_ignored = unsafe { previous.as_ref() }.is_some_and(|previous| previous.sa_sigaction == libc::SIG_IGN);
    if was_ignored {
        return;
    }
    // SAFETY: a zeroed sigaction is a valid one, and stands for the default; the signal waits until the handler returns.
    unsafe {
        let default: libc::sigaction = MaybeUninit::zeroed().assume_init();
        libc::sigaction(libc::SIGBUS, &raw const default, std::ptr::null_mut());
        libc::raise(libc::SIGBUS);
    }
}

/// Populates the page at `address`, or replaces the whole mapping; `false`: neither can be done.
fn resolve(address: usize, base: usize, len: usize, owner: &Owner) -> bool {
    let populated = owner.meter.as_ref().map_or(Err(MemoryLost::Truncated), |meter| meter.populate(base, address));
    match populated {
        Ok(()) => true,
        Err(lost) => replace(base, len, owner, lost),
    }
}

/// Puts zero pages over the whole mapping, which is dead from then on; `false`: it cannot be done.
fn replace(base: usize, len: usize, owner: &Owner, lost: MemoryLost) -> bool {
    // SAFETY: base..base+len is one mapping of ours, whose owner is alive because this thread is using it at this instant
    // (`absorb`); anonymous pages replace it in place.
    let mapped = unsafe {
        libc::mmap(
            base as *mut libc::c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if mapped as usize != base {
        return false;
    }
    // SAFETY: only what a core file holds depends on it: the rest of a burst may still be copied to these pages.
    unsafe { libc::madvise(mapped, len, libc::MADV_DONTDUMP) };
    owner.health.lose(lost);
    true
}

/// Slots of the table: thousands of peers with two regions each, beside those with many.
const REGIONS_MAX: usize = 65_536;
/// Of all mappings that a process may have, one in so many stays free for its threads and libraries, and its heap.
const KEPT_SHARE: usize = 8;
const DEFAULT_MAX_MAP_COUNT: usize = 65_530;
static TABLE: [Entry; REGIONS_MAX] = [const { Entry::empty() }; REGIONS_MAX];
static USED: AtomicUsize = AtomicUsize::new(0);
/// Where the last fault was found.
static LAST: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Free> = Mutex::new(Free { returned: Vec::new(), fresh: 0, held: 0, most: 0 });
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::time::Duration;

    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use crate::child::spawn_bound;
    use crate::region::Region;

    /// Set in the process that is to end.
    const CHILD: &str = "FERRULE_TEST_SIGBUS";

    #[test]
    fn a_sigbus_that_was_sent_ends_the_process_and_does_not_leave_it_without_a_guard() {
        if std::env::var_os(CHILD).is_some() {
            setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
            let _guarded = Region::create("guarded", 4096, &Arc::default()).unwrap();
            kill(Pid::this(), Signal::SIGBUS).unwrap();
            // Whichever thread takes it.
            return std::thread::sleep(Duration::from_secs(20));
        }
        let name = std::thread::current().name().unwrap().to_owned();
        let mut child = Command::new(std::env::current_exe().unwrap());
        let mut child = spawn_bound(child.args(["--exact", &name]).env(CHILD, "1")).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGBUS));
    }

    #[test]
    fn only_an_access_of_this_thread_says_that_a_mapping_is_in_use() {
        let accesses = [libc::BUS_ADRALN, libc::BUS_ADRERR, libc::BUS_OBJERR, libc::BUS_MCEERR_AR, libc::SI_KERNEL];
        assert_eq!(accesses.map(Origin::of), [Origin::Access; 5]);
        assert_eq!(Origin::of(libc::BUS_MCEERR_AO), Origin::Notice);
        let sent = [libc::SI_USER, libc::SI_QUEUE, libc::SI_TKILL];
        assert_eq!(sent.map(Origin::of), [Origin::Sent; 3]);
    }
}
