//! A token bucket: so many at once, and so many a second in the long run.

use std::time::{Duration, Instant};

/// Tokens of somebody who may not do something too often. Its owner outlives connections, or a peer that
/// reconnects would have a full one each time.
#[derive(Debug)]
pub struct TokenBucket {
    burst: u32,
    /// What one token takes to come back.
    interval: Duration,
    /// When the bucket is full, if nobody takes anything until then.
    full_at: Option<Instant>,
}

impl TokenBucket {
    /// A full bucket of `burst` tokens, each of which comes back after `interval`.
    pub fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, full_at: None }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// There is none; the time is when there will be one.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        // `missing` tokens come back one after the other until `full_at`, so there is one as long as not all are missing.
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + self.interval;
        let latest = now + self.interval * self.burst;
        if full_at > latest {
            return Err(now + (full_at - latest));
        }
        self.full_at = Some(full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let (interval, begun) = (Duration::from_millis(10), Instant::now());
        let mut bucket = TokenBucket::new(3, interval);
        assert!((0..3).all(|_| bucket.take(begun).is_ok()));
        assert_eq!(bucket.take(begun), Err(begun + interval));
        assert_eq!(bucket.take(begun + interval / 2), Err(begun + interval));
        assert_eq!(bucket.take(begun + interval), Ok(()));
        assert_eq!(bucket.take(begun + interval), Err(begun + 2 * interval));
        let later = begun + Duration::from_secs(9);
        assert_eq!((0..9).filter(|_| bucket.take(later).is_ok()).count(), 3);
    }
}
