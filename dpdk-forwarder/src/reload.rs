//! Keeps the wires equal to the wires file: on SIGHUP, and whenever the file has new contents.

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use sriov_manager::document::FileWatch;
use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use crate::config::{Config, WiresFile};
use crate::wires::{Applied, ChangeError, Wires};

/// Follows the file for as long as the forwarder serves.
pub(crate) struct Reloader {
    file: Option<Followed>,
    hangup: Signal,
    wires: Arc<Wires>,
}

/// The file, and what is known of it.
struct Followed {
    path: PathBuf,
    /// What it held when it was last looked at: an event without new contents means nothing.
    contents: Option<Vec<u8>>,
    /// What it said when the forwarder started, for the settings that need a restart.
    started: Config,
    /// None when the kernel has no watch left; SIGHUP works still.
    watch: Option<FileWatch>,
}

impl Reloader {
    /// Watches the file, if there is one, from now on.
    pub fn new(file: Option<WiresFile>, hangup: Signal, wires: Arc<Wires>) -> Self {
        let file = file.map(|WiresFile { path, contents, config }| {
            let watch = FileWatch::new(&path)
                .inspect_err(
                    |error| warn!(file = %path.display(), %error, "cannot watch the wires file; reload it with SIGHUP"),
                )
                .ok();
            Followed { path, contents: Some(contents), started: config, watch }
        });
        Self { file, hangup, wires }
    }

    /// Follows the file until it is cancelled.
    pub async fn run(mut self) {
        // It may have changed between its reading and its watching.
        self.reload(Reason::Change).await;
        loop {
            let watch = self.file.as_mut().and_then(|file| file.watch.as_mut());
            tokio::select! {
                Some(()) = self.hangup.recv() => self.reload(Reason::Signal).await,
                result = changed(watch) => match result {
                    Ok(()) => self.reload(Reason::Change).await,
                    Err(error) => self.unwatch(&error),
                },
            }
        }
    }

    async fn reload(&mut self, reason: Reason) {
        let Some(file) = &mut self.file else {
            if reason == Reason::Signal {
                info!("SIGHUP, but there is no wires file to read again");
            }
            return;
        };
        let Some(wanted) = file.wanted(reason) else { return };
        let wires = Arc::clone(&self.wires);
        let path = file.path.display();
        match spawn_blocking(move || wires.apply(&wanted.wires)).await {
            Ok(Ok(Applied { removed, added })) => info!(file = %path, removed, added, "wires file applied"),
            Ok(Err(ChangeError::Draining)) => {}
            Ok(Err(error)) => error!(file = %path, %error, "wires file refused; the wires stay as they are"),
            Err(error) => error!(file = %path, %error, "applying the wires file failed"),
        }
    }

    fn unwatch(&mut self, error: &io::Error) {
        if let Some(file) = &mut self.file {
            warn!(file = %file.path.display(), %error, "cannot watch the wires file any more; reload it with SIGHUP");
            file.watch = None;
        }
    }
}

/// Why the file is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// Somebody asked: the answer is logged whatever the file holds.
    Signal,
    /// Something happened to it: only new contents count.
    Change,
}

impl Followed {
    /// What the file wants now. None: nothing new, or nothing that can be used, which is logged.
    fn wanted(&mut self, reason: Reason) -> Option<Config> {
        let path = self.path.display();
        let contents = std::fs::read(&self.path)
            .inspect_err(|error| warn!(file = %path, %error, "cannot read the wires file; the wires stay as they are"))
            .ok()?;
        if reason == Reason::Change && self.contents.as_ref() == Some(&contents) {
            return None;
        }
        let config = Config::from_bytes(&self.path, &contents);
        self.contents = Some(contents);
        match config {
            Ok(config) => {
                for setting in self.started.needs_restart(&config) {
                    warn!(file = %path, "{setting}");
                }
                Some(config)
            }
            Err(error) => {
                for line in error.lines() {
                    error!("{line}");
                }
                error!(file = %path, "wires file refused; the wires stay as they are");
                None
            }
        }
    }
}

async fn changed(watch: Option<&mut FileWatch>) -> io::Result<()> {
    match watch {
        Some(watch) => watch.changed().await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_and_good_contents_are_wanted_unless_somebody_asks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wires.yaml");
        std::fs::write(&path, "workers: [0]\n").unwrap();
        let WiresFile { path, contents, config } = WiresFile::load(&path).unwrap();
        let mut file = Followed { path: path.clone(), contents: Some(contents), started: config, watch: None };

        assert_eq!(file.wanted(Reason::Change), None, "nothing new");
        assert!(file.wanted(Reason::Signal).is_some(), "somebody asked");
        std::fs::write(&path, "workers: [").unwrap();
        assert_eq!(file.wanted(Reason::Change), None, "refused");
        std::fs::write(&path, "workers: [1]\n").unwrap();
        assert_eq!(file.wanted(Reason::Change).unwrap().workers, [1]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.wanted(Reason::Signal), None, "gone");
    }
}
