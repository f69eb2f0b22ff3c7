//! The kinds of ports, joined: a link of any source to any target.
//!
//! This is the one file of the data path that names every kind (`docs/architecture.md`, "Adding a port kind"). Each
//! function branches once for a burst; behind the branch is the loop of [`crate::link`], compiled for that pair.

use std::sync::Arc;

use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::tap::Tap;

use crate::capture::Capture;
use crate::counters::LaneCounters;
use crate::link::{Nowhere, Scratch, hand_over, pump, pump_traced};
use crate::port::kernel::ring::{TapSource, TapTarget};
use crate::port::memif::layout::Queues;
use crate::port::memif::ring::{Receiver, Sender, zero_copy};
use crate::port::vhost_user::eventfd::EventfdExchange;
use crate::port::vhost_user::virtqueue::{GuestRx, GuestTx};
use crate::port::{Fault, Frame, MoveEnd, Moved, Put, Source, Target};
use crate::spec::Full;
use crate::visit::{Broken, Tally, Visit};

/// A source of any kind.
pub enum AnySource {
    /// A memif ring.
    Memif(Receiver),
    /// A virtqueue of which a guest transmits.
    Vhost(GuestTx),
    /// A kernel interface.
    Tap(TapSource),
    /// A kind of another crate: a call through a table for each burst.
    External(Box<dyn Source + Send>),
}

/// A target of any kind.
pub enum AnyTarget {
    /// A memif ring.
    Memif(Sender),
    /// A virtqueue of which a guest receives.
    Vhost(GuestRx),
    /// A kernel interface.
    Tap(TapTarget),
    /// A kind of another crate: a call through a table for each burst.
    External(Box<dyn Target + Send>),
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
    pub resume: usize,
}

impl From<AnySource> for LaneSource {
    fn from(source: AnySource) -> Self {
        Self { source, resume: 0 }
    }
}

impl LaneEnd {
    /// Of a memif peer.
    pub fn memif(queues: Queues) -> Self {
        Self {
            sources: queues.receivers.into_iter().map(|receiver| AnySource::Memif(receiver).into()).collect(),
            targets: queues.senders.into_iter().map(AnyTarget::Memif).collect(),
        }
    }

    /// Of a kernel interface.
    pub fn tap(tap: &Arc<Tap>) -> Self {
        Self {
            sources: vec![AnySource::Tap(TapSource::new(Arc::clone(tap))).into()],
            targets: vec![AnyTarget::Tap(TapTarget::new(Arc::clone(tap)))],
        }
    }

    /// Gives the virtqueue that it is for another eventfd.
    pub fn exchange(&mut self, exchange: &EventfdExchange) {
        for LaneSource { source, .. } in &mut self.sources {
            match source {
                AnySource::Vhost(ring) => ring.exchange(exchange),
                AnySource::Memif(_) | AnySource::Tap(_) | AnySource::External(_) => {}
            }
        }
        for target in &mut self.targets {
            match target {
                AnyTarget::Vhost(ring) => ring.exchange(exchange),
                AnyTarget::Memif(_) | AnyTarget::Tap(_) | AnyTarget::External(_) => {}
            }
        }
    }

    /// Both ends of its wire are there, of which one was not.
    pub fn drop_waiting(&mut self) {
        self.sources.iter_mut().for_each(|LaneSource { source, .. }| source.as_dyn_mut().drop_waiting());
    }

    /// Of a port of another crate, queue by queue.
    pub fn external(queues: impl IntoIterator<Item = (Box<dyn Source + Send>, Box<dyn Target + Send>)>) -> Self {
        let mut end = Self::default();
        for (source, target) in queues {
            end.sources.push(AnySource::External(source).into());
            end.targets.push(AnyTarget::External(target));
        }
        end
    }
}

impl AnySource {
    /// For whoever has no need of speed.
    pub fn as_dyn(&self) -> &dyn Source {
        match self {
            Self::Memif(source) => source,
            Self::Vhost(source) => source,
            Self::Tap(source) => source,
            Self::External(source) => &**source,
        }
    }

    /// The same, to work with it.
    pub fn as_dyn_mut(&mut self) -> &mut dyn Source {
        match self {
            Self::Memif(source) => source,
            Self::Vhost(source) => source,
            Self::Tap(source) => source,
            Self::External(source) => &mut **source,
        }
    }

    /// Whether its frames go to the target that it is joined with.
    #[inline]
    pub fn is_enabled(&self) -> bool {
        match self {
            Self::Memif(_) | Self::Tap(_) => true,
            Self::Vhost(source) => source.is_enabled(),
            Self::External(source) => source.is_enabled(),
        }
    }
}

impl AnyTarget {
    /// For whoever has no need of speed.
    pub fn as_dyn_mut(&mut self) -> &mut dyn Target {
        match self {
            Self::Memif(target) => target,
            Self::Vhost(target) => target,
            Self::Tap(target) => target,
            Self::External(target) => &mut **target,
        }
    }
}

/// Moves at most a burst from `source` to `target`. `resume` is this source's own: how many segments of its next frame
/// are already with the target.
pub fn forward(
    source: &mut AnySource,
    target: &mut AnyTarget,
    full: Full,
    resume: &mut usize,
    counters: &LaneCounters,
    scratch: &mut Scratch,
) -> Result<Visit, Broken> {
    match source {
        AnySource::Memif(source) => match target {
            AnyTarget::Memif(target) if zero_copy::is_zero_copy(source, target) => {
                let mut tally = Tally::default();
                let outcome = zero_copy::forward(source, target, &mut tally);
                hand_over(target, &mut scratch.notifier);
                counters.add(&tally);
                outcome
            }
            target => to_any(source, target, full, resume, counters, scratch),
        },
        AnySource::Vhost(GuestTx::Split(source)) => to_any(&mut **source, target, full, resume, counters, scratch),
        AnySource::Vhost(GuestTx::Packed(source)) => to_any(&mut **source, target, full, resume, counters, scratch),
        AnySource::Tap(source) => to_any(source, target, full, resume, counters, scratch),
        AnySource::External(source) => {
            if let AnyTarget::External(target) = target
                && *resume == 0
                && let Some(outcome) = move_frames(&mut **source, &mut **target, full, counters)
            {
                return outcome;
            }
            to_any(&mut **source, target, full, resume, counters, scratch)
        }
    }
}

/// Moves frames between two devices of one kind without copying them. `None`: what comes next goes the long way.
fn move_frames(
    source: &mut dyn Source,
    target: &mut dyn Target,
    full: Full,
    counters: &LaneCounters,
) -> Option<Result<Visit, Broken>> {
    let Moved { frames, bytes, end } = source.move_to(target.as_any()?)?;
    if frames > 0 {
        counters.add_moved(frames as u64, bytes);
        return Some(Ok(Visit::Moved));
    }
    match end {
        MoveEnd::Empty => Some(Ok(Visit::Quiet)),
        MoveEnd::Full if full == Full::Hold && target.can_hold() => Some(Ok(Visit::Stalled)),
        MoveEnd::Full | MoveEnd::Unmovable => None,
    }
}

/// The same, and what is copied is captured as frames of end `from`. Of a trusted wire, nothing is copied.
#[cold]
pub fn forward_traced(
    source: &mut LaneSource,
    target: &mut AnyTarget,
    full: Full,
    counters: &LaneCounters,
    scratch: &mut Scratch,
    (capture, from): (&Capture, usize),
) -> Result<Visit, Broken> {
    let LaneSource { source, resume } = source;
    let trusted = match (&*source, &*target) {
        (AnySource::Memif(source), AnyTarget::Memif(target)) => zero_copy::is_zero_copy(source, target),
        (AnySource::Memif(_) | AnySource::Vhost(_) | AnySource::Tap(_) | AnySource::External(_), _) => false,
    };
    if trusted {
        return forward(source, target, full, resume, counters, scratch);
    }
    pump_traced(source.as_dyn_mut(), target.as_dyn_mut(), full, resume, counters, scratch, (capture, from))
}

/// Takes at most a burst from a source that is not enabled; nobody gets it.
#[cold]
pub fn drain(source: &mut LaneSource, counters: &LaneCounters, scratch: &mut Scratch) -> Result<Visit, Broken> {
    // A frame of which segments were stored before goes as well, and the next one begins at its beginning.
    let LaneSource { source, resume } = source;
    pump(source.as_dyn_mut(), &mut Nowhere, Full::Drop, resume, counters, scratch)
}

/// Stores one finished frame that no source sent, counted as if one had.
pub fn inject(
    bytes: &[u8],
    target: &mut AnyTarget,
    counters: &LaneCounters,
    notifier: &mut Notifier,
) -> Result<Put, Fault> {
    let target = target.as_dyn_mut();
    target.refresh()?;
    let put = target.put(&Frame { bytes: bytes.into(), offload: None, slots: 0 })?;
    hand_over(target, notifier);
    notifier.flush();
    let mut tally = Tally::default();
    tally.count(put, bytes.len());
    counters.add(&tally);
    Ok(put)
}

fn to_any(
    source: &mut (impl Source + ?Sized),
    target: &mut AnyTarget,
    full: Full,
    resume: &mut usize,
    counters: &LaneCounters,
    scratch: &mut Scratch,
) -> Result<Visit, Broken> {
    match target {
        AnyTarget::Memif(target) => pump(source, target, full, resume, counters, scratch),
        AnyTarget::Vhost(GuestRx::Split(target)) => pump(source, &mut **target, full, resume, counters, scratch),
        AnyTarget::Vhost(GuestRx::Packed(target)) => pump(source, &mut **target, full, resume, counters, scratch),
        AnyTarget::Tap(target) => pump(source, target, full, resume, counters, scratch),
        AnyTarget::External(target) => pump(source, &mut **target, full, resume, counters, scratch),
    }
}
