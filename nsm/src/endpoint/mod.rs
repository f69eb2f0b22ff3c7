//! What an endpoint needs.
//!
//! - [`KernelEndpoint`]: serves connections of kernel interfaces
//! - [`Ipam`]: addresses for either end of a connection

mod ipam;
mod server;

#[cfg(test)]
mod tests;

pub use ipam::{Ipam, IpamError};
pub use server::KernelEndpoint;
