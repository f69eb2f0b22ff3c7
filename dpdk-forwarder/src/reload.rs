//! Keeps the wires equal to the wires file: on SIGHUP, and whenever the file has new contents.

use std::sync::Arc;

use ferrule_daemon::reload::{Reload, reload_on_change};
use ferrule_daemon::settings::{Cause, FileSettings, Followed};
use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use crate::config::{Config, WiresFile};
use crate::wires::{ChangeError, Changes, Wires};

/// Keeps the wires equal to the wires file, if there is one, until it is cancelled.
pub(crate) async fn keep_equal(file: Option<WiresFile>, by_flag: Vec<&'static str>, hangup: Signal, wires: Arc<Wires>) {
    let file = file.map(|WiresFile { path, contents, config }| {
        (Followed::new(WHAT, path, contents), Reloader { started: config, by_flag, wires })
    });
    reload_on_change(file, WHAT, hangup).await;
}

struct Reloader {
    /// What the file said when the forwarder started, for the settings that need a restart.
    started: Config,
    /// The settings that it did not decide.
    by_flag: Vec<&'static str>,
    wires: Arc<Wires>,
}

impl Reload for Reloader {
    async fn reload(&mut self, file: &mut Followed, cause: Cause) {
        let Some(wanted) = wanted(file, &self.started, &self.by_flag, cause) else { return };
        let wires = Arc::clone(&self.wires);
        let path = file.path().display();
        match spawn_blocking(move || wires.apply(&wanted.wires)).await {
            Ok(Ok(Changes { removed, changed, added })) => {
                info!(file = %path, removed, changed, added, "wires file applied");
            }
            Ok(Err(ChangeError::Draining)) => {}
            Ok(Err(error)) => error!(file = %path, %error, "wires file refused; the wires stay as they are"),
            Err(error) => error!(file = %path, %error, "applying the wires file failed"),
        }
    }
}

/// What the file wants now. None: nothing new, or nothing that can be used, which is logged.
fn wanted(file: &mut Followed, started: &Config, by_flag: &[&str], cause: Cause) -> Option<Config> {
    let contents = file.read(cause);
    let path = file.path();
    let contents = contents
        .inspect_err(|error| {
            warn!(file = %path.display(), %error, "cannot read the wires file; the wires stay as they are");
        })
        .ok()??;
    match Config::from_bytes(path, &contents) {
        Ok(config) => {
            for setting in started.needs_restart(&config, by_flag) {
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

const WHAT: &str = Config::FILE;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_new_and_good_contents_are_wanted_unless_somebody_asks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wires.yaml");
        std::fs::write(&path, "workers: [0]\n").unwrap();
        let WiresFile { path, contents, config } = WiresFile::load(&path).unwrap();
        let mut file = Followed::new(WHAT, path.clone(), contents);
        let mut wanted = |cause| wanted(&mut file, &config, &[], cause);

        assert_eq!(wanted(Cause::Changed), None, "nothing new");
        assert!(wanted(Cause::Asked).is_some(), "somebody asked");
        std::fs::write(&path, "workers: [").unwrap();
        assert_eq!(wanted(Cause::Changed), None, "refused");
        std::fs::write(&path, "workers: [1]\n").unwrap();
        assert_eq!(wanted(Cause::Changed).unwrap().workers, [1]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(wanted(Cause::Asked), None, "gone");
    }
}
