//! Socket files: bound with the mode and group that were asked for, found again, and removed only if they are ours.
//!
//! Others may be allowed to write in the directory. So nothing here follows a link that took the place of our socket:
//! the mode is given to the socket before it is bound, and what is changed afterwards is changed through a descriptor of
//! the very file. An address holds 107 bytes; longer paths are bound and connected to through a descriptor of their
//! directory, or of the file.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::socket::{Backlog, UnixAddr, bind, connect, listen};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, geteuid, unlinkat};
use thiserror::Error;

use crate::socket_kind::{Kind, new_socket};

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The permission bits, whatever the umask of the process.
    pub mode: u32,
    /// The owner; none: who we are.
    pub owner: Option<u32>,
    /// The group; none: what the kernel makes it.
    pub group: Option<u32>,
}

/// The file of a listening socket of ours. Removed when dropped, if it is still there and still ours.
#[derive(Debug)]
pub struct SocketFile(SocketLocation);

impl SocketFile {
    /// Whether the path still leads to this socket.
    pub fn leads_here(&self) -> bool {
        self.0.leads_here()
    }

    /// Where it was bound.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The file of a listening socket that a predecessor bound.
    pub fn restore(location: SocketLocation) -> Self {
        Self(location)
    }

    /// Lets go of the file, which a successor has: it stays.
    pub fn release(self) {
        std::mem::forget(self);
    }

    /// The same for another thread: looking can take for ever where a file system does not answer.
    pub fn location(&self) -> &SocketLocation {
        &self.0
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Ok(place) = Place::open(&self.0.path) {
            // Nothing can be done about a failure, and a dead socket is replaced by the next listener anyway.
            let _ = place.remove(self.0.identity);
        }
    }
}

/// Where a socket file was bound, and which file that was.
#[derive(Clone, Debug)]
pub struct SocketLocation {
    path: PathBuf,
    identity: Identity,
}

impl SocketLocation {
    /// The file of this device and inode at a path, as [`Self::identity`] told it.
    pub fn new(path: PathBuf, (device, inode): (u64, u64)) -> Self {
        Self { path, identity: Identity(device, inode) }
    }

    /// Where it was bound.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its device and inode.
    pub fn identity(&self) -> (u64, u64) {
        (self.identity.0, self.identity.1)
    }

    /// Whether the path still leads to this socket: its directory may have been removed, or another program may have
    /// bound a socket of its own there.
    pub fn leads_here(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| Identity::of(&found) == self.identity)
    }
}

/// Listens at `path` on a new socket. Missing directories are made; a socket that nobody listens on any more is
/// replaced.
pub fn listen_at(kind: Kind, path: &Path, access: Access, backlog: u8) -> Result<(OwnedFd, SocketFile), BindError> {
    let failed = |tried: &'static str, source: io::Error| BindError::Failed { tried, source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|error| failed("make its directory", error))?;
    }
    let place = Place::open(path).map_err(|error| failed("open its directory", error))?;
    place.make_way(kind)?;
    let socket = new_socket(kind).map_err(|errno| failed("make a socket", errno.into()))?;
    // The file gets the mode of the socket, less the umask. The group that it has first is not the one that is meant.
    let first = if access.group.is_some() { access.mode & !0o070 } else { access.mode };
    fchmod(&socket, Mode::from_bits_truncate(first)).map_err(|errno| failed("set the mode", errno.into()))?;
    place.bind(&socket)?;
    let file = place.bound(&socket).map_err(|error| failed("find the file that was bound", error))?;
    let metadata = file.metadata().map_err(|error| failed("look at the file that was bound", error))?;
    // From here on the file goes when something fails.
    let socket_file = SocketFile(SocketLocation { path: path.to_owned(), identity: Identity::of(&metadata) });
    let other = |wanted: Option<u32>, is: u32| wanted.filter(|&wanted| wanted != is);
    let (owner, group) = (other(access.owner, metadata.uid()), other(access.group, metadata.gid()));
    if owner.is_some() || group.is_some() {
        fchownat(&file, "", owner.map(Uid::from_raw), group.map(Gid::from_raw), AtFlags::AT_EMPTY_PATH).map_err(
            |errno| match (owner, group) {
                (None, Some(group)) => BindError::Group { group, source: errno.into() },
                (owner, _) => BindError::Owner { owner: owner.unwrap_or_default(), source: errno.into() },
            },
        )?;
    }
    if metadata.mode() & 0o777 != access.mode || access.group.is_some() || access.owner.is_some() {
        // The link in /proc leads to the file of the descriptor itself.
        fs::set_permissions(through(&file), Permissions::from_mode(access.mode))
            .map_err(|error| failed("set the mode", error))?;
    }
    let backlog = Backlog::new(i32::from(backlog)).map_err(|errno| failed("listen", errno.into()))?;
    listen(&socket, backlog).map_err(|errno| failed("listen", errno.into()))?;
    Ok((socket, socket_file))
}

/// Connects a socket to whoever listens at `path`, of any length. A name in an open directory (`/proc/self/fd/N/name`) is not followed:
/// somebody else passed the directory, and who may write there could lead us out of it.
pub fn connect_to(socket: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    if path.parent().is_some_and(is_descriptor) {
        let file = file_within(path)?;
        return Ok(connect(socket.as_raw_fd(), &UnixAddr::new(&through(&file))?)?);
    }
    if path.as_os_str().len() <= ADDRESS_MAX {
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        return Ok(());
    }
    let file = openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    connect(socket.as_raw_fd(), &UnixAddr::new(&through(&file))?)?;
    Ok(())
}

/// The file of a name in an open directory: neither a link there, nor what is mounted over it.
fn file_within(path: &Path) -> io::Result<OwnedFd> {
    let Place { directory, name, .. } = Place::open(path)?;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
    Ok(openat2(directory, name, how)?)
}

fn is_descriptor(path: &Path) -> bool {
    path.strip_prefix("/proc/self/fd").is_ok_and(|number| number.components().count() == 1)
}

/// Whether a socket can be at `path`; the error says why not and what would be right.
pub fn check_path(path: &Path) -> Result<(), String> {
    if !path.is_absolute() {
        return Err("a path must be absolute".to_owned());
    }
    let length = path.as_os_str().len();
    if length >= PATH_MAX {
        return Err(format!("{length} bytes; a path has fewer than {PATH_MAX}"));
    }
    if path.as_os_str().as_bytes().ends_with(b"/") {
        return Err("a path to a file is wanted, not to a directory".to_owned());
    }
    let Some(name) = path.file_name() else { return Err("a path to a file is wanted".to_owned()) };
    if length > ADDRESS_MAX && name.len() > NAME_MAX {
        let problem = "in a path of more than 107 bytes the file's own name has at most";
        return Err(format!("a name of {} bytes; {problem} {NAME_MAX}", name.len()));
    }
    Ok(())
}

/// Why a socket cannot listen at a path.
#[derive(Debug, Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("another process listens there")]
    Taken,
    /// Something else has the name.
    #[error("a file that is not a socket is there; remove it or choose another path")]
    NotASocket,
    /// The group cannot be set.
    #[error("give it to group {group}: {source}; that takes membership of the group, or CAP_CHOWN")]
    Group {
        /// The group.
        group: u32,
        /// Why not.
        source: io::Error,
    },
    /// The owner cannot be set.
    #[error("give it to user {owner}: {source}; that takes CAP_CHOWN")]
    Owner {
        /// The user.
        owner: u32,
        /// Why not.
        source: io::Error,
    },
    /// The kernel said no.
    #[error("{tried}: {source}")]
    Failed {
        /// What was tried.
        tried: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Device and inode of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, u64);

impl Identity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

/// A name in an open directory. Only held for a moment: a directory that is held cannot be unmounted.
struct Place<'a> {
    path: &'a Path,
    directory: OwnedFd,
    name: &'a Path,
}

impl<'a> Place<'a> {
    fn open(path: &'a Path) -> io::Result<Self> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { path, directory: openat(AT_FDCWD, directory, flags, Mode::empty())?, name: Path::new(name) })
    }

    /// What has the name now, itself and not what it may lead to.
    fn file(&self) -> io::Result<File> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.directory, self.name, flags, Mode::empty())?))
    }

    /// Removes the file of a listener that died; leaves everything else as it is.
    fn make_way(&self, kind: Kind) -> Result<(), BindError> {
        let failed = |tried: &'static str, source: io::Error| BindError::Failed { tried, source };
        let file = match self.file() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(|error| failed("look at what is there", error))?,
        };
        let metadata = file.metadata().map_err(|error| failed("look at what is there", error))?;
        if !metadata.file_type().is_socket() {
            return Err(BindError::NotASocket);
        }
        let probe = new_socket(kind).map_err(|errno| failed("make a socket", errno.into()))?;
        let address = UnixAddr::new(&through(&file)).map_err(|errno| failed("name what is there", errno.into()))?;
        match connect(probe.as_raw_fd(), &address) {
            Err(Errno::ECONNREFUSED) => {
                self.remove(Identity::of(&metadata)).map_err(|error| failed("replace a dead socket", error))
            }
            Err(errno @ (Errno::EACCES | Errno::EPERM)) => Err(failed("find out who listens there", errno.into())),
            // A full backlog and another kind of socket are signs of life too.
            _ => Err(BindError::Taken),
        }
    }

    fn bind(&self, socket: &OwnedFd) -> Result<(), BindError> {
        let failed = |errno: Errno| match errno {
            Errno::EADDRINUSE => BindError::Taken,
            errno => BindError::Failed { tried: "bind", source: errno.into() },
        };
        // The whole path where it fits: that is what others see of the socket.
        let address = if self.path.as_os_str().len() <= ADDRESS_MAX {
            UnixAddr::new(self.path)
        } else {
            UnixAddr::new(&through(&self.directory).join(self.name))
        };
        address.and_then(|address| bind(socket.as_raw_fd(), &address)).map_err(failed)
    }

    /// The file that `socket` is bound to. The kernel tells who may administer its network; for others it is what has
    /// the name now, if it can be ours.
    fn bound(&self, socket: &OwnedFd) -> io::Result<File> {
        bound_file(socket.as_fd()).or_else(|_| self.ours())
    }

    fn ours(&self) -> io::Result<File> {
        let file = self.file()?;
        let metadata = file.metadata()?;
        if !metadata.file_type().is_socket() || metadata.uid() != geteuid().as_raw() || metadata.nlink() != 1 {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another file has taken its place"));
        }
        Ok(file)
    }

    fn remove(&self, identity: Identity) -> io::Result<()> {
        if Identity::of(&self.file()?.metadata()?) == identity {
            unlinkat(&self.directory, self.name, UnlinkatFlags::NoRemoveDir)?;
        }
        Ok(())
    }
}

/// The path that leads to the file of a descriptor, whatever has its name.
fn through(file: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

/// The very file that a socket is bound to. Needs CAP_NET_ADMIN.
fn bound_file(socket: BorrowedFd<'_>) -> io::Result<File> {
    // SAFETY: the request takes no argument and answers with a new descriptor, or with an error.
    let raw = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCUNIXFILE) };
    let raw = Errno::result(raw)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { File::from_raw_fd(raw) })
}

/// `include/uapi/linux/un.h`: SIOCPROTOPRIVATE + 0.
const SIOCUNIXFILE: libc::c_ulong = 0x89e0;
/// `sun_path` has 108 bytes, one of them the closing NUL.
const ADDRESS_MAX: usize = 107;
/// What is left for the name behind `/proc/self/fd/2147483647/`.
const NAME_MAX: usize = ADDRESS_MAX - "/proc/self/fd/2147483647/".len();
const PATH_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    const ACCESS: Access = Access { mode: 0o770, owner: None, group: None };

    /// A directory of this test, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ferrule-socket-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_file_has_the_mode_that_was_asked_for_whatever_the_umask() {
        let folder = Folder::new("mode");
        for mode_wanted in [0o770, 0o660, 0o600, 0o777, 0o606] {
            let path = folder.path("a/b/s.sock");
            let access = Access { mode: mode_wanted, owner: None, group: None };
            let listening = listen_at(Kind::Stream, &path, access, 8).unwrap();
            assert_eq!(mode(&path), mode_wanted);
            drop(listening);
            assert!(!path.exists(), "it goes with its listener");
        }
    }

    #[test]
    fn a_link_in_a_directory_that_was_passed_leads_nowhere_and_what_is_there_itself_is_found() {
        let folder = Folder::new("passed");
        let [outside, inside] = ["outside", "inside"].map(|name| {
            fs::create_dir(folder.path(name)).unwrap();
            folder.path(name)
        });
        let _elsewhere = listen_at(Kind::Stream, &outside.join("s.sock"), ACCESS, 8).unwrap();
        let _here = listen_at(Kind::Stream, &inside.join("s.sock"), ACCESS, 8).unwrap();
        symlink(outside.join("s.sock"), inside.join("out")).unwrap();
        symlink("s.sock", inside.join("in")).unwrap();
        let directory = File::open(&inside).unwrap();
        let connect = |name: &str| {
            let socket = new_socket(Kind::Stream).unwrap();
            connect_to(socket.as_fd(), &through(&directory).join(name))
        };
        connect("s.sock").unwrap();
        for link in ["out", "in"] {
            assert_eq!(connect(link).unwrap_err().raw_os_error(), Some(libc::ELOOP), "{link}");
        }
        // A path of our own may well be a link.
        let socket = new_socket(Kind::Stream).unwrap();
        connect_to(socket.as_fd(), &inside.join("out")).unwrap();
        // And a socket that is passed itself is no name in a directory.
        let itself =
            openat(AT_FDCWD, &outside.join("s.sock"), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let socket = new_socket(Kind::Stream).unwrap();
        connect_to(socket.as_fd(), &through(&itself)).unwrap();
    }

    #[test]
    fn the_file_belongs_to_the_owner_and_the_group_that_were_asked_for() {
        let folder = Folder::new("group");
        let path = folder.path("s.sock");
        let access = Access { mode: 0o660, owner: Some(9), group: Some(7) };
        match listen_at(Kind::SeqPacket, &path, access, 8) {
            Ok(listening) => {
                let metadata = fs::symlink_metadata(&path).unwrap();
                assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (9, 7, 0o660));
                drop(listening);
            }
            // Without the privilege; the test for that is that nothing is left behind.
            Err(error) => assert!(matches!(error, BindError::Owner { owner: 9, .. }), "{error}"),
        }
        assert!(!path.exists());
    }

    #[test]
    fn a_link_put_in_the_place_of_the_socket_is_never_followed() {
        let folder = Folder::new("race");
        let (path, victim, link) = (folder.path("s.sock"), folder.path("victim"), folder.path("link"));
        fs::write(&victim, "private").unwrap();
        fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
        let done = AtomicBool::new(false);
        let replaced = thread::scope(|scope| {
            let attacker = scope.spawn(|| {
                let mut replaced = 0;
                while !done.load(Ordering::Relaxed) {
                    let there = fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_socket());
                    if there && symlink(&victim, &link).is_ok() && fs::rename(&link, &path).is_ok() {
                        replaced += 1;
                    }
                }
                replaced
            });
            for round in 0..2000 {
                // A mode that differs from what any umask leaves makes the most of the race.
                let group = (round % 2 == 0).then_some(7);
                let listening = listen_at(Kind::Stream, &path, Access { mode: 0o777, owner: None, group }, 8);
                let owner = fs::metadata(&victim).unwrap();
                assert_eq!((owner.mode() & 0o777, owner.gid()), (0o600, owner.uid()), "round {round}");
                drop(listening);
                let _ = fs::remove_file(&path);
            }
            done.store(true, Ordering::Relaxed);
            attacker.join().unwrap()
        });
        assert!(replaced > 0, "the attacker never won");
    }

    #[test]
    fn without_the_kernel_s_word_only_a_socket_of_our_own_is_taken_for_ours() {
        let folder = Folder::new("ours");
        let path = folder.path("s.sock");
        let place = Place::open(&path).unwrap();
        fs::write(folder.path("victim"), "private").unwrap();
        symlink(folder.path("victim"), &path).unwrap();
        assert!(place.ours().is_err(), "a link");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "file").unwrap();
        assert!(place.ours().is_err(), "a file");
        fs::remove_file(&path).unwrap();
        let (socket, file) = listen_at(Kind::Stream, &path, ACCESS, 8).unwrap();
        assert_eq!(Identity::of(&place.ours().unwrap().metadata().unwrap()), file.0.identity);
        if let Ok(told) = bound_file(socket.as_fd()) {
            assert_eq!(Identity::of(&told.metadata().unwrap()), file.0.identity);
        }
    }

    #[test]
    fn a_path_of_a_pod_s_volume_is_bound_connected_to_and_removed() {
        let folder = Folder::new("long");
        let path = folder.path(&format!("{}/{}/s.sock", "x".repeat(80), "y".repeat(120)));
        assert!(path.as_os_str().len() > 200 && check_path(&path).is_ok());
        for kind in [Kind::Stream, Kind::SeqPacket] {
            let (_socket, file) = listen_at(kind, &path, ACCESS, 8).unwrap();
            assert_eq!(mode(&path), 0o770);
            connect_to(new_socket(kind).unwrap().as_fd(), &path).unwrap();
            assert!(matches!(listen_at(kind, &path, ACCESS, 8), Err(BindError::Taken)));
            assert!(file.leads_here());
            drop(file);
            assert!(!path.exists());
        }
        let gone = connect_to(new_socket(Kind::Stream).unwrap().as_fd(), &path).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_path_that_cannot_be_is_told_why() {
        for (path, cause) in [
            ("s.sock".to_owned(), "absolute"),
            ("/run/".to_owned(), "directory"),
            ("/run/..".to_owned(), "to a file"),
            (format!("/run/{}", "x".repeat(5000)), "fewer than 4096"),
            (format!("/a-directory/of-some-length/{}", "x".repeat(90)), "a name of 90 bytes"),
        ] {
            let problem = check_path(Path::new(&path)).unwrap_err();
            assert!(problem.contains(cause), "{path}: {problem}");
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let folder = Folder::new("stale");
        let path = folder.path("s.sock");
        let (socket, file) = listen_at(Kind::SeqPacket, &path, ACCESS, 8).unwrap();
        assert!(matches!(listen_at(Kind::SeqPacket, &path, ACCESS, 8), Err(BindError::Taken)));
        assert!(matches!(listen_at(Kind::Stream, &path, ACCESS, 8), Err(BindError::Taken)), "of another kind");
        std::mem::forget(file);
        drop(socket);
        assert!(path.exists());
        drop(listen_at(Kind::SeqPacket, &path, ACCESS, 8).unwrap());
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen_at(Kind::SeqPacket, &path, ACCESS, 8), Err(BindError::NotASocket)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_listener_knows_when_its_path_leads_elsewhere_and_leaves_that_alone() {
        let folder = Folder::new("elsewhere");
        let path = folder.path("in/s.sock");
        let (_socket, file) = listen_at(Kind::Stream, &path, ACCESS, 8).unwrap();
        assert!(file.leads_here());
        fs::remove_file(&path).unwrap();
        assert!(!file.leads_here());
        let (_other, theirs) = listen_at(Kind::Stream, &path, ACCESS, 8).unwrap();
        assert!(!file.leads_here() && theirs.leads_here());
        drop(file);
        assert!(theirs.leads_here());
        fs::remove_dir_all(folder.path("in")).unwrap();
        assert!(!theirs.leads_here());
    }
}
