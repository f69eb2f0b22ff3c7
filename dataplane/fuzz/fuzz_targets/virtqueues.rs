//! Run with `cargo +nightly fuzz run virtqueues` in `dataplane`.
#![no_main]

#[path = "../bodies/virtqueues.rs"]
mod virtqueues;

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtqueues::run(data));
