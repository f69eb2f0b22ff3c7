//! Honest traffic during an attack: numbered frames both ways over the bystanders' wires, and an honest
//! far end of the attacked wire that sends and reads all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::held::Repeat;
use crate::honest::{DEADLINE, Honest};

/// A thread that drives all honest ends.
pub struct Traffic {
    tallies: Arc<Tallies>,
    driver: Option<Repeat>,
}

#[derive(Default)]
struct Tallies {
    /// Frames that arrived in order: two directions of two wires.
    moved: [AtomicU64; 4],
    /// Frames of an honest peer that the far end of the attacked wire received.
    honest: AtomicU64,
    /// Frames of anybody that it received.
    far: AtomicU64,
}

impl Traffic {
    pub fn start(pairs: [[Honest; 2]; 2], far: Honest) -> Self {
        let tallies = Arc::new(Tallies::default());
        let mut driver = Driver { pairs, far, sent: [0; 5], tallies: Arc::clone(&tallies) };
        Self { tallies, driver: Some(Repeat::start(move || driver.round())) }
    }

    /// Nothing moves any more, and all honest ends are gone.
    pub fn stop(&mut self) {
        self.driver = None;
    }

    /// Waits until every bystander has moved on by [`STEP`] frames, both ways. How long that took.
    pub fn must_move(&self) -> Duration {
        let begun = Instant::now();
        let moved = || self.tallies.moved.each_ref().map(|count| count.load(Ordering::Relaxed));
        let before = moved();
        while moved().iter().zip(before).any(|(now, before)| *now < before + STEP) {
            assert!(begun.elapsed() < DEADLINE, "a bystander stands still: {before:?}, then {:?}", moved());
            thread::yield_now();
        }
        begun.elapsed()
    }

    /// Frames of an honest peer that reached the far end.
    pub fn honest_frames(&self) -> u64 {
        self.tallies.honest.load(Ordering::Relaxed)
    }

    /// Frames of anybody that reached the far end.
    pub fn far_frames(&self) -> u64 {
        self.tallies.far.load(Ordering::Relaxed)
    }
}

struct Driver {
    pairs: [[Honest; 2]; 2],
    far: Honest,
    sent: [u64; 5],
    tallies: Arc<Tallies>,
}

impl Driver {
    fn round(&mut self) {
        for direction in 0..4 {
            let (pair, side) = (direction / 2, direction % 2);
            let tally = &self.tallies.moved[direction];
            let mut arrived = tally.load(Ordering::Relaxed);
            while self.sent[direction] - arrived < WINDOW
                && self.pairs[pair][side].put(&numbered(direction, self.sent[direction]))
            {
                self.sent[direction] += 1;
            }
            while let Some(frame) = self.pairs[pair][1 - side].take() {
                assert_eq!(frame, numbered(direction, arrived), "a bystander's frame {arrived}");
                arrived += 1;
            }
            tally.store(arrived, Ordering::Relaxed);
        }
        if self.far.put(&numbered(FAR, self.sent[FAR])) {
            self.sent[FAR] += 1;
        }
        while let Some(frame) = self.far.take() {
            self.tallies.far.fetch_add(1, Ordering::Relaxed);
            if frame == HONEST {
                self.tallies.honest.fetch_add(1, Ordering::Relaxed);
            }
        }
        thread::yield_now();
    }
}

/// A frame whose every byte tells whose it is: some are longer than a buffer.
fn numbered(direction: usize, number: u64) -> Vec<u8> {
    let length = if number.is_multiple_of(8) { 4000 } else { 64 };
    let mut frame = vec![number as u8; length];
    frame[0] = direction as u8;
    frame[8..16].copy_from_slice(&number.to_be_bytes());
    frame
}

/// Whether a frame was sent by the far end of the attacked wire.
pub fn is_from_far(frame: &[u8]) -> bool {
    frame.len() >= 16
        && usize::from(frame[0]) == FAR
        && frame == numbered(FAR, u64::from_be_bytes(frame[8..16].try_into().unwrap()))
}

/// What an honest peer of the attacked end sends.
pub const HONEST: &[u8] = b"an honest frame of an honest peer, sixty bytes or thereabouts";
/// The direction number of the far end's frames.
const FAR: usize = 4;
/// Frames on the way in one direction.
const WINDOW: u64 = 64;
/// Frames by which everybody must have moved on.
pub const STEP: u64 = 100;
