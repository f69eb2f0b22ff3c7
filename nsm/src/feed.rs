//! Changes, for those who watch: what one of them has not read yet is merged by name, so that whoever never reads costs no more
//! than there are names, and nobody waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::quota::{Quota, QuotaError, Share};

/// Those who watch, and what each has to read.
pub(crate) struct Feed<V> {
    watchers: Mutex<Vec<Arc<Watcher<V>>>>,
    quota: Arc<Quota>,
    unread_max: usize,
}

/// What watchers may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FeedLimits {
    /// How many there may be.
    pub(crate) watchers: usize,
    /// How many of them one caller may be.
    pub(crate) watchers_of_one: usize,
    /// How many names one may leave unread.
    pub(crate) unread: usize,
}

/// One who watches, until this is dropped.
pub(crate) struct Watch<V> {
    watcher: Arc<Watcher<V>>,
    _share: Share,
}

/// Why there is nothing to read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FeedError {
    /// Others watch already.
    #[error("cannot watch: {0}")]
    TooManyWatchers(#[from] QuotaError),
    /// It has not read for long.
    #[error("too many changes were not read: read faster, or watch less")]
    Unread,
}

struct Watcher<V> {
    wants: Box<dyn Fn(&V) -> bool + Send + Sync>,
    unread: Mutex<Unread<V>>,
    changed: Notify,
}

struct Unread<V> {
    /// By name; the order is that of their first change.
    changes: BTreeMap<String, V>,
    order: VecDeque<String>,
    is_over: bool,
}

impl<V: Clone> Feed<V> {
    pub(crate) fn new(limits: FeedLimits) -> Self {
        let quota = Quota::new(limits.watchers, limits.watchers_of_one);
        Self { watchers: Mutex::default(), quota, unread_max: limits.unread }
    }

    /// The caller `who` watches, beginning with what there is. Whoever publishes must not do so in between: its own lock keeps it out.
    pub(crate) fn watch(
        &self,
        who: &str,
        first: impl IntoIterator<Item = (String, V)>,
        wants: impl Fn(&V) -> bool + Send + Sync + 'static,
    ) -> Result<Watch<V>, FeedError> {
        let share = self.quota.take(who)?;
        let mut watchers = self.watchers();
        watchers.retain(|watcher| !watcher.is_over());
        let changes: BTreeMap<String, V> = first.into_iter().filter(|(_, value)| wants(value)).collect();
        let unread = Unread { order: changes.keys().cloned().collect(), changes, is_over: false };
        let watcher = Arc::new(Watcher { wants: Box::new(wants), unread: Mutex::new(unread), changed: Notify::new() });
        watchers.push(Arc::clone(&watcher));
        Ok(Watch { watcher, _share: share })
    }

    /// Tells of a change. It never waits.
    pub(crate) fn publish(&self, name: &str, value: &V) {
        self.watchers().retain(|watcher| watcher.tell(name, value, self.unread_max));
    }

    fn watchers(&self) -> MutexGuard<'_, Vec<Arc<Watcher<V>>>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn watcher_count(&self) -> usize {
        let mut watchers = self.watchers();
        watchers.retain(|watcher| !watcher.is_over());
        watchers.len()
    }
}

impl<V: Clone> Watch<V> {
    /// The next change; `None`: too many were not read.
    pub(crate) async fn next(&self) -> Option<V> {
        loop {
            let mut changed = std::pin::pin!(self.watcher.changed.notified());
            changed.as_mut().enable();
            {
                let mut unread = self.watcher.unread();
                if unread.is_over {
                    return None;
                }
                if let Some(name) = unread.order.pop_front() {
                    return unread.changes.remove(&name);
                }
            }
            changed.await;
        }
    }
}

impl<V> Drop for Watch<V> {
    fn drop(&mut self) {
        self.watcher.end();
    }
}

impl<V> Watcher<V> {
    fn is_over(&self) -> bool {
        self.unread().is_over
    }

    /// Nothing more is kept for it.
    fn end(&self) {
        let mut unread = self.unread();
        unread.is_over = true;
        unread.changes.clear();
        unread.order.clear();
    }

    fn unread(&self) -> MutexGuard<'_, Unread<V>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V: Clone> Watcher<V> {
    /// Whether it still watches.
    fn tell(&self, name: &str, value: &V, unread_max: usize) -> bool {
        if self.is_over() {
            return false;
        }
        if !(self.wants)(value) {
            return true;
        }
        let mut unread = self.unread();
        if unread.changes.insert(name.to_owned(), value.clone()).is_none() {
            unread.order.push_back(name.to_owned());
        }
        let is_too_much = unread.order.len() > unread_max;
        drop(unread);
        if is_too_much {
            self.end();
        }
        self.changed.notify_waiters();
        !is_too_much
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FeedLimits = FeedLimits { watchers: 3, watchers_of_one: 2, unread: 3 };

    async fn read(watch: &Watch<u32>, count: usize) -> Vec<u32> {
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(watch.next().await.unwrap());
        }
        values
    }

    #[tokio::test]
    async fn a_watcher_sees_what_there_is_then_each_change_that_it_wants() {
        let feed = Feed::new(LIMITS);
        let watch = feed.watch("x", [("a".to_owned(), 1), ("b".to_owned(), 2)], |value| value % 2 == 1).unwrap();
        feed.publish("c", &4);
        feed.publish("d", &5);
        assert_eq!(read(&watch, 2).await, [1, 5]);
    }

    #[tokio::test]
    async fn unread_changes_of_one_name_are_one() {
        let feed = Feed::new(LIMITS);
        let watch = feed.watch("x", [], |_| true).unwrap();
        for value in 0..1000 {
            feed.publish(if value % 2 == 0 { "a" } else { "b" }, &value);
        }
        assert_eq!(read(&watch, 2).await, [998, 999]);
    }

    #[tokio::test]
    async fn whoever_never_reads_is_let_go() {
        let feed = Feed::new(LIMITS);
        let [never, reads] = [(); 2].map(|()| feed.watch("x", [], |_| true).unwrap());
        for value in 0..4 {
            feed.publish(&value.to_string(), &value);
            assert_eq!(reads.next().await, Some(value));
        }
        assert_eq!(never.next().await, None);
        assert_eq!(feed.watcher_count(), 1);
    }

    #[test]
    fn watchers_are_bounded_and_those_that_went_make_room() {
        let feed = Feed::<u32>::new(LIMITS);
        let watch = |who| feed.watch(who, [], |_| true);
        let first = watch("x").ok();
        let _second = watch("x").unwrap();
        assert_eq!(watch("x").err(), Some(FeedError::TooManyWatchers(QuotaError::One(2))));
        let _other = watch("y").unwrap();
        assert_eq!(watch("z").err(), Some(FeedError::TooManyWatchers(QuotaError::All(3))));
        drop(first);
        assert!(watch("x").is_ok());
    }
}
