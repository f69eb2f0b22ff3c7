//! What is known of the leases of a forwarder, and when one is to be given back. It asks nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The leases that there may be.
#[derive(Default)]
pub(super) struct Known {
    leases: BTreeMap<String, KnownLease>,
    /// The manager was asked for those of the forwarder before this one.
    pub has_looked: bool,
    /// When it is asked for them again, if it has not answered.
    pub look: Retry,
    /// Why a lease could not be given back last, so that the same is not told again and again.
    pub told: Option<String>,
}

#[derive(Default)]
struct KnownLease {
    state: State,
    retry: Retry,
    /// How long the next device of it waits for its link.
    link_wait: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Unused,
    /// A device is made of its VF.
    Used,
    GivenBack,
}

impl Known {
    /// There may be one of that name.
    pub fn note(&mut self, name: &str) {
        self.leases.entry(name.to_owned()).or_default();
    }

    pub fn is_leaving(&self, name: &str) -> bool {
        self.leases.get(name).is_some_and(|lease| lease.state == State::GivenBack)
    }

    pub fn is_any_leaving(&self) -> bool {
        self.leases.values().any(|lease| lease.state == State::GivenBack)
    }

    /// A device is made of it. `false`: not now.
    pub fn begin_use(&mut self, name: &str) -> bool {
        let lease = self.leases.entry(name.to_owned()).or_default();
        let is_free = lease.state == State::Unused;
        if is_free {
            (lease.state, lease.retry) = (State::Used, Retry::default());
        }
        is_free
    }

    /// None is any more, or it could not be given back.
    pub fn end_use(&mut self, name: &str) {
        if let Some(lease) = self.leases.get_mut(name) {
            lease.state = State::Unused;
        }
    }

    /// It is about to be given back. Whether it was tried before; `None`: somebody has it.
    pub fn begin_giving(&mut self, name: &str) -> Option<bool> {
        let lease = self.leases.get_mut(name).filter(|lease| lease.state == State::Unused)?;
        lease.state = State::GivenBack;
        Some(lease.retry.has_failed())
    }

    /// It could not be given back now.
    pub fn put_off(&mut self, name: &str, now: Instant) {
        if let Some(lease) = self.leases.get_mut(name) {
            lease.state = State::Unused;
            lease.retry.fail(now);
        }
    }

    pub fn forget(&mut self, name: &str) {
        self.leases.remove(name);
    }

    /// Those that no wire wants and that are due, the ones that were not tried yet first.
    pub fn due(&self, wanted: &BTreeSet<String>, now: Instant) -> Vec<String> {
        let unwanted = self.leases.iter().filter(|(name, lease)| !wanted.contains(*name) && lease.retry.is_due(now));
        let (again, first): (Vec<_>, Vec<_>) = unwanted.partition(|(_, lease)| lease.retry.has_failed());
        first.into_iter().chain(again).map(|(name, _)| name.clone()).collect()
    }

    pub fn link_wait(&self, name: &str) -> Option<Duration> {
        self.leases.get(name)?.link_wait
    }

    pub fn set_link_wait(&mut self, name: &str, wait: Duration) {
        if let Some(lease) = self.leases.get_mut(name) {
            lease.link_wait = Some(wait);
        }
    }
}

/// When something that has failed is tried again: ever more rarely.
#[derive(Clone, Copy, Default)]
pub(super) struct Retry {
    next: Option<(Instant, Duration)>,
}

impl Retry {
    pub fn has_failed(&self) -> bool {
        self.next.is_some()
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|(at, _)| now >= at)
    }

    pub fn fail(&mut self, now: Instant) {
        let delay = self.next.map_or(RETRY_MIN, |(_, delay)| (2 * delay).min(RETRY_MAX));
        self.next = Some((now + delay, delay));
    }
}

/// A holder may let go at once.
const RETRY_MIN: Duration = Duration::from_secs(3);
/// The manager does the same by itself.
const RETRY_MAX: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_cannot_be_given_back_is_tried_ever_more_rarely_and_behind_the_others() {
        let (mut known, began, none) = (Known::default(), Instant::now(), BTreeSet::new());
        known.note("stuck");
        let mut tries = Vec::new();
        for second in 0..200 {
            let now = began + Duration::from_secs(second);
            if known.due(&none, now).is_empty() {
                continue;
            }
            assert_eq!(known.begin_giving("stuck"), Some(!tries.is_empty()));
            assert!(known.is_any_leaving() && !known.begin_use("stuck"));
            known.put_off("stuck", now);
            tries.push(second);
        }
        assert_eq!(tries, [0, 3, 9, 21, 45, 93, 153]);
        known.note("new");
        assert_eq!(known.due(&none, began + Duration::from_secs(213)), ["new", "stuck"]);
        // Once a device was made of it, it is like new.
        assert!(known.begin_use("stuck"));
        assert_eq!(known.begin_giving("stuck"), None);
        known.end_use("stuck");
        assert_eq!(known.due(&none, began + Duration::from_secs(200)), ["new", "stuck"]);
        assert_eq!(known.due(&BTreeSet::from(["new".to_owned()]), began), ["stuck"]);
        assert_eq!(known.begin_giving("stuck"), Some(false));
    }
}
