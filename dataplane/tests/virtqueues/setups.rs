//! Rings that cannot be, and memory tables that cannot be.

use std::sync::Arc;

use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::memory::{GuestMemory, MemoryError, MemoryRegion, REGIONS_MAX};
use ferrule_dataplane::port::vhost_user::virtqueue::{GuestRx, GuestTx};
use ferrule_dataplane::port::vhost_user::vring::{SIZE_MAX, VringError, VringSetup};
use ferrule_endpoints::virtio::{DriverMemory, DriverSpec, Eventfds};
use ferrule_ffi::region::Region;

use crate::pair::setup;

fn good(features: Features) -> VringSetup {
    let memory = DriverMemory::create(DriverSpec { size: 64, buffer: 128, header_apart: false }, 2).unwrap();
    setup(&memory, 1, features, &Eventfds::new().unwrap(), None)
}

/// Why both kinds of ends refuse this ring, or that they take it.
fn check(setup: &VringSetup) -> Option<VringError> {
    let (tx, rx) = (GuestTx::new(setup).err(), GuestRx::new(setup).err());
    assert_eq!(tx, rx);
    tx
}

#[test]
fn a_ring_has_a_size_that_its_layout_allows() {
    let size = |features, size| check(&VringSetup { size, ..good(features) });
    for bad in [0, 3, 63, SIZE_MAX + 1, u32::MAX] {
        assert_eq!(size(Features::default(), bad), Some(VringError::Size { index: 1, size: bad }));
    }
    for bad in [0, SIZE_MAX + 1, u32::MAX] {
        assert_eq!(size(Features::RING_PACKED, bad), Some(VringError::Size { index: 1, size: bad }));
    }
    for right in [1, 2, 64] {
        assert_eq!(size(Features::default(), right), None);
    }
    for right in [1, 3, 63, 64] {
        assert_eq!(size(Features::RING_PACKED, right), None);
    }
}

/// Moves a part of a ring elsewhere.
type Change = fn(&mut VringSetup, u64);

#[test]
fn all_of_a_ring_lies_aligned_in_one_region() {
    for features in [Features::default(), Features::RING_PACKED] {
        let good = good(features);
        assert_eq!(check(&good), None);
        let row = *good.memory.regions().next().unwrap();
        let end = row.user + row.size;
        let parts: [(Change, u64); 3] = [
            (|setup, at| setup.desc = at, 16),
            (|setup, at| setup.avail = at, if features.has(Features::RING_PACKED) { 4 } else { 2 }),
            (|setup, at| setup.used = at, 4),
        ];
        for (change, align) in parts {
            let outside = [0, row.user - align, end, end - align, !15, u64::MAX];
            // The last event structure of a packed ring fits where it just fits.
            let inside_after_all = |at: u64| features.has(Features::RING_PACKED) && align == 4 && at == end - 4;
            for at in outside.into_iter().chain([row.user + 1, row.user + align / 2 + align]) {
                let mut setup = good.clone();
                change(&mut setup, at);
                if inside_after_all(at) {
                    continue;
                }
                let error = check(&setup);
                let named = matches!(error, Some(VringError::Place { index: 1, address, .. }) if address == at);
                assert!(named, "{features:x?}: {at:#x} with alignment {align}: {error:?}");
            }
        }
    }
}

#[test]
fn a_packed_ring_begins_inside_itself() {
    let base = |base| check(&VringSetup { base, ..good(Features::RING_PACKED) });
    for right in [0, 63, 0x8000, 0x803f, 0x8000_8000, 0x803f_0005, 0x0001_ffff] {
        assert_eq!(base(right), None, "{right:#x}");
    }
    for bad in [64, 0x8040, 0xffff, 0x8040_8000, 0xffff_8000] {
        assert_eq!(base(bad), Some(VringError::Base { index: 1, base: bad, size: 64 }));
    }
}

#[test]
fn a_memory_table_is_checked_as_a_whole() {
    let file = Region::create("memory", 0x3000, &Arc::default()).unwrap();
    let row = |guest, size, user, offset| MemoryRegion { guest, size, user, offset };
    // A row whose window does not lie in the file gets as much of it as there is.
    let window = |row: &MemoryRegion| file.part(row.offset, row.size).unwrap_or_else(|| file.clone());
    let table = |rows: &[MemoryRegion]| GuestMemory::new(rows.iter().map(|row| (*row, window(row))).collect()).err();
    let good = row(0x1000, 0x1000, 0x9000, 0x1000);
    assert_eq!(table(&[good, row(0x2000, 0x2000, 0xa000, 0x1000), row(0, 0x1000, 0x5000, 0)]), None);
    assert_eq!(table(&[]), Some(MemoryError::Empty));
    assert_eq!(table(&[good; REGIONS_MAX + 1]), Some(MemoryError::TooMany { regions: REGIONS_MAX + 1 }));
    assert_eq!(table(&[row(5, 0, 0, 0)]), Some(MemoryError::NoBytes { guest: 5 }));
    for announced in [row(u64::MAX, 2, 0, 0), row(0, 2, u64::MAX, 0), row(0, 0x1000, 0, u64::MAX - 0xfff)] {
        assert_eq!(table(&[announced]), Some(MemoryError::Wraps { announced }));
    }
    let announced = row(0, 0x3001, 0, 0);
    assert_eq!(table(&[announced]), Some(MemoryError::Short { announced, held: 0x3000 }));
    assert_eq!(table(&[good, row(0x1fff, 1, 0, 0)]), Some(MemoryError::Overlap { first: 0x1000, second: 0x1fff }));
    assert_eq!(table(&[good, good]), Some(MemoryError::Overlap { first: 0x1000, second: 0x1000 }));
}
