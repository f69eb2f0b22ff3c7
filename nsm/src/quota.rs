//! How much there may be of something, and how much of it one caller may have: so nobody takes what is meant for all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts what callers hold of one kind of thing.
#[derive(Debug)]
pub(crate) struct Quota {
    all_max: usize,
    one_max: usize,
    held: Mutex<Counts>,
}

/// One of them, until this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    quota: Arc<Quota>,
    who: String,
}

/// Why there is none to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuotaError {
    /// All together have enough.
    #[error("there are {0} already, which is as many as may be")]
    All(usize),
    /// This one has.
    #[error("the caller has {0} already, which is as many as one may have: give some back")]
    One(usize),
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by: BTreeMap<String, usize>,
}

impl Quota {
    pub(crate) fn new(all_max: usize, one_max: usize) -> Arc<Self> {
        Arc::new(Self { all_max, one_max, held: Mutex::default() })
    }

    pub(crate) fn take(self: &Arc<Self>, who: &str) -> Result<Share, QuotaError> {
        let mut held = self.lock();
        if held.all >= self.all_max {
            return Err(QuotaError::All(held.all));
        }
        let own = held.by.get(who).copied().unwrap_or(0);
        if own >= self.one_max {
            return Err(QuotaError::One(own));
        }
        held.by.insert(who.to_owned(), own + 1);
        held.all += 1;
        Ok(Share { quota: Arc::clone(self), who: who.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.quota.lock();
        held.all -= 1;
        match held.by.get_mut(&self.who) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(held.by.remove(&self.who)),
        }
    }
}

impl From<QuotaError> for tonic::Status {
    fn from(error: QuotaError) -> Self {
        Self::resource_exhausted(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_may_have_its_part_and_all_together_theirs_and_what_is_given_back_is_free() {
        let quota = Quota::new(3, 2);
        let [first, _second] = [(); 2].map(|()| quota.take("a").unwrap());
        assert_eq!(quota.take("a").unwrap_err(), QuotaError::One(2));
        let _other = quota.take("b").unwrap();
        assert_eq!(quota.take("c").unwrap_err(), QuotaError::All(3));
        drop(first);
        quota.take("c").unwrap();
        quota.take("a").unwrap();
        assert_eq!(quota.lock().by.len(), 2, "nothing is left of who has nothing");
    }
}
