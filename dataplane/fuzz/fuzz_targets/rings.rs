//! Run with `cargo +nightly fuzz run rings` in `dataplane`.
#![no_main]

#[path = "../bodies/rings.rs"]
mod rings;

libfuzzer_sys::fuzz_target!(|data: &[u8]| rings::run(data));
