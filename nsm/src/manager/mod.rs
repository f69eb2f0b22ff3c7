//! The manager of a node: every connection of the node goes through it, and it says through which forwarder.
//!
//! Its registry's side is [`crate::registry::RegistryServer`] over the same [`crate::registry::LocalRegistry`].

mod handler;

#[cfg(test)]
mod tests;

pub use handler::Manager;
