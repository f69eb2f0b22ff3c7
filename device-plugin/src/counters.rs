//! What happened so far, for metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Counts of everything, by resource.
#[derive(Debug, Default)]
pub struct Counters(Mutex<BTreeMap<String, Counts>>);

/// Counts of one resource.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Allocate calls that gave devices.
    pub allocated: u64,
    /// Allocate calls that cost a pod its life.
    pub refused: u64,
    /// Allocate calls whose devices were not ready at once.
    pub postponed: u64,
    /// Starts of containers that were put off, to be tried again.
    pub start_failures: u64,
    /// Devices given back.
    pub released: u64,
    /// Tries to give a device back that failed, mostly since somebody still holds it.
    pub release_failures: u64,
    /// Registrations that the kubelet took.
    pub registrations: u64,
    /// Tries to register that failed.
    pub registration_failures: u64,
    /// Whether the kubelet has the list open.
    pub is_registered: bool,
    /// How long calls of Allocate took.
    pub allocate_times: Times,
    /// How long it took until VFs were lent that had to be bound to another driver.
    pub rebind_times: Times,
}

/// How long something took, each time.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// How often it took at most as long as each of [`BUCKETS`].
    pub at_most: [u64; BUCKETS.len()],
    /// How often there was something to measure.
    pub count: u64,
    /// All together, in seconds.
    pub seconds: f64,
}

impl Times {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.seconds += took.as_secs_f64();
        for (bucket, limit) in self.at_most.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took.as_secs_f64() <= limit);
        }
    }
}

impl Counters {
    /// Allocate was answered.
    pub fn allocated(&self, resource: &str, took: Duration, is_given: bool) {
        self.change(resource, |counts| {
            if is_given {
                counts.allocated += 1;
            } else {
                counts.refused += 1;
            }
            counts.allocate_times.add(took);
        });
    }

    /// VFs were lent that had to be bound to another driver.
    pub fn rebound(&self, resource: &str, took: Duration) {
        self.change(resource, |counts| counts.rebind_times.add(took));
    }

    /// Devices were not ready at once.
    pub fn postponed(&self, resource: &str) {
        self.change(resource, |counts| counts.postponed += 1);
    }

    /// A container's start was put off.
    pub fn start_failed(&self, resource: &str) {
        self.change(resource, |counts| counts.start_failures += 1);
    }

    /// A device was given back.
    pub fn released(&self, resource: &str) {
        self.change(resource, |counts| counts.released += 1);
    }

    /// A device could not be given back yet.
    pub fn release_failed(&self, resource: &str) {
        self.change(resource, |counts| counts.release_failures += 1);
    }

    /// The kubelet opened the list, or a try to register failed.
    pub fn registered(&self, resource: &str, is_open: bool) {
        self.change(resource, |counts| {
            counts.is_registered = is_open;
            if is_open {
                counts.registrations += 1;
            } else {
                counts.registration_failures += 1;
            }
        });
    }

    /// The kubelet has the list no more.
    pub fn closed(&self, resource: &str) {
        self.change(resource, |counts| counts.is_registered = false);
    }

    /// All of it.
    pub fn all(&self) -> BTreeMap<String, Counts> {
        self.lock().clone()
    }

    fn change(&self, resource: &str, change: impl FnOnce(&mut Counts)) {
        change(self.lock().entry(resource.to_owned()).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds. The aims are 5 ms without another driver and 300 ms with one.
pub const BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.3, 1.0, 3.0];
