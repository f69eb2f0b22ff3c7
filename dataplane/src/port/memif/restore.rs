//! What a successor process is given of a memif connection, so that it goes on with the next frame.
//!
//! It is written down while no worker has the connection's rings. Then everything stored is published and everything
//! taken is given back, so that positions say it all; only a borrower of memory still has slots of its lender's. Restoring
//! writes nothing that the peer may have seen: no descriptor and no index.
//!
//! A handshake that is not finished is written down at any time: what was said so far, and what is to be said. The peer
//! waits for an answer or is about to speak, and both find the successor.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_ffi::health::Health;
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::region::Region;
use serde::{Deserialize, Serialize};

use crate::port::any::{AnySource, AnyTarget, LaneEnd, LaneSource};
use crate::port::memif::channel::MemifChannel;
use crate::port::memif::handshake::{Announcing, Client, ExpectLayout, HandshakeError, MemifOffer, Outbox, Server};
use crate::port::memif::layout::{BufferPlace, Layout, LayoutError, Loan, NoLoan, RingPlace};
use crate::port::memif::message::{AddRegion, AddRing, MemifMessage};
use crate::port::memif::peer::ClientHandshake;
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
        let channel = restore_channel(channel, files)?;
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
        Ok(Self { regions, rings: save_rings(layout, files)?, buffers: layout.buffers })
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

/// A client of ours that has not finished its handshake.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedClientOfOurs {
    channel: FileId,
    /// None: INIT has not come yet.
    announced: Option<Announced>,
}

/// What a client has announced of its memory so far.
#[derive(Debug, Serialize, Deserialize)]
struct Announced {
    id: u32,
    peer: String,
    regions: Vec<(u64, FileId)>,
    rings: Vec<(AddRing, FileId)>,
}

impl SavedClientOfOurs {
    /// Writes it down. Descriptors are copied; the channel is let go of as a descriptor (dropped, it would end the
    /// conversation).
    ///
    /// # Errors
    /// There are no descriptors left, or the handshake is finished.
    pub fn save(channel: &MemifChannel, server: &Server, files: &mut SavedFiles) -> Result<Self, RestoreError> {
        let announced = match server {
            Server::ExpectInit => None,
            Server::ExpectLayout(ExpectLayout { id, peer, layout }) => {
                let regions = layout.announced.iter().map(|(size, file)| {
                    let file = files.push_copy(file).map_err(|source| no_file("a memory region", source))?;
                    Ok((*size, file))
                });
                let regions = regions.collect::<Result<_, RestoreError>>()?;
                Some(Announced { id: *id, peer: peer.clone(), regions, rings: save_rings(layout, files)? })
            }
            Server::Connected(_) => return Err(RestoreError::Invalid("a handshake that is finished".to_owned())),
        };
        let channel = files.push_copy(channel).map_err(|source| no_file("its control socket", source))?;
        Ok(Self { channel, announced })
    }

    /// Goes on with it. `offer` finds the interface of an id that is free, as in the handshake itself. What the client has
    /// announced is judged once more.
    ///
    /// # Errors
    /// A descriptor is missing or is not what was saved, or the interface is not offered any more.
    pub fn restore<'a>(
        self,
        offer: impl Fn(u32) -> Result<MemifOffer<'a>, HandshakeError>,
        files: &mut SavedFiles,
    ) -> Result<(MemifChannel, Server), RestoreError> {
        let invalid = |error: LayoutError| RestoreError::Invalid(error.to_string());
        let channel = restore_channel(self.channel, files)?;
        let Some(Announced { id, peer, regions, rings }) = self.announced else {
            return Ok((channel, Server::ExpectInit));
        };
        let offer = offer(id).map_err(|error| RestoreError::Invalid(error.to_string()))?;
        let mut layout = Layout::announced_by_peer(offer.memory).with_queues(offer.queues);
        for (index, (size, file)) in regions.into_iter().enumerate() {
            // Far fewer are taken.
            let region = AddRegion { index: index as u16, size };
            layout.add_region(region, files.take(file)?.into()).map_err(invalid)?;
        }
        for (ring, interrupt) in rings {
            layout.add_ring(ring, files.take(interrupt)?.into()).map_err(invalid)?;
        }
        Ok((channel, Server::ExpectLayout(ExpectLayout { id, peer, layout })))
    }
}

/// Our handshake with a server, which is not finished.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedClientHandshake {
    channel: FileId,
    /// None: HELLO has not come yet.
    announcing: Option<SavedAnnouncing>,
    time_left: Duration,
}

/// What a server was told of our memory, and what it is yet to be told.
#[derive(Debug, Serialize, Deserialize)]
struct SavedAnnouncing {
    peer: String,
    layout: SavedLayout,
    no_loan: Option<NoLoan>,
    rest: Vec<(Vec<u8>, Option<FileId>)>,
}

impl SavedClientHandshake {
    /// Writes it down. Descriptors are copied.
    ///
    /// # Errors
    /// There are no descriptors left, or the handshake is finished.
    pub fn save(handshake: &ClientHandshake, files: &mut SavedFiles, now: Instant) -> Result<Self, RestoreError> {
        let announcing = match &handshake.client {
            Some(Client::ExpectHello(..)) => None,
            Some(Client::ExpectAck(Announcing { peer, layout, no_loan, rest })) => {
                let rest = rest.0.iter().map(|(message, file)| {
                    let file = file.as_ref().map(|file| files.push_copy(file)).transpose();
                    Ok((message.emit().to_vec(), file.map_err(|source| no_file("a file to be announced", source))?))
                });
                let rest = rest.collect::<Result<_, RestoreError>>()?;
                let layout = SavedLayout::new(layout, files)?;
                Some(SavedAnnouncing { peer: peer.clone(), layout, no_loan: no_loan.clone(), rest })
            }
            Some(Client::Connected(_)) | None => {
                return Err(RestoreError::Invalid("a handshake that is finished".to_owned()));
            }
        };
        let channel = files.push_copy(&handshake.channel).map_err(|source| no_file("its control socket", source))?;
        Ok(Self { channel, announcing, time_left: handshake.deadline.saturating_duration_since(now) })
    }

    /// Goes on with it. What we populate of our own memory is charged to `budget`; `loan` is the memory that is to be lent
    /// to the server, if there is one.
    ///
    /// # Errors
    /// A descriptor is missing or is not what was saved, or memory that was lent is not there.
    pub fn restore(
        self,
        loan: Option<Loan>,
        budget: &Arc<MemoryBudget>,
        files: &mut SavedFiles,
        now: Instant,
    ) -> Result<ClientHandshake, RestoreError> {
        let channel = restore_channel(self.channel, files)?;
        let client = match self.announcing {
            None => Client::ExpectHello(loan, Arc::clone(budget)),
            Some(SavedAnnouncing { peer, layout, no_loan, rest }) => {
                let layout = layout.restore(loan.as_ref(), Health::within(budget), files)?;
                let rest = rest.into_iter().map(|(message, file)| {
                    let message =
                        MemifMessage::parse(&message).map_err(|error| RestoreError::Invalid(error.to_string()))?;
                    Ok((message, file.map(|file| files.take(file)).transpose()?))
                });
                let rest = Outbox(rest.collect::<Result<_, RestoreError>>()?);
                Client::ExpectAck(Announcing { peer, layout, no_loan, rest })
            }
        };
        Ok(ClientHandshake { channel, deadline: now + self.time_left, client: Some(client) })
    }
}

fn restore_channel(channel: FileId, files: &mut SavedFiles) -> Result<MemifChannel, RestoreError> {
    MemifChannel::try_from(files.take(channel)?).map_err(|source| no_file("its control socket", source))
}

fn save_rings(layout: &Layout, files: &mut SavedFiles) -> Result<Vec<(AddRing, FileId)>, RestoreError> {
    let ring = |place: &RingPlace| {
        let file = files.push_copy(&*place.interrupt).map_err(|source| no_file("an interrupt", source))?;
        Ok((place.announced, file))
    };
    layout.rings.iter().map(ring).collect()
}

fn no_file(what: &'static str, source: io::Error) -> RestoreError {
    RestoreError::File { what, source }
}
