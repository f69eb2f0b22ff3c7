//! Keeps the policies equal to the policies file: on SIGHUP, and whenever the file has new contents.

use ferrule_daemon::reload::{Reload, reload_on_change};
use ferrule_daemon::settings::{Cause, FileSettings, Followed};
use tokio::signal::unix::Signal;
use tokio::task::{block_in_place, spawn_blocking};
use tracing::{error, info, warn};

use crate::config::{Config, PoliciesFile};
use crate::policy::Policies;
use crate::vfs::{Adopted, Counts, Vfs};

/// Keeps the policies equal to the policies file, if there is one, until it is cancelled. Needs a runtime of several
/// threads.
pub(crate) async fn keep_equal(file: Option<PoliciesFile>, hangup: Signal, vfs: Vfs) {
    let file = file.map(|PoliciesFile { path, contents, config }| {
        (Followed::new(WHAT, path, contents), Reloader { started: config, vfs })
    });
    reload_on_change(file, WHAT, hangup).await;
}

struct Reloader {
    /// What the file said when the daemon started, for the settings that need a restart.
    started: Config,
    vfs: Vfs,
}

impl Reload for Reloader {
    async fn reload(&mut self, file: &mut Followed, cause: Cause) {
        // A policies file may name users, and whoever knows them may be at the far end of a network.
        match block_in_place(|| wanted(file, &self.started, cause)) {
            Ok(None) => {}
            Ok(Some(policies)) => adopt(&self.vfs, file, policies, cause).await,
            Err(problems) => refuse(&self.vfs, file, &problems),
        }
    }
}

async fn adopt(vfs: &Vfs, file: &Followed, policies: Policies, cause: Cause) {
    let path = file.path().display();
    let pools = policies.pools.len();
    // Somebody who asks wants all of it; an edit of one pool leaves numbers alone that were made by hand.
    let counts = if cause == Cause::Asked { Counts::All } else { Counts::Changed };
    let changed = vfs.clone();
    match spawn_blocking(move || changed.adopt_policies(policies, counts)).await {
        Ok(Ok(Adopted { forbidden, short })) => {
            let (forbidden, short) = (forbidden.len(), short.len());
            for warning in &vfs.view().warnings {
                warn!("{warning}");
            }
            info!(file = %path, pools, forbidden_leases = forbidden, short_pfs = short, "policies file applied");
        }
        Ok(Err(error)) => refuse(vfs, file, &[error.to_string()]),
        Err(error) => error!(file = %path, %error, "applying the policies file failed"),
    }
}

/// What the file wants now; none: nothing new.
fn wanted(file: &mut Followed, started: &Config, cause: Cause) -> Result<Option<Policies>, Vec<String>> {
    let contents = file
        .read(cause)
        .map_err(|error| vec![format!("read the policies file {}: {error}; put it back", file.path().display())])?;
    let Some(contents) = contents else { return Ok(None) };
    let config = Config::from_bytes(file.path(), &contents).map_err(|error| error.lines())?;
    for setting in started.needs_restart(&config) {
        warn!(file = %file.path().display(), "{setting}");
    }
    Ok(Some(config.policies))
}

/// The policies stay as they are, and everybody who looks is told why.
fn refuse(vfs: &Vfs, file: &Followed, problems: &[String]) {
    for problem in problems {
        error!("{problem}");
    }
    error!(file = %file.path().display(), "policies file refused; the policies before it stay in force");
    vfs.refuse_policies(problems.join("\n"));
}

const WHAT: &str = Config::FILE;
