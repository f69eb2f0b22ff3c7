//! What an endpoint needs.
//!
//! - [`Endpoint`]: serves connections of kernel interfaces, memif sockets and VFs; [`MemifServer`]: who listens at those sockets
//! - [`Ipam`]: addresses for either end of a connection
//! - [`MiddleEndpoint`]: serves connections with memif ends ([`MemifEnds`]), and asks for the next hop of their chain; [`Between`]: what is
//!   between the two
//! - [`Offer`]: an endpoint as a process, registered and served

mod ipam;
mod memif;
mod middle;
mod serve;
mod server;

#[cfg(test)]
mod tests;

pub use ipam::{Ipam, IpamError};
pub use memif::{MemifEnds, memif_socket};
pub use middle::{Between, MiddleEndpoint};
pub use serve::{Offer, OfferError};
pub use server::{Endpoint, EndpointMechanism, MemifServer, MemifSocket};
