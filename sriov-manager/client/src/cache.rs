//! The list of VFs, kept up to date: whoever asks for it often need not ask the manager.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tonic::Status;
use tracing::{debug, info};

use crate::connect::{ConnectError, connect};
use crate::v1;

/// What the manager of this node told last, also while it is restarted. It is followed until this is dropped.
#[derive(Debug)]
pub struct VfCache {
    latest: watch::Receiver<Latest>,
    task: JoinHandle<()>,
}

/// What is known.
#[derive(Clone, Debug, Default)]
pub struct Latest {
    /// The list; none: the manager was not reached yet.
    pub list: Option<Arc<v1::ListResponse>>,
    /// Whether the manager tells of changes now. It does not while it is away: the list is as it was then.
    pub is_followed: bool,
}

impl VfCache {
    /// Follows the manager whose socket is at `path`, in a task of the current runtime.
    pub fn follow(path: &Path) -> Self {
        let (sender, latest) = watch::channel(Latest::default());
        Self { latest, task: tokio::spawn(keep_following(path.to_owned(), sender)) }
    }

    /// What is known now.
    pub fn latest(&self) -> Latest {
        self.latest.borrow().clone()
    }

    /// Waits until something else is known than what [`VfCache::latest`] or this told last.
    pub async fn changed(&mut self) -> Latest {
        // The sender lives as long as the task, and that as long as we do.
        let _ = self.latest.changed().await;
        self.latest.borrow_and_update().clone()
    }
}

impl Drop for VfCache {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_following(path: PathBuf, latest: watch::Sender<Latest>) {
    let mut wait = WAIT_FIRST;
    loop {
        match follow_once(&path, &latest).await {
            Ok(()) => {
                info!(socket = %path.display(), "sriov-manager has ended its list; it is asked again");
                wait = WAIT_FIRST;
            }
            Err(error) => debug!(socket = %path.display(), %error, "sriov-manager cannot be followed now"),
        }
        latest.send_if_modified(|latest| std::mem::take(&mut latest.is_followed));
        sleep(wait).await;
        wait = (wait * 2).min(WAIT_MAX);
    }
}

async fn follow_once(path: &Path, latest: &watch::Sender<Latest>) -> Result<(), FollowError> {
    let mut lists = connect(path).await?.watch(v1::WatchRequest {}).await?.into_inner();
    while let Some(list) = lists.message().await? {
        latest.send_replace(Latest { list: Some(Arc::new(list)), is_followed: true });
    }
    Ok(())
}

#[derive(Debug, Error)]
enum FollowError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{}", .0.message())]
    Ended(#[from] Status),
}

/// How soon a manager that went away is looked for.
const WAIT_FIRST: Duration = Duration::from_millis(50);
/// And how often at last.
const WAIT_MAX: Duration = Duration::from_secs(2);
