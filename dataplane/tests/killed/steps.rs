//! Every point at which a backend can be killed while it moves a burst.
//!
//! The backend runs in a process that is traced one instruction after the other; the rings and the in-flight blocks are
//! copied whenever they have changed. Each copy is what a backend killed there would have left, and a successor goes on
//! from it.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use ferrule_dataplane::counters::LaneCounters;
use ferrule_dataplane::link::Scratch;
use ferrule_dataplane::port::any::{AnySource, AnyTarget, forward};
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::memory::GuestMemory;
use ferrule_dataplane::port::vhost_user::virtqueue::{GuestRx, GuestTx};
use ferrule_dataplane::port::vhost_user::vring::VringSetup;
use ferrule_dataplane::port::{BURST, FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::Full;
use ferrule_dataplane::visit::Visit;
use ferrule_endpoints::virtio::{DriverMemory, DriverRx, DriverSpec, DriverTx, Eventfds};
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::region::Region;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};

use crate::child::Killed;

pub const ROLE: &str = "steps";

struct Case {
    name: &'static str,
    features: Features,
    /// Frames that have crossed before: where in the rings the burst begins.
    before: usize,
}

const SPLIT: Features = Features::VERSION_1.with(Features::MRG_RXBUF);
const PACKED: Features = SPLIT.with(Features::RING_PACKED);

/// In the middle of a ring, at its end, and in a later round.
const CASES: [Case; 7] = [
    Case { name: "split, at the end", features: SPLIT, before: SIZE as usize - 2 },
    Case { name: "split, in order", features: SPLIT.with(Features::IN_ORDER), before: SIZE as usize - 2 },
    Case { name: "packed", features: PACKED, before: 1 },
    Case { name: "packed, at the end", features: PACKED, before: SIZE as usize - 2 },
    Case { name: "packed, in a later round", features: PACKED, before: 2 * SIZE as usize - 1 },
    Case { name: "packed, with tables", features: PACKED.with(Features::INDIRECT_DESC), before: SIZE as usize - 2 },
    Case { name: "packed, in order, at the end", features: PACKED.with(Features::IN_ORDER), before: SIZE as usize - 2 },
];
const SIZE: u32 = 8;
const BUFFER: u32 = 128;
/// Of the burst: the second one takes three buffers on either side.
const LENGTHS: [usize; 3] = [60, 300, 64];
const RX: usize = 0;
const TX: usize = 1;

pub fn a_backend_killed_after_any_store_is_succeeded() {
    // One for all backends: its notifier takes the kernel some milliseconds to undo.
    let scratch = &mut Scratch::new(Notifier::new().unwrap());
    for (number, case) in CASES.iter().enumerate() {
        let images = images(number, case, scratch);
        assert!(images.len() > 20, "{}: the backend was seen at work", case.name);
        for (at, image) in images.iter().enumerate() {
            for driver_goes_on in [false, true] {
                let what = format!("{}, killed after store {at} of {}", case.name, images.len());
                verify(case, image, driver_goes_on, scratch, &what);
            }
        }
        println!("{}: {} kill points", case.name, images.len());
    }
}

/// A guest whose frames come back to it: both rings lie in its memory.
struct Guest {
    memory: DriverMemory,
    tx: DriverTx,
    rx: DriverRx,
    blocks: [Region; 2],
    features: Features,
    sent: usize,
}

impl Guest {
    /// One that has sent its burst, which nobody has looked at.
    fn new(case: &Case, scratch: &mut Scratch) -> Self {
        let memory = memory();
        let features = case.features;
        let eventfds = || Eventfds::new().unwrap();
        let mut guest = Self {
            tx: DriverTx::new(&memory, TX, features, eventfds()),
            rx: DriverRx::new(&memory, RX, features, eventfds()),
            memory,
            blocks: [RX, TX].map(|_| Region::create("inflight", 4096, &Arc::default()).unwrap()),
            features,
            sent: 0,
        };
        let mut backend = guest.backend();
        for number in 0..case.before {
            assert!(guest.send(60));
            backend.turn(scratch);
            assert_eq!(guest.receive(), [number]);
        }
        drop(backend);
        assert!(LENGTHS.iter().all(|&length| guest.send(length)));
        guest
    }

    fn backend(&self) -> Backend {
        Backend::new(&self.memory, self.memory.region().clone(), &self.blocks, self.features)
    }

    /// Sends the next frame, whose number is in all of its bytes. Whether there was room.
    fn send(&mut self, length: usize) -> bool {
        self.tx.refresh().unwrap();
        let bytes = vec![self.sent as u8; length];
        let stored = self.tx.put(&Frame { bytes: bytes[..].into(), offload: None, slots: 0 }).unwrap() == Put::Stored;
        self.tx.publish();
        self.sent += usize::from(stored);
        stored
    }

    /// The numbers of the frames that have come back.
    fn receive(&mut self) -> Vec<usize> {
        let mut gather = vec![0; FRAME_MAX];
        let mut numbers = Vec::new();
        while self.rx.refresh().unwrap() {
            while let Some(frame) = self.rx.peek(&mut gather).unwrap() {
                let mut bytes = vec![0; frame.bytes.len()];
                assert!(frame.bytes.copy_out(&mut bytes));
                let slots = frame.slots;
                assert!(bytes.iter().all(|byte| *byte == bytes[0]) && bytes.len() >= 60, "a frame is whole");
                numbers.push(bytes[0].into());
                self.rx.advance(slots);
            }
            self.rx.release();
        }
        numbers
    }

    /// The bytes that outlive a backend.
    fn image(&self) -> Vec<Vec<u8>> {
        self.regions()
            .map(|region| {
                let mut bytes = vec![0; region.len()];
                assert!(region.span(0, region.len() as u32).unwrap().copy_out(&mut bytes));
                bytes
            })
            .collect()
    }

    /// Whether nothing has changed since.
    fn is_as_in(&self, image: Option<&Vec<Vec<u8>>>) -> bool {
        image.is_some_and(|image| self.regions().zip(image).all(|(region, bytes)| is_same(region, bytes)))
    }

    fn load(&self, image: &[Vec<u8>]) {
        for (region, bytes) in self.regions().zip(image) {
            let mut room = region.span_mut(0, bytes.len() as u32).unwrap();
            assert!(ferrule_ffi::span::Span::from(&bytes[..]).copy_to(&mut room));
        }
    }

    fn regions(&self) -> impl Iterator<Item = &Region> {
        std::iter::once(self.memory.region()).chain(&self.blocks)
    }
}

fn is_same(region: &Region, bytes: &[u8]) -> bool {
    let mut now = [0; 4096];
    (0u32..).zip(bytes.chunks(now.len())).all(|(page, before)| {
        let len = before.len() as u32;
        region.span(page * 4096, len).unwrap().copy_out(&mut now[..before.len()]) && now[..before.len()] == *before
    })
}

fn memory() -> DriverMemory {
    DriverMemory::create(DriverSpec { size: SIZE, buffer: BUFFER, header_apart: false }, 2).unwrap()
}

/// Our ends of the rings, and the link between them.
struct Backend {
    source: AnySource,
    target: AnyTarget,
    counters: LaneCounters,
}

impl Backend {
    /// Takes hold of rings at these addresses whose frontend does not know where they were left.
    fn new(addresses: &DriverMemory, memory: Region, blocks: &[Region; 2], features: Features) -> Self {
        let memory = GuestMemory::new(vec![(addresses.row(), memory)]).unwrap();
        let [rx, tx] = [RX, TX].map(|index| {
            let at = addresses.addresses(index);
            VringSetup {
                index: index as u32,
                size: SIZE,
                desc: at.desc,
                avail: at.avail,
                used: at.used,
                base: if features.has(Features::RING_PACKED) { 0x8000_8000 } else { 0 },
                enabled: true,
                features,
                kick: None,
                call: None,
                memory: memory.clone(),
                log: None,
                inflight: Some(blocks[index].clone()),
                health: Arc::default(),
            }
        });
        Self {
            source: AnySource::Vhost(GuestTx::new(&tx).unwrap()),
            target: AnyTarget::Vhost(GuestRx::new(&rx).unwrap()),
            counters: LaneCounters::default(),
        }
    }

    /// Moves frames until nothing moves.
    fn turn(&mut self, scratch: &mut Scratch) {
        let Self { source, target, counters } = self;
        while forward(source, target, Full::Hold, &mut 0, counters, scratch).unwrap() == Visit::Moved {}
    }
}

/// The traced process: takes the rings over, moves the burst, and says so by stopping again.
pub fn serve(arguments: &[String]) {
    let case = &CASES[arguments[0].parse::<usize>().unwrap()];
    let addresses = memory();
    let regions = arguments[1..].iter().map(|path| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let len = file.metadata().unwrap().len();
        Region::map(std::os::fd::OwnedFd::from(file), len, &Arc::default()).unwrap()
    });
    let [memory, rx, tx] = regions.collect::<Vec<_>>().try_into().ok().unwrap();
    let scratch = &mut Scratch::new(Notifier::new().unwrap());
    ptrace::traceme().unwrap();
    raise(Signal::SIGSTOP).unwrap();
    let mut backend = Backend::new(&addresses, memory, &[rx, tx], case.features);
    backend.turn(scratch);
    raise(Signal::SIGSTOP).unwrap();
}

/// What a backend killed at any point would leave, in the order of those points.
fn images(number: usize, case: &Case, scratch: &mut Scratch) -> Vec<Vec<Vec<u8>>> {
    let guest = Guest::new(case, scratch);
    let path = |file: BorrowedFd<'_>| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let paths = guest.regions().map(|region| path(region.file()));
    let child = Killed::start(ROLE, std::iter::once(number.to_string()).chain(paths));
    assert_eq!(waitpid(child.pid(), None).unwrap(), WaitStatus::Stopped(child.pid(), Signal::SIGSTOP));
    let mut images = vec![guest.image()];
    loop {
        ptrace::step(child.pid(), None).unwrap();
        match waitpid(child.pid(), None).unwrap() {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, Signal::SIGSTOP) => return images,
            other => panic!("{}: the backend ended: {other:?}", case.name),
        }
        if !guest.is_as_in(images.last()) {
            images.push(guest.image());
        }
    }
}

/// A successor goes on from an image: each frame of the burst arrives, in its order, and the rings live. With
/// `driver_goes_on`, the guest has used its rings once more before the successor came.
fn verify(case: &Case, image: &[Vec<u8>], driver_goes_on: bool, scratch: &mut Scratch, what: &str) {
    let mut guest = Guest::new(case, scratch);
    guest.load(image);
    let mut arrived = Vec::new();
    if driver_goes_on {
        arrived.extend(guest.receive());
        while guest.send(64) {}
    }
    let mut backend = guest.backend();
    for _ in 0..SIZE {
        backend.turn(scratch);
        arrived.extend(guest.receive());
    }
    for _ in 0..3 * SIZE {
        assert!(guest.send(100), "{what}: there is no room for more frames");
        backend.turn(scratch);
        arrived.extend(guest.receive());
    }
    // What the receiver could see when the sender had not got it back is sent once more: both rings cannot change at once.
    let again = arrived.windows(2).position(|pair| pair[1] <= pair[0]);
    let (first, second) = arrived.split_at(again.map_or(0, |at| at + 1));
    let repeated = first.len().saturating_sub(second.first().map_or(0, |number| number - case.before));
    let expected: Vec<_> = (case.before..guest.sent).collect();
    let once = [&first[..first.len() - repeated.min(first.len())], second].concat();
    assert!(once == expected && repeated <= LENGTHS.len().min(BURST), "{what}: {arrived:?} of {expected:?} arrived");
}
