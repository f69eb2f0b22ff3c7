//! What a generator is asked to send.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use crate::traffic::{Addresses, SIZE_MAX, SIZE_MIN};

/// What to send, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// The sizes of the frames.
    pub mix: Mix,
    /// Flows in each direction, dealt out to the queues. Each counts its frames; frames of one flow stay on one queue.
    pub flows: u32,
    /// Where frames come from and go to: there, and back.
    pub addresses: [Addresses; 2],
    /// Send in both directions at once.
    pub both_ways: bool,
    /// What is done with the bytes of the frames.
    pub touch: Touch,
    /// How fast.
    pub pace: Pace,
    /// When to stop.
    pub stop: Stop,
    /// The same load is sent for so long before, and all of it awaited; none of that is counted.
    pub warm_up: Duration,
    /// Whether each frame says when it was sent, and the time that it took is noted. Costs a few nanoseconds a frame.
    pub latency: bool,
}

impl Load {
    /// One flow of frames of one size in one direction, stamped, as fast as the wire takes them, for this time.
    pub fn new(mix: Mix, time: Duration) -> Self {
        Self {
            mix,
            flows: 1,
            addresses: Addresses::default().both_ways(),
            both_ways: false,
            touch: Touch::Stamped,
            pace: Pace::Saturate,
            stop: Stop::After(time),
            warm_up: Duration::ZERO,
            latency: false,
        }
    }
}

/// Which sizes the frames have, without FCS, in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(Vec<usize>);

impl Mix {
    /// Frames of these sizes, in turn.
    pub fn new(sizes: impl Into<Vec<usize>>) -> Result<Self, MixError> {
        let sizes = sizes.into();
        if let Some(&size) = sizes.iter().find(|size| !(SIZE_MIN..=SIZE_MAX).contains(size)) {
            return Err(MixError::Size(size));
        }
        if sizes.is_empty() { Err(MixError::Empty) } else { Ok(Self(sizes)) }
    }

    /// Seven frames of 64, four of 594 and one of 1518 bytes, spread as evenly as these numbers can be: the usual
    /// "simple IMIX".
    pub fn imix() -> Self {
        Self(vec![64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 64, 594])
    }

    /// The sizes, in the order in which they are sent.
    pub fn sizes(&self) -> &[usize] {
        &self.0
    }

    /// The largest of them.
    pub fn largest(&self) -> usize {
        self.0.iter().copied().max().unwrap_or(SIZE_MIN)
    }

    /// Bytes of a frame in the middle of many.
    pub fn average(&self) -> f64 {
        self.0.iter().sum::<usize>() as f64 / self.0.len() as f64
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0[..] {
            [size] => write!(f, "{size} B"),
            _ if *self == Self::imix() => f.write_str("IMIX"),
            sizes => write!(f, "{} sizes up to {} B", sizes.len(), self.largest()),
        }
    }
}

/// What a generator and a sink do with the bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Each frame has a payload of its own, and it and all checksums are verified: costs far more than sending.
    Verified,
    /// Every byte is written, and every byte read.
    Whole,
    /// Buffers stay filled from one frame to the next. The first 64 bytes, which hold the headers and the stamp, are
    /// written and read.
    Stamped,
    /// Nothing is written or read but descriptors. Frames are counted, and nobody can say which they are.
    Untouched,
}

/// How fast to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As fast as there is room: nothing is ever refused.
    Saturate,
    /// So many frames in a second, in each direction, each at its time. A frame that finds no room then is refused, as a
    /// NIC would drop it.
    PerSecond(f64),
    /// As fast as the generator can. A frame that finds no room is refused.
    BackToBack,
}

/// When to stop sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After this time.
    After(Duration),
    /// After this many frames in each direction, refused ones included.
    Frames(u64),
}

/// No such frames.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MixError {
    /// A size that no stamped frame has.
    #[error("a frame of {0} bytes: {SIZE_MIN} to {SIZE_MAX} are possible (without FCS)")]
    Size(usize),
    /// The same on a port.
    #[error("a frame of {0} bytes: {least} to {most} are possible on a port (with FCS)", least = SIZE_MIN + 4, most = SIZE_MAX + 4)]
    PortSize(usize),
    /// No sizes.
    #[error("frames of no size at all")]
    Empty,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imix_is_seven_to_four_to_one() {
        let mix = Mix::imix();
        let count = |wanted| mix.sizes().iter().filter(|&&size| size == wanted).count();
        assert_eq!([64, 594, 1518].map(count), [7, 4, 1]);
        assert_eq!(mix.sizes().len(), 12);
        assert!((mix.average() - 361.83).abs() < 0.01);
        assert_eq!(mix.to_string(), "IMIX");
        assert_eq!(Mix::new([64]).unwrap().to_string(), "64 B");
    }

    #[test]
    fn sizes_that_no_stamped_frame_has_are_refused() {
        assert_eq!(Mix::new([64, 59]), Err(MixError::Size(59)));
        assert_eq!(Mix::new([SIZE_MAX + 1]), Err(MixError::Size(SIZE_MAX + 1)));
        assert_eq!(Mix::new([]), Err(MixError::Empty));
    }
}
