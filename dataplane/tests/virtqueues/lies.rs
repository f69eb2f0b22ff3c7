//! Drivers that lie: what happens is named, and costs nobody else anything (section numbers: virtio 1.2).

use std::sync::Arc;

use ferrule_dataplane::port::any::{AnySource, AnyTarget};
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::memory::{GuestMemory, MemoryRegion};
use ferrule_dataplane::port::vhost_user::virtqueue::{GuestRx, GuestTx};
use ferrule_dataplane::port::{FRAME_MAX, Fault};
use ferrule_dataplane::status::DropReason;
use ferrule_dataplane::visit::Broken;
use ferrule_endpoints::virtio::DriverSpec;
use ferrule_ffi::region::Region;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use crate::pair::{Pair, RX, TX, frame, setup};

const SIZE: u32 = 16;
const SPEC: DriverSpec = DriverSpec { size: SIZE, buffer: 2048, header_apart: false };
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// A place in guest memory, and one outside of it.
const OUTSIDE: u64 = 0x1000;

/// A driver whose rings are written by hand.
struct RawDriver {
    pair: Pair,
    packed: bool,
}

/// One descriptor: address, length, flags, and the next one's index (packed: the id).
type Desc = (u64, u32, u16, u16);

impl RawDriver {
    fn new(features: Features) -> Self {
        Self { pair: Pair::new(SPEC, features), packed: features.has(Features::RING_PACKED) }
    }

    fn both() -> [Self; 2] {
        let features = Features::VERSION_1 | Features::INDIRECT_DESC;
        [features, features | Features::RING_PACKED].map(Self::new)
    }

    /// Memory that the guest may use as it likes: buffers of the transmit ring.
    fn inside(&self) -> u64 {
        let row = self.pair.memory.row();
        row.guest + row.size - 0x1_0000
    }

    fn offset(&self, user: u64) -> u64 {
        user - self.pair.memory.row().user
    }

    fn write(&self, guest: u64, words: &[u32]) {
        let row = self.pair.memory.row();
        for (at, &word) in words.iter().enumerate() {
            self.pair.memory.region().write_u32(guest - row.guest + 4 * at as u64, word).unwrap();
        }
    }

    /// Descriptors as they lie in memory. `available`: with the flags that make a packed ring's available.
    fn words(&self, list: &[Desc], available: bool) -> Vec<u32> {
        let word = |&(address, len, flags, next): &Desc| {
            let flags = if self.packed && available { flags | 1 << 7 } else { flags };
            let last = if self.packed {
                u32::from(next) | u32::from(flags) << 16
            } else {
                u32::from(flags) | u32::from(next) << 16
            };
            [address as u32, (address >> 32) as u32, len, last]
        };
        list.iter().flat_map(word).collect()
    }

    /// Writes descriptors from slot 0 on of a ring and offers those at `heads`. In a packed ring all are offered.
    fn offer(&self, ring: usize, list: &[Desc], heads: &[u16]) {
        let at = self.pair.memory.addresses(ring);
        let row = self.pair.memory.row();
        self.write(row.guest + self.offset(at.desc), &self.words(list, true));
        if self.packed {
            return;
        }
        let avail = self.offset(at.avail);
        for (place, &head) in heads.iter().enumerate() {
            self.pair.memory.region().index(avail + 4 + 2 * place as u64).unwrap().store(head);
        }
        self.pair.memory.region().index(avail + 2).unwrap().store(heads.len() as u16);
    }

    /// What becomes of one chain, made of these descriptors from slot 0 on.
    fn send(mut self, list: &[Desc]) -> Result<(usize, usize), Broken> {
        self.offer(TX, list, &[0]);
        self.turn()
    }

    fn turn(&mut self) -> Result<(usize, usize), Broken> {
        self.pair.try_turn().map(|turn| (turn.frames - turn.refused, turn.refused))
    }
}

fn source(fault: Fault) -> Result<(usize, usize), Broken> {
    Err(Broken::Source(fault))
}

fn missing(slot: u32, address: u64, length: u32) -> Fault {
    Fault::GuestMemory { slot, high: (address >> 32) as u32, low: address as u32, length }
}

#[test]
fn an_index_that_jumps_ends_the_connection() {
    for (ring, broken) in [(TX, true), (RX, false)] {
        let mut driver = RawDriver::new(Features::VERSION_1);
        driver.pair.send(&[frame(1, 64)]);
        let avail = driver.offset(driver.pair.memory.addresses(ring).avail);
        driver.pair.memory.region().index(avail + 2).unwrap().store(SIZE as u16 + 1);
        let fault = Fault::Index { from: 0, to: SIZE + 1, size: SIZE };
        let expected = if broken { Broken::Source(fault) } else { Broken::Target(fault) };
        assert_eq!(driver.turn(), Err(expected));
    }
}

#[test]
fn a_head_beyond_the_ring_ends_the_connection_after_the_frames_before_it() {
    let driver = RawDriver::new(Features::VERSION_1);
    let inside = driver.inside();
    let mut driver = driver;
    driver.offer(TX, &[(inside, 72, 0, 0)], &[0, SIZE as u16]);
    assert_eq!(driver.turn(), source(Fault::Head { entry: 1, head: SIZE, size: SIZE }));
    assert_eq!(driver.pair.receive(), [vec![0; 60]]);
    let mut driver = RawDriver::new(Features::VERSION_1);
    driver.offer(RX, &[], &[u16::MAX]);
    driver.offer(TX, &[(inside, 72, 0, 0)], &[0]);
    assert_eq!(driver.turn(), Err(Broken::Target(Fault::Head { entry: 0, head: u32::from(u16::MAX), size: SIZE })));
}

#[test]
fn no_byte_outside_the_guest_s_memory_is_read() {
    for driver in [0, 1, 2, 3, 4].into_iter().flat_map(|case| RawDriver::both().map(|driver| (case, driver))) {
        let (case, driver) = driver;
        let row = driver.pair.memory.row();
        let end = row.guest + row.size;
        let (address, len) = [(OUTSIDE, 72), (end - 71, 72), (end, 72), (u64::MAX - 10, 72), (row.guest - 1, 72)][case];
        assert_eq!(driver.send(&[(address, len, 0, 0)]), source(missing(0, address, len)), "case {case}");
    }
    for driver in RawDriver::both() {
        let inside = driver.inside();
        let chain = [(inside, 12, NEXT, 1), (inside, 60, NEXT, 2), (OUTSIDE, 60, 0, 0)];
        assert_eq!(driver.send(&chain), source(missing(0, OUTSIDE, 60)));
    }
}

#[test]
fn no_byte_outside_the_guest_s_memory_is_written() {
    for driver in RawDriver::both() {
        let inside = driver.inside();
        let mut driver = driver;
        driver.offer(TX, &[(inside, 72, 0, 0)], &[0]);
        driver.offer(RX, &[(OUTSIDE, 2048, WRITE, 0)], &[0]);
        assert_eq!(driver.turn(), Err(Broken::Target(missing(0, OUTSIDE, 2048))));
    }
}

#[test]
fn memory_that_is_not_for_us_to_write_is_not_written() {
    for mut driver in RawDriver::both() {
        let inside = driver.inside();
        driver.offer(TX, &[(inside, 72, 0, 0)], &[0]);
        driver.offer(RX, &[(inside, 2048, 0, 0)], &[0]);
        assert_eq!(driver.turn(), Err(Broken::Target(Fault::Direction { slot: 0 })));
    }
}

#[test]
fn a_visit_ends_with_the_frame_whose_pieces_spend_the_time_of_a_burst() {
    for (pieces, taken) in [(512u16, [2; SIZE as usize / 2].to_vec()), (128, vec![5, 5, 5, 1]), (2, vec![16])] {
        for driver in RawDriver::both() {
            let inside = driver.inside();
            let piece = |at, len| (inside, len, if at + 1 < pieces { NEXT } else { 0 }, at + 1);
            let empty = (1..pieces - 1).map(|at| piece(at, 0));
            let table: Vec<_> = std::iter::once(piece(0, 12)).chain(empty).chain([piece(pieces - 1, 60)]).collect();
            // Where no received frame goes.
            let place = inside + 0x8000;
            driver.write(place, &driver.words(&table, false));
            let head = |slot| (place, 16 * u32::from(pieces), INDIRECT, slot);
            let heads: Vec<_> = (0..SIZE as u16).collect();
            driver.offer(TX, &heads.iter().map(|&slot| head(slot)).collect::<Vec<_>>(), &heads);
            let mut driver = driver;
            let visits = std::iter::repeat_with(|| driver.pair.visit()).take_while(|&taken| taken > 0);
            assert_eq!(visits.collect::<Vec<_>>(), taken, "{pieces} pieces, packed: {}", driver.packed);
            assert_eq!(driver.pair.counters.read().frames, u64::from(SIZE));
        }
    }
}

#[test]
fn a_visit_pays_for_each_of_the_small_buffers_that_a_frame_is_spread_over() {
    for layout in [Features::default(), Features::RING_PACKED] {
        let features = Features::VERSION_1 | Features::MRG_RXBUF | layout;
        let spec = DriverSpec { size: 1024, buffer: 52, header_apart: false };
        let mut pair = Pair::new(spec, features);
        let frames: Vec<_> = (0..20).map(|number| frame(number, 2000)).collect();
        assert_eq!(pair.send(&frames), 20);
        let visits: Vec<_> = std::iter::repeat_with(|| pair.visit()).take_while(|&taken| taken > 0).collect();
        assert_eq!(pair.receive(), frames);
        // Put together from 32 pieces or more and spread over as many: at least 20,000 bytes each.
        assert!(visits.iter().all(|&taken| taken <= 7), "{features:x?}: {visits:?}");
    }
}

#[test]
fn a_receive_buffer_without_room_for_a_header_ends_the_connection() {
    for len in [0, 1, 11] {
        for mut driver in RawDriver::both() {
            let inside = driver.inside();
            driver.offer(TX, &[(inside, 72, 0, 0)], &[0]);
            driver.offer(RX, &[(inside, len, WRITE, 0)], &[0]);
            assert_eq!(driver.turn(), Err(Broken::Target(Fault::NoRoom { slot: 0, length: len })));
        }
    }
}

#[test]
fn chains_no_longer_than_a_header_are_counted_and_given_back() {
    for len in [0, 1, 11, 12] {
        for driver in RawDriver::both() {
            let inside = driver.inside();
            assert_eq!(driver.send(&[(inside, len, 0, 0)]), Ok((0, 1)), "{len}");
        }
    }
    for mut driver in RawDriver::both() {
        let inside = driver.inside();
        let chain = [(inside, 6, NEXT, 1), (inside, 0, NEXT, 2), (inside, 6, 0, 0)];
        driver.offer(TX, &chain, &[0]);
        assert_eq!(driver.turn(), Ok((0, 1)));
        let dropped = driver.pair.counters.read().drops[DropReason::TooShort as usize];
        assert_eq!(dropped, 1);
    }
}

#[test]
fn a_header_may_be_spread_over_as_many_descriptors_as_it_has_bytes() {
    for mut driver in RawDriver::both() {
        let inside = driver.inside();
        let mut chain: Vec<Desc> = (0..12).map(|at| (inside + 5 * u64::from(at), 1, NEXT, at + 1)).collect();
        chain.extend([(inside, 0, NEXT, 13), (inside + 128, 30, NEXT, 14), (inside + 256, 34, 0, 0)]);
        driver.write(inside + 128, &[0x0101_0101; 8]);
        driver.write(inside + 256, &[0x0202_0202; 9]);
        driver.offer(TX, &chain, &[0]);
        assert_eq!(driver.turn(), Ok((1, 0)));
        assert_eq!(driver.pair.receive(), [[vec![1; 30], vec![2; 34]].concat()]);
    }
}

#[test]
fn a_chain_that_leads_back_into_itself_ends() {
    let driver = RawDriver::new(Features::VERSION_1);
    let inside = driver.inside();
    assert_eq!(driver.send(&[(inside, 20, NEXT, 1), (inside, 20, NEXT, 0)]), source(Fault::Oversize { slot: 0 }));
    let driver = RawDriver::new(Features::VERSION_1);
    let next = Fault::Head { entry: 0, head: SIZE, size: SIZE };
    assert_eq!(driver.send(&[(inside, 20, NEXT, SIZE as u16)]), source(next));
    // All of a packed ring is one chain without an end.
    let driver = RawDriver::new(Features::VERSION_1 | Features::RING_PACKED);
    let chain = [(inside, 20, NEXT, 0); SIZE as usize];
    assert_eq!(driver.send(&chain), source(Fault::Oversize { slot: 0 }));
}

#[test]
fn a_packed_chain_that_goes_on_where_nothing_is_available_ends_the_connection() {
    let driver = RawDriver::new(Features::VERSION_1 | Features::RING_PACKED);
    let inside = driver.inside();
    assert_eq!(driver.send(&[(inside, 20, NEXT, 0)]), source(Fault::OpenChain { slot: 0 }));
}

#[test]
fn a_frame_longer_than_any_ends_the_connection() {
    for driver in RawDriver::both() {
        let row = driver.pair.memory.row();
        let half = (FRAME_MAX / 2 + 16) as u32;
        assert!(row.size > u64::from(half));
        let chain = [(row.guest, half, NEXT, 1), (row.guest, half, 0, 0)];
        assert_eq!(driver.send(&chain), source(Fault::Oversize { slot: 0 }));
    }
    // 16 times 4 GiB, which 32 bits cannot count.
    for driver in RawDriver::both() {
        let row = driver.pair.memory.row();
        let mut chain: Vec<Desc> = (1..SIZE as u16).map(|next| (row.guest, u32::MAX, NEXT, next)).collect();
        chain.push((row.guest, 40, 0, 0));
        assert_eq!(driver.send(&chain), source(Fault::Oversize { slot: 0 }));
    }
}

#[test]
fn tables_of_descriptors_are_bounded_and_not_nested() {
    for case in 0..8 {
        for driver in RawDriver::both() {
            let inside = driver.inside();
            let entry = |flags, next| driver.words(&[(inside, 72, flags, next)], false);
            let table = inside + 1024;
            let (len, flags) = match case {
                0 => (0, INDIRECT),
                1 => (15, INDIRECT),
                2 => (17, INDIRECT),
                3 => (16 * 513, INDIRECT),
                4 => (!15, INDIRECT),
                5 => (16, INDIRECT | NEXT),
                _ => (16, INDIRECT),
            };
            match case {
                6 => driver.write(table, &entry(INDIRECT, 0)),
                7 if !driver.packed => driver.write(table, &entry(NEXT, 1)),
                7 => driver.write(table, &entry(INDIRECT | NEXT, 1)),
                _ => driver.write(table, &entry(0, 0)),
            }
            // In a packed ring's table such flags are reserved, and ignored (2.8.7).
            let passes = driver.packed && case >= 6;
            let expected = if passes { Ok((1, 0)) } else { source(Fault::Table { slot: 0, length: len }) };
            assert_eq!(driver.send(&[(table, len, flags, 0)]), expected, "case {case}");
        }
    }
}

#[test]
fn a_table_outside_of_memory_or_in_a_circle_ends_the_connection() {
    for driver in RawDriver::both() {
        assert_eq!(driver.send(&[(OUTSIDE, 32, INDIRECT, 0)]), source(missing(0, OUTSIDE, 32)));
    }
    for driver in RawDriver::both() {
        let at = u64::MAX - 15;
        assert_eq!(driver.send(&[(at, 32, INDIRECT, 0)]), source(missing(0, at, 32)));
    }
    let driver = RawDriver::new(Features::VERSION_1 | Features::INDIRECT_DESC);
    let inside = driver.inside();
    driver.write(inside, &driver.words(&[(inside, 72, NEXT, 1), (inside, 72, NEXT, 0)], false));
    assert_eq!(driver.send(&[(inside, 32, INDIRECT, 0)]), source(Fault::Table { slot: 0, length: 32 }));
}

#[test]
fn offload_headers_that_do_not_fit_their_frame_are_counted_and_given_back() {
    // NEEDS_CSUM with csum_start beyond the frame; the sum of start and offset in 16 bits; TCPv4 with gso_size 0; unknown.
    let headers: [[u32; 3]; 4] = [
        [0x0000_0001, 0x1000_0000, 0x0001_0010],
        [0x0000_0001, 0xffff_0000, 0x0001_0003],
        [0x0000_0101, 0x0022_0000, 0x0001_0010],
        [0x0000_7701, 0x0022_05a8, 0x0001_0010],
    ];
    let offloads = [Features::CSUM, Features::HOST_TSO4, Features::GUEST_CSUM, Features::GUEST_TSO4];
    for takes in [2, 4] {
        let features = offloads[..takes].iter().fold(Features::VERSION_1, |all, &bit| all | bit);
        for (number, header) in headers.iter().enumerate() {
            for features in [features, features | Features::RING_PACKED] {
                let mut driver = RawDriver::new(features);
                let inside = driver.inside();
                driver.write(inside, header);
                driver.offer(TX, &[(inside, 100, 0, 0)], &[0]);
                assert_eq!(driver.turn(), Ok((0, 1)), "header {number}, {features:x?}");
                let dropped = driver.pair.counters.read().drops[DropReason::BadOffload as usize];
                assert_eq!(dropped, 1);
            }
        }
    }
}

#[test]
fn a_buffer_that_crosses_from_one_region_to_the_next_is_whole() {
    for features in [Features::VERSION_1, Features::VERSION_1 | Features::RING_PACKED] {
        let mut driver = RawDriver::new(features);
        let row = driver.pair.memory.row();
        let inside = driver.inside();
        // The same memory in two rows; a row ends in the middle of the buffer.
        let first = inside + 50 - row.guest;
        let rows = [(0, first), (first, row.size - first)].map(|(offset, size)| {
            let part = MemoryRegion { guest: row.guest + offset, size, user: row.user + offset, offset };
            (part, driver.pair.memory.region().part(offset, size).unwrap())
        });
        let mut halved = setup(&driver.pair.memory, TX, features, &driver.pair.eventfds[TX], None);
        halved.memory = GuestMemory::new(rows.into()).unwrap();
        driver.pair.guest_tx = AnySource::Vhost(GuestTx::new(&halved).unwrap());
        driver.write(inside + 12, &[0x0303_0303; 16]);
        driver.offer(TX, &[(inside, 76, 0, 0)], &[0]);
        assert_eq!(driver.turn(), Ok((1, 0)));
        assert_eq!(driver.pair.receive(), [vec![3; 64]]);
    }
}

#[test]
fn memory_that_is_truncated_ends_the_connection() {
    for features in [Features::VERSION_1, Features::VERSION_1 | Features::RING_PACKED] {
        let mut driver = RawDriver::new(features);
        let row = driver.pair.memory.row();
        // Memory of the same layout that nothing holds to its length.
        let file = memfd_create(c"unsealed", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, row.size.cast_signed()).unwrap();
        let health = Arc::default();
        let region = Region::map(file.try_clone().unwrap(), row.size, &health).unwrap();
        let [rx, tx] = [RX, TX].map(|ring| {
            let mut ring_setup = setup(&driver.pair.memory, ring, features, &driver.pair.eventfds[ring], None);
            ring_setup.memory = GuestMemory::new(vec![(row, region.clone())]).unwrap();
            ring_setup.health = Arc::clone(&health);
            ring_setup
        });
        driver.pair.guest_tx = AnySource::Vhost(GuestTx::new(&tx).unwrap());
        driver.pair.guest_rx = AnyTarget::Vhost(GuestRx::new(&rx).unwrap());
        assert_eq!(driver.turn(), Ok((0, 0)));
        ftruncate(&file, 0).unwrap();
        let found = (0..3).find_map(|_| driver.turn().err());
        assert!(
            matches!(found, Some(Broken::Source(Fault::Memory(_)) | Broken::Target(Fault::Memory(_)))),
            "{found:?}"
        );
    }
}
