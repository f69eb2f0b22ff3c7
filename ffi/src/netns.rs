//! Network namespaces: open one, and run a piece of work inside it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// An open network namespace. As long as this value lives, so does the namespace, even when its
/// processes and its file are gone: hold it while working there, not for the life of a wire.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// Opens a namespace file such as `/run/netns/pod` or `/proc/42/ns/net`.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Not blocking: opening a FIFO by mistake would wait for its writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Self::try_from(OwnedFd::from(file))
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// A new, empty namespace that has no name and lives as long as something in it is open.
    pub fn private() -> io::Result<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })?
    }

    /// Runs `work` on a thread of its own inside the namespace, and waits for it. The sockets and
    /// devices it opens stay in that namespace. A panic of `work` continues in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?
    }

    /// Whether both are the same namespace, however they were opened.
    pub fn is_same(&self, other: &Self) -> io::Result<bool> {
        Ok(self.identity()? == other.identity()?)
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = File::from(self.0.try_clone()?).metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

impl TryFrom<OwnedFd> for NetNs {
    type Error = io::Error;

    /// One that somebody else opened.
    fn try_from(file: OwnedFd) -> io::Result<Self> {
        if !is_network_namespace(file.as_fd()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is not a network namespace"));
        }
        Ok(Self(file))
    }
}

impl From<NetNs> for OwnedFd {
    fn from(netns: NetNs) -> Self {
        netns.0
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A thread that changes its namespace must not be used for anything else afterwards.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().or_else(|panic| resume_unwind(panic))
    })
}

fn is_network_namespace(file: BorrowedFd<'_>) -> bool {
    // SAFETY: the request takes no argument and answers with the CLONE_NEW* flag of the namespace;
    // a file that is no namespace answers ENOTTY.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_namespace_is_itself() {
        let here = NetNs::current().unwrap();
        let by_process = NetNs::open(Path::new("/proc/self/ns/net")).unwrap();
        assert!(here.is_same(&by_process).unwrap());
    }

    #[test]
    fn a_file_of_another_kind_is_refused() {
        for path in ["/dev/null", "/etc/passwd", "/proc/self/ns/uts", "/"] {
            let error = NetNs::open(Path::new(path)).unwrap_err();
            assert!(error.to_string().contains("not a network namespace"), "{path}: {error}");
        }
        assert_eq!(NetNs::open(Path::new("/no/such")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        let here = NetNs::current().unwrap();
        let other = match NetNs::private() {
            Ok(other) => other,
            Err(error) => return println!("skipped: a namespace of its own ({error})"),
        };
        assert!(!here.is_same(&other).unwrap());
        let inside = other.run(NetNs::current).unwrap().unwrap();
        assert!(inside.is_same(&other).unwrap());
        assert!(NetNs::current().unwrap().is_same(&here).unwrap());
    }

    #[test]
    fn a_panic_inside_reaches_the_caller() {
        let here = NetNs::current().unwrap();
        if let Err(error) = here.run(|| ()) {
            return println!("skipped: entering a namespace ({error})");
        }
        assert!(std::panic::catch_unwind(|| here.run(|| panic!("inside"))).is_err());
    }
}
