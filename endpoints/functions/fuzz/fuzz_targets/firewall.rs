//! Run with `cargo +nightly fuzz run firewall` in `endpoints/functions`.
#![no_main]

#[path = "../bodies/firewall.rs"]
mod firewall;
#[path = "../bodies/frames.rs"]
mod frames;

libfuzzer_sys::fuzz_target!(|data: &[u8]| firewall::run(data));
