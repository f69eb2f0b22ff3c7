//! Run with `cargo +nightly fuzz run nat44` in `endpoints/functions`.
#![no_main]

#[path = "../bodies/frames.rs"]
mod frames;
#[path = "../bodies/nat44.rs"]
mod nat44;

libfuzzer_sys::fuzz_target!(|data: &[u8]| nat44::run(data));
