//! The shared memory of one connection: regions and the rings in them.
//!
//! A client makes it, a server is told of it piece by piece; afterwards both hold the same thing.
//! How a successor process goes on with both is in `restore`.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use ferrule_ffi::health::{Health, MemoryLost};
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::notifier::eventfd;
use ferrule_ffi::peer_file::PeerFile;
use ferrule_ffi::region::Region;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::port::memif::message::{AddRegion, AddRing, Direction};
use crate::port::memif::ring::zero_copy::{BorrowedSlots, LENT_FROM, OfferedBuffers};
use crate::port::memif::ring::{Buffers, Receiver, Ring, Sender, Slots, receives};
use crate::spec::{MemifSpec, Prealloc, QUEUES_MAX, RING_MAX, Role};

/// Regions and rings of one connection.
pub struct Layout {
    pub(super) role: Role,
    /// What the client announced. It is mapped at CONNECT: a client that never gets there takes no address space.
    pub(super) announced: Vec<(u64, PeerFile)>,
    pub(super) regions: Vec<Region>,
    pub(super) rings: Vec<RingPlace>,
    pub(super) buffers: BufferPlace,
    /// As server: the most queue pairs that are taken.
    pub(super) queues_max: u16,
    pub(super) health: Arc<Health>,
}

/// Where the buffers of the rings' slots are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum BufferPlace {
    /// As server: where the descriptors say.
    Announced,
    /// As client: in region 1, of this size, one behind the other.
    Own(u32),
    /// As client: in the regions of another peer, and the longest piece that this one takes.
    ZeroCopy(u32),
}

/// One ring as it was announced, and what wakes its receiver.
pub(super) struct RingPlace {
    pub(super) announced: AddRing,
    pub(super) interrupt: Arc<OwnedFd>,
}

/// The ends of the rings that one side has: what it takes frames from and what it puts them to.
pub struct Queues {
    /// By ring index.
    pub receivers: Vec<Receiver>,
    /// By ring index.
    pub senders: Vec<Sender>,
}

impl Layout {
    /// A server's, before anything was announced. What we populate of the client's memory is charged to `budget`.
    pub fn announced_by_peer(budget: &Arc<MemoryBudget>) -> Self {
        Self {
            role: Role::Server,
            queues_max: QUEUES_MAX,
            announced: Vec::new(),
            regions: Vec::new(),
            rings: Vec::new(),
            buffers: BufferPlace::Announced,
            health: Health::within(budget),
        }
    }

    /// Takes no more than so many queue pairs of the client.
    #[must_use]
    pub fn with_queues(self, queues_max: u16) -> Self {
        Self { queues_max, ..self }
    }

    /// Makes a client's: region 0 holds the rings, S2M first, and region 1 a buffer for each slot.
    /// `queues` and `ring` are what the server's HELLO left of the wish in `spec`. The server may keep the files, so what we
    /// populate of them is charged to the budget of `health` as well.
    pub fn create(spec: &MemifSpec, queues: u16, ring: u32, health: &Arc<Health>) -> io::Result<Self> {
        let buffers_len = 2 * u64::from(queues) * u64::from(ring) * u64::from(spec.buffer);
        if u32::try_from(buffers_len).is_err() {
            let text = format!("{queues} queue pairs of {ring} buffers of {} bytes exceed 4 GiB", spec.buffer);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut layout = Self::with_rings(queues, ring, BufferPlace::Own(spec.buffer), health)?;
        let huge = match spec.prealloc {
            // Some node's pages may be taken: small ones serve as well.
            Prealloc::HugePages => Region::create_huge(BUFFERS, buffers_len, &layout.health).ok(),
            Prealloc::SmallPages | Prealloc::Never => None,
        };
        layout.regions.push(huge.map_or_else(|| Region::create(BUFFERS, buffers_len, &layout.health), Ok)?);
        Ok(layout)
    }

    /// Makes a client's around the memory of another peer, the lender: region 0 holds the rings, behind it come the
    /// lender's regions. Buffers longer than `spec.buffer` are not given to the server.
    pub fn lend(spec: &MemifSpec, lender: &Loan, ring: u32, health: &Arc<Health>) -> io::Result<Self> {
        let mut layout = Self::with_rings(lender.queues, ring, BufferPlace::ZeroCopy(spec.buffer), health)?;
        layout.regions.extend_from_slice(&lender.regions);
        Ok(layout)
    }

    /// A client's with region 0 only: the rings, S2M first.
    fn with_rings(queues: u16, ring: u32, buffers: BufferPlace, health: &Arc<Health>) -> io::Result<Self> {
        let ring_len = RING_HEADER + 16 * u64::from(ring);
        let rings_len = 2 * u64::from(queues) * ring_len;
        let region = Region::create("memif-rings", rings_len, health)?;
        let directions = [Direction::S2M, Direction::M2S];
        let places = directions.into_iter().flat_map(|direction| (0..queues).map(move |index| (direction, index)));
        let rings = places.enumerate().map(|(number, (direction, index))| {
            // At most QUEUES_MAX pairs of RING_MAX descriptors: far below 4 GiB.
            let offset = (number as u64 * ring_len) as u32;
            region.write_u32(u64::from(offset), COOKIE).expect("the ring lies inside the region made for it");
            let log2_size = ring.ilog2() as u8;
            let announced = AddRing { direction, index, region: 0, offset, log2_size, private_header: 0 };
            Ok(RingPlace { announced, interrupt: Arc::new(eventfd()?.into()) })
        });
        let rings = rings.collect::<io::Result<_>>()?;
        Ok(Self {
            role: Role::Client,
            queues_max: queues,
            announced: Vec::new(),
            regions: vec![region],
            rings,
            buffers,
            health: Arc::clone(health),
        })
    }

    /// The regions that were made for this connection, to be populated before frames are.
    pub fn own_regions(&self) -> Vec<Region> {
        match self.buffers {
            BufferPlace::Own(_) => self.regions.clone(),
            BufferPlace::Announced | BufferPlace::ZeroCopy(_) => Vec::new(),
        }
    }

    /// What of this connection, as server, can be lent to another peer.
    pub fn loan(&self) -> Result<Loan, NoLoan> {
        let count = |direction| self.rings.iter().filter(|place| place.announced.direction == direction).count();
        let (s2m, m2s) = (count(Direction::S2M), count(Direction::M2S));
        if s2m != m2s {
            return Err(NoLoan::Asymmetric { s2m, m2s });
        }
        let ring = self.rings.iter().map(|place| 1 << place.announced.log2_size).max().unwrap_or(1);
        // At most QUEUES_MAX.
        Ok(Loan { regions: self.regions.clone(), queues: s2m as u16, ring })
    }

    /// Whether the buffers are another peer's.
    pub fn is_lent(&self) -> bool {
        matches!(self.buffers, BufferPlace::ZeroCopy(_))
    }

    /// Takes a region that the client announced.
    pub fn add_region(&mut self, region: AddRegion, file: PeerFile) -> Result<(), LayoutError> {
        let AddRegion { index, size } = region;
        let expected = self.announced.len();
        if usize::from(index) != expected {
            return Err(LayoutError::RegionOrder { index, expected });
        }
        if expected >= REGIONS_MAX {
            return Err(LayoutError::TooManyRegions);
        }
        let held: u64 = self.announced.iter().map(|(size, _)| size).sum();
        if size > MEMORY_MAX - held {
            return Err(LayoutError::TooMuchMemory { index, size });
        }
        Region::check(&file, size).map_err(|source| LayoutError::Map { index, size, source })?;
        self.announced.push((size, file));
        Ok(())
    }

    /// Takes a ring that the client announced.
    pub fn add_ring(&mut self, ring: AddRing, interrupt: PeerFile) -> Result<(), LayoutError> {
        let AddRing { direction, index, region, offset, log2_size, private_header } = ring;
        let place = || RingName { direction, index };
        let expected = self.rings.iter().filter(|other| other.announced.direction == direction).count();
        if usize::from(index) != expected {
            return Err(LayoutError::RingOrder { ring: place(), expected });
        }
        if index >= self.queues_max {
            return Err(LayoutError::TooManyRings { ring: place(), most: self.queues_max });
        }
        if private_header != 0 {
            return Err(LayoutError::PrivateHeader { ring: place(), bytes: private_header });
        }
        if u32::from(log2_size) > RING_MAX.ilog2() {
            return Err(LayoutError::RingSize { ring: place(), log2_size });
        }
        let interrupt = interrupt.into_eventfd().ok_or_else(|| LayoutError::Interrupt { ring: place() })?;
        let memory = self.announced.get(usize::from(region));
        let inside = memory.is_some_and(|&(size, _)| {
            offset.is_multiple_of(64) && u64::from(offset) + RING_HEADER + (16 << log2_size) <= size
        });
        if !inside {
            return Err(LayoutError::RingPlace { ring: place(), region, offset, log2_size });
        }
        self.rings.push(RingPlace { announced: ring, interrupt: Arc::new(interrupt) });
        Ok(())
    }

    /// The queues of our side. Called once, at CONNECT or CONNECTED: it maps what was announced and takes hold of the
    /// rings.
    pub fn queues(&mut self) -> Result<Queues, LayoutError> {
        for (index, (size, file)) in std::mem::take(&mut self.announced).into_iter().enumerate() {
            // At most REGIONS_MAX.
            let index = index as u16;
            // It was checked when it was announced, and what it was found to be then it need not be any more.
            let map = Region::map(file, size, &self.health);
            self.regions.push(map.map_err(|source| LayoutError::Map { index, size, source })?);
        }
        self.queues_by(Receiver::new, Sender::new)
    }

    /// The queues of our side, made by whoever knows where they begin.
    pub(super) fn queues_by(
        &self,
        mut receiver: impl FnMut(Ring, Slots<OfferedBuffers>) -> Receiver,
        mut sender: impl FnMut(Ring, Slots<BorrowedSlots>) -> Sender,
    ) -> Result<Queues, LayoutError> {
        let mut queues = Queues { receivers: Vec::new(), senders: Vec::new() };
        for (number, place) in self.rings.iter().enumerate() {
            let ring = self.ring(place)?;
            let size = ring.table.len();
            let own = |bytes: u32| Buffers { region: 1, offset: number as u32 * size as u32 * bytes, size: bytes };
            if receives(self.role, place.announced.direction) {
                let slots = match self.buffers {
                    BufferPlace::Announced => Slots::Announced,
                    BufferPlace::Own(bytes) => Slots::Own(own(bytes)),
                    BufferPlace::ZeroCopy(_) => Slots::ZeroCopy(OfferedBuffers::new(size)),
                };
                queues.receivers.push(receiver(ring, slots));
            } else {
                let slots = match self.buffers {
                    BufferPlace::Announced => Slots::Announced,
                    BufferPlace::Own(bytes) => Slots::Own(own(bytes)),
                    BufferPlace::ZeroCopy(piece_max) => Slots::ZeroCopy(BorrowedSlots::new(size, piece_max)),
                };
                queues.senders.push(sender(ring, slots));
            }
        }
        Ok(queues)
    }

    /// Why memory of the peer cannot be used any more, if so.
    pub fn memory_lost(&self) -> Option<MemoryLost> {
        self.health.cause()
    }

    /// What to announce, with its file.
    pub fn regions(&self) -> impl Iterator<Item = (AddRegion, BorrowedFd<'_>)> {
        let announce =
            |(index, region)| (AddRegion { index: index as u16, size: Region::len(region) as u64 }, region.file());
        self.regions.iter().enumerate().map(announce)
    }

    /// What to announce, with what wakes its receiver.
    pub fn rings(&self) -> impl Iterator<Item = (AddRing, &OwnedFd)> {
        self.rings.iter().map(|place| (place.announced, &*place.interrupt))
    }

    fn ring(&self, place: &RingPlace) -> Result<Ring, LayoutError> {
        let AddRing { direction, index, region, offset, log2_size, .. } = place.announced;
        let ring = RingName { direction, index };
        let at = u64::from(offset);
        let outside = LayoutError::RingPlace { ring, region, offset, log2_size };
        let memory = self.regions.get(usize::from(region)).ok_or(outside)?;
        let cookie = memory.read_u32(at).unwrap_or(0);
        if let Some(lost) = self.health.cause() {
            return Err(LayoutError::MemoryLost { ring: RingName { direction, index }, lost });
        }
        if cookie != COOKIE {
            return Err(LayoutError::Cookie { ring: RingName { direction, index }, cookie });
        }
        let parts = || {
            Some(Ring {
                flags: memory.index(at + 4)?,
                head: memory.index(at + 6)?,
                tail: memory.index(at + 64)?,
                table: memory.table(at + RING_HEADER, 1 << log2_size)?,
                interrupt: Arc::clone(&place.interrupt),
                regions: self.regions.clone().into_boxed_slice(),
                health: Arc::clone(&self.health),
            })
        };
        parts().ok_or(LayoutError::RingPlace { ring: RingName { direction, index }, region, offset, log2_size })
    }
}

/// The memory of one peer, to be lent to another.
pub struct Loan {
    pub(super) regions: Vec<Region>,
    queues: u16,
    ring: u32,
}

impl Loan {
    /// Rings of a borrower that takes so many regions, queue pairs and descriptors.
    ///
    /// # Errors
    /// Not all of the loan fits.
    pub fn fit(&self, regions_max: usize, queues_max: u16, ring_max: u32) -> Result<u32, NoLoan> {
        let regions = self.regions.len() + usize::from(LENT_FROM);
        if regions > regions_max {
            return Err(NoLoan::Regions { regions, most: regions_max });
        }
        if self.queues > queues_max {
            return Err(NoLoan::Queues { queues: self.queues, most: queues_max });
        }
        Ok(self.ring.min(ring_max))
    }
}

/// Why one peer's memory cannot be lent to the other.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoLoan {
    /// Each ring of one needs its like at the other.
    #[error("the lending peer has {s2m} rings one way and {m2s} the other")]
    Asymmetric {
        /// From client to server.
        s2m: usize,
        /// From server to client.
        m2s: usize,
    },
    /// The server takes fewer.
    #[error("the borrowing peer takes {most} memory regions, and {regions} are needed")]
    Regions {
        /// Ours and the lender's.
        regions: usize,
        /// What it takes.
        most: usize,
    },
    /// The server takes fewer.
    #[error("the borrowing peer takes {most} queue pairs, and the lending one has {queues}")]
    Queues {
        /// The lender's.
        queues: u16,
        /// What it takes.
        most: u16,
    },
}

/// A ring by its direction and index, for messages.
#[derive(Clone, Copy, Debug)]
pub struct RingName {
    direction: Direction,
    index: u16,
}

impl std::fmt::Display for RingName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ring {}", self.direction, self.index)
    }
}

/// What is wrong with memory that a client announced.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// Regions come as 0, 1, 2 ..
    #[error("unexpected region index {index}, expected {expected}")]
    RegionOrder {
        /// What came.
        index: u16,
        /// What should have.
        expected: usize,
    },
    /// More than we announced.
    #[error("more than {REGIONS_MAX} regions")]
    TooManyRegions,
    /// More than a peer gets.
    #[error("region {index} of {size} bytes brings the client above {MEMORY_MAX} bytes")]
    TooMuchMemory {
        /// Which.
        index: u16,
        /// How large.
        size: u64,
    },
    /// The file does not do.
    #[error("region {index} of {size} bytes: {source}")]
    Map {
        /// Which.
        index: u16,
        /// How large.
        size: u64,
        /// Why.
        source: io::Error,
    },
    /// Rings come as 0, 1, 2 .. in each direction.
    #[error("unexpected index: {ring}, expected {expected}")]
    RingOrder {
        /// What came.
        ring: RingName,
        /// What should have.
        expected: usize,
    },
    /// More than the interface takes.
    #[error("{ring}: this interface takes {most} in each direction (`queues`)")]
    TooManyRings {
        /// Which.
        ring: RingName,
        /// How many it takes.
        most: u16,
    },
    /// Nobody uses them.
    #[error("{ring}: private headers of {bytes} bytes are not supported")]
    PrivateHeader {
        /// Which.
        ring: RingName,
        /// How large.
        bytes: u16,
    },
    /// Larger than we announced.
    #[error("{ring}: 2^{log2_size} descriptors, at most {RING_MAX} are possible")]
    RingSize {
        /// Which.
        ring: RingName,
        /// How large.
        log2_size: u8,
    },
    /// Something else was passed as one.
    #[error("{ring}: its interrupt descriptor is not an eventfd")]
    Interrupt {
        /// Which.
        ring: RingName,
    },
    /// Not inside its region.
    #[error("{ring}: 2^{log2_size} descriptors at offset {offset} are not inside region {region} on a 64-byte border")]
    RingPlace {
        /// Which.
        ring: RingName,
        /// Where.
        region: u16,
        /// Where.
        offset: u32,
        /// How large.
        log2_size: u8,
    },
    /// The memory is not there any more.
    #[error("{ring}: {lost}")]
    MemoryLost {
        /// Which.
        ring: RingName,
        /// Why not.
        lost: MemoryLost,
    },
    /// No ring there.
    #[error("{ring}: wrong cookie {cookie:#010x} (a peer built for 128-byte cache lines has another layout)")]
    Cookie {
        /// Which.
        ring: RingName,
        /// What was read.
        cookie: u32,
    },
}

/// Regions of one client. DPDK zero-copy clients send one for each memory segment list.
pub const REGIONS_MAX: usize = 64;
/// Bytes of address space that one client gets: VPP's zero-copy clients share whole buffer pools.
pub const MEMORY_MAX: u64 = 64 << 30;
/// What a client calls the file of its buffers.
const BUFFERS: &str = "memif-buffers";
const COOKIE: u32 = 0x03E3_1F20;
/// Bytes of a ring before its descriptors: head and tail on a cache line each.
const RING_HEADER: u64 = 128;
