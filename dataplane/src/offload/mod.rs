//! What a frame still owes when it comes with a virtio-net header, and how to pay it in software.
//!
//! A TAP or a guest may hand over a frame whose checksum is only begun (`NEEDS_CSUM`), or one frame that stands for
//! many (GSO). Where the other end of the wire [accepts](Accepts) that, the header passes on after a
//! [check](VnetHeader::check); where it does not, [`finish_checksum`] and [`Segments`] do the rest.
//!
//! Everything here works on private bytes, without I/O or allocation. The sender is not trusted: a header or a frame
//! that does not hold together is a [`BadOffload`], never a panic.
//!
//! In reading order: `header` (the 12 bytes and their rules), `checksum`, `layout` (where the headers of a frame lie),
//! `segment`, and its inverse, `coalesce`; `nic`, for those that a NIC finishes.

mod checksum;
mod coalesce;
mod header;
mod layout;
mod nic;
mod segment;
#[cfg(test)]
mod tests;

pub use checksum::finish_checksum;
pub use coalesce::{Coalescer, TcpSegment};
pub use header::{Accepts, VnetHeader};
pub use nic::NicOffload;
pub use segment::{HEADERS_MAX, Segments};

/// Why a frame cannot be passed on: its virtio-net header does not fit it. Such a frame is dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOffload {
    /// `csum_start` and `csum_offset` lead past the frame.
    #[error("finish checksum: its field at byte {field} lies outside the frame of {frame_len} bytes")]
    ChecksumOutside {
        /// Where the checksum would go.
        field: u32,
        /// The length of the frame.
        frame_len: usize,
    },
    /// `hdr_len` is more than there is.
    #[error("check virtio-net header: {hdr_len} bytes of headers in a frame of {frame_len}")]
    HeadersOutside {
        /// What the header says.
        hdr_len: u16,
        /// The length of the frame.
        frame_len: usize,
    },
    /// A `gso_type` that no feature stands for.
    #[error("check virtio-net header: gso_type {0:#04x} is unknown")]
    UnknownGso(u8),
    /// `gso_type` 3, which we never offer.
    #[error("check virtio-net header: UDP fragmentation offload is not supported, the sender must not use it")]
    UdpFragmentation,
    /// GSO with a `gso_size` of 0.
    #[error("check virtio-net header: gso_size is 0")]
    NoSegmentSize,
    /// GSO without `NEEDS_CSUM`: the segments could have no checksum.
    #[error("check virtio-net header: GSO without NEEDS_CSUM")]
    GsoWithoutChecksum,
    /// A frame to be segmented is not what `gso_type` says, or the transport header is not at `csum_start`.
    #[error("segment frame: its headers are not those that the virtio-net header names")]
    OtherProtocol,
    /// A frame to be segmented is shorter than its headers say, or these are shorter than their minimum.
    #[error("segment frame: a header or a length field in it is cut short")]
    Truncated,
    /// A frame to be segmented is a fragment already.
    #[error("segment frame: it is an IP fragment")]
    Fragment,
    /// The headers of a frame to be segmented are longer than [`HEADERS_MAX`].
    #[error("segment frame: more than {HEADERS_MAX} bytes of headers")]
    LongHeaders,
}
