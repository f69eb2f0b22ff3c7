//! Virtual wires between memif and kernel ends.
pub mod engine;
pub mod kernel;
pub mod spec;
pub mod status;
pub use engine::{Engine, EngineError, Idle, Settings};
