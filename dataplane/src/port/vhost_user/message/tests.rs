//! Messages byte by byte, and bytes that are none.

use super::*;
use proptest::prelude::*;

/// What arrives when `bytes` are sent.
fn received(bytes: &[u8]) -> (Header, Result<VhostUserRequest, VhostUserMessageError>) {
    let (header, payload) = bytes.split_first_chunk().unwrap();
    let header = Header::parse(header).unwrap();
    assert_eq!(header.size as usize, payload.len());
    (header, VhostUserRequest::parse(header.request, payload))
}

/// A message of little-endian words after its header.
fn message(request: u32, flags: u32, words: &[u32]) -> Vec<u8> {
    let header = [request, flags, 4 * words.len() as u32];
    header.iter().chain(words).flat_map(|word| word.to_ne_bytes()).collect()
}

const REGION: MemoryRegion =
    MemoryRegion { guest: 0x1_0000_0002, size: 0x3_0000_0004, user: 0x5_0000_0006, offset: 0x7_0000_0008 };
const REGION_WORDS: [u32; 8] = [2, 1, 4, 3, 6, 5, 8, 7];

#[test]
fn the_fields_of_every_request_lie_where_the_protocol_says() {
    let vring = VringState { index: 3, num: 0x8001_8000 };
    let inflight = Inflight { mmap_size: 0x1_0000_0002, mmap_offset: 3, queues: 4, queue_size: 5 };
    let config = Config { offset: 1, flags: 7, data: vec![0x11, 0x22, 0x33, 0x44] };
    let address = VringAddress { index: 1, log: true, desc: 2, used: 3, avail: 4, log_guest: 5 };
    let table = [&[1, 0], &REGION_WORDS[..]].concat();
    let one = [&[0, 0], &REGION_WORDS[..]].concat();
    let cases: Vec<(VhostUserRequest, Vec<u32>)> = vec![
        (VhostUserRequest::GetFeatures, vec![]),
        (VhostUserRequest::SetFeatures(0x1_0000_8000), vec![0x8000, 1]),
        (VhostUserRequest::SetOwner, vec![]),
        (VhostUserRequest::ResetOwner, vec![]),
        (VhostUserRequest::SetMemTable(vec![REGION]), table),
        (VhostUserRequest::SetLogBase(LogArea { size: 1, offset: 2 }), vec![1, 0, 2, 0]),
        (VhostUserRequest::SetLogFd, vec![]),
        (VhostUserRequest::SetVringNum(vring), vec![3, 0x8001_8000]),
        (VhostUserRequest::SetVringAddr(address), vec![1, 1, 2, 0, 3, 0, 4, 0, 5, 0]),
        (VhostUserRequest::SetVringBase(vring), vec![3, 0x8001_8000]),
        (VhostUserRequest::GetVringBase(vring), vec![3, 0x8001_8000]),
        (VhostUserRequest::SetVringKick(VringFile { index: 9, has_file: true }), vec![9, 0]),
        (VhostUserRequest::SetVringCall(VringFile { index: 9, has_file: false }), vec![0x109, 0]),
        (VhostUserRequest::SetVringErr(VringFile { index: 255, has_file: false }), vec![0x1ff, 0]),
        (VhostUserRequest::GetProtocolFeatures, vec![]),
        (VhostUserRequest::SetProtocolFeatures(9), vec![9, 0]),
        (VhostUserRequest::GetQueueNum, vec![]),
        (VhostUserRequest::SetVringEnable(vring), vec![3, 0x8001_8000]),
        (VhostUserRequest::SendRarp([2, 3, 4, 5, 6, 7]), vec![0x0504_0302, 0x0706]),
        (VhostUserRequest::NetSetMtu(1500), vec![1500, 0]),
        (VhostUserRequest::GetConfig(config.clone()), vec![1, 4, 7, 0x4433_2211]),
        (VhostUserRequest::SetConfig(config), vec![1, 4, 7, 0x4433_2211]),
        (VhostUserRequest::GetInflightFd(inflight), vec![2, 1, 3, 0, 0x5_0004, 0]),
        (VhostUserRequest::SetInflightFd(inflight), vec![2, 1, 3, 0, 0x5_0004, 0]),
        (VhostUserRequest::ResetDevice, vec![]),
        (VhostUserRequest::GetMaxMemSlots, vec![]),
        (VhostUserRequest::AddMemReg(REGION), one.clone()),
        (VhostUserRequest::RemMemReg(REGION), one),
        (VhostUserRequest::SetStatus(15), vec![15, 0]),
        (VhostUserRequest::GetStatus, vec![]),
        (VhostUserRequest::Other(22), vec![]),
    ];
    for (request, words) in cases {
        let bytes = message(request.number(), 9, &words);
        assert_eq!(request.emit(true), bytes, "{}", request.word());
        let (header, parsed) = received(&bytes);
        assert!(header.needs_reply() && !header.is_reply());
        assert_eq!(parsed, Ok(request));
    }
}

#[test]
fn a_reply_has_the_number_of_its_request_and_flags_5() {
    let vring = VringState { index: 1, num: 2 };
    let inflight = Inflight { mmap_size: 1, mmap_offset: 0, queues: 2, queue_size: 256 };
    let config = Config { offset: 0, flags: 0, data: vec![1, 2, 3, 4] };
    let cases = [
        (6, ReplyBody::Empty, vec![]),
        (5, ReplyBody::Value(1), vec![1, 0]),
        (11, ReplyBody::Vring(vring), vec![1, 2]),
        (24, ReplyBody::Config(config), vec![0, 4, 0, 0x0403_0201]),
        (31, ReplyBody::Inflight(inflight), vec![1, 0, 0, 0, 0x100_0002, 0]),
    ];
    for (request, body, words) in cases {
        let reply = VhostUserReply { request, body };
        let bytes = reply.emit();
        assert_eq!(bytes, message(request, 5, &words));
        assert_eq!(VhostUserReply::parse(request, &bytes[HEADER_LEN..]), Ok(reply));
    }
}

#[test]
fn inflight_memory_is_understood_with_and_without_the_padding_of_its_structure() {
    let inflight = Inflight { mmap_size: 0, mmap_offset: 0, queues: 2, queue_size: 256 };
    let bytes = VhostUserRequest::GetInflightFd(inflight).emit(false);
    let payload = &bytes[HEADER_LEN..];
    assert_eq!(payload.len(), 24);
    for len in [20, 24] {
        assert_eq!(VhostUserRequest::parse(31, &payload[..len]), Ok(VhostUserRequest::GetInflightFd(inflight)));
    }
    for len in [19, 21, 23] {
        assert!(VhostUserRequest::parse(31, &payload[..len]).is_err(), "{len}");
    }
}

#[test]
fn a_header_of_another_version_or_with_an_endless_payload_is_refused() {
    let header = |flags, size| Header::parse(&Header { request: 1, flags, size }.emit());
    assert!(header(1, 4096).is_ok());
    assert!(matches!(header(1, 4097), Err(VhostUserMessageError::TooLong { size: 4097, .. })));
    assert!(matches!(header(1, u32::MAX), Err(VhostUserMessageError::TooLong { .. })));
    for flags in [0, 2, 3, 8] {
        assert!(matches!(header(flags, 0), Err(VhostUserMessageError::Version { .. })), "{flags}");
    }
}

#[test]
fn counts_that_lie_about_the_payload_are_refused() {
    assert!(VhostUserRequest::parse(5, &message(5, 1, &[u32::MAX, 0])[HEADER_LEN..]).is_err());
    assert!(VhostUserRequest::parse(5, &message(5, 1, &[2, 0, 1, 2, 3, 4, 5, 6, 7, 8])[HEADER_LEN..]).is_err());
    assert!(VhostUserRequest::parse(24, &message(24, 1, &[0, 257, 0, 0])[HEADER_LEN..]).is_err());
    assert!(VhostUserRequest::parse(24, &message(24, 1, &[0, 5, 0, 0])[HEADER_LEN..]).is_err());
}

proptest! {
    #[test]
    fn what_was_understood_is_written_back_as_it_was(number in 0u32..50, payload: Vec<u8>) {
        if let Ok(request) = VhostUserRequest::parse(number, &payload) {
            let again = request.emit(false);
            let (_, parsed) = received(&again);
            prop_assert_eq!(parsed, Ok(request));
        }
    }

    #[test]
    fn every_memory_table_survives_the_way_there_and_back(
        rows in proptest::collection::vec(any::<(u64, u64, u64, u64)>(), 0..33)
    ) {
        let regions = rows.iter().map(|&(guest, size, user, offset)| MemoryRegion { guest, size, user, offset });
        let request = VhostUserRequest::SetMemTable(regions.collect());
        prop_assert_eq!(received(&request.emit(true)).1, Ok(request));
    }

    #[test]
    fn bytes_are_no_message_or_one_but_never_a_panic(header: [u8; HEADER_LEN], payload: Vec<u8>) {
        if let Ok(header) = Header::parse(&header) {
            let _ = VhostUserRequest::parse(header.request, &payload);
            let _ = VhostUserReply::parse(header.request, &payload);
        }
    }
}
