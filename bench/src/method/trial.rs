//! One sending, and what was measured of it.

use std::time::Duration;

use crate::load::{Pace, Stop};

/// What to send next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// How fast; rates are for all directions together.
    pub pace: Pace,
    /// For how long.
    pub stop: Stop,
    /// Whether to note how long frames are under way.
    pub latency: bool,
}

impl Trial {
    /// At a rate, for a time.
    pub fn paced(rate: f64, time: Duration) -> Self {
        Self { pace: Pace::PerSecond(rate), stop: Stop::After(time), latency: false }
    }

    /// As fast as the wire takes it, for a time.
    pub fn saturating(time: Duration) -> Self {
        Self { pace: Pace::Saturate, stop: Stop::After(time), latency: false }
    }
}

/// What came of a trial, all directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measurement {
    /// Frames offered in a second.
    pub offered: f64,
    /// Frames that arrived in a second.
    pub arrived: f64,
    /// Of the frames offered, the share that did not arrive.
    pub loss: f64,
}
