//! What happens in the kubelet's directory: its own socket comes and goes with it, and at its start it removes those of plugins.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrule_daemon::inotify::AsyncInotify;
use ferrule_kubelet::KUBELET_SOCKET;
use nix::sys::inotify::AddWatchFlags;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{debug, warn};

/// The directory, watched.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

/// What is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// None: no kubelet listens.
    pub kubelet: Option<KubeletSocket>,
    /// Grows with all that happens.
    pub news: u64,
}

/// The socket of one run of the kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KubeletSocket {
    device: u64,
    inode: u64,
    /// An inode may be used again at once; and others than its kubelet may change its owner or label.
    made_ns: i64,
}

impl Directory {
    /// Watches it from now on. It need not be there yet.
    pub fn watch(path: &Path) -> Self {
        let (sender, seen) = watch::channel(Seen { kubelet: kubelet(path), news: 0 });
        Self { path: path.to_owned(), seen, task: tokio::spawn(keep_watching(path.to_owned(), sender)) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is there, now and from now on.
    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_watching(path: PathBuf, sender: watch::Sender<Seen>) {
    let mut was_told = false;
    loop {
        let heard = async {
            let inotify = AsyncInotify::new()?;
            inotify.watch(&path, flags())?;
            // It may have changed between the last look and the watch.
            look(&path, &sender);
            loop {
                tokio::select! {
                    heard = inotify.wait() => heard?,
                    () = sleep(LOOK_EVERY) => {}
                }
                let events = inotify.take()?;
                look(&path, &sender);
                let is_gone =
                    |mask: AddWatchFlags| mask.intersects(AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF);
                if events.iter().any(|event| is_gone(event.mask)) {
                    return Ok::<(), std::io::Error>(());
                }
            }
        };
        if let Err(error) = heard.await {
            if was_told {
                debug!(directory = %path.display(), %error, "cannot watch the kubelet's directory");
            } else {
                warn!(directory = %path.display(), %error, "cannot watch the kubelet's directory; it is looked at every second");
                was_told = true;
            }
        }
        look(&path, &sender);
        sleep(AWAY_PAUSE).await;
    }
}

fn look(path: &Path, sender: &watch::Sender<Seen>) {
    let kubelet = kubelet(path);
    sender.send_modify(|seen| *seen = Seen { kubelet, news: seen.news + 1 });
}

fn kubelet(path: &Path) -> Option<KubeletSocket> {
    let found = fs::metadata(path.join(KUBELET_SOCKET)).ok()?;
    let made_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
    Some(KubeletSocket { device: found.dev(), inode: found.ino(), made_ns })
}

fn flags() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_DELETE_SELF
}

/// For what the kernel does not tell, such as a directory on another machine.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between looks for a directory that is not there.
const AWAY_PAUSE: Duration = Duration::from_millis(500);
