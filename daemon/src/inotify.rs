//! The kernel's news of directories, for tasks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Hears what happens in some directories.
#[derive(Debug)]
pub struct AsyncInotify(AsyncFd<Descriptor>);

impl AsyncInotify {
    /// Of none yet. Needs a tokio runtime.
    #[expect(
        deprecated,
        reason = "unsafe only for types that do not own their descriptor; ours does, and the successor is an unsafe fn"
    )]
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self(AsyncFd::with_interest(Descriptor(inotify), Interest::READABLE)?))
    }

    /// Hears of this one too. Twice is the same as once.
    pub fn watch(&self, directory: &Path, flags: AddWatchFlags) -> io::Result<()> {
        self.0.get_ref().0.add_watch(directory, flags)?;
        Ok(())
    }

    /// Returns when something has happened. May be cancelled.
    pub async fn wait(&self) -> io::Result<()> {
        // Cleared before the events are taken: what comes in between makes it ready again.
        self.0.readable().await?.clear_ready();
        Ok(())
    }

    /// What has happened since the last time.
    pub fn take(&self) -> io::Result<Vec<InotifyEvent>> {
        let mut events = Vec::new();
        loop {
            match self.0.get_ref().0.read_events() {
                Ok(more) => events.extend(more),
                Err(Errno::EAGAIN) => return Ok(events),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
