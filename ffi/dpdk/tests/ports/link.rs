//! A port with its queues, and frames for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dpdk::config::PortConfig;
use ferrule_dpdk::eal::{Eal, EalSettings};
use ferrule_dpdk::port::Port;
use ferrule_dpdk::queue::{RxQueue, Stored, TxQueue};
use ferrule_ffi::span::Span;
use nix::sched::{CloneFlags, unshare};

/// DPDK, for one test at a time: its ports are few, and are counted.
pub fn dpdk() -> (&'static Eal, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let eal = Eal::start(EalSettings::default()).unwrap();
    assert_eq!(eal.ports().len(), 0, "the test before has left something");
    (eal, turn)
}

/// A port, and its queues.
pub struct Link {
    pub queues: Vec<(RxQueue, TxQueue)>,
    pub port: Arc<Port>,
}

impl Link {
    pub fn open(eal: &'static Eal, devargs: &str, config: PortConfig) -> Self {
        let (port, queues) = Port::open(eal, devargs, &config, Arc::new(|_| {})).unwrap();
        Self { queues, port }
    }

    /// Sends one frame by queue 0.
    pub fn send(&mut self, frame: &[u8]) {
        let tx = &mut self.queues[0].1;
        assert_eq!(tx.store_run(&[Span::from(frame)]), 1);
        eventually("the frame is sent", || tx.flush());
    }

    /// Sends one frame by queue 0, of pieces.
    pub fn send_pieces(&mut self, pieces: &[&[u8]]) {
        let tx = &mut self.queues[0].1;
        let pieces: Vec<_> = pieces.iter().map(|&piece| Span::from(piece)).collect();
        assert_eq!(tx.store(&pieces), Stored::Yes);
        eventually("the frame is sent", || tx.flush());
    }

    /// The next frame of ours, whichever queue it comes by, and in how many pieces it lay. A kernel has frames of its own.
    pub fn receive(&mut self) -> (Vec<u8>, usize) {
        let mut found = None;
        eventually("a frame comes", || {
            for (rx, _) in &mut self.queues {
                if found.is_none() && rx.poll() {
                    let frame = {
                        let pieces = rx.pieces();
                        (pieces.concat(), pieces.len())
                    };
                    rx.take(1);
                    rx.release();
                    found = Some(frame).filter(|(frame, _)| frame[12..14] == ETHERTYPE);
                }
            }
            found.is_some()
        });
        found.unwrap()
    }
}

/// A frame of so many bytes, each number another one.
pub fn frame(len: usize, number: u8) -> Vec<u8> {
    let mut frame: Vec<_> = (0..len).map(|place| (place as u8).wrapping_mul(31).wrapping_add(number)).collect();
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&ETHERTYPE);
    frame
}

pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "this did not happen: {what}");
        thread::yield_now();
    }
}

/// Runs a test on a thread that has a network namespace to itself.
pub fn in_namespace(name: &str, test: impl FnOnce() + Send + 'static) {
    let name = name.to_owned();
    let thread = thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("skipped: {name}: a network namespace ({error})");
            return;
        }
        test();
    });
    thread.join().unwrap();
}

/// For local experiments (IEEE 802).
pub const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
