//! A driver and a device on the same memory.

use std::sync::Arc;

use ferrule_dataplane::port::{BURST, FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::vhost::driver::{Bells, DriverMemory, DriverRx, DriverSpec, DriverTx};
use ferrule_dataplane::vhost::features::Features;
use ferrule_dataplane::vhost::memory::GuestMemory;
use ferrule_dataplane::vhost::vring::{GuestRx, GuestTx, VringLog, VringSetup};
use ferrule_ffi::region::Region;

/// Both rings of a queue pair, both sides of each.
pub struct Pair {
    pub memory: DriverMemory,
    pub driver_tx: DriverTx,
    pub driver_rx: DriverRx,
    pub guest_tx: GuestTx,
    pub guest_rx: GuestRx,
    pub bells: [Bells; 2],
    pub features: Features,
}

pub const RX: usize = 0;
pub const TX: usize = 1;

impl Pair {
    pub fn new(spec: DriverSpec, features: Features) -> Self {
        let memory = DriverMemory::create(spec, 2).unwrap();
        let bells = [Bells::new().unwrap(), Bells::new().unwrap()];
        let [rx, tx] = [RX, TX].map(|index| setup(&memory, index, features, &bells[index], None));
        let driver_rx = DriverRx::new(&memory, RX, features, bells[RX].clone());
        let driver_tx = DriverTx::new(&memory, TX, features, bells[TX].clone());
        let (guest_rx, guest_tx) = (GuestRx::new(&rx).unwrap(), GuestTx::new(&tx).unwrap());
        Self { memory, driver_tx, driver_rx, guest_tx, guest_rx, bells, features }
    }

    /// Takes everything that the driver sent and puts it back into the driver's other ring, as far as that goes. What
    /// was not taken because of that stays. Whether each side is to be rung.
    pub fn turn(&mut self) -> Turn {
        let mut gather = vec![0; FRAME_MAX];
        let mut turn = Turn::default();
        while self.guest_tx.look().unwrap() {
            self.guest_rx.look().unwrap();
            let mut full = false;
            for _ in 0..BURST {
                let Some(frame) = self.guest_tx.peek(&mut gather).unwrap() else { break };
                let slots = frame.slots;
                let put = self.guest_rx.put(&frame).unwrap();
                full = put == Put::Full;
                if full {
                    break;
                }
                turn.frames += 1;
                turn.refused += usize::from(matches!(put, Put::Refused(_)));
                self.guest_tx.advance(slots);
            }
            turn.interrupts += usize::from(self.guest_rx.publish());
            self.guest_tx.release();
            turn.completions += usize::from(self.guest_tx.release_bell().is_some());
            if full {
                break;
            }
        }
        turn
    }

    /// Sends as many of these frames as there is room for. How many that were.
    pub fn send(&mut self, frames: &[Vec<u8>]) -> usize {
        self.driver_tx.look().unwrap();
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
        while self.driver_rx.look().unwrap() {
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

    /// Puts new device ends in the place of these, which begin where these stopped.
    pub fn take_over(&mut self, log: Option<&VringLog>) {
        let mut rx = setup(&self.memory, RX, self.features, &self.bells[RX], log);
        rx.base = self.guest_rx.base();
        self.guest_rx = GuestRx::new(&rx).unwrap();
        let mut tx = setup(&self.memory, TX, self.features, &self.bells[TX], log);
        tx.base = self.guest_tx.base();
        self.guest_tx = GuestTx::new(&tx).unwrap();
    }
}

#[derive(Default, Debug, PartialEq, Eq)]
pub struct Turn {
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
    bells: &Bells,
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
        kick: Some(Arc::clone(&bells.kick)),
        call: Some(Arc::clone(&bells.call)),
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
