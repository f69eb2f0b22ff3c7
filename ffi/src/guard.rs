//! What happens when a peer truncates the file behind a mapping.
//!
//! The CPU then raises SIGBUS at the next access to a page that is no longer there. The handler finds
//! the region by its address, puts anonymous zero pages over all of it and marks it dead; the thread
//! goes on as if nothing had happened, and whoever owns the region sees the mark after its burst. A
//! SIGBUS that is not ours goes to the handler that was there before.

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, Once, PoisonError};

use crate::region::Health;

/// A region under guard; it leaves the table when this is dropped.
pub(crate) struct Guarded {
    slot: usize,
    /// The table holds a plain pointer to it.
    _health: Arc<Health>,
}

impl Guarded {
    /// Puts `len` bytes at `base` under guard. `health` is marked dead when a page of it is missing.
    pub(crate) fn new(base: usize, len: usize, health: Arc<Health>) -> io::Result<Self> {
        install();
        let slot = FREE.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(|| {
            io::Error::other(format!("no more than {REGIONS_MAX} shared memory regions can be mapped at a time"))
        })?;
        TABLE[slot].set(base, len, Arc::as_ptr(&health).cast_mut());
        Ok(Self { slot, _health: health })
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        TABLE[self.slot].set(0, 0, std::ptr::null_mut());
        FREE.lock().unwrap_or_else(PoisonError::into_inner).returned.push(self.slot);
    }
}

/// One guarded range. Written under the lock of `FREE`'s owner of the slot, read by the handler
/// without any lock: `version` is odd while the rest changes.
struct Entry {
    version: AtomicU32,
    base: AtomicUsize,
    len: AtomicUsize,
    health: AtomicPtr<Health>,
}

impl Entry {
    const fn empty() -> Self {
        Self {
            version: AtomicU32::new(0),
            base: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            health: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    fn set(&self, base: usize, len: usize, health: *mut Health) {
        self.version.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.base.store(base, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.health.store(health, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The range, if it holds `address` and is not being changed. The range of a fault is never
    /// being changed: the faulting thread holds its region.
    fn holding(&self, address: usize) -> Option<(usize, usize, *mut Health)> {
        let version = self.version.load(Ordering::Acquire);
        let base = self.base.load(Ordering::Relaxed);
        let len = self.len.load(Ordering::Relaxed);
        let health = self.health.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let steady = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        (steady && address.wrapping_sub(base) < len).then_some((base, len, health))
    }
}

/// Slots of the table that nobody holds: those never used lie from `fresh` on.
struct Free {
    returned: Vec<usize>,
    fresh: usize,
}

impl Free {
    fn take(&mut self) -> Option<usize> {
        self.returned.pop().or_else(|| {
            let slot = self.fresh;
            (slot < REGIONS_MAX).then(|| {
                self.fresh += 1;
                USED.store(self.fresh, Ordering::Release);
                slot
            })
        })
    }
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

/// The handler. Async-signal-safe: atomics, mmap and sigaction only.
extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let address = unsafe { (*info).si_addr() } as usize;
    let used = USED.load(Ordering::Acquire);
    let found = TABLE[..used].iter().find_map(|entry| entry.holding(address));
    if let Some((base, len, health)) = found {
        // SAFETY: the table says that base..base+len is one mapping of ours, whose owner is alive
        // because a thread is using it at this instant; anonymous pages replace it in place.
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
        if mapped as usize == base {
            // SAFETY: `Guarded` keeps the health alive for as long as the entry stands.
            unsafe { (*health).mark_dead() };
            return;
        }
    }
    // Not ours, or nothing can be done: the previous handler decides when the access is repeated.
    let previous = PREVIOUS.load(Ordering::Acquire);
    if !previous.is_null() {
        // SAFETY: the pointer is to a leaked, never changed sigaction.
        unsafe { libc::sigaction(libc::SIGBUS, previous, std::ptr::null_mut()) };
    }
}

/// How many regions can be mapped at a time: thousands of peers with two each, beside the unfinished
/// handshakes of hostile ones (64 of a socket, with 64 regions each).
pub const REGIONS_MAX: usize = 65_536;
static TABLE: [Entry; REGIONS_MAX] = [const { Entry::empty() }; REGIONS_MAX];
static USED: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Free> = Mutex::new(Free { returned: Vec::new(), fresh: 0 });
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());
