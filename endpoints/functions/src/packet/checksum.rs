//! The Internet checksum: over all bytes (RFC 1071), and mended where some of them change (RFC 1624).

use ferrule_ffi::span::Span;

/// What is to be added to the sum that a checksum field holds, once some of the bytes have changed that it covers.
///
/// RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change(u32);

impl Change {
    /// One 16-bit word at an even place.
    #[must_use]
    pub fn word(self, before: u16, after: u16) -> Self {
        // Folded every time: two words more never overflow 32 bits.
        let sum = self.0 + u32::from(!before) + u32::from(after);
        Self((sum & 0xffff) + (sum >> 16))
    }

    /// An IPv4 address.
    #[must_use]
    pub fn address(self, before: u32, after: u32) -> Self {
        self.word((before >> 16) as u16, (after >> 16) as u16).word(before as u16, after as u16)
    }

    /// Bytes that begin at an even place of what is summed, and are as many as before and an even number.
    #[must_use]
    pub fn bytes(self, before: &[u8], after: &[u8]) -> Self {
        debug_assert!(before.len() == after.len() && before.len().is_multiple_of(2), "words are replaced by words");
        let word = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
        before
            .chunks_exact(2)
            .zip(after.chunks_exact(2))
            .fold(self, |change, (old, new)| change.word(word(old), word(new)))
    }

    /// The checksum that was `checksum`.
    #[must_use]
    pub fn apply(self, checksum: u16) -> u16 {
        !fold(u32::from(!checksum) + self.0)
    }

    /// The same for UDP, where 0 says that there is no checksum, which then stays so (RFC 768).
    #[must_use]
    pub fn apply_udp(self, checksum: u16) -> u16 {
        match checksum {
            0 => 0,
            checksum => match self.apply(checksum) {
                0 => 0xffff,
                mended => mended,
            },
        }
    }
}

/// The checksum over `bytes`, whose own field holds 0, and what is added to their sum.
pub fn full(bytes: &[u8], more: u32) -> u16 {
    !fold(u32::from(Span::from(bytes).ones_sum()) + u32::from(fold(more)))
}

/// Whether bytes with their checksum in them are as they were sent. `more` is the sum of a pseudo-header.
pub fn is_right(bytes: &[u8], more: u32) -> bool {
    full(bytes, more) == 0
}

/// The sum of the pseudo-header of IPv4.
pub fn pseudo_v4(source: u32, destination: u32, protocol: u8, length: u16) -> u32 {
    [source >> 16, source & 0xffff, destination >> 16, destination & 0xffff, protocol.into(), length.into()]
        .iter()
        .sum()
}

/// The sum of the pseudo-header of IPv6 (RFC 8200, section 8.1).
pub fn pseudo_v6(source: u128, destination: u128, protocol: u8, length: u32) -> u32 {
    let words = [source, destination].map(u128::to_be_bytes).concat();
    let addresses = u32::from(Span::from(&words[..]).ones_sum());
    [addresses, length >> 16, length & 0xffff, protocol.into()].iter().sum()
}

/// Carries around until 16 bits are left.
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The SYN of the NAT example: 192.168.100.10:36822 to 80.80.80.80:80 becomes 80.80.80.100:52422.
    #[test]
    fn the_checksums_of_the_published_trace_come_out() {
        let (inside, outside) = (0xc0a8_640a, 0x5050_5064);
        let ip = Change::default().address(inside, outside);
        let tcp = ip.word(36822, 52422);
        // The TTL is one less behind the router: it is the high byte of its word.
        assert_eq!((ip.apply(0x4cdd), tcp.apply(0x50f0)), (0xd0db, 0x97fe));
    }

    #[test]
    fn the_example_of_rfc_1624_is_not_all_zeros() {
        // Section 4: the field 0x5555 becomes 0x3285, and the checksum is 0x0000, not 0xffff.
        assert_eq!(Change::default().word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn udp_keeps_no_checksum_and_writes_zero_as_ones() {
        let change = Change::default().word(0x5555, 0x3285);
        assert_eq!((change.apply_udp(0), change.apply_udp(0xdd2f)), (0, 0xffff));
    }

    proptest! {
        #[test]
        fn a_mended_checksum_is_the_full_one(
            mut bytes in prop::collection::vec(any::<u8>(), 4..200),
            changes in prop::collection::vec((0..100usize, any::<[u8; 2]>()), 0..12),
            more in 0..0xffff_u32,
        ) {
            // A header is never all zeros, whose sum has two forms.
            bytes[0] |= 1;
            let before = full(&bytes, more);
            let mut change = Change::default();
            for (place, new) in changes {
                let at = 2 + place * 2;
                if let Some(word) = bytes.get_mut(at..at + 2) {
                    change = change.bytes(&[word[0], word[1]], &new);
                    word.copy_from_slice(&new);
                }
            }
            prop_assert_eq!(change.apply(before), full(&bytes, more));
        }
    }
}
