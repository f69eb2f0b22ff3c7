//! Kernel ends in real network namespaces, joined with memif ends by a real engine.
//!
//! - [`ping`]: a namespace and a responder of ours;
//! - [`transfer`]: two namespaces, TCP and UDP between them;
//! - [`inspect`]: what leaves a kernel end towards a memif end;
//! - [`life`]: namespaces deleted, interfaces set down, peers away;
//! - [`restart`]: veth pairs whose process is killed, started again, out of descriptors;
//! - [`refusals`]: what cannot be made, and that it leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod inspect;
mod life;
mod ping;
mod refusals;
mod restart;
mod testbed;
mod transfer;
