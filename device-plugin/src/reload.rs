//! Keeps the resources equal to the configuration: on SIGHUP, and whenever the file has new contents.

use std::sync::Arc;

use ferrule_daemon::reload::Reload;
use ferrule_daemon::settings::{Cause, Followed};
use tokio::sync::Mutex;
use tracing::{error, info, warn};

use crate::config::{Config, Presets};
use crate::kubelet::Endpoints;
use crate::networks_file::NetworksFile;
use crate::resources::Resources;

/// What the file changes.
pub(crate) struct Reloader {
    pub resources: Resources,
    /// None: another plugin serves the node.
    pub endpoints: Arc<Mutex<Option<Endpoints>>>,
    /// Written by whoever serves the node.
    pub networks: NetworksFile,
    pub presets: Presets,
}

impl Reload for Reloader {
    async fn reload(&mut self, file: &mut Followed, cause: Cause) {
        let contents = file.read(cause);
        let path = file.path();
        let contents = match contents {
            Ok(Some(contents)) => contents,
            Ok(None) => return,
            Err(error) => {
                warn!(file = %path.display(), %error, "cannot read the configuration; the one before it stays in force");
                self.resources.refuse_config(vec![format!("read {}: {error}", path.display())]);
                return;
            }
        };
        match Config::from_bytes(path, &contents, self.presets.clone()) {
            Ok(config) => {
                warn_of(&path.display().to_string(), &config);
                let resources = config.resources.len();
                let mut endpoints = self.endpoints.lock().await;
                if endpoints.is_some() {
                    // Before the kubelet is told of any resource.
                    self.networks.write(&config);
                }
                self.resources.set_config(config);
                if let Some(endpoints) = &mut *endpoints {
                    endpoints.follow().await;
                }
                info!(file = %path.display(), resources, "configuration applied");
            }
            Err(problem) => {
                for line in problem.lines() {
                    error!("{line}");
                }
                error!(file = %path.display(), "configuration refused; the one before it stays in force");
                self.resources.refuse_config(problem.lines());
            }
        }
    }
}

/// Logs what is not as it seems.
pub(crate) fn warn_of(file: &str, config: &Config) {
    for warning in &config.warnings {
        warn!("{file}:{warning}");
    }
}
