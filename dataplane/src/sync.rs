//! The one place where the atomics of the standard library are swapped for those of a model checker:
//! `RUSTFLAGS="--cfg loom" cargo test -p ferrule-dataplane --lib model`.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, Ordering, fence};
