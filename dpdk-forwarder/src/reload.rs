//! Keeps the wires equal to the wires file: on SIGHUP, and whenever the file has new contents.

use std::sync::Arc;

use ferrule_daemon::settings::{Cause, Followed};
use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use crate::config::{Config, WiresFile};
use crate::wires::{Applied, ChangeError, Wires};

/// Follows the file for as long as the forwarder serves.
pub(crate) struct Reloader {
    file: Option<Wiring>,
    hangup: Signal,
    wires: Arc<Wires>,
}

struct Wiring {
    followed: Followed,
    /// What it said when the forwarder started, for the settings that need a restart.
    started: Config,
}

impl Reloader {
    /// Watches the file, if there is one, from now on.
    pub fn new(file: Option<WiresFile>, hangup: Signal, wires: Arc<Wires>) -> Self {
        let file = file.map(|WiresFile { path, contents, config }| Wiring {
            followed: Followed::new("wires file", path, contents),
            started: config,
        });
        Self { file, hangup, wires }
    }

    /// Follows the file until it is cancelled.
    pub async fn run(mut self) {
        // It may have changed between its reading and its watching.
        self.reload(Cause::Changed).await;
        loop {
            let cause = tokio::select! {
                Some(()) = self.hangup.recv() => Cause::Asked,
                () = changed(self.file.as_mut()) => Cause::Changed,
            };
            self.reload(cause).await;
        }
    }

    async fn reload(&mut self, cause: Cause) {
        let Some(file) = &mut self.file else {
            if cause == Cause::Asked {
                info!("SIGHUP, but there is no wires file to read again");
            }
            return;
        };
        let Some(wanted) = file.wanted(cause) else { return };
        let wires = Arc::clone(&self.wires);
        let path = file.followed.path().display();
        match spawn_blocking(move || wires.apply(&wanted.wires)).await {
            Ok(Ok(Applied { removed, added })) => info!(file = %path, removed, added, "wires file applied"),
            Ok(Err(ChangeError::Draining)) => {}
            Ok(Err(error)) => error!(file = %path, %error, "wires file refused; the wires stay as they are"),
            Err(error) => error!(file = %path, %error, "applying the wires file failed"),
        }
    }
}

impl Wiring {
    /// What the file wants now. None: nothing new, or nothing that can be used, which is logged.
    fn wanted(&mut self, cause: Cause) -> Option<Config> {
        let contents = self.followed.read(cause);
        let path = self.followed.path();
        let contents = contents
            .inspect_err(|error| {
                warn!(file = %path.display(), %error, "cannot read the wires file; the wires stay as they are");
            })
            .ok()??;
        match Config::from_bytes(path, &contents) {
            Ok(config) => {
                for setting in self.started.needs_restart(&config) {
                    warn!(file = %path.display(), "{setting}");
                }
                Some(config)
            }
            Err(error) => {
                for line in error.lines() {
                    error!("{line}");
                }
                error!(file = %path.display(), "wires file refused; the wires stay as they are");
                None
            }
        }
    }
}

async fn changed(file: Option<&mut Wiring>) {
    match file {
        Some(file) => file.followed.changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_new_and_good_contents_are_wanted_unless_somebody_asks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wires.yaml");
        std::fs::write(&path, "workers: [0]\n").unwrap();
        let WiresFile { path, contents, config } = WiresFile::load(&path).unwrap();
        let mut file = Wiring { followed: Followed::new("wires file", path.clone(), contents), started: config };

        assert_eq!(file.wanted(Cause::Changed), None, "nothing new");
        assert!(file.wanted(Cause::Asked).is_some(), "somebody asked");
        std::fs::write(&path, "workers: [").unwrap();
        assert_eq!(file.wanted(Cause::Changed), None, "refused");
        std::fs::write(&path, "workers: [1]\n").unwrap();
        assert_eq!(file.wanted(Cause::Changed).unwrap().workers, [1]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.wanted(Cause::Asked), None, "gone");
    }
}
