//! What a successor process is given of a memif connection, so that it goes on with the next frame.
//!
//! It is written down while no worker has the connection's rings. Then everything stored is published and everything
//! taken is given back, so that positions say it all; only a borrower of memory still has slots of its lender's. Restoring
//! writes nothing that the peer may have seen: no descriptor and no index.

use std::io;
use std::sync::Arc;

use ferrule_ffi::health::Health;
use ferrule_ffi::region::Region;
use serde::{Deserialize, Serialize};

use crate::port::any::{AnySource, AnyTarget, LaneEnd, LaneSource};
use crate::port::memif::channel::MemifChannel;
use crate::port::memif::layout::{BufferPlace, Layout, Loan, RingPlace};
use crate::port::memif::message::AddRing;
use crate::port::memif::ring::zero_copy::{BorrowedSlots, LENT_FROM, OfferedBuffers};
use crate::port::memif::ring::{Receiver, Sender, Slots, receives};
use crate::port::saved::{FileId, RestoreError, SavedFiles};
use crate::spec::{QUEUES_MAX, Role};

/// A connection that carries data.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedConnection {
    /// The interface id.
    pub id: u32,
    /// What the peer calls itself.
    pub peer: String,
    channel: FileId,
    layout: SavedLayout,
    receivers: Vec<SavedReceiver>,
    senders: Vec<SavedSender>,
}

/// The same, alive again.
pub struct RestoredConnection {
    /// The interface id.
    pub id: u32,
    /// What the peer calls itself.
    pub peer: String,
    /// The control socket.
    pub channel: MemifChannel,
    /// The shared memory.
    pub layout: Layout,
    /// Our ends of its rings.
    pub rings: LaneEnd,
}

/// Regions and rings. Those that a borrower got from its lender are the lender's to save.
#[derive(Debug, Serialize, Deserialize)]
struct SavedLayout {
    regions: Vec<(u64, FileId)>,
    rings: Vec<(AddRing, FileId)>,
    buffers: BufferPlace,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct SavedReceiver {
    next: u16,
    held: u16,
    /// Segments of the next frame that the target has already.
    resume: usize,
    offered: Option<OfferedBuffers>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct SavedSender {
    next: u16,
    published: u16,
    borrowed: Option<BorrowedSlots>,
}

impl SavedConnection {
    /// Writes a connection down and copies its descriptors. `rings` are all of its rings, with no worker. The channel is
    /// the successor's from now on: dropped here, it would end the connection.
    ///
    /// # Errors
    /// There are no descriptors left, or the rings are not those of a memif peer.
    pub fn save(
        (id, peer): (u32, &str),
        channel: MemifChannel,
        layout: &Layout,
        rings: &LaneEnd,
        files: &mut SavedFiles,
    ) -> Result<Self, RestoreError> {
        let other = || RestoreError::Invalid("rings of another kind than memif".to_owned());
        let receivers = rings.sources.iter().map(|LaneSource { source, resume }| match source {
            AnySource::Memif(receiver) => Ok(SavedReceiver::new(receiver, *resume)),
            AnySource::Vhost(_) | AnySource::Tap(_) | AnySource::External(_) => Err(other()),
        });
        let senders = rings.targets.iter().map(|target| match target {
            AnyTarget::Memif(sender) => Ok(SavedSender::new(sender)),
            AnyTarget::Vhost(_) | AnyTarget::Tap(_) | AnyTarget::External(_) => Err(other()),
        });
        Ok(Self {
            id,
            peer: peer.to_owned(),
            channel: files.push(channel.into()),
            layout: SavedLayout::new(layout, files)?,
            receivers: receivers.collect::<Result<_, _>>()?,
            senders: senders.collect::<Result<_, _>>()?,
        })
    }

    /// Goes on with a connection. A borrower's comes after that of its lender, whose memory is given here again.
    ///
    /// # Errors
    /// A descriptor is missing or is not what was saved, or the values do not fit together.
    pub fn restore(
        self,
        lender: Option<&Loan>,
        health: Arc<Health>,
        files: &mut SavedFiles,
    ) -> Result<RestoredConnection, RestoreError> {
        self.check()?;
        let Self { id, peer, channel, layout, receivers, senders } = self;
        let layout = layout.restore(lender, health, files)?;
        let resumes: Vec<_> = receivers.iter().map(|receiver| receiver.resume).collect();
        let (mut receivers, mut senders) = (receivers.into_iter(), senders.into_iter());
        // One each, as `check` has seen.
        let queues = layout.queues_by(
            |ring, slots| {
                let SavedReceiver { next, held, offered, .. } = receivers.next().unwrap_or_default();
                Receiver::restore(ring, with(slots, offered), next, held)
            },
            |ring, slots| {
                let SavedSender { next, published, borrowed } = senders.next().unwrap_or_default();
                Sender::restore(ring, with(slots, borrowed), next, published)
            },
        );
        let mut rings = LaneEnd::memif(queues.map_err(|error| RestoreError::Invalid(error.to_string()))?);
        for (source, resume) in rings.sources.iter_mut().zip(resumes) {
            source.resume = resume;
        }
        let channel =
            MemifChannel::try_from(files.take(channel)?).map_err(|source| no_file("its control socket", source))?;
        Ok(RestoredConnection { id, peer, channel, layout, rings })
    }

    /// Whether there are positions for each ring, and notes of as many slots as it has.
    fn check(&self) -> Result<(), RestoreError> {
        let zero_copy = matches!(self.layout.buffers, BufferPlace::ZeroCopy(_));
        let (mut receivers, mut senders) = (self.receivers.iter(), self.senders.iter());
        let fits = self.layout.rings.iter().all(|(ring, _)| {
            let notes = if receives(self.layout.role(), ring.direction) {
                receivers.next().map(|saved| saved.offered.as_ref().map(OfferedBuffers::len))
            } else {
                senders.next().map(|saved| saved.borrowed.as_ref().map(BorrowedSlots::len))
            };
            ring.log2_size <= 14 && notes == Some(zero_copy.then_some(1 << ring.log2_size))
        });
        let done = receivers.next().is_none() && senders.next().is_none();
        let problem = || RestoreError::Invalid("positions that are not those of its rings".to_owned());
        (fits && done).then_some(()).ok_or_else(problem)
    }
}

impl SavedLayout {
    fn new(layout: &Layout, files: &mut SavedFiles) -> Result<Self, RestoreError> {
        let own = if layout.is_lent() { LENT_FROM.into() } else { layout.regions.len() };
        let region = |region: &Region| {
            let file = files.push_copy(region.file()).map_err(|source| no_file("a memory region", source))?;
            Ok((region.len() as u64, file))
        };
        let regions = layout.regions[..own].iter().map(region).collect::<Result<_, _>>()?;
        let ring = |place: &RingPlace| {
            let file = files.push_copy(&*place.interrupt).map_err(|source| no_file("an interrupt", source))?;
            Ok((place.announced, file))
        };
        let rings = layout.rings.iter().map(ring).collect::<Result<_, _>>()?;
        Ok(Self { regions, rings, buffers: layout.buffers })
    }

    fn restore(
        self,
        lender: Option<&Loan>,
        health: Arc<Health>,
        files: &mut SavedFiles,
    ) -> Result<Layout, RestoreError> {
        let (role, buffers) = (self.role(), self.buffers);
        let (announced, regions, rings) = (Vec::new(), Vec::new(), Vec::new());
        let mut layout = Layout { role, announced, regions, rings, buffers, queues_max: QUEUES_MAX, health };
        for (size, file) in self.regions {
            let region = Region::map(files.take(file)?, size, &layout.health);
            layout.regions.push(region.map_err(|source| no_file("a memory region", source))?);
        }
        match (buffers, lender) {
            (BufferPlace::ZeroCopy(_), Some(lender)) => layout.regions.extend_from_slice(&lender.regions),
            (BufferPlace::ZeroCopy(_), None) => {
                return Err(RestoreError::Invalid("a borrower without the lender's memory".to_owned()));
            }
            (BufferPlace::Announced | BufferPlace::Own(_), _) => {}
        }
        for (announced, file) in self.rings {
            layout.rings.push(RingPlace { announced, interrupt: Arc::new(files.take(file)?) });
        }
        Ok(layout)
    }

    fn role(&self) -> Role {
        match self.buffers {
            BufferPlace::Announced => Role::Server,
            BufferPlace::Own(_) | BufferPlace::ZeroCopy(_) => Role::Client,
        }
    }
}

impl SavedReceiver {
    fn new(receiver: &Receiver, resume: usize) -> Self {
        let (next, held) = receiver.positions();
        Self { next, held, resume, offered: receiver.offered().cloned() }
    }
}

impl SavedSender {
    fn new(sender: &Sender) -> Self {
        let (next, published) = sender.positions();
        Self { next, published, borrowed: sender.borrowed().cloned() }
    }
}

/// The slots of a ring, with what was noted of them.
fn with<L>(slots: Slots<L>, notes: Option<L>) -> Slots<L> {
    match notes {
        Some(notes) => Slots::ZeroCopy(notes),
        None => slots,
    }
}

fn no_file(what: &'static str, source: io::Error) -> RestoreError {
    RestoreError::File { what, source }
}
