//! The files that mechanisms name: the namespace that an interface is wanted in, say.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

use crate::files::{Files, Inode};
use crate::proto::connection::Mechanism;

/// The files that the mechanisms of one call name, received.
#[derive(Clone, Debug, Default)]
pub struct MechanismFiles(BTreeMap<Inode, Arc<OwnedFd>>);

impl MechanismFiles {
    /// Receives what the mechanisms name. Over TCP, without `files`, nothing is passed and nothing is waited for.
    pub async fn receive<'a>(
        files: Option<&Files>,
        mechanisms: impl IntoIterator<Item = &'a Mechanism>,
    ) -> Result<Self, Status> {
        let mut received = BTreeMap::new();
        for mechanism in mechanisms {
            let Some(url) = mechanism.parameters.get(INODE_URL) else { continue };
            // Anything else would be looked up here, with our rights.
            let inode: Inode =
                url.parse().map_err(|error| Status::invalid_argument(format!("{INODE_URL}: {error}")))?;
            let Some(files) = files else { continue };
            if let Entry::Vacant(vacant) = received.entry(inode) {
                let file = files.receive(inode, FILE_TIMEOUT).await;
                vacant.insert(file.map_err(|error| Status::invalid_argument(format!("{INODE_URL}: {error}")))?);
            }
        }
        Ok(Self(received))
    }

    /// The one that a mechanism names.
    pub fn of(&self, mechanism: &Mechanism) -> Option<&Arc<OwnedFd>> {
        self.0.get(&mechanism.parameters.get(INODE_URL)?.parse().ok()?)
    }

    /// All of them, to be passed on.
    pub fn all(&self) -> Vec<Arc<OwnedFd>> {
        self.0.values().cloned().collect()
    }
}

/// The parameter that names a file.
pub const INODE_URL: &str = "inodeURL";
/// A file comes with the call, or not at all.
const FILE_TIMEOUT: Duration = Duration::from_millis(500);
