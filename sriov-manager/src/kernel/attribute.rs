//! Attributes of netlink, read by hand where the crates for it do not read what is wanted.

/// `struct nlattr` and what is behind it.
pub(super) struct Attribute<'a> {
    pub kind: u16,
    /// With its header.
    pub length: usize,
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The one at the beginning of some bytes; none: they hold no whole one.
    pub fn first(bytes: &'a [u8]) -> Option<Self> {
        let length = usize::from(read_u16(bytes, 0)?);
        let kind = read_u16(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..length).unwrap_or_default();
        (length >= ATTRIBUTE_HEADER && length <= bytes.len()).then_some(Self { kind, length, value })
    }

    /// The value of the first one of a kind.
    pub fn find(mut bytes: &'a [u8], wanted: u16) -> Option<&'a [u8]> {
        while let Some(Self { kind, length, value }) = Self::first(bytes) {
            if kind == wanted {
                return Some(value);
            }
            bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        }
        None
    }
}

pub(super) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

// linux/netlink.h.
pub(super) const NLMSG_HEADER: usize = 16;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const ATTRIBUTE_HEADER: usize = 4;
pub(super) const ALIGNMENT: usize = 4;
const NLA_TYPE_MASK: u16 = 0x3fff;
