//! vhost-user: a virtual machine's or a virtio-user process's network device, served in pure Rust.
//!
//! - [`spec`]: what an end should be; `port_spec`: what is asked of it like of every end;
//! - [`message`]: the bytes of each message; [`channel`]: a control socket, one message at a time;
//! - [`features`]: the bits that both sides negotiate; [`session`]: the conversation, without I/O;
//! - [`peer`]: a frontend as control sees it; [`restore`]: one written down for a successor process;
//! - [`eventfd`]: those of rings;
//! - [`memory`]: the guest's memory, by guest and by user address;
//! - [`vring`]: what a ring is made from; [`virtqueue`]: our ends of one, of either layout;
//! - [`split`] and [`packed`]: the hot paths of the two layouts, `chain` what is not so hot;
//! - [`rarp`]: how a guest that has moved is announced; [`log`]: the dirty log of a migration.
//!
//! The other side of the rings and of the socket, for programs of ours that are guests, is in the crate `endpoints`.

mod chain;
pub mod channel;
pub mod eventfd;
pub mod features;
mod guest;
mod inflight;
pub mod log;
pub mod memory;
pub mod message;
pub mod packed;
pub mod peer;
mod port_spec;
pub mod rarp;
pub mod restore;
pub mod session;
pub mod spec;
pub mod split;
pub mod virtqueue;
pub mod vring;

pub use chain::VirtqDescriptor;
