//! What stands at the far ends of wires in tests, demonstrations and benchmarks.
//!
//! The brains are pure: frames in, frames and counts out. The [`generator`] and the
//! [`memif_responder`] put them on the ends of wires.
//!
//! - [`generator`]: sends stamped frames through a wire and checks what arrives.
//! - [`load`]: what it is asked to send.
//! - [`end`]: where it sends and receives: memif or vhost-user.
//! - [`latency`]: how long frames were under way.
//! - [`responder`]: answers ARP, neighbour solicitations and pings.
//! - [`memif_responder`]: a responder on a memif interface; the binary `responder` is one.
//! - [`traffic`]: builds stamped frames, and counts what became of them.

pub mod end;
pub mod generator;
pub mod latency;
pub mod load;
pub mod memif_responder;
pub mod responder;
pub mod traffic;

pub use responder::Responder;
pub use traffic::{Pattern, Sink};
