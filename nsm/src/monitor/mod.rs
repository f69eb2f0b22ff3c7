//! Watching connections: the process that made one learns what becomes of it, from the next process and through it from all.
//!
//! - [`Monitor`]: what a process tells of its connections; [`selects`]: whom it concerns
//! - [`Follower`]: what the next process tells of one of ours

mod client;
mod selector;
mod server;

pub use client::Follower;
pub use selector::selects;
pub use server::Monitor;
