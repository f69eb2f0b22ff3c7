//! Any sequence of changes that a peer makes to the rings, and of visits of ours.

use std::sync::Arc;

use ferrule_dataplane::port::memif::layout::{Layout, Queues};
use ferrule_dataplane::port::memif::message::{AddRegion, AddRing, Direction};
use ferrule_dataplane::port::{FRAME_MAX, Fault, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::notifier::eventfd;
use ferrule_ffi::region::Region;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use std::os::fd::OwnedFd;

/// The first byte says which side we are; then come steps of a byte that says what happens, and six that
/// say how.
pub fn run(data: &[u8]) {
    let Some((&who, steps)) = data.split_first() else { return };
    let (mut queues, peer, _layout) = if who.is_multiple_of(2) { as_server() } else { as_client() };
    let (mut gather, frame) = (vec![0; FRAME_MAX], vec![0x5a; FRAME_MAX]);
    for step in steps.chunks_exact(STEP_LEN).take(STEPS_MAX) {
        let place = u64::from(u16::from_le_bytes([step[1], step[2]]));
        let value = u32::from_le_bytes([step[3], step[4], step[5], step[6]]);
        let outcome = match step[0] % 4 {
            0 => {
                let _ = peer.write_u32(place & !3, value);
                Ok(())
            }
            1 => {
                if let Some(index) = peer.index(place & !1) {
                    index.store(value as u16);
                }
                Ok(())
            }
            2 => take(&mut queues, &mut gather),
            _ => put(&mut queues, &frame[..value as usize % (FRAME_MAX + 1)]),
        };
        // A peer that broke its protocol loses its connection.
        if let Err(fault) = outcome {
            return assert!(!fault.to_string().is_empty());
        }
    }
}

/// Frames that cross, for a fuzzer to spoil.
pub fn seeds() -> Vec<Vec<u8>> {
    let poke = |kind: u8, place: u16, value: u32| {
        let mut step = vec![kind];
        step.extend(place.to_le_bytes());
        step.extend(value.to_le_bytes());
        step.resize(STEP_LEN, 0);
        step
    };
    let as_server = [
        // Two S2M slots, a chain, and their head.
        poke(0, 128, NEXT),
        poke(0, 132, 64),
        poke(0, 136, 32_768),
        poke(0, 148, 60),
        poke(0, 152, 40_000),
        poke(1, 6, 2),
        poke(2, 0, 0),
        // One M2S buffer, and its head.
        poke(0, M2S as u16 + 132, 2048),
        poke(0, M2S as u16 + 136, 50_000),
        poke(1, M2S as u16 + 6, 1),
        poke(3, 0, 60),
        poke(3, 0, 4000),
    ];
    // The client's rings of 16 slots are 384 bytes long.
    let as_client =
        [poke(3, 0, 60), poke(1, 64, 1), poke(0, 516, 60), poke(1, 448, 1), poke(2, 0, 0), poke(3, 0, 9000)];
    let written = |who: u8, steps: &[Vec<u8>]| std::iter::once(who).chain(steps.concat()).collect();
    vec![written(0, &as_server), written(1, &as_client)]
}

/// Takes all that is there.
fn take(queues: &mut Queues, gather: &mut [u8]) -> Result<(), Fault> {
    let receiver = &mut queues.receivers[0];
    if !receiver.refresh()? {
        return Ok(());
    }
    for _ in 0..SLOTS {
        let Some(frame) = receiver.peek(gather)? else { break };
        assert!(frame.bytes.len() <= FRAME_MAX && frame.slots as usize <= SLOTS);
        let mut copy = vec![0; frame.bytes.len()];
        assert!(frame.bytes.copy_out(&mut copy));
        let slots = frame.slots;
        receiver.advance(slots);
    }
    receiver.release();
    Ok(())
}

/// Puts one frame, if it fits.
fn put(queues: &mut Queues, bytes: &[u8]) -> Result<(), Fault> {
    let sender = &mut queues.senders[0];
    sender.refresh()?;
    let room = sender.room();
    assert!(usize::from(room) <= SLOTS);
    let put = sender.put(&Frame { bytes: bytes.into(), offload: None, slots: 0 })?;
    assert_eq!(put == Put::Stored, sender.room() < room);
    sender.publish();
    Ok(())
}

/// Our side, the peer's hands in the first region, and what keeps it all.
fn as_server() -> (Queues, Region, Layout) {
    let file = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd can be made");
    ftruncate(&file, 65_536).expect("it can be made longer");
    let copy = file.try_clone().expect("a descriptor is left");
    let peer = Region::map(copy, 65_536, &Arc::default()).expect("it can be mapped");
    let mut layout = Layout::announced_by_peer(&MemoryBudget::unlimited());
    layout.add_region(AddRegion { index: 0, size: 65_536 }, file.into()).expect("the region is a good one");
    for (direction, offset) in [(Direction::S2M, 0), (Direction::M2S, M2S)] {
        peer.write_u32(u64::from(offset), 0x03E3_1F20).expect("the ring lies inside");
        let ring = AddRing { direction, index: 0, region: 0, offset, log2_size: 4, private_header: 0 };
        let eventfd = OwnedFd::from(eventfd().expect("an eventfd can be made"));
        layout.add_ring(ring, eventfd.into()).expect("the ring is a good one");
    }
    (layout.queues().expect("the rings are good ones"), peer, layout)
}

fn as_client() -> (Queues, Region, Layout) {
    let spec = MemifSpec { ring: SLOTS as u32, ..MemifSpec::new("@fuzz".parse().expect("an address"), Role::Client) };
    let mut layout = Layout::create(&spec, 1, spec.ring, &<_>::default()).expect("memory can be made");
    let (region, file) = layout.regions().next().expect("there are two");
    let file = file.try_clone_to_owned().expect("a descriptor is left");
    let peer = Region::map(file, region.size, &Arc::default()).expect("it can be mapped");
    (layout.queues().expect("the rings are our own"), peer, layout)
}

/// The frame goes on in the next slot.
const NEXT: u32 = 1;
const SLOTS: usize = 16;
/// Where the M2S ring of a peer begins.
const M2S: u32 = 4096;
const STEP_LEN: usize = 7;
const STEPS_MAX: usize = 200;
