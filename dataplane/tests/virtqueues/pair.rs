//! A driver and a device on the same memory.

use std::sync::Arc;

use ferrule_dataplane::counters::LinkCounters;
use ferrule_dataplane::link::Scratch;
use ferrule_dataplane::port::any::{AnySource, AnyTarget, forward};
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::memory::GuestMemory;
use ferrule_dataplane::port::vhost_user::virtqueue::{GuestRx, GuestTx};
use ferrule_dataplane::port::vhost_user::vring::{VringLog, VringSetup};
use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::Full;
use ferrule_dataplane::visit::{Broken, Visit};
use ferrule_endpoints::virtio::{DriverMemory, DriverRx, DriverSpec, DriverTx, Eventfds};
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::region::Region;

/// Both rings of a queue pair, both sides of each.
pub struct Pair {
    pub memory: DriverMemory,
    pub driver_tx: DriverTx,
    pub driver_rx: DriverRx,
    pub guest_tx: AnySource,
    pub guest_rx: AnyTarget,
    pub counters: LinkCounters,
    resume: usize,
    scratch: Scratch,
    pub eventfds: [Eventfds; 2],
    pub features: Features,
}

pub const RX: usize = 0;
pub const TX: usize = 1;

impl Pair {
    pub fn new(spec: DriverSpec, features: Features) -> Self {
        let memory = DriverMemory::create(spec, 2).unwrap();
        let eventfds = [Eventfds::new().unwrap(), Eventfds::new().unwrap()];
        let [rx, tx] = [RX, TX].map(|index| setup(&memory, index, features, &eventfds[index], None));
        let driver_rx = DriverRx::new(&memory, RX, features, eventfds[RX].clone());
        let driver_tx = DriverTx::new(&memory, TX, features, eventfds[TX].clone());
        Self {
            memory,
            driver_tx,
            driver_rx,
            guest_tx: AnySource::Vhost(GuestTx::new(&tx).unwrap()),
            guest_rx: AnyTarget::Vhost(GuestRx::new(&rx).unwrap()),
            counters: LinkCounters::default(),
            resume: 0,
            scratch: Scratch::new(Notifier::new().unwrap()),
            eventfds,
            features,
        }
    }

    /// Moves what the driver sent into the driver's other ring, as a worker does, until nothing moves.
    pub fn turn(&mut self) -> Counts {
        self.try_turn().unwrap()
    }

    /// The same with a driver that may lie.
    pub fn try_turn(&mut self) -> Result<Counts, Broken> {
        let before = self.counters.read();
        let Self { guest_tx, guest_rx, resume, counters, scratch, .. } = self;
        while forward(guest_tx, guest_rx, Full::Hold, resume, &counters.lane(0), scratch)? == Visit::Moved {}
        scratch.notifier.flush();
        let after = self.counters.read();
        let refused = (after.dropped() - before.dropped()) as usize;
        let rung = |eventfds: &Eventfds| usize::from(nix::unistd::read(&*eventfds.call, &mut [0; 8]).is_ok());
        Ok(Counts {
            frames: (after.frames - before.frames) as usize + refused,
            refused,
            interrupts: rung(&self.eventfds[RX]),
            completions: rung(&self.eventfds[TX]),
        })
    }

    /// One visit to the link. Frames that were taken.
    pub fn visit(&mut self) -> u64 {
        let before = self.counters.read();
        let Self { guest_tx, guest_rx, resume, counters, scratch, .. } = self;
        forward(guest_tx, guest_rx, Full::Hold, resume, &counters.lane(0), scratch).unwrap();
        scratch.notifier.flush();
        let after = self.counters.read();
        after.frames + after.dropped() - before.frames - before.dropped()
    }

    /// Sends as many of these frames as there is room for. How many that were.
    pub fn send(&mut self, frames: &[Vec<u8>]) -> usize {
        self.driver_tx.refresh().unwrap();
        let sent = frames.iter().take_while(|frame| {
            let frame = Frame { bytes: frame[..].into(), offload: None, slots: 0 };
            self.driver_tx.put(&frame).unwrap() == Put::Stored
        });
        let sent = sent.count();
        self.driver_tx.publish();
        sent
    }

    /// Receives everything that is there.
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut gather = vec![0; FRAME_MAX];
        let mut frames = Vec::new();
        while self.driver_rx.refresh().unwrap() {
            while let Some(frame) = self.driver_rx.peek(&mut gather).unwrap() {
                let mut bytes = vec![0; frame.bytes.len()];
                assert!(frame.bytes.copy_out(&mut bytes));
                let slots = frame.slots;
                frames.push(bytes);
                self.driver_rx.advance(slots);
            }
            self.driver_rx.release();
        }
        frames
    }

    /// Our ends, for tests of one of them.
    pub fn guest(&mut self) -> (&mut GuestTx, &mut GuestRx) {
        match (&mut self.guest_tx, &mut self.guest_rx) {
            (AnySource::Vhost(tx), AnyTarget::Vhost(rx)) => (tx, rx),
            _ => unreachable!("a pair is made of these"),
        }
    }

    /// Puts new device ends in the place of these, which begin where these stopped.
    pub fn take_over(&mut self, log: Option<&VringLog>) {
        self.replace(log, |setup| setup);
    }

    /// The same without the flag of SET_VRING_ADDR that has the used ring logged.
    pub fn leave_used_rings_unlogged(&mut self, log: &VringLog) {
        self.replace(Some(log), |setup| {
            let log = setup.log.map(|log| VringLog { used: None, ..log });
            VringSetup { log, ..setup }
        });
    }

    /// Puts new device ends in the place of these, which find their places in these blocks: the frontend does not know.
    pub fn take_over_from_killed(&mut self, blocks: &[Region; 2]) {
        self.replace(None, |setup| {
            let inflight = Some(blocks[setup.index as usize].clone());
            let base = if setup.features.has(Features::RING_PACKED) { 0x8000 } else { 0 };
            VringSetup { inflight, base, ..setup }
        });
    }

    fn replace(&mut self, log: Option<&VringLog>, change: impl Fn(VringSetup) -> VringSetup) {
        let (tx_base, rx_base) = {
            let (tx, rx) = self.guest();
            (tx.base(), rx.base())
        };
        let rx = VringSetup { base: rx_base, ..setup(&self.memory, RX, self.features, &self.eventfds[RX], log) };
        let tx = VringSetup { base: tx_base, ..setup(&self.memory, TX, self.features, &self.eventfds[TX], log) };
        self.guest_rx = AnyTarget::Vhost(GuestRx::new(&change(rx)).unwrap());
        self.guest_tx = AnySource::Vhost(GuestTx::new(&change(tx)).unwrap());
    }
}

#[derive(Default, Debug, PartialEq, Eq)]
pub struct Counts {
    pub frames: usize,
    pub refused: usize,
    pub interrupts: usize,
    pub completions: usize,
}

/// What a frontend would say of a ring of this memory.
pub fn setup(
    memory: &DriverMemory,
    index: usize,
    features: Features,
    eventfds: &Eventfds,
    log: Option<&VringLog>,
) -> VringSetup {
    let at = memory.addresses(index);
    let file = memory.file().try_clone_to_owned().unwrap();
    let row = memory.row();
    let region = Region::map(file, row.offset + row.size, memory.health()).unwrap();
    VringSetup {
        index: index as u32,
        size: memory.spec().size,
        desc: at.desc,
        avail: at.avail,
        used: at.used,
        base: if features.has(Features::RING_PACKED) { 0x8000 } else { 0 },
        enabled: true,
        features,
        kick: Some(Arc::clone(&eventfds.kick)),
        call: Some(Arc::clone(&eventfds.call)),
        memory: GuestMemory::new(vec![(row, region)]).unwrap(),
        log: log.map(|log| VringLog { dirty: log.dirty.clone(), used: Some(at.used_guest) }),
        inflight: None,
        health: Arc::clone(memory.health()),
    }
}

/// A frame that differs in every byte from its neighbours.
pub fn frame(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + number * 13 + (at >> 8)) as u8).collect()
}
