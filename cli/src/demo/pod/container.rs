//! A process where the container of a pod would be: in the pod's network namespace, with a `/run` that holds what was mounted and
//! nothing else.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use ferrule_ffi::netns::NetNs;
use ferrule_kubelet::v1beta1::Mount;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where it runs.
pub(super) struct Container<'a> {
    /// Its pod's network namespace.
    pub(super) netns: &'a NetNs,
    /// What the device plugin gave it.
    pub(super) mounts: &'a [Mount],
    /// Files of the host that are there as well.
    pub(super) files: Vec<PathBuf>,
}

impl Container<'_> {
    /// Runs `work` in it, on a thread of its own; a process that it starts stays there.
    pub(super) fn run<T: Send>(self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let Self { netns, mounts, files } = self;
        let inside = move || {
            let contents: Vec<_> = files.iter().map(fs::read).collect::<io::Result<_>>()?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            // They are below what is hidden next.
            let sources: Vec<_> = mounts.iter().map(|mount| File::open(&mount.host_path)).collect::<io::Result<_>>()?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, Some("mode=755"))?;
            for (file, contents) in files.iter().zip(contents) {
                fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
                fs::write(file, contents)?;
            }
            for (mount, source) in mounts.iter().zip(sources) {
                bind(&source, mount)?;
            }
            work()
        };
        // A thread that has mounts of its own must not be used for anything else afterwards.
        thread::scope(|scope| {
            scope.spawn(move || netns.run(inside)?).join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

fn bind(source: &File, wanted: &Mount) -> io::Result<()> {
    fs::create_dir_all(&wanted.container_path)?;
    let from = format!("/proc/self/fd/{}", source.as_raw_fd());
    let target = wanted.container_path.as_str();
    mount(Some(from.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    if wanted.read_only {
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, target, None::<&str>, again, None::<&str>)?;
    }
    Ok(())
}
