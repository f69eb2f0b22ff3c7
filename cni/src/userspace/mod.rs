//! Sockets for pods: memif and vhost-user, as userspace-cni's configuration has them. The forwarder is at the other end, and two pods of
//! a network are joined by a wire.
//!
//! - [`SocketConfig`]: the keys of a network;
//! - [`seats`]: which end of which wire a pod has;
//! - [`add()`], [`del()`], [`check()`], [`status()`], [`gc()`]: the commands;
//! - `files`: what the pod finds in the shared directory.

mod add;
mod config;
mod del;
mod files;
pub mod seats;

pub use add::add;
pub use config::{SocketConfig, is_of_sockets};
pub use del::{check, del, gc, status};
