//! Keeps the wires equal to the wires file: on SIGHUP, and whenever the file has new contents.

use std::sync::Arc;

use ferrule_daemon::reload::{Reload, reload_on_change};
use ferrule_daemon::settings::{Cause, FileSettings, Followed};
use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use crate::config::{Assignments, Config, WiresFile};
use crate::wires::{ChangeError, Changes, Wires};

/// Keeps the wires equal to the wires file, if there is one, until it is cancelled.
pub(crate) async fn keep_equal(file: Option<WiresFile>, by_flag: Vec<&'static str>, hangup: Signal, wires: Arc<Wires>) {
    let file = file.map(|WiresFile { path, contents, config }| {
        let assignments = config.assignments();
        (Followed::new(WHAT, path, contents), Reloader { started: config, by_flag, wires, assignments })
    });
    reload_on_change(file, WHAT, hangup).await;
}

struct Reloader {
    /// What the file said when the forwarder started, for the settings that need a restart.
    started: Config,
    /// The settings that it did not decide.
    by_flag: Vec<&'static str>,
    wires: Arc<Wires>,
    /// Who has whom on the chains that there are.
    assignments: Assignments,
}

impl Reload for Reloader {
    async fn reload(&mut self, file: &mut Followed, cause: Cause) {
        let mut wanted = match wanted(file, &self.started, &self.by_flag, cause) {
            Ok(Some(wanted)) => wanted,
            Ok(None) => return,
            Err(problems) => return self.wires.note_file_problems(problems),
        };
        wanted.keep_chains(&self.assignments);
        let (wires, specs) = (Arc::clone(&self.wires), wanted.wires.clone());
        let path = file.path().display();
        match spawn_blocking(move || wires.apply(&specs)).await {
            Ok(Ok(Changes { removed, changed, added })) => {
                self.wires.note_file_problems(Vec::new());
                self.assignments = wanted.assignments();
                tell_chains(&wanted);
                info!(file = %path, removed, changed, added, "wires file applied");
            }
            Ok(Err(ChangeError::Draining)) => {}
            Ok(Err(error)) => {
                error!(file = %path, %error, "wires file refused; the wires stay as they are");
                self.wires.note_file_problems(vec![format!("{path}: {error}")]);
            }
            Err(error) => error!(file = %path, %error, "applying the wires file failed"),
        }
    }
}

/// Logs who is on each chain.
pub(crate) fn tell_chains(config: &Config) {
    if let Some(chains) = &config.chains {
        chains.warnings().iter().for_each(|warning| warn!("{warning}"));
        chains.lines().for_each(|chain| info!(chain, "composed"));
    }
}

/// What the file wants now. None: nothing new. An error is logged: one line for each reason why it cannot be used.
fn wanted(
    file: &mut Followed,
    started: &Config,
    by_flag: &[&str],
    cause: Cause,
) -> Result<Option<Config>, Vec<String>> {
    let contents = file.read(cause);
    let path = file.path();
    let contents = contents.map_err(|error| {
        warn!(file = %path.display(), %error, "cannot read the wires file; the wires stay as they are");
        vec![format!("read {}: {error}", path.display())]
    })?;
    let Some(contents) = contents else { return Ok(None) };
    match Config::from_bytes(path, &contents) {
        Ok(config) => {
            for setting in started.needs_restart(&config, by_flag) {
                warn!(file = %path.display(), "{setting}");
            }
            Ok(Some(config))
        }
        Err(error) => {
            for line in error.lines() {
                error!("{line}");
            }
            error!(file = %path.display(), "wires file refused; the wires stay as they are");
            Err(error.lines())
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

        assert_eq!(wanted(Cause::Changed), Ok(None), "nothing new");
        assert!(wanted(Cause::Asked).unwrap().is_some(), "somebody asked");
        std::fs::write(&path, "workers: [").unwrap();
        assert!(wanted(Cause::Changed).unwrap_err()[0].contains("wires.yaml:"), "refused");
        std::fs::write(&path, "workers: [1]\n").unwrap();
        assert_eq!(wanted(Cause::Changed).unwrap().unwrap().workers, [1]);
        std::fs::remove_file(&path).unwrap();
        assert!(wanted(Cause::Asked).unwrap_err()[0].starts_with("read "), "gone");
    }
}
