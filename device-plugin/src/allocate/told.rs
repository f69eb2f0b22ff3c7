//! Which node of its VFIO group each container was told of, kept on disk.
//!
//! The kubelet keeps the answer to Allocate for as long as a pod lives, and uses it again after the machine was started anew. The groups have
//! other numbers by then, and what a container would get may be another pod's VF.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use crate::lease_name::LeaseName;

/// Nodes of the host, by lease.
#[derive(Clone, Debug)]
pub struct ToldNodes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    nodes: Mutex<BTreeMap<String, String>>,
    file: Mutex<FileState>,
}

#[derive(Debug, Default)]
struct FileState {
    written: BTreeMap<String, String>,
    is_failure_told: bool,
}

impl ToldNodes {
    /// Kept in this directory. Nothing is known of what was told before.
    pub fn at(directory: &Path) -> Self {
        let (path, nodes, file) = (directory.join("told-nodes.json"), Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { path, nodes, file }))
    }

    /// Takes over what a plugin before told. What is unreadable is not known.
    pub fn load(&self) {
        let read = fs::read(&self.0.path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let known: BTreeMap<String, String> = read.unwrap_or_default();
        lock(&self.0.file).written.clone_from(&known);
        *lock(&self.0.nodes) = known;
    }

    /// What the container of a lease was told; none: nothing, or it is not known.
    pub fn node(&self, name: &LeaseName) -> Option<String> {
        lock(&self.0.nodes).get(&name.to_string()).cloned()
    }

    /// A container was told of these nodes; none: it was told of none.
    pub fn tell(&self, nodes: impl IntoIterator<Item = (LeaseName, Option<String>)>) {
        let is_news = {
            let mut known = lock(&self.0.nodes);
            let before = known.clone();
            for (name, node) in nodes {
                match node {
                    Some(node) => known.insert(name.to_string(), node),
                    None => known.remove(&name.to_string()),
                };
            }
            *known != before
        };
        if is_news {
            let shared = Arc::clone(&self.0);
            // No answer waits for the disk: what a power cut right now takes is not checked.
            drop(spawn_blocking(move || shared.write()));
        }
    }
}

impl Shared {
    /// Writes what is known now; whoever comes later finds it written.
    fn write(&self) {
        let mut file = lock(&self.file);
        let nodes = lock(&self.nodes).clone();
        if file.written == nodes {
            return;
        }
        match replace(&self.path, &nodes) {
            Ok(()) => *file = FileState { written: nodes, is_failure_told: false },
            Err(error) if file.is_failure_told => debug!(%error, "the nodes of pods cannot be kept"),
            Err(error) => {
                warn!(file = %self.path.display(), %error, "the nodes of pods cannot be kept: after a start of the machine they are not checked; make room on its disk");
                file.is_failure_told = true;
            }
        }
    }
}

fn replace(path: &Path, nodes: &BTreeMap<String, String>) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(nodes)?)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_told_is_known_to_the_next_plugin_and_nonsense_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let (one, two) = (LeaseName::new("a/b", "0000:3b:02.1"), LeaseName::new("a/b", "0000:3b:02.2"));
        let told = ToldNodes::at(&state);
        told.tell([(one.clone(), Some("/dev/vfio/7".to_owned())), (two.clone(), Some("/dev/vfio/8".to_owned()))]);
        told.tell([(two.clone(), None)]);
        // As the task that writes, which may not have come to it yet.
        told.0.write();
        let next = ToldNodes::at(&state);
        assert_eq!(next.node(&one), None, "nothing was read yet");
        next.load();
        assert_eq!((next.node(&one).as_deref(), next.node(&two)), (Some("/dev/vfio/7"), None));
        fs::write(state.join("told-nodes.json"), "nonsense").unwrap();
        next.load();
        assert_eq!(next.node(&one), None);
    }

    #[tokio::test]
    async fn a_full_disk_costs_only_what_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("full"), "").unwrap();
        let told = ToldNodes::at(&directory.path().join("full"));
        let name = LeaseName::new("a/b", "0000:3b:02.1");
        told.tell([(name.clone(), Some("/dev/vfio/7".to_owned()))]);
        told.0.write();
        assert_eq!(told.node(&name).as_deref(), Some("/dev/vfio/7"));
    }
}
