//! Lanes: queue *i* of one end joined with queue *i* of the other, both directions.
//!
//! A lane is the unit that a worker is given and hands back. When the ends have different numbers of
//! rings, the surplus ones are served by the lanes there are: no ring of a peer is left unread.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::link::{AnySource, AnyTarget, Broken, LinkCounters, Scratch, Visit, drain, forward};
use crate::port::{Fault, Source};
use crate::spec::Full;

/// One lane of a wire.
pub struct Lane {
    /// What each end has here.
    pub ends: [LaneEnd; 2],
    /// What happens when a target is full.
    pub full: Full,
    /// From end 0 to end 1, and back; shared by all lanes of the wire.
    pub counters: Arc<[LinkCounters; 2]>,
}

/// The rings that one end has in a lane.
#[derive(Default)]
pub struct LaneEnd {
    /// What it sends.
    pub sources: Vec<LaneSource>,
    /// What it receives into.
    pub targets: Vec<AnyTarget>,
}

/// A source, and how far its next frame has come if it is stored in parts.
pub struct LaneSource {
    /// Where frames come from.
    pub source: AnySource,
    /// Segments of the next frame that the target has already.
    resume: usize,
}

impl LaneSource {
    /// A source that goes on in the middle of a frame.
    pub fn resumed(source: AnySource, segments: usize) -> Self {
        Self { source, resume: segments }
    }

    /// Segments of the next frame that the target has already.
    pub fn segments(&self) -> usize {
        self.resume
    }
}

impl From<AnySource> for LaneSource {
    fn from(source: AnySource) -> Self {
        Self { source, resume: 0 }
    }
}

impl Lane {
    /// Moves at most a burst in each link.
    ///
    /// # Errors
    /// Which end broke its protocol, and how.
    pub fn visit(&mut self, scratch: &mut Scratch) -> Result<Visit, (usize, Fault)> {
        let mut together = Visit::Quiet;
        for from in 0..2 {
            let to = 1 - from;
            let [first, second] = &mut self.ends;
            let (sources, targets) = if from == 0 {
                (&mut first.sources, &mut second.targets)
            } else {
                (&mut second.sources, &mut first.targets)
            };
            let (count, counters) = (targets.len(), &self.counters[from]);
            for (number, LaneSource { source, resume }) in sources.iter_mut().enumerate() {
                let visit = if !source.is_enabled() {
                    drain(source, counters, scratch)
                } else if count > 0 {
                    forward(source, &mut targets[number % count], self.full, resume, counters, scratch)
                } else {
                    continue;
                };
                let visit = visit.map_err(|broken| match broken {
                    Broken::Source(fault) => (from, fault),
                    Broken::Target(fault) => (to, fault),
                })?;
                together = together.max(visit);
            }
        }
        Ok(together)
    }

    /// Asks every peer to ring, or not to.
    pub fn enable_notify(&mut self, wanted: bool) {
        for source in self.sources_mut() {
            source.enable_notify(wanted);
        }
    }

    /// Whether a frame waits anywhere. A peer that broke its protocol counts as one: the next visit
    /// finds out.
    pub fn has_work(&mut self) -> bool {
        self.sources_mut().any(|source| source.refresh().unwrap_or(true))
    }

    /// What becomes readable when a peer rings.
    pub fn notify_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sources = self.ends.iter().flat_map(|end| &end.sources);
        sources.filter_map(|LaneSource { source, .. }| match source {
            AnySource::Memif(receiver) => receiver.notify_fd(),
            AnySource::Vhost(vring) => vring.notify_fd(),
            AnySource::Tap(tap) => tap.notify_fd(),
        })
    }

    /// Whether each peer that sends here can ring. One that cannot asks to be polled.
    pub fn has_notify_fds(&self) -> bool {
        let sources = self.ends.iter().map(|end| end.sources.len()).sum::<usize>();
        self.notify_fds().count() == sources
    }

    fn sources_mut(&mut self) -> impl Iterator<Item = &mut dyn Source> {
        let sources = self.ends.iter_mut().flat_map(|end| &mut end.sources);
        sources.map(|LaneSource { source, .. }| match source {
            AnySource::Memif(receiver) => receiver as &mut dyn Source,
            AnySource::Vhost(vring) => vring as &mut dyn Source,
            AnySource::Tap(tap) => tap as &mut dyn Source,
        })
    }
}

/// Deals the rings of both ends out to as many lanes as every kind of ring can fill, at least one.
pub fn deal(ends: [LaneEnd; 2], full: Full, counters: &Arc<[LinkCounters; 2]>) -> Vec<Lane> {
    let counts = ends.iter().flat_map(|end| [end.sources.len(), end.targets.len()]);
    let count = counts.min().unwrap_or(1).max(1);
    let empty = || Lane { ends: Default::default(), full, counters: Arc::clone(counters) };
    let mut lanes: Vec<Lane> = std::iter::repeat_with(empty).take(count).collect();
    for (side, end) in ends.into_iter().enumerate() {
        for (number, source) in end.sources.into_iter().enumerate() {
            lanes[number % count].ends[side].sources.push(source);
        }
        for (number, target) in end.targets.into_iter().enumerate() {
            lanes[number % count].ends[side].targets.push(target);
        }
    }
    lanes
}

/// Puts the rings of one end together again, in their order: the inverse of [`deal`].
pub fn collect(ends: Vec<LaneEnd>) -> LaneEnd {
    let mut all = LaneEnd::default();
    let mut columns: Vec<_> = ends.into_iter().map(|end| (end.sources.into_iter(), end.targets.into_iter())).collect();
    loop {
        let before = all.sources.len() + all.targets.len();
        for (sources, targets) in &mut columns {
            all.sources.extend(sources.next());
            all.targets.extend(targets.next());
        }
        if all.sources.len() + all.targets.len() == before {
            return all;
        }
    }
}
