//! Virtual wires between memif and kernel ends.
pub mod engine;
pub mod kernel;
pub mod lane;
pub mod link;
pub mod mailbox;
pub mod memif;
pub mod offload;
pub mod port;
pub mod sleep;
pub mod spec;
pub mod status;
mod sync;
pub mod worker;
pub use engine::{Engine, EngineError, Idle, Settings};
