//! The list of VFs, kept up to date: whoever asks for it often need not ask the manager.

use std::collections::HashMap;
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
    /// Follows the manager whose socket is at `path`, in a task of the current runtime. `about`: the VFs that are wanted.
    pub fn follow(path: &Path, about: v1::WatchRequest) -> Self {
        let (sender, latest) = watch::channel(Latest::default());
        Self { latest, task: tokio::spawn(keep_following(path.to_owned(), about, sender)) }
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

/// Takes over what has changed in a list.
pub fn apply(list: &mut v1::ListResponse, change: v1::WatchResponse) {
    if change.is_whole {
        *list = v1::ListResponse::default();
    }
    let is_gone = |address: &String| change.gone.contains(address);
    list.pfs.retain(|pf| !is_gone(&pf.address));
    list.vfs.retain(|vf| !is_gone(&vf.address));
    for pf in change.pfs {
        match list.pfs.iter_mut().find(|there| there.address == pf.address) {
            Some(there) => *there = pf,
            None => list.pfs.push(pf),
        }
    }
    let at: HashMap<String, usize> =
        list.vfs.iter().enumerate().map(|(index, vf)| (vf.address.clone(), index)).collect();
    for vf in change.vfs {
        match at.get(&vf.address) {
            Some(&index) => list.vfs[index] = vf,
            None => list.vfs.push(vf),
        }
    }
    list.pfs.sort_by(|a, b| a.address.cmp(&b.address));
    list.vfs.sort_by(|a, b| (&a.pf, a.index).cmp(&(&b.pf, b.index)));
    if let Some(lost) = change.lost {
        list.lost = lost.leases;
    }
    list.node = change.node;
}

async fn keep_following(path: PathBuf, about: v1::WatchRequest, latest: watch::Sender<Latest>) {
    let mut wait = WAIT_FIRST;
    loop {
        match follow_once(&path, &about, &latest).await {
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

async fn follow_once(path: &Path, about: &v1::WatchRequest, latest: &watch::Sender<Latest>) -> Result<(), FollowError> {
    let mut changes = connect(path).await?.watch(about.clone()).await?.into_inner();
    let mut list = v1::ListResponse::default();
    while let Some(change) = changes.message().await? {
        apply(&mut list, change);
        latest.send_replace(Latest { list: Some(Arc::new(list.clone())), is_followed: true });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_to_which_changes_are_applied_is_the_list_that_they_lead_to() {
        let vf = |address: &str, index, owner: &str| v1::Vf {
            address: address.into(),
            pf: "p".into(),
            index,
            owner: owner.into(),
            ..Default::default()
        };
        let mut list = v1::ListResponse::default();
        let whole =
            v1::WatchResponse { is_whole: true, vfs: vec![vf("b", 1, ""), vf("a", 0, "")], ..Default::default() };
        apply(&mut list, whole);
        let node = v1::Node { generation: 7, ..Default::default() };
        let change = v1::WatchResponse {
            vfs: vec![vf("c", 2, ""), vf("b", 1, "plugin")],
            gone: vec!["a".into()],
            lost: Some(v1::LostLeases { leases: vec![v1::Lease::default()] }),
            node: Some(node.clone()),
            ..Default::default()
        };
        apply(&mut list, change);
        assert_eq!(list.vfs, [vf("b", 1, "plugin"), vf("c", 2, "")]);
        assert_eq!((list.lost.len(), list.node.clone()), (1, Some(node)));
        apply(&mut list, v1::WatchResponse { is_whole: true, ..Default::default() });
        assert_eq!(list, v1::ListResponse::default());
    }
}
