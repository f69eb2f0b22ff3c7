//! What a link needs of its two ends: a [`Source`] to take frames from, a [`Target`] to put them to.
//!
//! Both work in bursts: `refresh` reads the peer's index once, frames are moved against private
//! positions, and one call publishes the lot. Having no room or no frame is a count, never an error;
//! a [`Fault`] means that the peer broke its protocol, and costs the peer its connection.

pub mod any;
pub mod demux;
pub mod device;
pub mod device_status;
pub mod external;
pub mod frame_queue;
pub mod kernel;
pub mod memif;
pub mod pieces;
pub mod saved;
pub mod vhost_user;

use std::any::Any;
use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use ferrule_ffi::health::MemoryLost;
use ferrule_ffi::span::Span;
use thiserror::Error;

use crate::offload::{Accepts, VnetHeader};
use crate::port::pieces::Pieces;
use crate::status::DropReason;

/// Where frames come from.
pub trait Source {
    /// Reads how far the peer is. `false`: there is certainly no frame.
    fn refresh(&mut self) -> Result<bool, Fault>;

    /// The next frame, without taking it: asked again, it answers the same. A frame that lies in
    /// pieces is put together in `gather`, which has [`FRAME_MAX`] bytes.
    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault>;

    /// The next frame as [`peek`](Self::peek) shows it, but where it lies: its pieces are added to `pieces`. `None`: it is
    /// for `peek`.
    fn peek_pieces<'a>(&'a mut self, _pieces: &mut Pieces<'a>) -> Result<Option<PieceFrame<'a>>, Fault> {
        Ok(None)
    }

    /// The next frames, as far as they are plain: each in one piece, with nothing left to do on it. None of them is
    /// taken, and what comes behind the run is for [`Self::peek`]. A kind of source that has no such frames shows
    /// none.
    fn run<'a>(&'a mut self, _run: &mut Run<'a>) {}

    /// Takes the first `count` frames of the run that was last shown.
    fn advance_run(&mut self, _count: usize) {}

    /// Looks for frames, as [`refresh`](Self::refresh) does, and sends them by a target of its own kind as they are, up to a burst; those
    /// that were sent are taken. Buffers go from one device to the other, and nothing is copied. Frames that the target
    /// holds back go first. `None`: it does not know that target.
    fn move_to(&mut self, _target: &mut dyn Any) -> Option<Moved> {
        None
    }

    /// What it took to show the frame that was peeked, of `length` bytes in `slots`, beside moving it once: bytes
    /// copied to put it together, and [`SEGMENT_COST`] for each piece looked at.
    fn cost(&self, _length: usize, _slots: u32) -> u64 {
        0
    }

    /// Whether the frames that it shows lie in memory of ours that nobody else writes to.
    #[inline(always)]
    fn owns_frames(&self) -> bool {
        false
    }

    /// The frame that was peeked, if the source owns it: segments are made in it, which are then asked for in their
    /// order.
    fn own_frame(&mut self) -> &mut [u8] {
        &mut []
    }

    /// Takes the frame that was peeked, of which `slots` is a part.
    fn advance(&mut self, slots: u32);

    /// Gives everything taken back to the peer.
    fn release(&mut self);

    /// What to notify after a release: a guest may wait for its buffers, where other peers look for them.
    #[inline(always)]
    fn release_notify_fd(&mut self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Asks the peer to notify us from now on, or not to. After asking, look once more before sleeping.
    fn enable_notify(&mut self, wanted: bool);

    /// What becomes readable when the peer notifies us; none: it never does, and is looked at every millisecond.
    fn notify_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether its frames go to the target that it is joined with. If not, they are taken and dropped.
    #[inline(always)]
    fn is_enabled(&self) -> bool {
        true
    }

    /// Both ends of its wire are there, of which one was not: what came meanwhile is for nobody, and is to be drained.
    fn drop_waiting(&mut self) {}

    /// Whether it loses frames when it is not looked at for a millisecond, and cannot notify us (a NIC without an
    /// interrupt). Its lane is visited in every round: an idle worker naps for at most 50 us.
    fn must_poll(&self) -> bool {
        false
    }
}

/// Where frames go.
pub trait Target {
    /// Reads how far the peer is.
    fn refresh(&mut self) -> Result<(), Fault>;

    /// Stores frames of a run, as far as each fits into the next slot as it is. How many: the first that did
    /// not is for [`Self::put`], which says why.
    fn put_run(&mut self, _run: &[Span<'_>]) -> usize {
        0
    }

    /// Stores one frame.
    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault>;

    /// Whether it takes frames in pieces.
    #[inline(always)]
    fn takes_pieces(&self) -> bool {
        false
    }

    /// Stores one frame that lies in pieces, whose offload it accepts. Only asked of a target that
    /// [takes](Self::takes_pieces) such.
    fn put_pieces(&mut self, _pieces: &[Span<'_>], _offload: Option<&VnetHeader>) -> Result<Put, Fault> {
        Ok(Put::Refused(DropReason::Refused))
    }

    /// What it took to find places for frames, stored or not, since this was last asked: in the same measure as
    /// [`Source::cost`].
    fn cost(&mut self) -> u64 {
        0
    }

    /// The target itself, if frames can be moved to it ([`Source::move_to`]).
    fn as_any(&mut self) -> Option<&mut dyn Any> {
        None
    }

    /// Lets the peer see everything stored. `true`: it wants to be notified.
    fn publish(&mut self) -> bool;

    /// What to notify it by.
    fn notify_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Which unfinished checksums and large frames it takes as they are.
    fn accepts(&self) -> Accepts {
        Accepts::NOTHING
    }

    /// Whether it takes a frame with this header as it is.
    #[inline]
    fn takes(&self, header: &VnetHeader) -> bool {
        self.accepts().takes(header)
    }

    /// Whether frames may wait for room in it. If not, what finds it full is dropped and counted, also if the wire says
    /// `hold`: a queue behind which many wires send must not be held up by one of them.
    #[inline(always)]
    fn can_hold(&self) -> bool {
        true
    }

    /// Whether it is to be visited although there may be nothing to send. Asked of lanes that sleep, a few times a second.
    fn wants_visit(&self) -> bool {
        false
    }

    /// Takes back the buffers of frames that were sent, as far as they are free again. `true`: some are not yet, and
    /// the lane is to be visited for them although there may be nothing to send. Called at the begin of every visit.
    #[inline(always)]
    fn reclaim(&mut self) -> bool {
        false
    }
}

/// Frames that were sent without being copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// How many.
    pub frames: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Why not more.
    pub end: MoveEnd,
}

/// Why no more frames were sent without being copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MoveEnd {
    /// There are no more now.
    #[default]
    Empty,
    /// The target has no room for more.
    Full,
    /// What comes next has to be copied.
    Unmovable,
}

/// Plain frames, in their order.
pub type Run<'a> = ArrayVec<Span<'a>, BURST>;

/// A frame in somebody's memory: contiguous, since pieces were gathered into the scratch.
pub struct Frame<'a> {
    /// All of it, from its Ethernet (or, in IP mode, IP) header on.
    pub bytes: Span<'a>,
    /// What is left to do on it; none: it is finished.
    pub offload: Option<&'a VnetHeader>,
    /// For [`Source::advance`].
    pub slots: u32,
}

/// What is known of a frame beside the pieces that it lies in.
pub struct PieceFrame<'a> {
    /// What is left to do on it; none: it is finished.
    pub offload: Option<&'a VnetHeader>,
    /// For [`Source::advance`].
    pub slots: u32,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It was stored.
    Stored,
    /// There is no room now.
    Full,
    /// It can never be stored.
    Refused(DropReason),
}

/// A peer broke its protocol. Small and without text: it is made on the data path and written out
/// on the control side. All fields have 32 bits, like [`Frame::slots`]: a result that holds either is
/// then moved by loads as wide as the stores before them, which the CPU can forward.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// An index moved by more than its ring is long.
    #[error("its ring index moved from {from} to {to}, further than the ring's {size} slots")]
    Index {
        /// Where it was.
        from: u32,
        /// Where the peer says that it is.
        to: u32,
        /// The ring's length.
        size: u32,
    },
    /// A descriptor names memory that is not there.
    #[error("descriptor {slot} names bytes {offset}+{length} of region {region}, which are not all there")]
    Descriptor {
        /// Its slot.
        slot: u32,
        /// The region that it names.
        region: u32,
        /// The first byte, from the region's start.
        offset: u32,
        /// How many bytes.
        length: u32,
    },
    /// A chain goes on where nothing was published.
    #[error("the chain of descriptors from slot {slot} on goes beyond what was published")]
    OpenChain {
        /// Where it begins.
        slot: u32,
    },
    /// A frame longer than any.
    #[error("the frame in slot {slot} is longer than {FRAME_MAX} bytes or lies in too many pieces")]
    Oversize {
        /// Where it begins.
        slot: u32,
    },
    /// An available ring names a descriptor that is not there (virtio 1.2, 2.7.6).
    #[error("available entry {entry} names descriptor {head} of a ring of {size}")]
    Head {
        /// The entry.
        entry: u32,
        /// What it says.
        head: u32,
        /// The ring's length.
        size: u32,
    },
    /// A descriptor of a guest names memory that is not there.
    #[error(
        "descriptor {slot} names {length} bytes at guest address {high:#x}{low:08x}, which are not all in its memory"
    )]
    GuestMemory {
        /// Its slot.
        slot: u32,
        /// The upper half of the address.
        high: u32,
        /// The lower half of the address.
        low: u32,
        /// Its length.
        length: u32,
    },
    /// A descriptor of a receive ring that we must not write to.
    #[error("descriptor {slot} is in a receive ring, but not for the device to write")]
    Direction {
        /// Its slot.
        slot: u32,
    },
    /// An indirect descriptor that stands for no table (virtio 1.2, 2.7.5.3 and 2.8.7).
    #[error(
        "descriptor {slot} stands for {length} bytes of descriptors: no table, one too long, or one inside another"
    )]
    Table {
        /// Its slot.
        slot: u32,
        /// Its length.
        length: u32,
    },
    /// A buffer for received frames that not even the header fits in.
    #[error("descriptor {slot} offers {length} bytes to receive in, fewer than a header has")]
    NoRoom {
        /// Its slot.
        slot: u32,
        /// Its length.
        length: u32,
    },
    /// Its memory cannot be used any more.
    #[error(transparent)]
    Memory(#[from] MemoryLost),
    /// A kernel interface is not there any more.
    #[error("the kernel interface is gone (errno {0}); was its namespace deleted?")]
    InterfaceGone(i32),
    /// A device of another crate is not there any more.
    #[error("the device is gone")]
    DeviceGone,
}

/// Messages of one peer handled at a time, before others have their turn.
pub const MESSAGES_PER_EVENT: usize = 16;
/// The longest frame: 64 KiB of IP packet and its link headers, rounded up.
pub const FRAME_MAX: usize = 65_536 + 64;
/// Bytes that are copied in about the time that a piece of a frame, or of room for one, is looked at.
pub const SEGMENT_COST: u64 = 256;
/// Frames moved between two looks at an index.
pub const BURST: usize = 64;
