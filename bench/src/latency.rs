//! How long frames were under way.

use std::time::Duration;

use ferrule_ffi::ticks;
use hdrhistogram::Histogram;

/// The times of many frames, each to three digits.
#[derive(Clone, Debug)]
pub struct Latency {
    /// In ticks of the CPU's clock.
    times: Histogram<u64>,
    /// Frames that said by the clock of a NIC when they arrived.
    by_nic: u64,
}

impl Latency {
    /// Of no frame yet.
    pub fn new() -> Self {
        let times = Histogram::new_with_bounds(1, TICKS_MAX, DIGITS).expect("the bounds and digits are valid ones");
        Self { times, by_nic: 0 }
    }

    /// Notes a time. Nothing is allocated.
    #[inline]
    pub fn note(&mut self, ticks: u64) {
        self.times.saturating_record(ticks);
    }

    /// The same of a frame whose NIC has said when it arrived.
    #[inline]
    pub fn note_by_nic(&mut self, ticks: u64) {
        self.note(ticks);
        self.by_nic += 1;
    }

    /// Frames whose NIC has said when they arrived; of the others it is when they were seen.
    pub fn by_nic(&self) -> u64 {
        self.by_nic
    }

    /// Frames noted.
    pub fn count(&self) -> u64 {
        self.times.len()
    }

    /// Adds what another one noted.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.times.add(&other.times);
        self.by_nic += other.by_nic;
    }

    /// What no more than this share of the frames exceeded: 0.5 is the median.
    pub fn quantile(&self, share: f64) -> Duration {
        ticks::time(self.times.value_at_quantile(share))
    }

    /// The shortest time.
    pub fn min(&self) -> Duration {
        ticks::time(self.times.min())
    }

    /// The longest time.
    pub fn max(&self) -> Duration {
        ticks::time(self.times.max())
    }

    /// The average.
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.times.mean() / ticks::per_second())
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

/// More than two minutes, at any rate of the clock that there is.
const TICKS_MAX: u64 = 1 << 40;
const DIGITS: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_times_noted() {
        let (mut latency, mut slow) = (Latency::new(), Latency::new());
        for micros in 1..=99 {
            latency.note(ticks::of(Duration::from_micros(micros)));
        }
        slow.note(ticks::of(Duration::from_millis(5)));
        slow.note_by_nic(u64::MAX);
        latency.add(&slow);
        let near = |time: Duration, micros: f64| (time.as_secs_f64() * 1e6 / micros - 1.0).abs() < 0.002;
        assert_eq!((latency.count(), latency.by_nic()), (101, 1));
        assert!(near(latency.quantile(0.5), 51.0), "{:?}", latency.quantile(0.5));
        assert!(near(latency.quantile(0.99), 5000.0), "{:?}", latency.quantile(0.99));
        assert!(near(latency.min(), 1.0));
        assert!(latency.max() > Duration::from_mins(1), "a time beyond the bounds counts as the longest");
    }
}
