//! VFs for pods: what a network says of one, its lease, its interface.
//!
//! - [`VfConfig`]: the keys of a network;
//! - [`record`]: what has to be known later;
//! - [`add()`], [`del()`], [`check()`], [`status()`], [`gc()`], [`gc_of_chain()`]: the commands;
//! - `settle`: the way back, of all of them.

mod add;
mod check;
mod config;
mod del;
pub mod record;
mod settle;
mod tree;

pub use add::add;
pub use check::{check, status};
pub use config::VfConfig;
pub use del::{del, gc, gc_of_chain};
