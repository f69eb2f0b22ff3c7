//! Interfaces in namespaces.
//!
//! - [`Namespace`]: one, and what is asked of the kernel there;
//! - [`Link`]: an interface, as the kernel describes it;
//! - [`set_up`]: names, addresses, routes;
//! - `announce`: what the neighbours are told.

mod announce;
mod link;
mod namespace;
mod setup;

pub use link::Link;
pub use namespace::Namespace;
pub use setup::{Addressing, set_up};
