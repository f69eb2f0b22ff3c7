//! Tells when nobody has a peer's file any more, without keeping it.
//!
//! A descriptor or mapping of ours would keep the file's pages. An inotify watch keeps the inode only: the kernel says
//! IN_DELETE_SELF when the last descriptor and the last mapping of a memfd are gone, in whichever process they were. Two
//! watches of one file are the same watch, so it also tells files apart. Files with names are not watched: what they cost
//! stays charged.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;

use crate::memory_budget::{FileCharge, MemoryBudget};

/// What `file` was charged with in `budget`: the same object for as long as anybody has the file.
pub(crate) fn charge_of(file: BorrowedFd<'_>, budget: &Arc<MemoryBudget>, page: usize) -> Arc<FileCharge> {
    let unwatched = || Arc::new(FileCharge::new(budget, None));
    if !has_no_name(file, page) {
        return unwatched();
    }
    let mut files = lock();
    // Without the watch nothing tells of the file's end, and the charge stays for good.
    let Ok(inotify) = files.inotify() else { return unwatched() };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let Ok(watch) = inotify.add_watch(path.as_str(), AddWatchFlags::IN_DELETE_SELF) else { return unwatched() };
    let charges = files.charges.entry(watch).or_default();
    if let Some(known) = charges.iter().find(|charge| Arc::ptr_eq(&charge.budget, budget)) {
        return Arc::clone(known);
    }
    let is_too_many = budget.watched.load(Ordering::Relaxed) >= WATCHES_MAX;
    let charge = Arc::new(FileCharge::new(budget, (!is_too_many).then_some(watch)));
    if !is_too_many {
        budget.watched.fetch_add(1, Ordering::Relaxed);
        charges.push(Arc::clone(&charge));
    }
    files.drop_watch_without_charges(watch);
    charge
}

/// A mapping is gone: a file that cost nothing need not be watched.
pub(crate) fn release(charge: &Arc<FileCharge>) {
    let Some(watch) = charge.watch else { return };
    let mut files = lock();
    // Two: the table's and the caller's.
    if !charge.is_unused() || Arc::strong_count(charge) > 2 {
        return;
    }
    let Some(charges) = files.charges.get_mut(&watch) else { return };
    charges.retain(|other| !Arc::ptr_eq(other, charge));
    charge.budget.watched.fetch_sub(1, Ordering::Relaxed);
    files.drop_watch_without_charges(watch);
}

/// Whether a file, in pages of this size, is a memfd. A file that can have names can be unlinked under one of them while it is
/// open under another, and then says that it is gone.
fn has_no_name(file: BorrowedFd<'_>, page: usize) -> bool {
    let flags = match page {
        SMALL_PAGE => MFdFlags::MFD_CLOEXEC,
        // The size of huge pages is a logarithm in the upper bits.
        _ => MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::from_bits_retain(page.ilog2() << 26),
    };
    // All memfds of a page size are in one file system, which nobody can mount.
    let ours = memfd_create(c"watch", flags).and_then(fstat);
    matches!((ours, fstat(file)), (Ok(ours), Ok(file)) if ours.st_dev == file.st_dev)
}

struct Files {
    inotify: Option<Arc<Inotify>>,
    charges: BTreeMap<WatchDescriptor, Vec<Arc<FileCharge>>>,
}

impl Files {
    /// The one instance, with a thread that waits for its events.
    fn inotify(&mut self) -> io::Result<Arc<Inotify>> {
        if let Some(inotify) = &self.inotify {
            return Ok(Arc::clone(inotify));
        }
        let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC)?);
        let reader = Arc::clone(&inotify);
        thread::Builder::new().name("file-watch".to_owned()).spawn(move || forget_gone_files(&reader))?;
        self.inotify = Some(Arc::clone(&inotify));
        Ok(inotify)
    }

    fn drop_watch_without_charges(&mut self, watch: WatchDescriptor) {
        if self.charges.get(&watch).is_some_and(Vec::is_empty) {
            self.charges.remove(&watch);
            if let Some(inotify) = &self.inotify {
                let _ = inotify.rm_watch(watch);
            }
        }
    }
}

fn forget_gone_files(inotify: &Inotify) {
    // Fails only when interrupted: the instance and its descriptor are ours.
    loop {
        let Ok(events) = inotify.read_events() else { continue };
        let mut files = lock();
        for event in events {
            for charge in files.charges.remove(&event.wd).into_iter().flatten() {
                charge.clear();
                charge.budget.watched.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

fn lock() -> MutexGuard<'static, Files> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

static FILES: Mutex<Files> = Mutex::new(Files { inotify: None, charges: BTreeMap::new() });
/// Files of one end that are watched at a time. What more of them cost stays charged: the kernel's
/// fs.inotify.max_user_watches are everybody's.
const WATCHES_MAX: usize = 1024;
const SMALL_PAGE: usize = 4096;
