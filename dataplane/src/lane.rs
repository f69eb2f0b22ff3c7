//! Lanes: queue *i* of one end joined with queue *i* of the other, both directions.
//!
//! A lane is the unit that a worker is given and hands back. When the ends have different numbers of
//! rings, the surplus ones are served by the lanes there are: no ring of a peer is left unread.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::capture::Capture;
use crate::counters::{LANES_MAX, LaneCounters, LinkCounters};
use crate::link::Scratch;
use crate::port::any::{AnySource, LaneEnd, LaneSource, drain, forward, forward_traced};
use crate::port::{Fault, Source};
use crate::spec::Full;
use crate::visit::{Broken, Visit};

/// One lane of a wire.
pub struct Lane {
    /// What each end has here.
    pub ends: [LaneEnd; 2],
    /// What happens when a target is full.
    pub full: Full,
    /// From end 0 to end 1, and back.
    pub counters: [Arc<LaneCounters>; 2],
    /// Where copies of its frames go, if somebody looks at them.
    pub capture: Option<Arc<Capture>>,
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
            for (number, source) in sources.iter_mut().enumerate() {
                let visit = if !source.source.is_enabled() {
                    drain(source, counters, scratch)
                } else if count == 0 {
                    continue;
                } else if let Some(capture) = &self.capture {
                    let target = &mut targets[number % count];
                    forward_traced(source, target, self.full, counters, scratch, (capture, from))
                } else {
                    let LaneSource { source, resume } = source;
                    forward(source, &mut targets[number % count], self.full, resume, counters, scratch)
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

    /// Drains what lay in devices before both ends of the wire were there, as far as they say that something may. Before the first visit, so that
    /// nothing that comes then goes with it.
    pub fn drain_waiting(&mut self, scratch: &mut Scratch) {
        for (end, counters) in self.ends.iter_mut().zip(&self.counters) {
            for source in &mut end.sources {
                for _ in 0..DRAINS_MAX {
                    // What is wrong with it is found by the first visit.
                    if source.source.is_enabled()
                        || !matches!(source.source, AnySource::External(_))
                        || drain(source, counters, scratch).is_err()
                    {
                        break;
                    }
                }
            }
        }
    }

    /// Asks every peer to notify us, or not to. One whose frames nobody takes is not asked.
    pub fn enable_notify(&mut self, wanted: bool) {
        self.served_sources().for_each(|source| source.enable_notify(wanted));
    }

    /// Whether a frame waits that a visit would take, or a target asks for one. A peer that broke its protocol counts as a
    /// frame: the next visit finds out.
    pub fn has_work(&mut self) -> bool {
        let is_asked_for =
            self.ends.iter_mut().flat_map(|end| &mut end.targets).any(|to| to.as_dyn_mut().wants_visit());
        is_asked_for || self.served_sources().any(|source| source.refresh().unwrap_or(true))
    }

    /// Whether a source has no way to notify us and loses frames if it is not looked at all the time.
    pub fn must_poll(&self) -> bool {
        self.sources().any(Source::must_poll)
    }

    /// What becomes readable when a peer notifies us.
    pub fn notify_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sources().filter_map(Source::notify_fd)
    }

    /// Whether each peer that sends here can notify us. One that cannot asks to be polled.
    pub fn has_notify_fds(&self) -> bool {
        self.sources().all(|source| source.notify_fd().is_some())
    }

    fn sources(&self) -> impl Iterator<Item = &dyn Source> {
        self.ends.iter().flat_map(|end| &end.sources).map(|LaneSource { source, .. }| source.as_dyn())
    }

    /// The sources that a visit takes frames from: the other end has a target for them, or they are to be drained.
    fn served_sources(&mut self) -> impl Iterator<Item = &mut dyn Source> {
        let has_target = self.ends.each_ref().map(|end| !end.targets.is_empty());
        let ends = self.ends.iter_mut().zip([has_target[1], has_target[0]]);
        let sources = ends.flat_map(|(end, served)| end.sources.iter_mut().map(move |source| (source, served)));
        sources.filter_map(|(LaneSource { source, .. }, served)| {
            (served || !source.is_enabled()).then(|| source.as_dyn_mut())
        })
    }
}

/// Bursts that are drained at once: other lanes wait for it. The rest goes with the visits.
const DRAINS_MAX: usize = 32;

/// Deals the rings of both ends out to as many lanes as every kind of ring can fill, at least one.
pub fn deal(ends: [LaneEnd; 2], full: Full, counters: &Arc<[LinkCounters; 2]>) -> Vec<Lane> {
    let counts = ends.iter().flat_map(|end| [end.sources.len(), end.targets.len()]);
    let count = counts.min().unwrap_or(1).clamp(1, LANES_MAX);
    let empty = |number| {
        let counters = counters.each_ref().map(|link| link.lane(number));
        Lane { ends: Default::default(), full, counters, capture: None }
    };
    let mut lanes: Vec<Lane> = (0..count).map(empty).collect();
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
