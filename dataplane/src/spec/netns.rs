//! Network namespaces, and how they stay the one that was meant.

use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::{cmp, fmt};

use ferrule_ffi::netns;

/// A network namespace: by file, by a process inside it, or by an open descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NetNs {
    /// A file such as `/run/netns/pod`.
    Path(PathBuf),
    /// The namespace of a process.
    Process(Process),
    /// One that is open. The namespace lives for as long as the specification does, whatever becomes of its processes.
    Open(OpenNetNs),
}

impl NetNs {
    /// The namespace of the process that has this number now. Without such a process, the first one to have the
    /// number is taken.
    pub fn of_process(pid: u32) -> Self {
        Self::Process(Process { pid, start_time: start_time(pid).ok() })
    }

    /// Opens it. A process that has the number of the one that was meant is not taken for it.
    pub fn open(&self) -> io::Result<netns::NetNs> {
        match self {
            Self::Path(path) => netns::NetNs::open(path),
            Self::Process(process) => {
                let opened = netns::NetNs::open(&self.path())?;
                // Looked at afterwards: whoever has the number now had it while the file was opened.
                process.check()?;
                Ok(opened)
            }
            Self::Open(open) => netns::NetNs::try_from(open.file.as_fd().try_clone_to_owned()?),
        }
    }

    /// The file that shows it now. To use it, [`NetNs::open`] it: a number can have passed to another process.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Process(process) => PathBuf::from(format!("/proc/{}/ns/net", process.pid)),
            Self::Open(open) => {
                PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*open.file)))
            }
        }
    }

    /// The same, with the process told from later ones of its number.
    #[must_use]
    pub fn pinned(self) -> Self {
        match self {
            Self::Process(Process { pid, start_time: None }) => Self::of_process(pid),
            other => other,
        }
    }
}

impl fmt::Display for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Process(process) => write!(f, "pid {}", process.pid),
            Self::Open(open) => write!(f, "net:[{}]", open.identity.1),
        }
    }
}

/// A process, told from another that gets its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it was started: field 22 of `/proc/PID/stat`. None: it was not looked for.
    pub start_time: Option<u64>,
}

impl Process {
    fn check(self) -> io::Result<()> {
        let Self { pid, start_time: Some(wanted) } = self else { return Ok(()) };
        if start_time(pid)? == wanted {
            return Ok(());
        }
        let text = format!("process {pid} ended, and another one has its number now");
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }
}

/// An open namespace. Two are the same if they lead to the same namespace.
#[derive(Clone, Debug)]
pub struct OpenNetNs {
    file: Arc<OwnedFd>,
    /// Device and inode.
    identity: (u64, u64),
}

impl TryFrom<OwnedFd> for OpenNetNs {
    type Error = io::Error;

    fn try_from(file: OwnedFd) -> io::Result<Self> {
        let file = OwnedFd::from(netns::NetNs::try_from(file)?);
        let metadata = File::from(file.try_clone()?).metadata()?;
        Ok(Self { file: Arc::new(file), identity: (metadata.dev(), metadata.ino()) })
    }
}

impl PartialEq for OpenNetNs {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for OpenNetNs {}

impl Hash for OpenNetNs {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity.hash(state);
    }
}

impl PartialOrd for OpenNetNs {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OpenNetNs {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.identity.cmp(&other.identity)
    }
}

fn start_time(pid: u32) -> io::Result<u64> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no process {pid}"));
    let number = i32::try_from(pid).map_err(|_| missing())?;
    let stat = procfs::process::Process::new(number).and_then(|process| process.stat());
    stat.map(|stat| stat.starttime).map_err(|error| match error {
        procfs::ProcError::NotFound(_) => missing(),
        error => io::Error::other(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let itself = NetNs::of_process(std::process::id());
        let NetNs::Process(Process { pid, start_time: Some(start_time) }) = itself else { panic!("{itself:?}") };
        itself.open().unwrap();
        let recycled = NetNs::Process(Process { pid, start_time: Some(start_time - 1) });
        let error = recycled.open().unwrap_err().to_string();
        assert!(error.contains(&format!("process {pid} ended, and another one has its number now")), "{error}");
    }

    #[test]
    fn a_process_that_ended_is_not_there_and_one_that_is_not_there_yet_is_pinned_later() {
        let mut child = Sleeper::start();
        let number = child.0.id();
        let pinned = NetNs::of_process(number);
        pinned.open().unwrap();
        child.end();
        assert_eq!(pinned.open().unwrap_err().kind(), io::ErrorKind::NotFound);
        let unknown = NetNs::of_process(number);
        assert_eq!(unknown, NetNs::Process(Process { pid: number, start_time: None }));
        let later = NetNs::Process(Process { pid: std::process::id(), start_time: None }).pinned();
        assert_eq!(later, NetNs::of_process(std::process::id()));
    }

    #[test]
    fn an_open_namespace_is_the_same_however_it_was_opened() {
        let open = |path: &str| OpenNetNs::try_from(OwnedFd::from(File::open(path).unwrap()));
        let [by_process, by_thread] = ["/proc/self/ns/net", "/proc/thread-self/ns/net"].map(|path| open(path).unwrap());
        assert_eq!(by_process, by_thread);
        NetNs::Open(by_process).open().unwrap();
        assert!(open("/dev/null").is_err());
    }

    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            Self(Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap())
        }

        fn end(&mut self) {
            let _ = self.0.kill();
            self.0.wait().unwrap();
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.end();
        }
    }
}
