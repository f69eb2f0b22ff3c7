//! What stands at the far ends of wires in tests, demonstrations and benchmarks.
//!
//! Pure brains only: frames in, frames and counts out. Nothing here opens a socket or owns a ring.
//!
//! - [`responder`]: answers ARP, neighbour solicitations and pings.
//! - [`traffic`]: builds stamped frames, and counts what became of them.

pub mod responder;
pub mod traffic;

pub use responder::Responder;
pub use traffic::{Pattern, Sink};
