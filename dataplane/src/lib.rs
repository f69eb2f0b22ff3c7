//! Virtual wires: frames cross from one end to the other in one copy.
//!
//! This crate knows ports, wires and workers. It is *not* a daemon, and has no async, no gRPC and no
//! Kubernetes: `dpdk-forwarder` puts those around an [`Engine`].
//!
//! In reading order:
//! - [`spec`]: what a wire should be; [`status`]: what it is doing;
//! - [`settings`], [`engine`]: makes, watches and removes wires; [`control`]: the thread behind it;
//! - [`worker`]: the polling threads; [`lane`] and [`link`]: what they run; [`visit`], [`counters`] and [`traffic`]: what comes of it;
//! - [`capture`]: copies of frames for whoever looks at them;
//! - [`port`]: what a link needs of its ends; [`port::memif`], [`port::vhost_user`] and [`port::kernel`]: the kinds of
//!   them; [`port::any`]: the kinds joined; [`socket`]: where peers meet us; [`offload`]: checksums
//!   and segments in software;
//! - [`mailbox`] and [`sleep`]: how control meets a worker, and how a thread sleeps safely.

pub mod capture;
pub mod control;
pub mod counters;
pub mod engine;
pub mod lane;
pub mod link;
pub mod mailbox;
pub mod offload;
pub mod port;
pub mod settings;
pub mod sleep;
pub mod socket;
pub mod spec;
pub mod status;
mod sync;
pub mod traffic;
pub mod visit;
pub mod worker;

pub use engine::{Applied, Engine, EngineError, Health};
pub use settings::{Idle, Settings};
