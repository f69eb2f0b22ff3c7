//! vhost-user: a virtual machine's or a virtio-user process's network device, served in pure Rust.
//!
//! - [`features`]: the bits that both sides negotiate;
//! - [`memory`]: the guest's memory, by guest and by user address;
//! - [`vring`]: what a ring is made from, and our ends of one;
//! - [`split`] and [`packed`]: the hot paths of the two layouts, `chain` what is not so hot;
//! - [`log`]: the dirty log of a migration;
//! - [`driver`]: the other side of the rings, for programs of ours that are guests.

mod chain;
pub mod driver;
pub mod features;
mod guest;
pub mod log;
pub mod memory;
pub mod packed;
pub mod split;
pub mod vring;
