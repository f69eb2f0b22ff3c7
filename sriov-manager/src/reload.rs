//! Keeps the policies equal to the policies file: on SIGHUP, and whenever the file has new contents.

use ferrule_daemon::Phase;
use ferrule_daemon::settings::{Cause, Followed};
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::task::{block_in_place, spawn_blocking};
use tracing::{error, info, warn};

use crate::config::{Config, PoliciesFile};
use crate::policy::Policies;
use crate::vfs::{Adopted, Counts, Vfs};

/// Follows the file for as long as the daemon serves.
pub(crate) struct Reloader {
    file: Option<Policing>,
    hangup: Signal,
    vfs: Vfs,
}

struct Policing {
    followed: Followed,
    /// What it said when the daemon started, for the settings that need a restart.
    started: Config,
}

impl Reloader {
    /// Watches the file, if there is one, from now on.
    pub fn new(file: Option<PoliciesFile>, hangup: Signal, vfs: Vfs) -> Self {
        let file = file.map(|PoliciesFile { path, contents, config }| Policing {
            followed: Followed::new("policies file", path, contents),
            started: config,
        });
        Self { file, hangup, vfs }
    }

    /// Follows the file until the daemon stops. Needs a runtime of several threads.
    pub async fn run(mut self, mut phase: watch::Receiver<Phase>) {
        // It may have changed between its reading and its watching.
        self.reload(Cause::Changed).await;
        loop {
            let cause = tokio::select! {
                // An error means that the spine is gone, which is a stop as well.
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
                Some(()) = self.hangup.recv() => Cause::Asked,
                () = changed(self.file.as_mut()) => Cause::Changed,
            };
            self.reload(cause).await;
        }
    }

    async fn reload(&mut self, cause: Cause) {
        let Some(file) = &mut self.file else {
            if cause == Cause::Asked {
                info!("SIGHUP, but there is no policies file to read again");
            }
            return;
        };
        // A policies file may name users, and whoever knows them may be at the far end of a network.
        match block_in_place(|| file.wanted(cause)) {
            Ok(None) => {}
            Ok(Some(policies)) => self.adopt(policies, cause).await,
            Err(problems) => refuse(&self.vfs, file, &problems),
        }
    }

    async fn adopt(&self, policies: Policies, cause: Cause) {
        let Some(file) = &self.file else { return };
        let path = file.followed.path().display();
        let pools = policies.pools.len();
        // Somebody who asks wants all of it; an edit of one pool leaves numbers alone that were made by hand.
        let counts = if cause == Cause::Asked { Counts::All } else { Counts::Changed };
        let vfs = self.vfs.clone();
        match spawn_blocking(move || vfs.adopt_policies(policies, counts)).await {
            Ok(Ok(Adopted { forbidden, short })) => {
                let (forbidden, short) = (forbidden.len(), short.len());
                info!(file = %path, pools, forbidden_leases = forbidden, short_pfs = short, "policies file applied");
            }
            Ok(Err(error)) => refuse(&self.vfs, file, &[error.to_string()]),
            Err(error) => error!(file = %path, %error, "applying the policies file failed"),
        }
    }
}

impl Policing {
    /// What the file wants now; none: nothing new.
    fn wanted(&mut self, cause: Cause) -> Result<Option<Policies>, Vec<String>> {
        let contents = self.followed.read(cause).map_err(|error| {
            vec![format!("read the policies file {}: {error}; put it back", self.followed.path().display())]
        })?;
        let Some(contents) = contents else { return Ok(None) };
        let config = Config::from_bytes(self.followed.path(), &contents).map_err(|error| error.lines())?;
        for setting in self.started.needs_restart(&config) {
            warn!(file = %self.followed.path().display(), "{setting}");
        }
        Ok(Some(config.policies))
    }
}

/// The policies stay as they are, and everybody who looks is told why.
fn refuse(vfs: &Vfs, file: &Policing, problems: &[String]) {
    for problem in problems {
        error!("{problem}");
    }
    error!(file = %file.followed.path().display(), "policies file refused; the policies before it hold on");
    vfs.refuse_policies(problems.join("\n"));
}

async fn changed(file: Option<&mut Policing>) {
    match file {
        Some(file) => file.followed.changed().await,
        None => std::future::pending().await,
    }
}
