//! Run with `cargo +nightly fuzz run frontends` in `dataplane`.
#![no_main]

#[path = "../bodies/frontends.rs"]
mod frontends;

libfuzzer_sys::fuzz_target!(|data: &[u8]| frontends::run(data));
