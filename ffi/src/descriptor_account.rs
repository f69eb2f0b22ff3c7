//! How many of our descriptors the peers of one socket may hold.
//!
//! A descriptor that a peer sends takes a place in the table of this process, until it is closed, and closing can take as
//! long as its sender likes (a file of a FUSE file system). So each is counted from its arrival until then, by the listening
//! socket that its sender came to or the end that connected to it, and all of them by the process. Without room a peer's
//! descriptors are not taken at all (`UnixSocket::receive`). Those that became part of a connection (mapped memory, the
//! eventfds of rings) are bounded by what a connection may have, and are not counted any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit};

/// The descriptors of the peers of one listening socket, or of those that one of ours connects to, one after the other.
#[derive(Debug, Default)]
pub struct DescriptorAccount {
    held: AtomicUsize,
    /// Threads that close one of them.
    pub(crate) closing: AtomicUsize,
    /// A thread was started for it, and has not taken one yet.
    pub(crate) thread_comes: AtomicBool,
}

impl DescriptorAccount {
    /// How many there are.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How many more may come.
    pub fn room(&self) -> usize {
        let all = process_max();
        account_max().saturating_sub(self.held()).min(all.saturating_sub(HELD.load(Ordering::Relaxed)))
    }

    /// Whether so many may come at once. Where there are few descriptors at all, fewer have to do.
    pub fn has_room_for(&self, files: usize) -> bool {
        self.room() >= files.min(account_max() / 2)
    }

    /// Counts one that is there.
    pub(crate) fn count(self: &Arc<Self>) -> DescriptorShare {
        self.held.fetch_add(1, Ordering::Relaxed);
        HELD.fetch_add(1, Ordering::Relaxed);
        DescriptorShare(Arc::clone(self))
    }
}

/// One descriptor of an account, until this is dropped.
#[derive(Debug)]
pub(crate) struct DescriptorShare(Arc<DescriptorAccount>);

impl DescriptorShare {
    pub(crate) fn account(&self) -> &Arc<DescriptorAccount> {
        &self.0
    }
}

impl Drop for DescriptorShare {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
        HELD.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many one account may have: at most a quarter of what all may have together.
pub(crate) fn account_max() -> usize {
    (process_max() / 4).min(ACCOUNT_MAX)
}

/// All accounts together leave half of the table to wires, connections and ourselves.
fn process_max() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    usize::try_from(soft / 2).unwrap_or(usize::MAX)
}

static HELD: AtomicUsize = AtomicUsize::new(0);
/// Several clients in mid-handshake with as many memory regions as a memif client may announce.
const ACCOUNT_MAX: usize = 512;
