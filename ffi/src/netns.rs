//! Network namespaces: open one, and run a piece of work inside it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::abort;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{FsType, NSFS_MAGIC, fstatfs};
use nix::unistd::{getpid, gettid};

/// An open network namespace. As long as this value lives, so does the namespace, even when its
/// processes and its file are gone: hold it while working there, not for the life of a wire.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// Opens a namespace file such as `/run/netns/pod` or `/proc/42/ns/net`. Nothing else is opened on the way, whatever the path
    /// leads to: to open a device may do something.
    pub fn open(path: &Path) -> io::Result<Self> {
        let opened = open_of(path, NSFS_MAGIC).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => not_a_namespace(),
            _ => error,
        });
        Self::try_from(OwnedFd::from(opened?))
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

    /// Runs `work` inside the namespace, and returns when it is done. The sockets and devices it opens stay in that namespace. A panic of
    /// `work` continues in the caller. The thread may be the caller's: `work` changes nothing else of it, such as mounts or its CPUs.
    ///
    /// The calling thread goes there and comes back, which costs less than a thread for each visit. The first thread of a process stays where it
    /// is, since others take its namespace for that of the process, and so does one that may not come back: in their place a thread goes that
    /// ends there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        match Visit::possible() {
            Some(visit) => visit.run(self, work),
            None => in_thread(|| {
                self.enter()?;
                Ok(work())
            })?,
        }
    }

    fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }

    /// What is known of it, and the cookie that no other one of this boot has; none: Linux before 5.14, or we may not enter it.
    pub fn identity_and_cookie(&self) -> io::Result<(NamespaceInode, Option<u64>)> {
        let metadata = File::from(self.0.try_clone()?).metadata()?;
        let changed = Duration::new(metadata.ctime().unsigned_abs(), u32::try_from(metadata.ctime_nsec()).unwrap_or(0));
        let file = NamespaceInode { device: metadata.dev(), inode: metadata.ino(), changed };
        let cookie = match self.run(own_cookie) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            cookie => cookie??,
        };
        Ok((file, cookie))
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
            return Err(not_a_namespace());
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

/// A file of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceInode {
    /// The device of all of them.
    pub device: u64,
    /// The number of the namespace. When it ends, the kernel gives it to the next one.
    pub inode: u64,
    /// When the file was made, since 1970: it stays the same for as long as the namespace is mounted, or open.
    pub changed: Duration,
}

/// The file of a namespace that a path leads to, of whatever kind it is; none: it leads to something else. No file
/// system is asked, so that one that does not answer holds up nobody.
pub fn namespace_at(path: &Path) -> io::Result<Option<NamespaceInode>> {
    let own = file_at(Path::new("/proc/self/ns/net"))?;
    Ok(Some(file_at(path)?).filter(|file| file.device == own.device))
}

fn file_at(path: &Path) -> io::Result<NamespaceInode> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut told = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    let wanted = libc::STATX_INO | libc::STATX_CTIME;
    // SAFETY: the path ends with a zero byte, and `told` has room for what the kernel writes.
    let done = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, wanted, told.as_mut_ptr()) };
    Errno::result(done)?;
    // SAFETY: a structure of integers, all of which were zero before the kernel wrote some of them.
    let told = unsafe { told.assume_init() };
    let changed = Duration::new(told.stx_ctime.tv_sec.unsigned_abs(), told.stx_ctime.tv_nsec);
    Ok(NamespaceInode { device: libc::makedev(told.stx_dev_major, told.stx_dev_minor), inode: told.stx_ino, changed })
}

/// The cookie of the namespace of this thread.
fn own_cookie() -> io::Result<Option<u64>> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the socket is open, and `cookie` has the room that `length` says.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    match Errno::result(done) {
        Ok(_) => Ok(Some(cookie)),
        Err(Errno::ENOPROTOOPT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens a file for reading if it is a plain one of a file system. Others are not opened: to open a device may do something, and
/// whoever named the path may have put one there.
pub fn open_of(path: &Path, file_system: FsType) -> io::Result<File> {
    open_plain(path, |file| Ok(fstatfs(file).map_err(io::Error::from)?.filesystem_type() == file_system))
}

/// [`open_of`], of any file system.
pub fn open_plain(path: &Path, is_meant: impl FnOnce(&File) -> io::Result<bool>) -> io::Result<File> {
    let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    let is_plain = SFlag::from_bits_truncate(fstat(&place)?.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFREG;
    if !is_plain || !is_meant(&place)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is not of the kind that is wanted"));
    }
    // The same one, whatever the path leads to by now.
    let again = format!("/proc/thread-self/fd/{}", place.as_raw_fd());
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(again)
}

/// Where a thread that visits another namespace comes back to.
struct Visit {
    home: NetNs,
}

impl Visit {
    /// `None`: this thread must stay.
    fn possible() -> Option<Self> {
        if gettid() == getpid() {
            return None;
        }
        let home = NetNs::current().ok()?;
        // Whoever was put into a namespace may not be allowed to enter it.
        home.enter().ok()?;
        Some(Self { home })
    }

    fn run<T>(self, place: &NetNs, work: impl FnOnce() -> T) -> io::Result<T> {
        place.enter()?;
        // It comes back also when the work panics.
        let _back = self;
        Ok(work())
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Err(error) = self.home.enter() {
            // What this thread would do next it would do to a stranger.
            let _ =
                writeln!(io::stderr(), "a thread cannot come back from a network namespace: {error}; the process ends");
            abort();
        }
    }
}

/// A thread that changes its namespace must not be used for anything else afterwards.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().or_else(|panic| resume_unwind(panic))
    })
}

fn not_a_namespace() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the file is not a network namespace")
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
    fn a_device_is_not_opened() {
        // To open it fails with ENXIO: nobody reads.
        let directory = std::env::temp_dir().join(format!("netns-{}", std::process::id()));
        nix::unistd::mkfifo(&directory, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let error = open_plain(&directory, |_| Ok(true)).unwrap_err();
        std::fs::remove_file(&directory).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = open_plain(Path::new("/dev/null"), |_| Ok(true)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_namespace_is_known_without_opening_it() {
        let own = std::fs::metadata("/proc/self/ns/net").unwrap();
        let found = namespace_at(Path::new("/proc/self/ns/net")).unwrap().unwrap();
        assert_eq!((found.device, found.inode), (own.dev(), own.ino()));
        assert_eq!(namespace_at(Path::new("/dev/null")).unwrap(), None);
        assert_eq!(namespace_at(Path::new("/no/such")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn namespaces_have_cookies_of_their_own() {
        let here = NetNs::current().unwrap();
        let (file, cookie) = match here.identity_and_cookie() {
            Ok(told) => told,
            Err(error) => return println!("skipped: entering a namespace ({error})"),
        };
        assert_eq!(here.identity_and_cookie().unwrap().1, cookie);
        assert_eq!(namespace_at(Path::new("/proc/self/ns/net")).unwrap(), Some(file), "it is open");
        let other = NetNs::private().unwrap().identity_and_cookie().unwrap();
        assert!(other.0.inode != file.inode && (cookie.is_none() || other.1 != cookie), "{other:?}");
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

    #[test]
    fn whoever_goes_inside_comes_back_by_a_panic_and_from_a_third_place_too() {
        let here = NetNs::current().unwrap();
        let other = match NetNs::private() {
            Ok(other) => other,
            Err(error) => return println!("skipped: a namespace of its own ({error})"),
        };
        let gone = std::panic::catch_unwind(|| other.run(|| -> () { panic!("inside") }));
        assert!(gone.is_err() && NetNs::current().unwrap().is_same(&here).unwrap());
        let third = NetNs::private().unwrap();
        let seen = other.run(|| (third.run(NetNs::current), NetNs::current())).unwrap();
        assert!(seen.0.unwrap().unwrap().is_same(&third).unwrap() && seen.1.unwrap().is_same(&other).unwrap());
        assert!(NetNs::current().unwrap().is_same(&here).unwrap());
    }
}
