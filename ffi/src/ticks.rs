//! The CPU's own clock: read in a few nanoseconds, without a system call.

#![allow(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "times are far below 2^53 ticks, and positive")]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What the time stamp counter shows now. Only differences mean something, and [`per_second`] says what.
///
/// The counters of all CPUs run as one where the kernel itself keeps time by them (`constant_tsc`, `nonstop_tsc`).
#[inline(always)]
pub fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC only reads a counter; Linux leaves it open to user space unless a process asks otherwise of itself.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// What the counter counts in a second: measured once, against the kernel's clock.
pub fn per_second() -> f64 {
    static RATE: OnceLock<f64> = OnceLock::new();
    *RATE.get_or_init(measure)
}

/// A time in ticks.
pub fn of(time: Duration) -> u64 {
    (time.as_secs_f64() * per_second()) as u64
}

/// Ticks as a time.
pub fn time(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / per_second())
}

/// Both clocks are read together at either end; of several readings the one counts that nothing came in between of.
fn measure() -> f64 {
    let together = || {
        let reading = |_| {
            let before = now();
            let instant = Instant::now();
            (now() - before, before, instant)
        };
        let (width, before, instant) =
            (0..READINGS).map(reading).min_by_key(|&(width, ..)| width).unwrap_or(reading(0));
        (before + width / 2, instant)
    };
    let (first_ticks, first) = together();
    std::thread::sleep(SPAN);
    let (last_ticks, last) = together();
    (last_ticks - first_ticks) as f64 / (last - first).as_secs_f64()
}

/// An error of 50 ns at either end is then 10 in a million.
const SPAN: Duration = Duration::from_millis(10);
const READINGS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_as_long_as_the_kernel_says() {
        // On a busy machine something may come in between the two clocks, but not each time.
        let agree = |_| {
            let (ticks, instant) = (now(), Instant::now());
            std::thread::sleep(Duration::from_millis(20));
            let (ticks, elapsed) = (time(now() - ticks), instant.elapsed());
            ticks.abs_diff(elapsed) < elapsed / 100
        };
        assert!((0..50).any(agree), "{} ticks in a second", per_second());
    }

    #[test]
    fn a_time_becomes_ticks_and_a_time_again() {
        let there = time(of(Duration::from_millis(1500)));
        assert!(there.abs_diff(Duration::from_millis(1500)) < Duration::from_micros(1), "{there:?}");
    }
}
