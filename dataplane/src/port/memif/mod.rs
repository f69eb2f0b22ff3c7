//! memif 2.0: shared-memory packet interfaces, the protocol of VPP, DPDK and libmemif, in pure Rust.
//!
//! - [`spec`]: what an end should be; `port_spec`: what is asked of it like of every end;
//! - [`message`]: the 128 bytes of each message;
//! - [`handshake`]: the conversation, without I/O;
//! - [`layout`]: regions and rings, checked;
//! - [`ring`]: the hot path;
//! - [`peer`]: what control keeps of one;
//! - [`restore`]: what a successor process is given of a connection;
//! - [`channel`]: a control socket, one message at a time.
//!
//! All of it together, for programs of ours that are the peer at the other end of a wire, is in the crate `endpoints`.

pub mod channel;
pub mod handshake;
pub mod layout;
pub mod message;
pub mod peer;
mod port_spec;
pub mod restore;
pub mod ring;
pub mod spec;
