//! The virtio-net header (virtio 1.2, section 5.1.6) and who may be handed one.

use super::BadOffload;

/// The header in front of each frame of a TAP or a vring, 12 bytes, little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`](Self::NEEDS_CSUM), [`DATA_VALID`](Self::DATA_VALID).
    pub flags: u8,
    /// One of the `GSO_` constants, for TCP with or without [`GSO_ECN`](Self::GSO_ECN).
    pub gso_type: u8,
    /// A hint at the length of all headers of a GSO frame.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksummed bytes begin; they end with the frame.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
    /// How many receive buffers the frame takes; from a sender, meaningless.
    pub num_buffers: u16,
}

impl VnetHeader {
    /// Bytes on the ring, with `num_buffers`.
    pub const LEN: usize = 12;

    /// In `flags`: the checksum field holds the sum of the pseudo-header, the rest is to be added.
    pub const NEEDS_CSUM: u8 = 1;
    /// In `flags`: the checksum was verified.
    pub const DATA_VALID: u8 = 2;

    /// One frame is one frame.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4, to be segmented.
    pub const GSO_TCPV4: u8 = 1;
    /// UDP, to be fragmented: refused.
    pub const GSO_UDP: u8 = 3;
    /// TCP over IPv6, to be segmented.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP over either IP, to be cut into datagrams.
    pub const GSO_UDP_L4: u8 = 5;
    /// Beside a TCP type: the frame has CWR set, which belongs to the first segment only.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the 12 bytes; any are a header, [`check`](Self::check) judges it.
    #[inline]
    pub fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }

    /// Writes the 12 bytes.
    #[inline]
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.num_buffers.to_le_bytes());
        bytes
    }

    /// Whether the frame is complete as it is: no checksum to finish, nothing to segment.
    #[inline]
    pub fn is_plain(&self) -> bool {
        !self.needs_csum() && self.gso_type == Self::GSO_NONE
    }

    /// Whether the checksum is still to be finished.
    #[inline]
    pub fn needs_csum(&self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }

    /// Whether the header fits a frame of `frame_len` bytes. To be asked before it is acted on or passed on: a receiver
    /// may trust it more than it deserves.
    pub fn check(&self, frame_len: usize) -> Result<(), BadOffload> {
        if usize::from(self.hdr_len) > frame_len {
            return Err(BadOffload::HeadersOutside { hdr_len: self.hdr_len, frame_len });
        }
        let field = u32::from(self.csum_start) + u32::from(self.csum_offset);
        if self.needs_csum() && field as usize + 2 > frame_len {
            return Err(BadOffload::ChecksumOutside { field, frame_len });
        }
        match self.gso_type {
            Self::GSO_NONE => return Ok(()),
            Self::GSO_TCPV4 | TCPV4_ECN | Self::GSO_TCPV6 | TCPV6_ECN | Self::GSO_UDP_L4 => {}
            Self::GSO_UDP => return Err(BadOffload::UdpFragmentation),
            unknown => return Err(BadOffload::UnknownGso(unknown)),
        }
        if self.gso_size == 0 {
            return Err(BadOffload::NoSegmentSize);
        }
        if !self.needs_csum() {
            return Err(BadOffload::GsoWithoutChecksum);
        }
        Ok(())
    }
}

/// What a target can be handed unfinished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a feature that is negotiated by itself")]
pub struct Accepts {
    /// Partial checksums.
    pub csum: bool,
    /// TCP over IPv4 to be segmented.
    pub tso4: bool,
    /// TCP over IPv6 to be segmented.
    pub tso6: bool,
    /// TCP to be segmented with CWR set.
    pub ecn: bool,
    /// UDP to be cut into datagrams (a TAP takes it from Linux 6.2 on).
    pub udp_l4: bool,
}

impl Accepts {
    /// Finished frames only, as memif and most devices.
    pub const NOTHING: Self = Self { csum: false, tso4: false, tso6: false, ecn: false, udp_l4: false };
    /// Anything that passes [`VnetHeader::check`], as a TAP.
    pub const ALL: Self = Self { csum: true, tso4: true, tso6: true, ecn: true, udp_l4: true };

    /// Whether a frame with this header may pass unfinished. Says nothing about the header's truth.
    #[inline]
    pub fn takes(self, header: &VnetHeader) -> bool {
        let segmentation = match header.gso_type {
            VnetHeader::GSO_NONE => true,
            VnetHeader::GSO_TCPV4 => self.tso4,
            VnetHeader::GSO_TCPV6 => self.tso6,
            TCPV4_ECN => self.tso4 && self.ecn,
            TCPV6_ECN => self.tso6 && self.ecn,
            VnetHeader::GSO_UDP_L4 => self.udp_l4,
            _ => false,
        };
        segmentation && (self.csum || !header.needs_csum())
    }
}

const TCPV4_ECN: u8 = VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN;
const TCPV6_ECN: u8 = VnetHeader::GSO_TCPV6 | VnetHeader::GSO_ECN;

#[cfg(test)]
mod tests {
    use super::*;

    const TSO: VnetHeader = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: 66,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 1,
    };

    #[test]
    fn the_header_is_twelve_little_endian_bytes() {
        let bytes = [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 1, 0];
        assert_eq!(TSO.emit(), bytes);
        assert_eq!(VnetHeader::parse(&bytes), TSO);
    }

    #[test]
    fn a_frame_is_plain_when_nothing_is_left_to_do() {
        assert!(VnetHeader::default().is_plain());
        assert!(VnetHeader { flags: VnetHeader::DATA_VALID, num_buffers: 1, ..VnetHeader::default() }.is_plain());
        assert!(!VnetHeader { flags: VnetHeader::NEEDS_CSUM, ..VnetHeader::default() }.is_plain());
        assert!(!VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, ..VnetHeader::default() }.is_plain());
    }

    #[test]
    fn each_rule_of_the_header_has_its_error() {
        let last_byte = 34 + 16 + 2;
        let short = VnetHeader { hdr_len: 0, ..TSO };
        assert_eq!(TSO.check(66), Ok(()));
        assert_eq!(TSO.check(65), Err(BadOffload::HeadersOutside { hdr_len: 66, frame_len: 65 }));
        assert_eq!(short.check(last_byte), Ok(()));
        let outside = BadOffload::ChecksumOutside { field: 50, frame_len: last_byte - 1 };
        assert_eq!(short.check(last_byte - 1), Err(outside));
        assert_eq!(VnetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..TSO }.check(131_072), Ok(()));

        let check = |header: VnetHeader| header.check(2000);
        assert_eq!(check(VnetHeader { gso_size: 0, ..TSO }), Err(BadOffload::NoSegmentSize));
        assert_eq!(check(VnetHeader { flags: 0, ..TSO }), Err(BadOffload::GsoWithoutChecksum));
        assert_eq!(check(VnetHeader { gso_type: VnetHeader::GSO_UDP, ..TSO }), Err(BadOffload::UdpFragmentation));
        assert_eq!(check(VnetHeader { gso_type: TCPV6_ECN, ..TSO }), Ok(()));
        for gso_type in [2, 6, VnetHeader::GSO_ECN, VnetHeader::GSO_ECN | VnetHeader::GSO_UDP_L4] {
            assert_eq!(check(VnetHeader { gso_type, ..TSO }), Err(BadOffload::UnknownGso(gso_type)));
        }
    }

    #[test]
    fn a_target_takes_what_it_accepts_and_no_more() {
        let csum = VnetHeader { gso_type: VnetHeader::GSO_NONE, ..TSO };
        let ecn = VnetHeader { gso_type: TCPV4_ECN, ..TSO };
        let v6 = VnetHeader { gso_type: VnetHeader::GSO_TCPV6, ..TSO };
        let udp = VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, ..TSO };
        for header in [csum, TSO, ecn, v6, udp] {
            assert!(Accepts::ALL.takes(&header));
            assert!(!Accepts::NOTHING.takes(&header));
            assert!(!Accepts { csum: false, ..Accepts::ALL }.takes(&header));
        }
        assert!(Accepts::NOTHING.takes(&VnetHeader::default()));
        assert!(!Accepts { ecn: false, ..Accepts::ALL }.takes(&ecn));
        assert!(!Accepts { tso4: false, ..Accepts::ALL }.takes(&TSO));
        assert!(!Accepts { tso6: false, ..Accepts::ALL }.takes(&v6));
        assert!(!Accepts { udp_l4: false, ..Accepts::ALL }.takes(&udp));
        assert!(!Accepts::ALL.takes(&VnetHeader { gso_type: VnetHeader::GSO_UDP, ..TSO }));
    }
}
