//! Segmentation in software of a frame that stands for many.

use std::ops::Range;

use super::checksum::{add, complete};
use super::layout::{HeaderLayout, IPV6_HEADER, Protocol, Version};
use super::{BadOffload, VnetHeader};

/// The frames that a GSO frame stands for, each made when it is asked for: whoever runs out of room in the middle goes
/// on later with the same index.
///
/// A segment has the headers of the whole, with lengths, IPv4 ID, TCP sequence number and checksums its own; FIN and
/// PSH are in the last only, CWR in the first. It goes out with a plain [`VnetHeader`].
#[derive(Clone, Copy, Debug)]
pub struct Segments<F> {
    frame: F,
    layout: HeaderLayout,
    gso_size: usize,
    count: usize,
}

impl<F: AsRef<[u8]>> Segments<F> {
    /// Plans the segments of `frame`, an Ethernet frame in private memory: it is read again for each of them.
    pub fn new(frame: F, header: &VnetHeader) -> Result<Self, BadOffload> {
        let bytes = frame.as_ref();
        header.check(bytes.len())?;
        let layout = HeaderLayout::of(bytes)?;
        if header.gso_type == VnetHeader::GSO_NONE || !layout.is_as_said(header) {
            return Err(BadOffload::OtherProtocol);
        }
        if layout.payload > HEADERS_MAX {
            return Err(BadOffload::LongHeaders);
        }
        let gso_size = usize::from(header.gso_size);
        let count = (layout.end - layout.payload).div_ceil(gso_size).max(1);
        Ok(Self { frame, layout, gso_size, count })
    }

    /// How many there are, at least one.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The length of all headers of each segment, at most [`HEADERS_MAX`].
    pub fn headers_len(&self) -> usize {
        self.layout.payload
    }

    /// The length of segment `index` with its headers. None is longer than the first; past the last there is none.
    pub fn frame_len(&self, index: usize) -> Option<usize> {
        Some(self.headers_len() + self.place(index)?.len())
    }

    /// Writes the whole segment `index`. Returns its length, or `None` if there is no such segment or no room in `out`.
    pub fn write(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        let frame = self.frame.as_ref();
        let payload = &frame[self.place(index)?];
        let (headers, rest) = out.split_at_mut_checked(self.headers_len())?;
        rest.get_mut(..payload.len())?.copy_from_slice(payload);
        headers.copy_from_slice(&frame[..headers.len()]);
        self.fill(index, headers, payload);
        Some(headers.len() + payload.len())
    }

    /// Where the payload of segment `index` is.
    fn place(&self, index: usize) -> Option<Range<usize>> {
        if index >= self.count {
            return None;
        }
        let start = self.layout.payload + index * self.gso_size;
        Some(start..self.layout.end.min(start + self.gso_size))
    }

    /// Makes the headers of the whole those of segment `index`.
    fn fill(&self, index: usize, headers: &mut [u8], payload: &[u8]) {
        let (network, transport) = headers.split_at_mut(self.layout.transport);
        let network = &mut network[self.layout.network..];
        let transport_len = (transport.len() + payload.len()) as u16;
        match self.layout.version {
            Version::V4 => fill_ipv4(network, transport_len, index),
            Version::V6 => fill_ipv6(network, transport_len),
        }
        match self.layout.protocol {
            Protocol::Tcp => fill_tcp(transport, index * self.gso_size, index == 0, index + 1 == self.count),
            Protocol::Udp => put(transport, 4, transport_len),
        }
        self.fill_checksum(transport, transport_len, payload);
    }

    /// The field holds the sum of the pseudo-header of the whole. That of the segment differs in the length alone, so
    /// the addresses need not be looked at: with an IPv6 routing header they are not those of the IP header. A GSO
    /// frame gets the same checksums here as from a kernel that it is passed to.
    fn fill_checksum(&self, transport: &mut [u8], transport_len: u16, payload: &[u8]) {
        let field = self.layout.protocol.checksum_offset();
        let whole_len = (self.layout.end - self.layout.transport) as u16;
        let pseudo = add(word(transport, field), add(!whole_len, transport_len));
        put(transport, field, pseudo);
        complete(transport, field, payload);
    }
}

impl<F: AsRef<[u8]> + AsMut<[u8]>> Segments<F> {
    /// Makes segment `index` without copying its payload: its headers go in front of it, over the end of the segment
    /// before, which is lost. Those of the whole stay, so that it can be made again. Where they would not, the segment
    /// is made in `scratch`, which has room for the frame. `None`: there is no such segment.
    pub fn make<'a>(&'a mut self, index: usize, scratch: &'a mut [u8]) -> Option<&'a [u8]> {
        let headers_len = self.headers_len();
        let Range { start, end } = self.place(index)?;
        let from = start - headers_len;
        if from < headers_len {
            let len = self.write(index, scratch)?;
            return scratch.get(..len);
        }
        // The borrow of the frame ends where `fill` needs the rest.
        let plan = Segments { frame: [], layout: self.layout, gso_size: self.gso_size, count: self.count };
        let frame = self.frame.as_mut();
        frame.copy_within(..headers_len, from);
        let (headers, payload) = frame[from..end].split_at_mut(headers_len);
        plan.fill(index, headers, payload);
        Some(&frame[from..end])
    }
}

// No length below leaves its 16 bits: each is at most that of the whole, which was read from such a field.

fn fill_ipv4(header: &mut [u8], transport_len: u16, index: usize) {
    put(header, 2, header.len() as u16 + transport_len);
    put(header, 4, word(header, 4).wrapping_add(index as u16));
    put(header, IPV4_CHECKSUM, 0);
    complete(header, IPV4_CHECKSUM, &[]);
}

fn fill_ipv6(headers: &mut [u8], transport_len: u16) {
    put(headers, 4, (headers.len() - IPV6_HEADER) as u16 + transport_len);
}

fn fill_tcp(header: &mut [u8], offset: usize, first: bool, last: bool) {
    let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    header[4..8].copy_from_slice(&sequence.wrapping_add(offset as u32).to_be_bytes());
    if !first {
        header[TCP_FLAGS] &= !TCP_CWR;
    }
    if !last {
        header[TCP_FLAGS] &= !(TCP_FIN | TCP_PSH);
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// A frame with more bytes of headers is refused. Two VLAN tags, IPv4 and TCP with all their options take 142; the
/// rest is for IPv6 extension headers.
pub const HEADERS_MAX: usize = 512;

const IPV4_CHECKSUM: usize = 10;
const TCP_FLAGS: usize = 13;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;
