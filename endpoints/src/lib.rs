//! The peers at the ends of wires in tests, demonstrations and benchmarks.
//!
//! What they decide is pure: frames in, frames and counts out. The [`generator`] and the
//! [`memif_responder`] put that on the ends of wires.
//!
//! - [`memif`]: a memif interface, server or client.
//! - [`vhost_user`]: a vhost-user frontend, as DPDK's virtio-user is one; [`virtio`]: the driver's side of its rings.
//! - [`in_place`]: frames that are written where they are sent from.
//! - [`generator`]: sends stamped frames through a wire and checks what arrives.
//! - [`load`]: what it is asked to send.
//! - [`end`]: where it sends and receives: memif or vhost-user.
//! - [`latency`]: how long frames were under way.
//! - [`responder`]: answers ARP, neighbour solicitations and pings.
//! - [`memif_responder`]: a responder on a memif interface; the binary `responder` is one.
//! - [`traffic`]: builds stamped frames, and counts what became of them.

pub mod end;
pub mod generator;
pub mod in_place;
pub mod latency;
pub mod load;
pub mod memif;
pub mod memif_responder;
pub mod responder;
pub mod traffic;
pub mod vhost_user;
pub mod virtio;

pub use in_place::InPlace;
pub use responder::Responder;
pub use traffic::{Pattern, Sink};
