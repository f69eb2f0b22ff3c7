//! The peers at the ends of wires in tests, demonstrations and benchmarks.
//!
//! What they decide is pure: frames in, frames and counts out. The [`memif_responder`] puts it on the end of a wire; the
//! generator and sink of the crate `bench` use the same ends.
//!
//! - [`memif`]: a memif interface, server or client.
//! - [`vhost_user`]: a vhost-user frontend, as DPDK's virtio-user is one; [`virtio`]: the driver's side of its rings.
//! - [`kernel`]: an interface of the kernel.
//! - [`in_place`]: frames that are written where they are sent from.
//! - [`end`]: an end of either kind.
//! - [`responder`]: answers ARP, neighbour solicitations and pings.
//! - [`memif_responder`]: a responder on a memif interface; the binary `responder` is one.

pub mod end;
pub mod in_place;
pub mod kernel;
pub mod memif;
pub mod memif_responder;
pub mod responder;
pub mod vhost_user;
pub mod virtio;

pub use in_place::{Alike, InPlace};
pub use responder::Responder;
