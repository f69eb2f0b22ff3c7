//! Places in a packed ring.

/// A place in the ring and which round it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The descriptor.
    pub index: u16,
    /// The wrap counter: it flips at each round.
    pub wrap: bool,
}

impl Position {
    /// From 15 bits of index and the wrap counter above them.
    pub(crate) fn parse(word: u16) -> Self {
        Self { index: word & !WRAP, wrap: word & WRAP != 0 }
    }

    pub(crate) fn emit(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// `slots` further on; at most a whole round.
    #[inline(always)]
    #[must_use]
    pub fn after(self, slots: u16, size: u16) -> Self {
        // Both at most 2^15, so the sum may not fit a u16.
        let index = u32::from(self.index) + u32::from(slots);
        if index >= u32::from(size) {
            Self { index: (index - u32::from(size)) as u16, wrap: !self.wrap }
        } else {
            Self { index: index as u16, wrap: self.wrap }
        }
    }

    /// The flags of a descriptor here that we have used.
    #[inline(always)]
    pub fn used(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }

    /// The flags of a descriptor here that the guest has made available.
    #[inline(always)]
    pub fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }
}

/// VirtqDescriptor flag: made available, where it equals the wrap counter (2.8.1).
pub const AVAIL: u16 = 1 << 7;
/// VirtqDescriptor flag: used, where it equals the wrap counter (2.8.1).
pub const USED: u16 = 1 << 15;
/// In a position of 16 bits: the wrap counter.
const WRAP: u16 = 1 << 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_wraps_at_any_size_and_flips_its_round() {
        for size in [1, 3, 256, 32_768] {
            let mut position = Position { index: 0, wrap: true };
            for step in 1..=3 * u32::from(size) {
                position = position.after(1, size);
                assert_eq!(u32::from(position.index), step % u32::from(size));
                assert_eq!(position.wrap, (step / u32::from(size)).is_multiple_of(2));
                assert_eq!(Position::parse(position.emit()), position);
            }
            assert_eq!(position.after(size, size), Position { wrap: !position.wrap, ..position });
        }
    }
}
