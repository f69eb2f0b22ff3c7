//! Network functions: what stands between the two wires of a hop of a service chain.
//!
//! What they decide is pure: a frame and the time in, a verdict or a rewritten frame out. Each judges headers on a copy of its own, which
//! no peer can change meanwhile. Nothing here does I/O.
//!
//! Modules in reading order:
//! - [`function`]: what every function is
//! - [`packet`]: the headers of a frame, checked; checksums
//! - [`flow`]: what packets of one conversation have in common; [`sessions`]: a bounded table of conversations
//! - [`fragments`]: later fragments share the fate of the first one
//! - [`firewall`]: ordered rules, and the ways back that they open

pub mod firewall;
pub mod flow;
pub mod fragments;
#[cfg(test)]
mod frames;
pub mod function;
pub mod packet;
pub mod sessions;

pub use function::{Disposition, Function, Side};
