//! Which services there are and who offers them: a registry in memory, its calls, and how one asks it.
//!
//! - [`select`], [`labels`]: what a query, a client and a manager mean (pure)
//! - [`MemoryRegistry`]: what is registered, with limits and expiry; [`LocalRegistry`]: with the sockets that endpoints pass, [`Upstream`]: as a part of one elsewhere; [`RegistryServer`]: its calls, with tokens checked
//! - [`RegistryClient`], [`RegistryCache`], [`Registration`]: asking, knowing without asking, staying registered
//! - [`RegistryPath`], [`Entered`]: the way of a registration

mod cache;
mod client;
pub mod labels;
mod limits;
mod local;
mod memory;
mod path;
mod registration;
pub mod select;
mod server;
mod sockets;
mod upstream;

#[cfg(test)]
mod tests;

pub use cache::{Lookup, RegistryCache};
pub use client::{FoundEndpoint, RegistryClient};
pub use limits::RegistrationError;
pub use local::LocalRegistry;
pub use memory::{MemoryRegistry, RegistryLimits};
pub use path::{Entered, RegistryPath, RegistrySegment};
pub use registration::Registration;
pub use server::RegistryServer;
pub(crate) use upstream::FORWARDER_SERVICE;
pub use upstream::Upstream;
