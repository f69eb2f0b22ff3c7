//! Virtual wires between memif and kernel ends.
pub mod engine;
pub mod memif;
pub mod offload;
pub mod port;
pub mod spec;
pub mod status;
pub use engine::{Engine, EngineError, Idle, Settings};
