//! Notices that a file was written, replaced, or that a link to it was swapped.
//!
//! Editors write a new file and rename it over the old one; Kubernetes swaps the link `..data` of a
//! mounted `ConfigMap`. Both are events of a directory, so directories are watched: that of the path as it
//! was given, and that of the file it leads to. A file that is being written is never read half: the
//! kernel says when its writer closes it, and nothing else counts.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InotifyEvent};

use crate::inotify::AsyncInotify;

/// Watches one file.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    target: Option<PathBuf>,
    inotify: AsyncInotify,
}

impl FileWatch {
    /// Watches from now on. Needs a tokio runtime.
    pub fn new(path: &Path) -> io::Result<Self> {
        let mut watch = Self { path: path.to_owned(), target: None, inotify: AsyncInotify::new()? };
        watch.follow()?;
        Ok(watch)
    }

    /// Returns when the file may have new contents. May be cancelled.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            self.inotify.wait().await?;
            if self.check()? {
                return Ok(());
            }
        }
    }

    /// Whether anything that happened since the last look concerns the file.
    fn check(&mut self) -> io::Result<bool> {
        let events = self.inotify.take()?;
        let before = self.target.clone();
        self.follow()?;
        let paths = [Some(&self.path), before.as_ref(), self.target.as_ref()];
        let names: BTreeSet<_> = paths.into_iter().flatten().filter_map(|path| path.file_name()).collect();
        Ok(before != self.target || events.iter().any(|event| concerns(event, &names)))
    }

    /// Watches the directories that the path leads through now. Watching one twice is the same as once.
    fn follow(&mut self) -> io::Result<()> {
        // None while the file is away: its own directory tells when it is back.
        self.target = self.path.canonicalize().ok();
        for path in [Some(&self.path), self.target.as_ref()].into_iter().flatten() {
            self.inotify.watch(directory(path), flags())?;
        }
        Ok(())
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// A file is complete when its writer closed it or when it was moved into place. Its creation alone
/// says nothing: it is still empty then.
fn flags() -> AddWatchFlags {
    AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE
}

fn concerns(event: &InotifyEvent, names: &BTreeSet<&OsStr>) -> bool {
    if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
        return true;
    }
    let complete = event.mask.intersects(AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO);
    complete && event.name.as_deref().is_some_and(|name| names.contains(name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_file_written_in_place_is_noticed_when_its_writer_closes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wires.yaml");
        fs::write(&path, "old").unwrap();
        let mut watch = FileWatch::new(&path).unwrap();
        let mut file = fs::File::create(&path).unwrap();
        io::Write::write_all(&mut file, b"half").unwrap();
        nothing_yet(&mut watch);
        drop(file);
        soon(watch.changed()).await;
    }

    #[tokio::test]
    async fn a_file_replaced_as_editors_do_is_noticed_and_its_neighbours_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wires.yaml");
        fs::write(&path, "old").unwrap();
        let mut watch = FileWatch::new(&path).unwrap();
        fs::write(directory.path().join(".wires.yaml.swp"), "new").unwrap();
        nothing_yet(&mut watch);
        fs::rename(directory.path().join(".wires.yaml.swp"), &path).unwrap();
        soon(watch.changed()).await;
    }

    #[tokio::test]
    async fn a_config_map_whose_link_is_swapped_is_noticed_every_time() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for version in ["..1", "..2", "..3"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("wires.yaml"), version).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/wires.yaml", at("wires.yaml")).unwrap();
        let mut watch = FileWatch::new(&at("wires.yaml")).unwrap();
        for version in ["..2", "..3"] {
            symlink(version, at("..data_tmp")).unwrap();
            nothing_yet(&mut watch);
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
            soon(watch.changed()).await;
        }
        fs::write(at("..3/wires.yaml"), "edited where the link leads").unwrap();
        soon(watch.changed()).await;
    }

    #[tokio::test]
    async fn a_file_that_went_away_is_noticed_when_it_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wires.yaml");
        fs::write(&path, "old").unwrap();
        let mut watch = FileWatch::new(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "new").unwrap();
        soon(watch.changed()).await;
    }

    async fn soon(change: impl Future<Output = io::Result<()>>) {
        timeout(Duration::from_secs(10), change).await.expect("a change is noticed").unwrap();
    }

    /// The kernel has queued what happened already: one look decides.
    fn nothing_yet(watch: &mut FileWatch) {
        assert!(!watch.check().unwrap(), "noticed too early");
    }
}
