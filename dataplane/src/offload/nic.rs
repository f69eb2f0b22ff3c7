//! What a NIC has to be told of a frame that it is to finish.

use super::layout::{HeaderLayout, Protocol, Version};
use super::{BadOffload, VnetHeader};

/// Where the headers of an unfinished frame lie, and what is left to do on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicOffload {
    /// Bytes in front of the IP header.
    pub link_len: u16,
    /// Bytes of the IP header, with its options or extension headers.
    pub network_len: u16,
    /// Bytes of the TCP or UDP header.
    pub transport_len: u16,
    /// Whether it is IPv6.
    pub is_ipv6: bool,
    /// Whether it is UDP.
    pub is_udp: bool,
    /// Payload bytes of each TCP segment that it is to be cut into; none: only its checksum is missing.
    pub segment: Option<u16>,
}

impl NicOffload {
    /// Of a frame of `frame_len` bytes that begins with `head`, in memory that nobody else writes to.
    ///
    /// # Errors
    /// Its headers are not what `header` says, or no NIC knows them.
    pub fn of(head: &[u8], frame_len: usize, header: &VnetHeader) -> Result<Self, BadOffload> {
        header.check(frame_len)?;
        let layout = HeaderLayout::of_head(head, frame_len)?;
        let is_segmented = header.gso_type != VnetHeader::GSO_NONE;
        if !header.needs_csum() || !layout.is_as_said(header) || (is_segmented && layout.protocol == Protocol::Udp) {
            return Err(BadOffload::OtherProtocol);
        }
        // As many as descriptors have bits for.
        let len = |from: usize, to: usize, max: usize| match to - from {
            len if len <= max => Ok(len as u16),
            _ => Err(BadOffload::LongHeaders),
        };
        Ok(Self {
            link_len: len(0, layout.network, 127)?,
            network_len: len(layout.network, layout.transport, 511)?,
            transport_len: len(layout.transport, layout.payload, 255)?,
            is_ipv6: layout.version == Version::V6,
            is_udp: layout.protocol == Protocol::Udp,
            segment: is_segmented.then_some(header.gso_size),
        })
    }

    /// Bytes in front of the payload.
    pub fn headers_len(&self) -> usize {
        [self.link_len, self.network_len, self.transport_len].into_iter().map(usize::from).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TCP over IPv4 behind a VLAN tag, with 4 bytes of IP options and 12 of TCP's.
    fn frame(payload: usize) -> Vec<u8> {
        let mut frame = vec![0; 18 + 24 + 32 + payload];
        let ip_len = (24 + 32 + payload) as u16;
        frame[12..20].copy_from_slice(&[0x81, 0, 0, 5, 8, 0, 0x46, 0]);
        frame[20..22].copy_from_slice(&ip_len.to_be_bytes());
        (frame[27], frame[18 + 24 + 12]) = (6, 0x80);
        frame
    }

    const TSO: VnetHeader = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: 74,
        gso_size: 1400,
        csum_start: 42,
        csum_offset: 16,
        num_buffers: 0,
    };

    #[test]
    fn the_headers_are_found_in_the_first_bytes_of_a_long_frame() {
        let (frame, told) = (
            frame(9000),
            NicOffload {
                link_len: 18,
                network_len: 24,
                transport_len: 32,
                is_ipv6: false,
                is_udp: false,
                segment: Some(1400),
            },
        );
        assert_eq!(NicOffload::of(&frame[..128], frame.len(), &TSO), Ok(told));
        assert_eq!(told.headers_len(), 74);
        let csum = VnetHeader { gso_type: VnetHeader::GSO_NONE, ..TSO };
        assert_eq!(NicOffload::of(&frame[..128], frame.len(), &csum), Ok(NicOffload { segment: None, ..told }));
        assert_eq!(NicOffload::of(&frame[..60], frame.len(), &TSO), Ok(told), "where TCP says how long it is");
        assert_eq!(NicOffload::of(&frame[..54], frame.len(), &TSO), Err(BadOffload::Truncated));
    }

    #[test]
    fn what_does_not_hold_together_is_left_to_nobody() {
        let frame = frame(3000);
        let of = |header: VnetHeader| NicOffload::of(&frame, frame.len(), &header);
        for header in [
            VnetHeader { csum_start: 34, ..TSO },
            VnetHeader { csum_offset: 6, ..TSO },
            VnetHeader { gso_type: VnetHeader::GSO_TCPV6, ..TSO },
            VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, csum_offset: 6, ..TSO },
        ] {
            assert_eq!(of(header), Err(BadOffload::OtherProtocol), "{header:?}");
        }
        assert_eq!(NicOffload::of(&frame, frame.len() - 1, &TSO), Err(BadOffload::Truncated));
    }
}
