//! A file of settings, followed while the daemon that was started with it runs.

use std::future::pending;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::FileWatch;

/// The file, and what is known of it.
#[derive(Debug)]
pub struct Followed {
    what: &'static str,
    path: PathBuf,
    /// What it held when it was last looked at: an event without new contents means nothing.
    contents: Option<Vec<u8>>,
    /// None when the kernel has no watch left; SIGHUP works still.
    watch: Option<FileWatch>,
}

/// Why a file is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Somebody asked: the answer is logged whatever the file holds.
    Asked,
    /// Something happened to it: only new contents count.
    Changed,
}

impl Followed {
    /// Watches a file, of which this much was read, from now on. `what` is what the log calls it. Needs a tokio
    /// runtime.
    pub fn new(what: &'static str, path: PathBuf, contents: Vec<u8>) -> Self {
        let watch = FileWatch::new(&path)
            .inspect_err(
                |error| warn!(file = %path.display(), %error, "cannot watch the {what}; reload it with SIGHUP"),
            )
            .ok();
        Self { what, path, contents: Some(contents), watch }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when the file may have new contents. May be cancelled.
    pub async fn changed(&mut self) {
        let Some(watch) = &mut self.watch else { return pending().await };
        if let Err(error) = watch.changed().await {
            let (file, what) = (self.path.display(), self.what);
            warn!(%file, %error, "cannot watch the {what} any more; reload it with SIGHUP");
            self.watch = None;
            pending::<()>().await;
        }
    }

    /// What it holds now; none: nothing new, which somebody who asked is not told.
    pub fn read(&mut self, cause: Cause) -> std::io::Result<Option<Vec<u8>>> {
        let contents = std::fs::read(&self.path).inspect_err(|_| self.contents = None)?;
        if cause == Cause::Changed && self.contents.as_ref() == Some(&contents) {
            return Ok(None);
        }
        self.contents = Some(contents.clone());
        Ok(Some(contents))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn only_new_contents_count_unless_somebody_asks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("settings.yaml");
        fs::write(&path, "old").unwrap();
        let mut file = Followed::new("settings", path.clone(), b"old".to_vec());
        assert_eq!(file.read(Cause::Changed).unwrap(), None, "nothing new");
        assert_eq!(file.read(Cause::Asked).unwrap().unwrap(), b"old", "somebody asked");
        fs::write(&path, "new").unwrap();
        file.changed().await;
        assert_eq!(file.read(Cause::Changed).unwrap().unwrap(), b"new");
        assert_eq!(file.read(Cause::Changed).unwrap(), None, "it was read already");
        fs::remove_file(&path).unwrap();
        file.read(Cause::Changed).unwrap_err();
        fs::write(&path, "new").unwrap();
        assert_eq!(file.read(Cause::Changed).unwrap().unwrap(), b"new", "it was away");
    }
}
