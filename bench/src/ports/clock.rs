//! The clock of a NIC, by which frames say when they arrived, told in ticks of the CPU's.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ferrule_dpdk::port::Port;
use ferrule_ffi::ticks;

/// The clock of a port whose driver lets it be read.
pub(super) struct NicClock {
    port: Arc<Port>,
    rate: ClockRate,
    /// When both clocks are looked at again.
    due: u64,
}

impl NicClock {
    /// None: it cannot be read, or stands still.
    pub fn of(port: &Arc<Port>) -> Option<Self> {
        let first = look(port)?;
        thread::sleep(SPAN);
        let rate = ClockRate::new(first, look(port)?)?;
        Some(Self { port: Arc::clone(port), rate, due: 0 })
    }

    /// Looks at both clocks again, if that was long ago: they do not run quite alike.
    pub fn follow(&mut self, now: u64) {
        if now < self.due {
            return;
        }
        self.due = now + ticks::of(INTERVAL);
        if let Some(last) = look(&self.port) {
            self.rate.follow(last);
        }
    }

    /// What the CPU's clock showed at a time of the NIC's.
    pub fn ticks(&self, stamp: u64) -> u64 {
        self.rate.ticks(stamp)
    }
}

/// What both clocks showed at one moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    cpu: u64,
    nic: u64,
}

/// Of several looks the one counts that took the shortest time: the NIC's clock was read in the middle of it.
fn look(port: &Port) -> Option<Look> {
    let once = || {
        let before = ticks::now();
        let nic = port.clock().ok()?;
        let width = ticks::now() - before;
        Some((width, Look { cpu: before + width / 2, nic }))
    };
    (0..LOOKS).map_while(|_| once()).min_by_key(|(width, _)| *width).map(|(_, look)| look)
}

/// How the two clocks run.
#[derive(Debug)]
struct ClockRate {
    first: Look,
    last: Look,
    cpu_per_nic: f64,
}

impl ClockRate {
    fn new(first: Look, last: Look) -> Option<Self> {
        let mut rate = Self { first, last: first, cpu_per_nic: 0.0 };
        rate.follow(last);
        (rate.cpu_per_nic > 0.0).then_some(rate)
    }

    fn follow(&mut self, last: Look) {
        let nic = last.nic.wrapping_sub(self.first.nic).cast_signed();
        self.last = last;
        if nic > 0 {
            self.cpu_per_nic = (last.cpu - self.first.cpu) as f64 / nic as f64;
        }
    }

    fn ticks(&self, stamp: u64) -> u64 {
        let ahead = stamp.wrapping_sub(self.last.nic).cast_signed();
        self.last.cpu.wrapping_add_signed((ahead as f64 * self.cpu_per_nic) as i64)
    }
}

/// A rate is known to 10 in a million then, and gets better with each look.
const SPAN: Duration = Duration::from_millis(50);
/// Two clocks that differ by 10 in a million are 50 ns apart then.
const INTERVAL: Duration = Duration::from_millis(5);
const LOOKS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_the_nic_is_one_of_the_cpu() {
        // 3 GHz and 1 GHz, and the NIC's begins anew in between.
        let at = |millis: u64| Look {
            cpu: 5_000 + millis * 3_000_000,
            nic: (u64::MAX - 500_000_000).wrapping_add(millis * 1_000_000),
        };
        let mut rate = ClockRate::new(at(0), at(100)).unwrap();
        for millis in [50, 100, 400, 600] {
            let Look { cpu, nic } = at(millis);
            assert!(rate.ticks(nic).abs_diff(cpu) < 30, "{} is not {cpu}", rate.ticks(nic));
        }
        // It drifts: what was measured last counts.
        let mut later = at(10_000);
        later.nic = later.nic.wrapping_add(50_000);
        rate.follow(later);
        assert!(rate.ticks(later.nic).abs_diff(later.cpu) < 30);
    }

    #[test]
    fn a_clock_that_stands_still_is_none() {
        let look = |cpu| Look { cpu, nic: 7 };
        assert!(ClockRate::new(look(0), look(1_000_000)).is_none());
    }
}
