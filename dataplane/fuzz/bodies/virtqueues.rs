//! Any sequence of changes that a driver makes to its rings and buffers, and of visits of ours.

use std::cell::RefCell;
use std::sync::Arc;

use ferrule_dataplane::counters::LinkCounters;
use ferrule_dataplane::link::Scratch;
use ferrule_dataplane::port::any::{AnySource, AnyTarget, forward};
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::log::DirtyLog;
use ferrule_dataplane::port::vhost_user::memory::{GuestMemory, MemoryRegion};
use ferrule_dataplane::port::vhost_user::virtqueue::{GuestRx, GuestTx};
use ferrule_dataplane::port::vhost_user::vring::{VringLog, VringSetup};
use ferrule_dataplane::spec::Full;
use ferrule_endpoints::virtio::{DriverMemory, DriverRx, DriverSpec, DriverTx, Eventfds, RingAddresses};
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::region::Region;

/// The first two bytes choose features; then come steps of a byte that says what happens, and nine that say how.
pub fn run(data: &[u8]) {
    let [low, high, steps @ ..] = data else { return };
    let features = features(u16::from_le_bytes([*low, *high]));
    let mut world = World::new(features, high & 0x80 != 0);
    let counters = LinkCounters::default().lane(0);
    let mut resume = 0;
    for step in steps.chunks_exact(STEP_LEN).take(STEPS_MAX) {
        let place = u64::from(u32::from_le_bytes([step[1], step[2], step[3], 0]));
        let value = u64::from_le_bytes([step[4], step[5], step[6], step[7], step[8], step[9], 0, 0]);
        if step[0].is_multiple_of(4) {
            let World { tx, rx, .. } = &mut world;
            // A driver that broke the protocol loses its connection.
            let outcome = with_tools(|scratch| forward(tx, rx, Full::Drop, &mut resume, &counters, scratch));
            if let Err(broken) = outcome {
                return assert!(!format!("{broken:?}").is_empty());
            }
        } else {
            world.poke(step[0], place, value);
        }
    }
}

/// What a worker has, made once: giving it back takes the kernel some time.
fn with_tools<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    thread_local! {
        static TOOLS: RefCell<Scratch> =
            RefCell::new(Scratch::new(Notifier::new().expect("asynchronous I/O can be had")));
    }
    TOOLS.with_borrow_mut(|scratch| {
        let outcome = work(scratch);
        scratch.notifier.flush();
        outcome
    })
}

/// Descriptors that are good, and rings that offer them, for a fuzzer to spoil.
pub fn seeds() -> Vec<Vec<u8>> {
    let sets = [0u16, 1, 2, 3, 0b101_1110, 0b101_1111, 0b1_0000_0001, 0b1_0000_0000, 0x8000, 0x8001];
    sets.into_iter().map(seed).collect()
}

fn seed(set: u16) -> Vec<u8> {
    let packed = features(set).has(Features::RING_PACKED);
    let mut data = set.to_le_bytes().to_vec();
    let mut step = |kind: u8, place: u64, value: u64| {
        data.push(kind);
        data.extend(&place.to_le_bytes()[..3]);
        data.extend(&value.to_le_bytes()[..6]);
    };
    // A plain frame, a chain of three, a table; each kind of step goes to the ring that its number names.
    for (slot, (len, flags, next)) in
        [(72, 0, 0), (12, NEXT, 2), (100, NEXT, 3), (4000, 0, 0), (48, INDIRECT, 0)].into_iter().enumerate()
    {
        let words = if packed { [len, next | (flags | AVAIL) << 16] } else { [len, flags | next << 16] };
        step(DESC, slot as u64 * 16, BUFFERS + 4096 * slot as u64);
        step(DESC, slot as u64 * 16 + 8, words[0] | (words[1] & 0xffff) << 32);
        step(DESC, slot as u64 * 16 + 12, words[1]);
    }
    for (place, head) in [0, 1, 4].into_iter().enumerate() {
        step(AVAIL_RING, 4 + 2 * place as u64, head);
    }
    step(AVAIL_RING, 2, 3);
    for entry in 0..3 {
        let table = BUFFERS + 4 * 4096 + 16 * entry;
        step(BYTES, table - GUEST, BUFFERS + 0x1000);
        step(BYTES, table - GUEST + 8, 40);
        step(BYTES, table - GUEST + 12, if entry < 2 { NEXT | (entry + 1) << 16 } else { 0 });
    }
    step(VISIT, 0, 0);
    step(VISIT, 0, 0);
    data
}

fn features(set: u16) -> Features {
    let bits = [
        Features::RING_PACKED,
        Features::IN_ORDER,
        Features::MRG_RXBUF,
        Features::INDIRECT_DESC,
        Features::EVENT_IDX,
        Features::VERSION_1,
        Features::CSUM,
        Features::GUEST_CSUM,
        Features::LOG_ALL,
    ];
    let chosen = bits.iter().enumerate().filter(|(number, _)| set >> number & 1 == 1);
    chosen.fold(Features::default(), |all, (_, &bit)| all | bit)
}

/// Our ends of both rings, and the driver's hands in all of its memory.
struct World {
    tx: AnySource,
    rx: AnyTarget,
    memory: DriverMemory,
    addresses: [RingAddresses; 2],
    log: Option<Region>,
}

impl World {
    fn new(features: Features, halved: bool) -> Self {
        let memory = DriverMemory::create(DriverSpec { size: SIZE, buffer: 2048, header_apart: false }, 2)
            .expect("memory can be made");
        let row = memory.row();
        assert_eq!(row.guest, GUEST);
        let logged = features.has(Features::LOG_ALL).then_some((row.guest + row.size) / 4096 / 8 - 1);
        let log = logged.map(|bytes| Region::create("log", bytes, memory.health()).expect("it can be made"));
        // In two rows, with a border in the middle of some buffer.
        let border = if halved { 0x6789 } else { row.size };
        let rows = [(0, border), (border, row.size - border)].into_iter().filter(|(_, size)| *size > 0);
        let part = |(offset, size)| MemoryRegion { guest: row.guest + offset, size, user: row.user + offset, offset };
        let window = |(offset, size)| memory.region().part(offset, size).expect("it is a part of it");
        let rows = rows.map(|at| (part(at), window(at))).collect();
        let table = GuestMemory::new(rows).expect("the table is a good one");
        let eventfds = Eventfds::new().expect("eventfds can be made");
        let setup = |index: usize| {
            let at = memory.addresses(index);
            VringSetup {
                index: index as u32,
                size: SIZE,
                desc: at.desc,
                avail: at.avail,
                used: at.used,
                base: if features.has(Features::RING_PACKED) { 0x8000 } else { 0 },
                enabled: true,
                features,
                kick: None,
                call: Some(Arc::clone(&eventfds.call)),
                memory: table.clone(),
                log: log
                    .as_ref()
                    .map(|file| VringLog { dirty: DirtyLog::new(file.clone()), used: Some(at.used_guest) }),
                inflight: None,
                health: Arc::clone(memory.health()),
            }
        };
        let addresses = [memory.addresses(0), memory.addresses(1)];
        // A driver that has its buffers ready, before it goes mad.
        let _ = DriverRx::new(&memory, 0, features, eventfds.clone());
        let _ = DriverTx::new(&memory, 1, features, eventfds.clone());
        let rings = GuestRx::new(&setup(0)).and_then(|rx| Ok((rx, GuestTx::new(&setup(1))?)));
        // The border may go through a ring, which is then refused; and whole memory is next.
        let Ok((rx, tx)) = rings else { return Self::new(features, false) };
        Self { tx: AnySource::Vhost(tx), rx: AnyTarget::Vhost(rx), memory, addresses, log }
    }

    fn poke(&self, kind: u8, place: u64, value: u64) {
        let region = self.memory.region();
        let ring = self.addresses[usize::from(kind & 0x80 == 0)];
        let user = self.memory.row().user;
        let at = match kind % 4 {
            DESC => ring.desc - user + place % (16 * u64::from(SIZE)),
            AVAIL_RING => ring.avail - user + place % 64,
            _ => place % region.len() as u64,
        };
        // The sizes that drivers write: 16 bits of a ring, 64 of an address, 32 of the rest.
        if kind % 4 == AVAIL_RING {
            if let Some(index) = region.index(at & !1) {
                index.store(value as u16);
            }
        } else {
            let _ = region.write_u32(at & !3, value as u32);
            if at.is_multiple_of(8) {
                let _ = region.write_u32(at + 4, (value >> 32) as u32);
            }
        }
        if let Some(log) = &self.log {
            let _ = log.write_u32((place % log.len() as u64) & !3, value as u32);
        }
    }
}

const SIZE: u32 = 16;
const VISIT: u8 = 0;
const DESC: u8 = 1;
const AVAIL_RING: u8 = 2;
const BYTES: u8 = 3;
const NEXT: u64 = 1;
const INDIRECT: u64 = 4;
const AVAIL: u64 = 1 << 7;
/// Where the driver's memory begins for the guest, and some of the transmit ring's buffers.
const GUEST: u64 = 1 << 32;
const BUFFERS: u64 = GUEST + 0x1_0000;
const STEP_LEN: usize = 10;
const STEPS_MAX: usize = 200;
