//! What failed is tried again, after longer and longer times.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::address::PciAddress;

/// When functions are tried again that failed.
#[derive(Clone)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    /// The moment, and how long was waited for it.
    waits: BTreeMap<PciAddress, (Instant, Duration)>,
}

impl Backoff {
    /// Waits `first` after the first failure and twice as long after each further one, up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, waits: BTreeMap::new() }
    }

    /// Whether a function is not to be tried yet.
    pub fn is_waiting(&self, function: PciAddress, now: Instant) -> bool {
        self.waits.get(&function).is_some_and(|(at, _)| now < *at)
    }

    /// How long is waited after the last failure of a function.
    pub fn wait(&self, function: PciAddress) -> Option<Duration> {
        self.waits.get(&function).map(|(_, wait)| *wait)
    }

    /// A function failed.
    pub fn failed(&mut self, function: PciAddress, now: Instant) {
        let wait = self.waits.get(&function).map_or(self.first, |(_, wait)| (*wait * 2).min(self.longest));
        self.waits.insert(function, (now + wait, wait));
    }

    /// A function is as it should be, or gone.
    pub fn forget(&mut self, function: PciAddress) {
        self.waits.remove(&function);
    }

    /// Everything may be tried at once.
    pub fn clear(&mut self) {
        self.waits.clear();
    }

    /// Forgets all but some functions.
    pub fn retain(&mut self, is_there: impl Fn(PciAddress) -> bool) {
        self.waits.retain(|&function, _| is_there(function));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_time_up_to_a_longest_one() {
        let (vf, second) = (PciAddress::new(0, 1, 0, 0), Duration::from_secs(1));
        let mut backoff = Backoff::new(second, 4 * second);
        let mut now = Instant::now();
        for wait in [1_u32, 2, 4, 4] {
            assert!(!backoff.is_waiting(vf, now));
            backoff.failed(vf, now);
            let (almost, over) = (wait * 1000 - 1, wait * second);
            assert!(backoff.is_waiting(vf, now + Duration::from_millis(almost.into())), "{wait} s");
            now += over;
        }
        backoff.failed(vf, now);
        backoff.forget(vf);
        assert!(!backoff.is_waiting(vf, now));
    }
}
