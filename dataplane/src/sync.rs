//! The atomics of [`crate::sleep`]. `tests/model.rs` compiles that file once more with a module of this
//! name that holds a model checker's atomics instead.

pub(crate) use std::sync::atomic::{AtomicBool, Ordering, fence};
