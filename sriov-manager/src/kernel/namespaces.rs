//! Network namespaces other than ours, and a file by which each of them can be opened.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ferrule_ffi::netlink::NetlinkError;
use ferrule_ffi::netns::{self, NetNs, namespace_at};
use nix::errno::Errno;
use nix::sys::stat::fstat;

use crate::gone::{ProcessStat, entries, open_files, unless_gone};

/// A file of a network namespace.
pub(super) struct NamespaceFile {
    pub path: PathBuf,
    /// A process that has it; none: only a file has.
    pub pid: Option<u32>,
    /// The number of the namespace, where it is known without the file.
    inode: Option<u64>,
}

impl NamespaceFile {
    fn of_process(pid: u32, path: PathBuf) -> Self {
        Self { path, pid: Some(pid), inode: None }
    }

    /// When the process or thread that this is of was started, if it is a zombie, which is in no namespace.
    fn zombie(&self) -> io::Result<Option<u64>> {
        if !self.path.ends_with("ns/net") {
            return Ok(None);
        }
        let Some(folder) = self.path.ancestors().nth(2) else { return Ok(None) };
        let stat = unless_gone(fs::read_to_string(folder.join("stat")))?;
        Ok(stat.as_deref().and_then(ProcessStat::parse).filter(|stat| stat.is_zombie).map(|stat| stat.started))
    }
}

/// Looks into each namespace but ours until something is found. What cannot be looked at may have what is looked for: that is
/// an error.
pub(super) fn find_elsewhere<T>(
    look: impl Fn(&NetNs, &NamespaceFile) -> Result<Option<T>, NetlinkError>,
) -> Result<Option<T>, NetlinkError> {
    let own = fs::metadata("/proc/self/ns/net")?;
    let mut search = Search { seen: BTreeSet::from([(own.dev(), own.ino())]), zombies: BTreeSet::new(), failed: None };
    if let Found::Yes(found) = search.again_and_again(of_processes_and_names, &look) {
        return Ok(Some(found));
    }
    // Whatever was missed or failed until here is looked at once more.
    search.failed = None;
    match search.again_and_again(of_everything, &look) {
        Found::Yes(found) => Ok(Some(found)),
        Found::No { missed: Some(path) } => {
            let path = path.display();
            let hint =
                format!("{path}, or another one, went away while namespaces were looked at, {LOOKS} times; ask again");
            Err(NetlinkError { errno: Errno::EAGAIN, hint: Some(hint) })
        }
        Found::No { missed: None } => search.failed.map_or(Ok(None), Err),
    }
}

/// Looks into each namespace but ours that a process is in or that has a name. What cannot be looked at is left out.
pub(super) fn look_elsewhere(mut look: impl FnMut(&NetNs, &NamespaceFile) -> Result<(), NetlinkError>) {
    let own = fs::metadata("/proc/self/ns/net").map(|own| (own.dev(), own.ino()));
    let mut search = Search { seen: own.into_iter().collect(), zombies: BTreeSet::new(), failed: None };
    for file in of_processes_and_names().unwrap_or_default() {
        if let Ok(Opened::New(namespace, _)) = search.open_unseen(&file) {
            let _ = look(&namespace, &file);
        }
    }
}

/// What was looked at so far.
struct Search {
    /// Namespaces, by device and number.
    seen: BTreeSet<(u64, u64)>,
    /// Zombies, by their files and the times of their starts.
    zombies: BTreeSet<(PathBuf, u64)>,
    /// Why a namespace could not be looked at.
    failed: Option<NetlinkError>,
}

enum Found<T> {
    Yes(T),
    No {
        /// A file that went away before it was opened, also when it was tried for the last time.
        missed: Option<PathBuf>,
    },
}

impl Search {
    /// Looks again when something went away meanwhile: another process may have the same namespace, and may have come after the
    /// list was made.
    fn again_and_again<T>(
        &mut self,
        files: impl Fn() -> io::Result<Vec<NamespaceFile>>,
        look: &impl Fn(&NetNs, &NamespaceFile) -> Result<Option<T>, NetlinkError>,
    ) -> Found<T> {
        let mut missed = None;
        for _ in 0..LOOKS {
            missed = None;
            let files = files().unwrap_or_else(|error| {
                self.failed = Some(error.into());
                Vec::new()
            });
            for file in files {
                match self.open_unseen(&file) {
                    Ok(Opened::New(namespace, identity)) => match look(&namespace, &file) {
                        Ok(Some(found)) => return Found::Yes(found),
                        Ok(None) => {}
                        // Another one may have it; this one was not looked at.
                        Err(error) => {
                            self.failed = Some(error);
                            self.seen.remove(&identity);
                        }
                    },
                    Ok(Opened::Seen) => {}
                    Ok(Opened::Gone) => missed = Some(file.path),
                    Err(error) => self.failed = Some(error.into()),
                }
            }
            if missed.is_none() {
                break;
            }
        }
        Found::No { missed }
    }

    fn open_unseen(&mut self, file: &NamespaceFile) -> io::Result<Opened> {
        // A name may be below a mount that hides it, while a process has the same namespace.
        let has_seen = |inode: u64| self.seen.iter().any(|(_, seen)| *seen == inode);
        if file.inode.is_some_and(has_seen) {
            return Ok(Opened::Seen);
        }
        let Some(found) = unless_gone(namespace_at(&file.path))? else { return self.is_gone(file) };
        if found.is_some_and(|found| self.seen.contains(&(found.device, found.inode))) {
            return Ok(Opened::Seen);
        }
        let namespace = match NetNs::open(&file.path) {
            // Something else was opened in its place meanwhile.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && file.pid.is_some() => return Ok(Opened::Seen),
            opened => unless_gone(opened)?,
        };
        let Some(namespace) = namespace else { return self.is_gone(file) };
        // The number of the process may be another one's by now.
        let opened = fstat(namespace.as_fd())?;
        let identity = (opened.st_dev, opened.st_ino);
        Ok(if self.seen.insert(identity) { Opened::New(namespace, identity) } else { Opened::Seen })
    }

    /// A zombie that was one at an earlier look as well has nothing, and no heir that is not in the list of this look.
    fn is_gone(&mut self, file: &NamespaceFile) -> io::Result<Opened> {
        let is_known = file.zombie()?.is_some_and(|started| !self.zombies.insert((file.path.clone(), started)));
        Ok(if is_known { Opened::Seen } else { Opened::Gone })
    }
}

enum Opened {
    /// With its device and number.
    New(NetNs, (u64, u64)),
    Seen,
    Gone,
}

/// Those of processes, then those that have a name somewhere.
fn of_processes_and_names() -> io::Result<Vec<NamespaceFile>> {
    let of_process = |(pid, folder): (u32, PathBuf)| NamespaceFile::of_process(pid, folder.join("ns/net"));
    let mut files: Vec<_> = processes()?.into_iter().map(of_process).collect();
    files.extend(names()?);
    Ok(files)
}

/// Also those that only threads are in, or that have no name any more and are kept by an open file. That is a look at every file of
/// every process.
fn of_everything() -> io::Result<Vec<NamespaceFile>> {
    let mut files = of_processes_and_names()?;
    for (pid, folder) in processes()? {
        let threads = entries(&folder.join("task"))?.into_iter().map(|thread| thread.join("ns/net"));
        files.extend(threads.map(|path| NamespaceFile::of_process(pid, path)));
        for path in open_files(&folder)? {
            // By what it is: it is called as whoever opened it did, and that may be gone.
            if let Some(opened) = opened_namespace(&path)? {
                files.push(NamespaceFile { inode: Some(opened.inode), ..NamespaceFile::of_process(pid, path) });
            }
        }
    }
    Ok(files)
}

/// The namespace that a file of a process is. Where a file system refuses to tell, it is not that of namespaces, which tells
/// everybody: it is FUSE of another user, or one whose server is gone, and anybody can have a file of such a one open.
fn opened_namespace(path: &Path) -> io::Result<Option<netns::NamespaceInode>> {
    match namespace_at(path) {
        Err(error) if error.kind() != io::ErrorKind::OutOfMemory => Ok(None),
        told => told,
    }
}

/// Names of namespaces, as `ip netns` and container engines give them: here, or where the first process is.
fn names() -> io::Result<Vec<NamespaceFile>> {
    let mut files = Vec::new();
    for process in ["self", "1"].map(|process| Path::new("/proc").join(process)) {
        let mounts = unless_gone(fs::read(process.join("mountinfo")))?.unwrap_or_default();
        let root = process.join("root");
        let below = |mount: PathBuf| root.join(mount.strip_prefix("/").unwrap_or(&mount));
        let path = |mount| if process.ends_with("self") { mount } else { below(mount) };
        let file = |(inode, mount)| NamespaceFile { path: path(mount), pid: None, inode };
        files.extend(namespace_mounts(&mounts).map(file));
    }
    Ok(files)
}

fn processes() -> io::Result<Vec<(u32, PathBuf)>> {
    let pid = |folder: PathBuf| Some((folder.file_name()?.to_str()?.parse().ok()?, folder));
    Ok(entries(Path::new("/proc"))?.into_iter().filter_map(pid).collect())
}

/// The numbers of network namespaces and where they are mounted, by a `mountinfo` (proc_pid_mountinfo(5)). Others' mounts may have
/// any bytes for names.
fn namespace_mounts(mountinfo: &[u8]) -> impl Iterator<Item = (Option<u64>, PathBuf)> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        let number = root.strip_prefix(PREFIX)?;
        let inode = number.strip_suffix(b"]").and_then(|number| str::from_utf8(number).ok()?.parse().ok());
        let is_namespace = fields.skip_while(|field| field != b"-").nth(1)? == b"nsfs";
        is_namespace.then(|| (inode, PathBuf::from(OsStr::from_bytes(&unescaped(mount)))))
    })
}

/// Spaces, line ends and backslashes stand as `\040`.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = name;
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(byte);
            rest = &behind[3..];
        } else {
            out.push(first);
            rest = behind;
        }
    }
    out
}

/// So often it is looked again when something went away meanwhile: on a busy node something always does.
const LOOKS: usize = 3;
/// What links to network namespaces and mounts of them are called: `net:[4026531840]`.
const PREFIX: &[u8] = b"net:[";

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use super::*;

    fn search() -> Search {
        Search { seen: BTreeSet::new(), zombies: BTreeSet::new(), failed: None }
    }

    fn file(path: &str) -> NamespaceFile {
        NamespaceFile { path: path.into(), pid: None, inode: None }
    }

    /// What was missed in the end, and how often it was looked.
    fn looks(search: &mut Search, file: impl Fn() -> NamespaceFile) -> (Option<PathBuf>, usize) {
        let count = Cell::new(0);
        let files = || {
            count.set(count.get() + 1);
            Ok(vec![file()])
        };
        match search.again_and_again(files, &|_, _| Ok(None::<()>)) {
            Found::No { missed } => (missed, count.get()),
            Found::Yes(()) => panic!("nothing was to be found"),
        }
    }

    /// A process that has ended, and that nobody has asked about.
    fn zombie() -> Child {
        let child = Command::new("true").spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
            assert!(Instant::now() < deadline, "it ends");
            std::thread::sleep(Duration::from_millis(1));
        }
        child
    }

    #[test]
    fn a_zombie_is_not_looked_for_again_and_again() {
        let mut child = zombie();
        let of_zombie = || NamespaceFile::of_process(child.id(), format!("/proc/{}/ns/net", child.id()).into());
        let mut search = search();
        assert_eq!(looks(&mut search, of_zombie), (None, 2), "it may have become one only now");
        assert_eq!(looks(&mut search, of_zombie), (None, 1), "it is known");
        assert!(search.failed.is_none());
        child.wait().unwrap();
    }

    #[test]
    fn what_is_gone_each_time_is_told() {
        let gone = PathBuf::from("/run/netns/gone");
        assert_eq!(looks(&mut search(), || file("/run/netns/gone")), (Some(gone), LOOKS));
    }

    #[test]
    fn a_name_that_is_hidden_is_nothing_to_look_for_when_its_namespace_was_seen() {
        let mut search = search();
        assert_eq!(looks(&mut search, || file("/proc/self/ns/net")), (None, 1));
        let inode = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let hidden = || NamespaceFile { inode: Some(inode), ..file("/run/netns/hidden") };
        assert_eq!(looks(&mut search, hidden), (None, 1));
    }

    #[test]
    fn a_namespace_that_cannot_be_looked_at_hides_no_other_and_is_an_error_where_nothing_is_found() {
        let mut search = search();
        // A name that something else hides.
        let files = || Ok(vec![file("/etc/passwd"), file("/proc/self/ns/net")]);
        assert!(matches!(search.again_and_again(files, &|_, file| Ok(Some(file.path.clone()))), Found::Yes(path)
            if path == Path::new("/proc/self/ns/net")));
        assert!(search.failed.is_some());
        // Kept by a file of this process and nothing else.
        let _other = match NetNs::private() {
            Ok(other) => other,
            Err(error) => return println!("skipped: a namespace of its own ({error})"),
        };
        let refusal = || NetlinkError { errno: Errno::EPERM, hint: None };
        let failing = find_elsewhere(|_, _| Err::<Option<()>, _>(refusal()));
        // Or why another one could not be looked at.
        failing.unwrap_err();
    }

    #[test]
    fn a_namespace_that_could_not_be_looked_at_is_looked_at_again() {
        let (mut search, asked) = (search(), Cell::new(0));
        let files = || Ok(vec![file("/proc/self/ns/net")]);
        let look = |_: &NetNs, _: &NamespaceFile| {
            asked.set(asked.get() + 1);
            if asked.get() == 1 { Err(NetlinkError { errno: Errno::EMFILE, hint: None }) } else { Ok(Some(())) }
        };
        assert!(matches!(search.again_and_again(files, &look), Found::No { .. }));
        assert!(matches!(search.again_and_again(files, &look), Found::Yes(())));
    }

    #[test]
    fn a_file_that_became_another_one_is_passed_over() {
        let file = || NamespaceFile::of_process(std::process::id(), "/dev/null".into());
        let mut search = search();
        assert_eq!(looks(&mut search, file), (None, 1));
        assert!(search.failed.is_none());
    }

    #[test]
    fn a_namespace_that_is_only_open_as_a_file_is_found_whatever_that_is_called() {
        let other = match NetNs::private() {
            Ok(other) => other,
            Err(error) => return println!("skipped: a namespace of its own ({error})"),
        };
        let wanted = fstat(other.as_fd()).unwrap();
        let found = find_elsewhere(|namespace, file| {
            let is_it = fstat(namespace.as_fd()).is_ok_and(|seen| seen.st_ino == wanted.st_ino);
            Ok(is_it.then(|| (file.pid, file.path.clone())))
        });
        let (pid, path) = found.unwrap().expect("this process has it open");
        assert_eq!(pid, Some(std::process::id()));
        assert!(path.starts_with(format!("/proc/{}/fd", std::process::id())), "{}", path.display());
    }

    #[test]
    fn mounts_of_network_namespaces_are_found_whatever_others_are_called() {
        let mountinfo = b"22 1 0:20 / /proc rw - proc proc rw\n\
            31 22 0:4 net:[4026532288] /run/docker/netns/a\\040b rw shared:5 - nsfs nsfs rw\n\
            32 22 0:4 pid:[4026532289] /run/pid rw - nsfs nsfs rw\n\
            33 22 8:1 / /mnt/\xff\xfe rw - ext4 /dev/sda1 rw\n\
            34 22 0:4 net:[4026532290] /run/\xff rw - nsfs nsfs rw\n";
        let mounts: Vec<_> = namespace_mounts(mountinfo).collect();
        let named = |inode, name: &[u8]| (Some(inode), PathBuf::from(OsStr::from_bytes(name)));
        assert_eq!(mounts, [named(4_026_532_288, b"/run/docker/netns/a b"), named(4_026_532_290, b"/run/\xff")]);
    }
}
