//! The Internet checksum (RFC 1071).

use ferrule_ffi::span::Span;

use super::{BadOffload, VnetHeader};

/// Finishes the checksum that `header` leaves open, if it does: the field already holds the sum of the pseudo-header,
/// the bytes from `csum_start` to the end of the frame are added. A GSO frame is work for
/// [`Segments`](super::Segments) instead.
pub fn finish_checksum(frame: &mut [u8], header: &VnetHeader) -> Result<(), BadOffload> {
    header.check(frame.len())?;
    if header.needs_csum() {
        complete(&mut frame[usize::from(header.csum_start)..], usize::from(header.csum_offset), &[]);
    }
    Ok(())
}

/// Writes into `covered`, at `offset`, the checksum over `covered` (of even length, unless nothing follows) and `rest`.
/// The field must hold the sum of the pseudo-header, or 0 if there is none.
pub(super) fn complete(covered: &mut [u8], offset: usize, rest: &[u8]) {
    let checksum = match !add(sum(covered), sum(rest)) {
        // In UDP, 0 says that there is no checksum (RFC 768). The two zeros of one's complement weigh the same.
        0 if offset == UDP_OFFSET => 0xffff,
        checksum => checksum,
    };
    covered[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// The one's complement sum of `bytes` as big-endian 16-bit words, the last padded with 0.
pub(super) fn sum(bytes: &[u8]) -> u16 {
    Span::from(bytes).ones_sum()
}

/// The one's complement sum of two sums.
pub(super) fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// Where UDP has its checksum; no other protocol has it there.
pub(super) const UDP_OFFSET: usize = 6;
/// Where TCP has its checksum.
pub(super) const TCP_OFFSET: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::tests::naive_sum;
    use super::*;
    use proptest::prelude::*;

    fn partial(csum_start: u16, csum_offset: u16) -> VnetHeader {
        VnetHeader { flags: VnetHeader::NEEDS_CSUM, csum_start, csum_offset, ..VnetHeader::default() }
    }

    #[test]
    fn the_example_of_rfc_1071_sums_as_printed() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn a_udp_checksum_of_zero_is_written_as_all_ones() {
        let mut frame = [0, 0, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(finish_checksum(&mut frame, &partial(0, 6)), Ok(()));
        assert_eq!(frame[6..], [0xff, 0xff]);
        assert_eq!(finish_checksum(&mut frame, &partial(0, 4)), Ok(()));
        assert_eq!(frame[4..6], [0, 0], "other protocols keep their zero");
    }

    #[test]
    fn a_finished_frame_is_left_alone() {
        let mut frame = [7; 60];
        assert_eq!(finish_checksum(&mut frame, &VnetHeader { flags: 0, ..partial(14, 6) }), Ok(()));
        assert_eq!(frame, [7; 60]);
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_simple_way(bytes in prop::collection::vec(any::<u8>(), 0..4000), skip in 0..9usize) {
            let bytes = bytes.get(skip..).unwrap_or_default();
            prop_assert_eq!(sum(bytes), naive_sum(bytes));
        }

        #[test]
        fn a_sum_may_be_made_in_two_parts(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..150usize) {
            let (first, second) = bytes.split_at((2 * at).min(bytes.len() & !1));
            prop_assert_eq!(add(sum(first), sum(second)), naive_sum(&bytes));
        }

        #[test]
        fn a_finished_checksum_makes_the_sum_all_ones(
            mut frame in prop::collection::vec(any::<u8>(), 64..2000),
            csum_start in 0..40u16,
            pseudo in 1..=u16::MAX,
        ) {
            let (start, field) = (usize::from(csum_start), usize::from(csum_start) + TCP_OFFSET);
            frame[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
            let before = frame.clone();
            prop_assert_eq!(finish_checksum(&mut frame, &partial(csum_start, TCP_OFFSET as u16)), Ok(()));
            prop_assert_eq!(add(naive_sum(&frame[start..]), pseudo), 0xffff);
            prop_assert_eq!(&frame[..field], &before[..field]);
            prop_assert_eq!(&frame[field + 2..], &before[field + 2..]);
        }

        #[test]
        fn no_header_makes_it_panic(
            mut frame in prop::collection::vec(any::<u8>(), 0..200),
            header in any::<[u8; VnetHeader::LEN]>(),
        ) {
            let _ = finish_checksum(&mut frame, &VnetHeader::parse(&header));
        }
    }
}
