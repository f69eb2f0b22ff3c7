//! All resources of the plugin, each registered by a task of its own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::warn;

use super::directory::Directory;
use super::endpoint::{Endpoint, SETTLE, SOCKET_PREFIX};
use crate::allocate::Allocator;
use crate::resources::Resources;

/// The tasks.
#[derive(Debug)]
pub struct Endpoints {
    directory: Directory,
    allocator: Arc<Allocator>,
    running: BTreeMap<String, (watch::Sender<bool>, JoinHandle<()>)>,
}

impl Endpoints {
    /// None yet. Sockets that a process before left behind are removed.
    pub fn new(directory: Directory, allocator: Arc<Allocator>) -> Self {
        remove_dead_sockets(&directory);
        Self { directory, allocator, running: BTreeMap::new() }
    }

    /// From now on there are endpoints for all resources, and for no others.
    pub async fn follow(&mut self) {
        // One whose resource pods have let go of has ended by itself.
        self.running.retain(|_, (_, task)| !task.is_finished());
        let wanted = self.allocator.resources.names();
        let gone: Vec<_> = self.running.keys().filter(|name| !wanted.contains(name)).cloned().collect();
        for name in gone {
            if let Some((stop, task)) = self.running.remove(&name) {
                end(stop, task).await;
                self.allocator.counters.closed(&name);
            }
        }
        for resource in wanted {
            self.running.entry(resource.clone()).or_insert_with(|| {
                let endpoint = Endpoint {
                    resource,
                    directory: self.directory.path().to_owned(),
                    seen: self.directory.seen(),
                    allocator: Arc::clone(&self.allocator),
                };
                let (stop, stopping) = watch::channel(false);
                (stop, tokio::spawn(endpoint.run(stopping)))
            });
        }
    }

    /// Closes all lists, and returns when the kubelet has none.
    pub async fn stop(mut self) {
        for (stop, _) in self.running.values() {
            stop.send_replace(true);
        }
        for (_, (stop, task)) in std::mem::take(&mut self.running) {
            end(stop, task).await;
        }
        sleep(SETTLE).await;
    }
}

/// Follows all resources as they become known: what pods have of a process before may be told late. Never ends by itself.
pub async fn keep_following(endpoints: Arc<Mutex<Option<Endpoints>>>, resources: Resources) {
    let mut names = resources.watch_names();
    names.mark_changed();
    while names.changed().await.is_ok() {
        if let Some(endpoints) = &mut *endpoints.lock().await {
            endpoints.follow().await;
        }
    }
}

async fn end(stop: watch::Sender<bool>, task: JoinHandle<()>) {
    stop.send_replace(true);
    if let Err(error) = task.await {
        warn!(%error, "an endpoint failed");
    }
}

/// Only those on which nobody listens: another plugin of ours may be ending.
fn remove_dead_sockets(directory: &Directory) {
    for entry in fs::read_dir(directory.path()).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(SOCKET_PREFIX));
        if is_ours && UnixStream::connect(entry.path()).is_err() {
            let _ = fs::remove_file(entry.path());
        }
    }
}
