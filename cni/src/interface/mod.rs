//! Interfaces in namespaces.
//!
//! - [`Namespace`]: one, and what is asked of the kernel there;
//! - [`Link`]: an interface, as the kernel describes it;
//! - [`open_pod`]: that of a container, and [`lost_address`]: what one has no more;
//! - [`set_up`]: names, addresses, routes;
//! - `announce`: what the neighbours are told.

mod announce;
mod link;
mod namespace;
mod pod;
mod setup;

pub use link::Link;
pub use namespace::Namespace;
pub use pod::{lost_address, open_pod};
pub use setup::{Addressing, set_up};
