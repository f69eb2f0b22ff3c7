//! What the manager and sysfs tell, brought to the resources; and the claim kept as wide as these.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sriov_manager_client::{VfCache, v1};
use tokio::sync::Notify;
use tokio::task::block_in_place;
use tokio::time::{interval, sleep, timeout};
use tracing::{debug, info, warn};

use crate::allocate::Allocator;
use crate::checkpoint::Checkpoint;
use crate::duty::Duty;
use crate::host::HostView;
use crate::inventory::Lists;
use crate::lease_name::OWNER;
use crate::leases::LeaseError;

/// What is heard, and what came of it last.
pub struct News {
    allocator: Arc<Allocator>,
    kernel: VfCache,
    vfio: VfCache,
    checkpoint: Checkpoint,
    /// Is told when leases may have changed.
    changed: Arc<Notify>,
    /// What this process may do, and when it was last seen at work.
    duty: Arc<Duty>,
    lists: Lists,
    view: HostView,
    looked: Option<Instant>,
    /// When news were taken over last.
    taken: Option<Instant>,
    claimed: Option<BTreeSet<String>>,
    unclaimable: Unclaimable,
    is_disk_told: bool,
}

/// VFs that somebody else has, or that have gone.
#[derive(Debug, Default)]
struct Unclaimable {
    /// Not asked for until sysfs is looked at again.
    refused: BTreeSet<String>,
    /// Why each of them was refused, as people were told.
    told: BTreeMap<String, String>,
}

impl News {
    /// Listens to the manager whose socket is at `path`.
    pub fn new(
        allocator: Arc<Allocator>,
        path: &Path,
        checkpoint: Checkpoint,
        changed: Arc<Notify>,
        duty: Arc<Duty>,
    ) -> Self {
        let follow = |driver: v1::Driver| {
            VfCache::follow(path, v1::WatchRequest { driver: driver.into(), ..Default::default() })
        };
        Self {
            allocator,
            kernel: follow(v1::Driver::Kernel),
            vfio: follow(v1::Driver::VfioPci),
            checkpoint,
            changed,
            duty,
            lists: Lists::default(),
            view: HostView::default(),
            looked: None,
            taken: None,
            claimed: None,
            unclaimable: Unclaimable::default(),
            is_disk_told: false,
        }
    }

    /// Returns when devices are known: from the manager, or, if that does not answer in a moment, from the checkpoint. Software
    /// endpoints need neither.
    pub async fn first(&mut self) {
        if !self.allocator.resources.needs_manager() {
            self.take(Lists::default());
            return;
        }
        if timeout(FIRST_WAIT, self.wait_for_manager()).await.is_ok() {
            return;
        }
        if let Some(lists) = self.checkpoint.read() {
            info!("sriov-manager is away; devices are those that it told last");
            self.take(lists);
            return;
        }
        warn!("sriov-manager is away, and nothing is known of its VFs; what needs no manager is served");
        self.take(Lists::default());
    }

    async fn wait_for_manager(&mut self) {
        while self.kernel.latest().list.is_none() || self.vfio.latest().list.is_none() {
            tokio::select! { _ = self.kernel.changed() => {}, _ = self.vfio.changed() => {} }
        }
        self.take_latest();
    }

    /// Takes over everything that is new. Never ends by itself. Needs a runtime of several threads.
    pub async fn keep_telling(mut self) {
        let mut ticks = interval(PF_EVERY);
        loop {
            self.duty.beat();
            self.allocator.resources.note_manager(self.kernel.latest().is_followed);
            let is_tick = tokio::select! {
                _ = self.kernel.changed() => false,
                _ = self.vfio.changed() => false,
                _ = ticks.tick() => true,
            };
            if is_tick {
                let is_host_due = self.looked.is_none_or(|looked| looked.elapsed() >= HOST_EVERY);
                block_in_place(|| self.allocator.resources.look_at_functions(&self.allocator.host, is_host_due));
                if is_host_due {
                    self.looked = None;
                    self.unclaimable.refused.clear();
                    self.take(self.lists.clone());
                }
            } else {
                // News come in flocks, and what is made of them takes time from those who are answered.
                let since = self.taken.map_or(NEWS_EVERY, |taken| taken.elapsed());
                sleep(BATCH.max(NEWS_EVERY.saturating_sub(since))).await;
                self.take_latest();
                self.taken = Some(Instant::now());
                self.changed.notify_one();
            }
            self.claim().await;
        }
    }

    fn take_latest(&mut self) {
        let (Some(kernel), Some(vfio)) = (self.kernel.latest().list, self.vfio.latest().list) else { return };
        let lists = Lists { kernel, vfio };
        self.take(lists);
        match block_in_place(|| self.checkpoint.write(&self.lists)) {
            Ok(_) => self.is_disk_told = false,
            Err(error) if self.is_disk_told => debug!(%error, "the checkpoint cannot be written"),
            Err(error) => {
                warn!(%error, "the checkpoint cannot be written: a plugin that starts while sriov-manager is away knows no VF; make room on its disk");
                self.is_disk_told = true;
            }
        }
    }

    fn take(&mut self, lists: Lists) {
        // Sysfs is read whole only when functions have come or gone.
        let functions = |lists: &Lists| {
            let vfs: Vec<_> = lists.kernel.vfs.iter().map(|vf| vf.address.clone()).collect();
            (lists.kernel.pfs.len(), vfs)
        };
        if self.looked.is_none() || functions(&lists) != functions(&self.lists) {
            self.view = block_in_place(|| self.allocator.host.look());
            self.looked = Some(Instant::now());
        }
        self.lists = lists;
        let was_managed = self.allocator.resources.is_managed();
        for ended in self.allocator.resources.set_inventory(&self.lists, &self.view) {
            self.allocator.forget_files(&ended);
        }
        // Before its turn a plugin leaves the files to the one that serves.
        if !was_managed && self.allocator.resources.is_managed() && self.duty.is_ours() {
            block_in_place(|| self.allocator.write_files_again());
        }
    }

    /// The claim is what the kubelet was told of. The manager keeps it; a new one has it from its journal.
    async fn claim(&mut self) {
        if !self.kernel.latest().is_followed || !self.duty.is_ours() {
            return;
        }
        let mut wanted = self.allocator.resources.to_claim();
        self.unclaimable.forget_others(&wanted);
        wanted.retain(|vf| !self.unclaimable.refused.contains(vf));
        let owners = self.lists.kernel.node.as_ref().map(|node| node.owners.as_slice()).unwrap_or_default();
        let has_claim = wanted.is_empty() || owners.iter().any(|owner| owner.name == OWNER);
        if has_claim && self.claimed.as_ref() == Some(&wanted) {
            return;
        }
        let claimed = timeout(CLAIM_WAIT, self.allocator.manager.claim(&wanted)).await;
        match claimed.unwrap_or(Err(LeaseError::Late(CLAIM_WAIT))) {
            Ok(()) => {
                info!(vfs = wanted.len(), "claimed");
                self.unclaimable.claimed(&wanted);
                self.claimed = Some(wanted);
            }
            // One that somebody else has, or that has gone, must not keep the others from us.
            Err(error) => match error.vf() {
                Some(vf) if wanted.contains(vf) => {
                    if self.unclaimable.refuse(vf, error.to_string()) {
                        warn!(vf, %error, "not claimed; the others are");
                    }
                }
                _ => debug!(%error, "the VFs cannot be claimed now; it is tried again"),
            },
        }
    }
}

impl Unclaimable {
    /// Returns whether it is news.
    fn refuse(&mut self, vf: &str, why: String) -> bool {
        self.refused.insert(vf.to_owned());
        let before = self.told.insert(vf.to_owned(), why);
        before.as_ref() != self.told.get(vf)
    }

    /// What was refused before is news when it is refused again.
    fn claimed(&mut self, vfs: &BTreeSet<String>) {
        self.told.retain(|vf, _| !vfs.contains(vf));
    }

    /// These are all that there are.
    fn forget_others(&mut self, vfs: &BTreeSet<String>) {
        self.told.retain(|vf, _| vfs.contains(vf));
    }
}

/// A manager that is there answers in milliseconds.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// How long news are collected.
const BATCH: Duration = Duration::from_millis(20);
/// How often at most they are taken over.
const NEWS_EVERY: Duration = Duration::from_millis(100);
/// A manager that hangs must not keep news from the kubelet.
const CLAIM_WAIT: Duration = Duration::from_secs(3);
/// Links and errors of PFs: nobody tells of them.
const PF_EVERY: Duration = Duration::from_secs(1);
/// What sysfs alone tells.
const HOST_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vf_that_somebody_else_has_is_told_once_for_each_reason() {
        let all = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let mut unclaimable = Unclaimable::default();
        assert!(unclaimable.refuse("a", "it is lent".to_owned()));
        unclaimable.refused.clear();
        unclaimable.forget_others(&all);
        assert!(!unclaimable.refuse("a", "it is lent".to_owned()), "sysfs was looked at again: no news");
        assert!(unclaimable.refuse("a", "vpp alone may lend it".to_owned()));
        assert!(unclaimable.refuse("b", "it is lent".to_owned()));
        unclaimable.claimed(&all);
        assert!(unclaimable.refuse("a", "vpp alone may lend it".to_owned()), "it was ours meanwhile");
        unclaimable.forget_others(&BTreeSet::new());
        assert!(unclaimable.told.is_empty());
    }
}
