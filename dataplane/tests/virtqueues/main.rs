//! Both sides of virtqueues against each other in one process, and drivers that lie.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(missing_docs, reason = "tests say it by their names")]

mod frames;
mod lies;
mod log;
mod notifications;
mod pair;
mod restore;
mod setups;
