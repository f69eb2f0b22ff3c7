//! The fuzz targets for a few seconds, without a fuzzer: good inputs, spoilt at random. The real fuzzer
//! runs the same functions (docs/testing.md).

mod common;
#[path = "../fuzz/bodies/frontends.rs"]
mod frontends;
#[path = "../fuzz/bodies/messages.rs"]
mod messages;
#[path = "../fuzz/bodies/rings.rs"]
mod rings;
#[path = "../fuzz/bodies/virtqueues.rs"]
mod virtqueues;

use std::panic;
use std::time::{Duration, Instant};

use common::TestRng;

#[test]
fn no_conversation_does_harm() {
    spoil("messages", &messages::seeds(), messages::run);
}

#[test]
fn no_change_to_a_ring_does_harm() {
    spoil("rings", &rings::seeds(), rings::run);
}

#[test]
fn no_frontend_does_harm() {
    spoil("frontends", &frontends::seeds(), frontends::run);
}

#[test]
fn no_change_to_a_virtqueue_does_harm() {
    spoil("virtqueues", &virtqueues::seeds(), virtqueues::run);
}

/// Runs the good inputs, and then spoilt ones for some seconds. A failure names the number that makes it
/// happen again.
fn spoil(target: &str, seeds: &[Vec<u8>], run: fn(&[u8])) {
    for seed in seeds {
        run(seed);
    }
    let deadline = Instant::now() + ENOUGH;
    let mut number = 1;
    while Instant::now() < deadline {
        let input = spoilt(seeds, number);
        let result = panic::catch_unwind(|| run(&input));
        assert!(result.is_ok(), "fuzz target {target}: input {number} fails: {input:?}");
        number += 1;
    }
    println!("fuzz target {target}: {number} inputs withstood");
}

fn spoilt(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut rng = TestRng(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut input = seeds[rng.roll() as usize % seeds.len()].clone();
    for _ in 0..=rng.roll() % 8 {
        let at = rng.roll() as usize % input.len();
        match rng.roll() % 6 {
            0 => input[at] = rng.roll() as u8,
            1 => input[at] ^= 1 << (rng.roll() % 8),
            2 => input[at] = [0, 1, 127, 128, 255][rng.roll() as usize % 5],
            3 => input.truncate(at.max(1)),
            4 => input.extend_from_within(at..),
            _ => {
                let from = rng.roll() as usize % input.len();
                let len = (rng.roll() as usize % 8).min(input.len() - from.max(at));
                input.copy_within(from..from + len, at);
            }
        }
        input.truncate(LONGEST);
    }
    input
}

const ENOUGH: Duration = Duration::from_secs(3);
const LONGEST: usize = 8192;
