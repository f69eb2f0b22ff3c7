//! Lists as messages: made once for each change, and for watchers what differs from the one before.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use ferrule_daemon::Phase;
use ferrule_daemon::grpc::blocking;
use sriov_manager_client::v1;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::convert::{optional_driver, response};
use super::limits::UserCall;
use crate::address::Driver;
use crate::vfs::Vfs;

/// The lists of a node.
pub(super) struct Lists {
    vfs: Vfs,
    /// The newest ones, for each driver that somebody asked about.
    newest: Mutex<HashMap<Option<Driver>, Arc<v1::ListResponse>>>,
}

/// What somebody wants to know of.
#[derive(Clone, Debug)]
pub(super) struct ListFilter {
    /// VFs of these pools; none: all.
    pools: HashSet<String>,
    /// For which driver VFs are judged.
    driver: Option<Driver>,
}

impl ListFilter {
    /// What is asked, or what of it cannot be meant.
    pub fn new(pools: Vec<String>, driver: i32) -> Result<Self, String> {
        if pools.len() > POOLS_MAX {
            return Err(format!(
                "pools: at most {POOLS_MAX} are wanted, not {}; without any all are told",
                pools.len()
            ));
        }
        Ok(Self { pools: pools.into_iter().collect(), driver: optional_driver(driver)? })
    }
}

impl Lists {
    pub fn new(vfs: Vfs) -> Self {
        Self { vfs, newest: Mutex::default() }
    }

    /// What is true now.
    pub fn now(&self, wanted: &ListFilter) -> Arc<v1::ListResponse> {
        let list = self.all(wanted.driver);
        if wanted.pools.is_empty() { list } else { Arc::new(of_pools(&list, &wanted.pools)) }
    }

    fn all(&self, driver: Option<Driver>) -> Arc<v1::ListResponse> {
        let view = self.vfs.view();
        let generation = |list: &v1::ListResponse| list.node.as_ref().map(|node| node.generation);
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = newest.get(&driver).filter(|list| generation(list) >= Some(view.generation)) {
            return Arc::clone(list);
        }
        let list = Arc::new(response(&view, driver));
        newest.insert(driver, Arc::clone(&list));
        list
    }
}

/// What is true now, and then what changes, until the daemon stops. Who reads slowly gets what happened meanwhile in one.
pub(super) fn watch(
    lists: Arc<Lists>,
    wanted: ListFilter,
    phase: watch::Receiver<Phase>,
    call: UserCall,
) -> impl Stream<Item = Result<v1::WatchResponse, Status>> + Send {
    let call = Arc::new(call);
    let ticks = WatchStream::new(lists.vfs.watch()).map(|_| Phase::Serving);
    let mut before: Option<Arc<v1::ListResponse>> = None;
    // The stream must end by itself when the daemon stops: a graceful server waits for it.
    ticks
        .merge(WatchStream::new(phase).filter(|phase| *phase == Phase::Stopped))
        .take_while(|phase| *phase != Phase::Stopped)
        .then(move |_| {
            let (lists, wanted, call) = (Arc::clone(&lists), wanted.clone(), Arc::clone(&call));
            async move {
                let permits = call.permits().await?;
                let now = blocking(move || {
                    let _permits = permits;
                    lists.now(&wanted)
                });
                now.await
            }
        })
        .filter_map(move |now| match now {
            Ok(now) => {
                let change = change(before.as_deref(), &now);
                before = Some(now);
                change.map(Ok)
            }
            Err(status) => Some(Err(status)),
        })
}

/// What of a list is not as it was; none: nothing.
fn change(before: Option<&v1::ListResponse>, now: &v1::ListResponse) -> Option<v1::WatchResponse> {
    let node = now.node.clone();
    let Some(before) = before else {
        let lost = Some(v1::LostLeases { leases: now.lost.clone() });
        let (pfs, vfs) = (now.pfs.clone(), now.vfs.clone());
        return Some(v1::WatchResponse { is_whole: true, pfs, vfs, gone: Vec::new(), lost, node });
    };
    let (old_pfs, old_vfs) = (by(&before.pfs, |pf| &pf.address), by(&before.vfs, |vf| &vf.address));
    let pfs: Vec<_> = now.pfs.iter().filter(|pf| old_pfs.get(pf.address.as_str()) != Some(pf)).cloned().collect();
    let vfs: Vec<_> = now.vfs.iter().filter(|vf| old_vfs.get(vf.address.as_str()) != Some(vf)).cloned().collect();
    let there: HashSet<&str> =
        now.pfs.iter().map(|pf| pf.address.as_str()).chain(now.vfs.iter().map(|vf| vf.address.as_str())).collect();
    let gone: Vec<_> = old_pfs
        .keys()
        .chain(old_vfs.keys())
        .filter(|address| !there.contains(*address))
        .map(ToString::to_string)
        .collect();
    let lost = (before.lost != now.lost).then(|| v1::LostLeases { leases: now.lost.clone() });
    // Its number grows with what happens to VFs that are not asked for, too.
    let without_number = |node: &Option<v1::Node>| node.clone().map(|node| v1::Node { generation: 0, ..node });
    let is_news = !pfs.is_empty()
        || !vfs.is_empty()
        || !gone.is_empty()
        || lost.is_some()
        || without_number(&before.node) != without_number(&now.node);
    is_news.then_some(v1::WatchResponse { is_whole: false, pfs, vfs, gone, lost, node })
}

fn by<T>(items: &[T], address: impl Fn(&T) -> &String) -> HashMap<&str, &T> {
    items.iter().map(|item| (address(item).as_str(), item)).collect()
}

fn of_pools(list: &v1::ListResponse, pools: &HashSet<String>) -> v1::ListResponse {
    let is_wanted = |vf: &&v1::Vf| vf.pools.iter().any(|pool| pools.contains(pool));
    let vfs: Vec<_> = list.vfs.iter().filter(is_wanted).cloned().collect();
    let pfs: HashSet<&str> = vfs.iter().map(|vf| vf.pf.as_str()).collect();
    v1::ListResponse {
        pfs: list.pfs.iter().filter(|pf| pfs.contains(pf.address.as_str())).cloned().collect(),
        lost: list.lost.iter().filter(|lease| pools.contains(&lease.pool)).cloned().collect(),
        node: list.node.clone(),
        vfs,
    }
}

/// Pools of one question or claim: more than a node has.
pub(super) const POOLS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use sriov_manager_client::cache::apply;

    fn vf(address: &str, pool: &str, owner: &str) -> v1::Vf {
        let (address, pf, owner) = (address.into(), "pf".into(), owner.into());
        v1::Vf { address, pf, owner, pools: vec![pool.into()], ..Default::default() }
    }

    fn list(vfs: &[v1::Vf], generation: u64) -> v1::ListResponse {
        let pfs = vec![v1::Pf { address: "pf".into(), ..Default::default() }];
        v1::ListResponse {
            pfs,
            vfs: vfs.to_vec(),
            lost: Vec::new(),
            node: Some(v1::Node { generation, ..Default::default() }),
        }
    }

    #[test]
    fn only_what_changed_is_told_and_leads_to_the_same_list() {
        let first = list(&[vf("a", "x", ""), vf("b", "x", "")], 1);
        let second = list(&[vf("b", "x", "plugin"), vf("c", "x", "")], 2);
        let mut mirror = v1::ListResponse::default();
        let whole = change(None, &first).unwrap();
        assert!(whole.is_whole);
        apply(&mut mirror, whole);
        assert_eq!(mirror, first);
        let delta = change(Some(&first), &second).unwrap();
        assert_eq!((delta.vfs.len(), delta.pfs.len(), &delta.gone[..]), (2, 0, &["a".to_owned()][..]));
        apply(&mut mirror, delta);
        assert_eq!(mirror.vfs.len(), 2);
        assert_eq!(change(Some(&second), &list(&second.vfs, 3)), None, "another number alone is no news");
    }

    #[test]
    fn a_pool_is_told_of_its_own_vfs_and_of_their_pfs() {
        let of_x = of_pools(&list(&[vf("a", "x", ""), vf("b", "y", "")], 1), &["x".into()].into());
        assert_eq!((of_x.vfs, of_x.pfs.len()), (vec![vf("a", "x", "")], 1));
        assert!(of_pools(&list(&[vf("b", "y", "")], 1), &["x".into()].into()).pfs.is_empty());
    }
}
