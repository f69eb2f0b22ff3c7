//! Lists as messages: made once for each change, and for watchers what is news to them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferrule_daemon::Phase;
use ferrule_daemon::grpc::blocking;
use sriov_manager_client::v1;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout_at};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::convert::{optional_driver, response};
use super::limits::UserCall;
use super::memory::Room;
use crate::address::Driver;
use crate::vfs::Vfs;

/// The lists of a node.
pub(super) struct Lists {
    vfs: Vfs,
    made: Mutex<Made>,
}

/// Lists that were made.
#[derive(Default)]
struct Made {
    /// The newest ones, for each driver that somebody asked about.
    newest: HashMap<Option<Driver>, Arc<DatedList>>,
    /// When the last one was.
    at: Option<Instant>,
}

/// A list, and since when what is in it is so: in generations of the node.
#[derive(Default)]
struct DatedList {
    list: v1::ListResponse,
    generation: u64,
    pfs: Vec<Dated>,
    vfs: Vec<Dated>,
}

/// A function of a list.
struct Dated {
    address: Arc<str>,
    since: u64,
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

impl ListFilter {
    fn has(&self, vf: &v1::Vf) -> bool {
        self.pools.is_empty() || vf.pools.iter().any(|pool| self.pools.contains(pool))
    }

    fn has_lost(&self, lease: &v1::Lease) -> bool {
        self.pools.is_empty() || self.pools.contains(&lease.pool)
    }
}

impl Lists {
    pub fn new(vfs: Vfs) -> Self {
        Self { vfs, made: Mutex::default() }
    }

    /// What is true now.
    pub fn now(&self, wanted: &ListFilter) -> v1::ListResponse {
        self.dated(wanted.driver).list_of(wanted)
    }

    fn dated(&self, driver: Option<Driver>) -> Arc<DatedList> {
        let view = self.vfs.view();
        let mut made = self.made();
        let before = made.newest.get(&driver);
        if let Some(list) = before.filter(|list| list.generation >= view.generation) {
            return Arc::clone(list);
        }
        let list = Arc::new(DatedList::after(before.map(Arc::as_ref), response(&view, driver)));
        made.newest.insert(driver, Arc::clone(&list));
        made.at = Some(Instant::now());
        list
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a list for watchers may be made: an operation changes several things within milliseconds, and a list of
    /// thousands of VFs takes as long as it does, while somebody waits for the operation. What takes long is told meanwhile.
    async fn settled(&self) {
        let now = Instant::now();
        let last = self.made().at.map_or(now, |at| at + LISTS_APART);
        let mut unlocked = self.vfs.watch_unlocked();
        let latest = now + OPERATION_MAX;
        let mut next = last.max(now + SETTLES);
        loop {
            sleep_until(next.into()).await;
            unlocked.mark_unchanged();
            if !self.vfs.is_lending() || Instant::now() >= latest {
                return;
            }
            // Its answer goes first.
            let _ = timeout_at(latest.into(), unlocked.changed()).await;
            next = (Instant::now() + SETTLES).min(latest);
        }
    }
}

impl DatedList {
    /// A list that comes after another one.
    fn after(before: Option<&Self>, list: v1::ListResponse) -> Self {
        let generation = list.node.as_ref().map_or(0, |node| node.generation);
        let none = Self::default();
        let before = before.unwrap_or(&none);
        let pfs = dates(&before.pfs, &before.list.pfs, &list.pfs, |pf| &pf.address, generation);
        let vfs = dates(&before.vfs, &before.list.vfs, &list.vfs, |vf| &vf.address, generation);
        Self { list, generation, pfs, vfs }
    }

    fn list_of(&self, wanted: &ListFilter) -> v1::ListResponse {
        if wanted.pools.is_empty() {
            return self.list.clone();
        }
        let Told { pfs, vfs, lost, node, .. } = self.news(&Watcher::default(), wanted);
        v1::ListResponse { pfs, vfs, lost, node }
    }

    /// What of it is news to somebody.
    fn news(&self, known: &Watcher, wanted: &ListFilter) -> Told {
        let is_news = |dated: &Dated| dated.since > known.generation || !known.functions.contains(&dated.address);
        let mut there = HashSet::new();
        let mut pfs_there: HashSet<&str> = HashSet::new();
        let (mut vfs, mut pfs) = (Vec::new(), Vec::new());
        for (vf, dated) in self.list.vfs.iter().zip(&self.vfs).filter(|(vf, _)| wanted.has(vf)) {
            pfs_there.insert(&vf.pf);
            if is_news(dated) {
                vfs.push(vf.clone());
            }
            there.insert(Arc::clone(&dated.address));
        }
        let is_wanted = |pf: &v1::Pf| wanted.pools.is_empty() || pfs_there.contains(pf.address.as_str());
        for (pf, dated) in self.list.pfs.iter().zip(&self.pfs).filter(|(pf, _)| is_wanted(pf)) {
            if is_news(dated) {
                pfs.push(pf.clone());
            }
            there.insert(Arc::clone(&dated.address));
        }
        let gone = known.functions.difference(&there).map(ToString::to_string).collect();
        let lost = self.list.lost.iter().filter(|lease| wanted.has_lost(lease)).cloned().collect();
        Told { pfs, vfs, gone, lost, node: self.list.node.clone(), there }
    }
}

/// The dates of functions: of those that are as they were, the old ones.
fn dates<T: PartialEq>(
    dated: &[Dated],
    before: &[T],
    now: &[T],
    address: impl Fn(&T) -> &String,
    generation: u64,
) -> Vec<Dated> {
    let known: HashMap<&str, (&Dated, &T)> =
        dated.iter().zip(before).map(|(dated, item)| (&*dated.address, (dated, item))).collect();
    let date = |item: &T| match known.get(address(item).as_str()) {
        Some((dated, before)) => {
            let since = if *before == item { dated.since } else { generation };
            Dated { address: Arc::clone(&dated.address), since }
        }
        None => Dated { address: address(item).as_str().into(), since: generation },
    };
    now.iter().map(date).collect()
}

/// What a watcher was told. It is little: there may be many of them, who do not read what is sent.
#[derive(Default)]
struct Watcher {
    generation: u64,
    functions: HashSet<Arc<str>>,
    lost: Vec<v1::Lease>,
    node: Option<v1::Node>,
}

/// What is told.
struct Told {
    pfs: Vec<v1::Pf>,
    vfs: Vec<v1::Vf>,
    gone: Vec<String>,
    lost: Vec<v1::Lease>,
    node: Option<v1::Node>,
    /// All that is known then.
    there: HashSet<Arc<str>>,
}

/// What a watcher is told next; none: nothing is news to him.
fn change(known: &mut Option<Watcher>, now: &DatedList, wanted: &ListFilter) -> Option<v1::WatchResponse> {
    let is_whole = known.is_none();
    let before = known.take().unwrap_or_default();
    let Told { pfs, vfs, gone, lost, node, there } = now.news(&before, wanted);
    let is_lost_news = is_whole || before.lost != lost;
    // Its number grows with what happens to VFs that are not asked for, too.
    let without_number = |node: &Option<v1::Node>| node.clone().map(|node| v1::Node { generation: 0, ..node });
    let is_news = is_lost_news
        || !pfs.is_empty()
        || !vfs.is_empty()
        || !gone.is_empty()
        || without_number(&before.node) != without_number(&node);
    *known = Some(Watcher { generation: now.generation, functions: there, lost: lost.clone(), node: node.clone() });
    let lost = is_lost_news.then_some(v1::LostLeases { leases: lost });
    is_news.then_some(v1::WatchResponse { is_whole, pfs, vfs, gone, lost, node })
}

/// What is true now, and then what changes, until the daemon stops. Who reads slowly gets what happened meanwhile in one.
/// `room`: for the largest of what is told.
pub(super) fn watch(
    lists: Arc<Lists>,
    wanted: Arc<ListFilter>,
    phase: watch::Receiver<Phase>,
    (call, room): (UserCall, Room),
) -> impl Stream<Item = Result<v1::WatchResponse, Status>> + Send {
    let place = Arc::new((call, room));
    let ticks = WatchStream::new(lists.vfs.watch()).map(|_| Phase::Serving);
    let known = Arc::new(Mutex::new(None));
    // The stream must end by itself when the daemon stops: a graceful server waits for it.
    ticks
        .merge(WatchStream::new(phase).filter(|phase| *phase == Phase::Stopped))
        .take_while(|phase| *phase != Phase::Stopped)
        .then(move |_| {
            let (lists, wanted, known, place) =
                (Arc::clone(&lists), Arc::clone(&wanted), Arc::clone(&known), Arc::clone(&place));
            async move {
                let is_first = known.lock().unwrap_or_else(PoisonError::into_inner).is_none();
                if !is_first {
                    lists.settled().await;
                }
                let permits = place.0.permits().await?;
                let change = blocking(move || {
                    let _permits = permits;
                    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                    change(&mut known, &lists.dated(wanted.driver), &wanted)
                });
                change.await
            }
        })
        .filter_map(Result::transpose)
}

/// What one operation changes is told at once, if it takes no longer.
const SETTLES: Duration = Duration::from_millis(5);
/// And at once also if it takes longer, up to this.
const OPERATION_MAX: Duration = Duration::from_millis(100);
/// Between two lists that are made for watchers.
const LISTS_APART: Duration = Duration::from_millis(20);
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
        let (mut mirror, mut known) = (v1::ListResponse::default(), None);
        let all = ListFilter::new(Vec::new(), 0).unwrap();
        let first_dated = DatedList::after(None, first.clone());
        let whole = change(&mut known, &first_dated, &all).unwrap();
        assert!(whole.is_whole);
        apply(&mut mirror, whole);
        assert_eq!(mirror, first);
        let second_dated = DatedList::after(Some(&first_dated), second.clone());
        let delta = change(&mut known, &second_dated, &all).unwrap();
        assert_eq!((delta.vfs.len(), delta.pfs.len(), &delta.gone[..]), (2, 0, &["a".to_owned()][..]));
        apply(&mut mirror, delta);
        assert_eq!(mirror.vfs.len(), 2);
        let third = DatedList::after(Some(&second_dated), list(&second.vfs, 3));
        assert_eq!(change(&mut known, &third, &all), None, "another number alone is no news");
        // Somebody who read nothing meanwhile is told of all that happened, in one.
        let fourth = DatedList::after(Some(&third), list(&[vf("b", "x", "other"), vf("c", "x", "")], 4));
        let fifth = DatedList::after(Some(&fourth), list(&[vf("b", "x", "other"), vf("d", "x", "")], 5));
        let delta = change(&mut known, &fifth, &all).unwrap();
        apply(&mut mirror, delta);
        assert_eq!(mirror.vfs, [vf("b", "x", "other"), vf("d", "x", "")]);
    }

    #[test]
    fn a_pool_is_told_of_its_own_vfs_of_their_pfs_and_of_those_that_leave_it() {
        let of = |pool: &str| ListFilter::new(vec![pool.into()], 0).unwrap();
        let first = DatedList::after(None, list(&[vf("a", "x", ""), vf("b", "y", "")], 1));
        let of_x = first.list_of(&of("x"));
        assert_eq!((of_x.vfs, of_x.pfs.len()), (vec![vf("a", "x", "")], 1));
        assert!(first.list_of(&of("z")).pfs.is_empty());
        let (mut of_x, mut of_z) = (None, None);
        change(&mut of_x, &first, &of("x")).unwrap();
        change(&mut of_z, &first, &of("z")).unwrap();
        let second = DatedList::after(Some(&first), list(&[vf("a", "z", ""), vf("b", "y", "plugin")], 2));
        let left = change(&mut of_x, &second, &of("x")).unwrap();
        let gone: HashSet<_> = left.gone.iter().map(String::as_str).collect();
        assert_eq!((left.vfs.len(), gone), (0, HashSet::from(["a", "pf"])), "its PF has none of the pool any more");
        let came = change(&mut of_z, &second, &of("z")).unwrap();
        assert_eq!((came.vfs.len(), came.pfs.len(), came.gone.len()), (1, 1, 0), "with its PF, which is as it was");
        let third = DatedList::after(Some(&second), list(&[vf("a", "z", ""), vf("b", "y", "")], 3));
        assert_eq!(change(&mut of_z, &third, &of("z")), None, "another pool's news");
    }
}
