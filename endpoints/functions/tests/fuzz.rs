//! The fuzz targets for a few seconds, without a fuzzer: good inputs, spoilt at random. The real fuzzer runs the same functions
//! (docs/testing.md).

#[path = "../fuzz/bodies/firewall.rs"]
mod firewall;
#[path = "../fuzz/bodies/frames.rs"]
mod frames;
#[path = "../fuzz/bodies/nat44.rs"]
mod nat44;
#[path = "../fuzz/bodies/nptv6.rs"]
mod nptv6;

use std::hash::{BuildHasher, RandomState};
use std::panic;
use std::time::{Duration, Instant};

#[test]
fn no_frame_does_a_firewall_harm() {
    spoil("firewall", &frames::seeds(), firewall::run);
}

#[test]
fn no_frame_does_a_nat44_harm() {
    spoil("nat44", &frames::seeds(), nat44::run);
}

#[test]
fn no_frame_does_an_nptv6_translator_harm() {
    spoil("nptv6", &frames::seeds(), nptv6::run);
}

/// Runs the good inputs, and then spoilt ones for some seconds. A failure shows the input.
fn spoil(target: &str, seeds: &[Vec<u8>], run: fn(&[u8])) {
    for seed in seeds {
        run(seed);
    }
    let deadline = Instant::now() + ENOUGH;
    let mut count = 0;
    let mut state = RandomState::new().hash_one(target) | 1;
    while Instant::now() < deadline {
        let input = spoilt(seeds, &mut state);
        let result = panic::catch_unwind(|| run(&input));
        assert!(result.is_ok(), "fuzz target {target} fails: {input:?}");
        count += 1;
    }
    println!("fuzz target {target}: {count} inputs withstood");
}

fn spoilt(seeds: &[Vec<u8>], state: &mut u64) -> Vec<u8> {
    // Xorshift (Marsaglia, 2003).
    let mut roll = |below: usize| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) as usize % below
    };
    // Some conversations one after the other.
    let mut input: Vec<u8> = (0..=roll(3)).flat_map(|_| seeds[roll(seeds.len())].clone()).collect();
    for _ in 0..roll(10) {
        let at = roll(input.len());
        match roll(5) {
            0 => input[at] = roll(256) as u8,
            1 => input[at] ^= 1 << roll(8),
            2 => input[at] = [0, 1, 127, 128, 255][roll(5)],
            3 => input.truncate(at.max(1)),
            _ => input.extend_from_within(at..),
        }
        input.truncate(LONGEST);
    }
    input
}

const ENOUGH: Duration = Duration::from_secs(3);
const LONGEST: usize = 8192;
