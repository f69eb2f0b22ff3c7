//! Run with `cargo +nightly fuzz run nptv6` in `endpoints/functions`.
#![no_main]

#[path = "../bodies/frames.rs"]
mod frames;
#[path = "../bodies/nptv6.rs"]
mod nptv6;

libfuzzer_sys::fuzz_target!(|data: &[u8]| nptv6::run(data));
